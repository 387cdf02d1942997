-- Modules made of modules.
local describe = require("lunce.options").describe
local is_module = require("lunce.nn.module").is_module
local module = require("lunce.nn.module").module
local raise = require("lunce.ffi").raise

local M = {}

local function need_module(x, what, name)
  if not is_module(x) then raise("%s: %s is %s; a module is taken", what, name, describe(x)) end
  return x
end

--- One module after the other. s[1] is the first; its parameters are named "0.weight".
---@overload fun(...: lunce.Module)
M.Sequential = module("Sequential", {
  init = function(self, ...)
    for i = 1, select("#", ...) do
      self[i] = need_module((select(i, ...)), "Sequential", "argument " .. i)
    end
  end,
  forward = function(self, x)
    local i = 1
    while self[i] do
      x = self[i](x)
      i = i + 1
    end
    return x
  end,
})

--- shortcut(x) + body(x); without a shortcut, x itself, which must have the shape of body(x).
---@overload fun(body: lunce.Module, shortcut?: lunce.Module)
M.Residual = module("Residual", {
  init = function(self, body, shortcut)
    self.body = need_module(body, "Residual", "body")
    if shortcut ~= nil then self.shortcut = need_module(shortcut, "Residual", "shortcut") end
  end,
  forward = function(self, x)
    return self.body(x) + (self.shortcut and self.shortcut(x) or x)
  end,
})

return M

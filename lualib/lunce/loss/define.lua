-- How a loss is declared: its arguments, formula, source and options beside the function that
-- computes it. A declared loss is called like a function and prints what it is. Holds no loss and
-- no state. Invariant: the options that are described are those that are taken, with the defaults
-- that are computed with; they stand nowhere else.
local arguments = require "lunce.loss.arguments"
local autocast = require "lunce.autocast"
local options = require("lunce.options").options
local raise = require("lunce.ffi").raise

local WIDTH = 96

---@class lunce.Loss
---@field name string
---@field summary string
---@field takes string[] the arguments that precede the options
---@field gives string|nil what it returns besides the scalar
---@field formula string
---@field where string|nil what the letters of the formula mean
---@field source string
---@field options table[] each { name, default, meaning, kind }: the kind is "positive" or "scalar"
---  (a number or a tensor of one element), "any" (the loss itself checks), or, where it is absent,
---  the default's type; a default of false is an option that may stay absent
---@overload fun(...: any): lunce.Tensor, table|nil
local Loss = { __name = "loss" }
Loss.__index = Loss

local KINDS = {
  positive = arguments.positive,
  scalar = arguments.scalar,
  any = function(value) return value end,
}

local function complete(loss, given)
  local taken, result = options(given, loss.defaults, loss.name), {}
  for _, option in ipairs(loss.options) do
    local name, kind = option[1], option[4]
    local value = taken[name]
    result[name] = kind and KINDS[kind](value or option[2], name, loss.name) or value
  end
  return result
end

function Loss:__call(...)
  local n = #self.takes
  if select("#", ...) > n + 1 then
    raise("%s: takes %s and options; got %d arguments", self.name, table.concat(self.takes, ", "),
      select("#", ...))
  end
  local given = { ... }
  for i = 1, n do given[i] = autocast.wide(given[i]) end
  given[n + 1] = complete(self, given[n + 1])
  return self.compute(unpack(given, 1, n + 1))
end

-- ---- In words --------------------------------------------------------------------------------

-- The text in lines of WIDTH, the first after `head`, the others under its end; a line break in the
-- text is kept.
local function paragraph(head, text)
  local lines, indent = {}, (" "):rep(#head)
  for part in text:gmatch "[^\n]+" do
    local line = #lines == 0 and head or indent
    for word in part:gmatch "%S+" do
      if #line + #word >= WIDTH and #line > #head then
        lines[#lines + 1] = line
        line = indent
      end
      line = line .. (#line == #head and "" or " ") .. word
    end
    lines[#lines + 1] = line
  end
  return table.concat(lines, "\n")
end

local function default_text(default)
  if type(default) == "string" then return ("%q"):format(default) end
  if type(default) == "number" then return ("%.4g"):format(default) end
  return "-"
end

local function option_lines(loss)
  local lines, defaults, name_width, default_width = {}, {}, 0, 0
  for i, option in ipairs(loss.options) do
    defaults[i] = default_text(option[2])
    name_width = math.max(name_width, #option[1])
    default_width = math.max(default_width, #defaults[i])
  end
  local head = ("  %%-8s %%-%ds  %%-%ds  "):format(name_width, default_width)
  for i, option in ipairs(loss.options) do
    local meaning, kind = option[3], option[4]
    if kind == "positive" or kind == "scalar" then
      meaning = meaning .. "; a number or a tensor of one element"
    end
    lines[i] = paragraph(head:format(i == 1 and "options" or "", option[1], defaults[i]), meaning)
  end
  return lines
end

function Loss:__tostring()
  local call = table.concat(self.takes, ", ") .. (self.options[1] and ", options" or "")
  local lines = { ("%s(%s)\n  %s"):format(self.name, call, self.summary) }
  for _, field in ipairs{ "formula", "where", "gives", "source" } do
    if self[field] then lines[#lines + 1] = paragraph(("  %-8s "):format(field), self[field]) end
  end
  for _, line in ipairs(option_lines(self)) do lines[#lines + 1] = line end
  return table.concat(lines, "\n")
end

--- Declares a loss.
---@param loss lunce.Loss without what this adds to it
---@param compute fun(...): lunce.Tensor, table|nil of the arguments and the completed options
---@return lunce.Loss
return function(loss, compute)
  loss.compute, loss.defaults = compute, {}
  for _, option in ipairs(loss.options) do
    loss.defaults[option[1]] = not option[4] and option[2]
  end
  return setmetatable(loss, Loss)
end

-- The vocabulary of link functions: the mathematics that a function of a similarity `s` may use.
-- Each word takes a tensor (or whatever else has a method of that name, as a symbol of the link
-- tracer has) or a number, and gives the same kind back. Holds no state but what conditions have
-- compared, and names no loss.
-- Invariant: a word has one meaning for every kind of argument, and one gradient.
--
--   local link = require "lunce.link"
--   local log, min = link.log, link.min
--   local function shortfall(s, beta) return -beta * log(1 - min(s, 1 - 1e-6)) end
--   print(link.show(shortfall))
local raise = require("lunce.ffi").raise
local describe = require("lunce.options").describe
local tensor = require "lunce.tensor"

local M = {}

local function softplus(x) return math.max(x, 0) + math.log(1 + math.exp(-math.abs(x))) end
local function sigmoid(x) return 1 / (1 + math.exp(-x)) end

local UNARY = {
  exp = math.exp, log = math.log, sqrt = math.sqrt, abs = math.abs, tanh = math.tanh,
  sin = math.sin, cos = math.cos, sigmoid = sigmoid, softplus = softplus,
  log1p = function(x) return math.log(1 + x) end,
  expm1 = function(x) return math.exp(x) - 1 end,
  square = function(x) return x * x end,
  relu = function(x) return math.max(x, 0) end,
}
local function check(name, x)
  if type(x) ~= "number" and not (type(x) == "table" and x.exp) then
    raise("%s: a tensor or a number is taken; got %s", name, describe(x))
  end
end

for name, number_form in pairs(UNARY) do
  M[name] = function(x)
    if type(x) == "number" then return number_form(x) end
    check(name, x)
    return x[name](x)
  end
end

local COMPARISON = {
  lt = function(a, b) return a < b end, le = function(a, b) return a <= b end,
  gt = function(a, b) return a > b end, ge = function(a, b) return a >= b end,
  eq = function(a, b) return a == b end,
}
local MIRROR = { lt = "gt", le = "ge", gt = "lt", ge = "le", eq = "eq" }

-- By condition, a tensor: the dtype of what it compared. Numbers that it chooses between take it,
-- as they take the similarities' where the link is traced.
local compared = setmetatable({}, { __mode = "k" })

for name, number_form in pairs(COMPARISON) do
  M[name] = function(a, b)
    check(name, a)
    check(name, b)
    if type(a) == "number" and type(b) == "number" then return number_form(a, b) end
    local condition = type(a) ~= "number" and a[name](a, b) or b[MIRROR[name]](b, a)
    if tensor.is_tensor(condition) then
      compared[condition] = (type(a) ~= "number" and a or b).dtype
    end
    return condition
  end
end

--- x kept within [lo, hi]; the gradient outside is zero. Either bound may be nil. A bound that is
--- no number is as in min and max.
---@param x lunce.Tensor|number
---@param lo lunce.Tensor|number|nil
---@param hi lunce.Tensor|number|nil
function M.clamp(x, lo, hi)
  lo, hi = lo or -math.huge, hi or math.huge
  check("clamp", x)
  check("clamp", lo)
  check("clamp", hi)
  if type(lo) ~= "number" or type(hi) ~= "number" then return M.min(M.max(x, lo), hi) end
  if type(x) ~= "number" then return x:clamp(lo, hi) end
  return math.min(math.max(x, lo), hi)
end

--- The smaller of two, element by element. Equals share the gradient; a bound that is a number
--- leaves it to x.
function M.min(x, y)
  check("min", x)
  check("min", y)
  if type(y) == "number" then return M.clamp(x, nil, y) end
  if type(x) == "number" then return M.clamp(y, nil, x) end
  return x:minimum(y)
end

--- The larger of two, element by element; gradients as in min.
function M.max(x, y)
  check("max", x)
  check("max", y)
  if type(y) == "number" then return M.clamp(x, y, nil) end
  if type(x) == "number" then return M.clamp(y, x, nil) end
  return x:maximum(y)
end

--- a where the condition, a comparison, holds, else b: what `if` cannot say about a tensor.
function M.where(condition, a, b)
  if type(condition) == "boolean" then
    if condition then return a end
    return b
  elseif type(condition) ~= "table" or not condition.where then
    raise("where: the condition is %s; a comparison is taken: link.lt(s, x)", describe(condition))
  end
  local dtype = type(a) == "number" and type(b) == "number" and compared[condition]
  if dtype then
    a = require("lunce").full({}, a, { dtype = dtype, device = condition.device })
  end
  return condition:where(a, b)
end

--- What the engine makes of a link function: formula, derivatives, program and bounds, in a report
--- that prints itself (lunce.link.show).
---@param f function
---@param ... any its parameters: numbers, tensors, names
---@return lunce.LinkReport
function M.show(f, ...) return require "lunce.link.show"(f, ...) end

return setmetatable(M, {
  __index = function(_, word)
    local words = {}
    for name in pairs(M) do words[#words + 1] = name end
    table.sort(words)
    raise("lunce.link has no word %s; its words are %s", describe(word), table.concat(words, ", "))
  end,
})

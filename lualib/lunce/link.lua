-- The vocabulary of link functions: the mathematics that a function of a similarity `s` may use.
-- Each word takes a tensor (or whatever else has a method of that name, as a symbol of the link
-- tracer has) or a number, and gives the same kind back. Holds no state and names no loss.
-- Invariant: a word has one meaning for every kind of argument, and one gradient.
--
--   local link = require "lunce.link"
--   local log, min = link.log, link.min
--   local function shortfall(s, beta) return -beta * log(1 - min(s, 1 - 1e-6)) end
--   print(link.show(shortfall))
local raise = require("lunce.ffi").raise
local describe = require("lunce.options").describe

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
  if type(x) ~= "number" and type(x) ~= "table" then
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
for name, number_form in pairs(COMPARISON) do
  M[name] = function(a, b)
    check(name, a)
    check(name, b)
    if type(a) ~= "number" then return a[name](a, b) end
    if type(b) ~= "number" then return b[MIRROR[name]](b, a) end
    return number_form(a, b)
  end
end

--- x kept within [lo, hi]; the gradient outside is zero. Either bound may be nil.
---@param x lunce.Tensor|number
---@param lo number|nil
---@param hi number|nil
function M.clamp(x, lo, hi)
  check("clamp", x)
  if type(x) ~= "number" then return x:clamp(lo or -math.huge, hi or math.huge) end
  return math.min(math.max(x, lo or -math.huge), hi or math.huge)
end

--- The smaller of two, element by element; a bound that is a number passes no gradient to x.
function M.min(x, y)
  check("min", x)
  check("min", y)
  if type(y) == "number" then return M.clamp(x, nil, y) end
  if type(x) == "number" then return M.clamp(y, nil, x) end
  return x:minimum(y)
end

--- The larger of two, element by element; a bound that is a number passes no gradient to x.
function M.max(x, y)
  check("max", x)
  check("max", y)
  if type(y) == "number" then return M.clamp(x, y, nil) end
  if type(x) == "number" then return M.clamp(y, x, nil) end
  return x:maximum(y)
end

--- a where the condition holds, else b: what `if` cannot say about a tensor.
function M.where(condition, a, b)
  if type(condition) == "boolean" then
    if condition then return a end
    return b
  end
  return condition:where(a, b)
end

--- What the engine makes of a link function: formula, derivatives, program and bounds, in a report
--- that prints itself (lunce.link.show).
---@param f function
---@param ... any its parameters: numbers, tensors, names
---@return lunce.LinkReport
function M.show(f, ...) return require "lunce.link.show"(f, ...) end

return M

-- Symbolic link functions: the graph that calling a link on a symbol builds, its simplification as
-- it is built, and its derivatives. Knows nothing of tensors' elements, matrices or C. Invariant:
-- a graph holds one node for each distinct expression (hash-consing), and a node's operands have
-- smaller ids than it.
--
-- Every node is made by `node`, which folds constants and applies the identities below, so that
-- derivatives come out simplified as well.
local raise = require("lunce.ffi").raise
local describe = require("lunce.options").describe

local M = {}

---@class lunce.Symbol
---@field op string
---@field id integer
---@field number number|nil the value of a constant
---@field parameter integer|nil the place of a parameter
local Symbol = { __name = "symbol of a link" }
M.Symbol = Symbol

local function is_symbol(x) return getmetatable(x) == Symbol end
M.is_symbol = is_symbol

-- ---- Numbers ---------------------------------------------------------------------------------

local exp, log, abs = math.exp, math.log, math.abs

local function truth(x) return x and 1 or 0 end

local FOLD = {
  ["neg"] = function(x) return -x end, abs = abs, square = function(x) return x * x end,
  sqrt = math.sqrt, exp = exp, expm1 = function(x) return exp(x) - 1 end,
  log = function(x) return log(x) end, -- not a base
  log1p = function(x) return log(1 + x) end, tanh = math.tanh,
  sigmoid = function(x) return 1 / (1 + exp(-x)) end,
  softplus = function(x) return math.max(x, 0) + log(1 + exp(-abs(x))) end,
  add = function(x, y) return x + y end, sub = function(x, y) return x - y end,
  mul = function(x, y) return x * y end, div = function(x, y) return x / y end,
  pow = function(x, y) return x ^ y end,
  min = function(x, y) return y < x and y or x end,
  max = function(x, y) return y > x and y or x end,
  lt = function(x, y) return truth(x < y) end, le = function(x, y) return truth(x <= y) end,
  gt = function(x, y) return truth(x > y) end, ge = function(x, y) return truth(x >= y) end,
  eq = function(x, y) return truth(x == y) end,
  where = function(c, x, y) return c ~= 0 and x or y end,
  relu = function(x) return math.max(x, 0) end,
}
local COMPARISONS = { lt = true, le = true, gt = true, ge = true, eq = true }
M.COMPARISONS = COMPARISONS

-- ---- Making nodes ----------------------------------------------------------------------------

-- Every field is set, if only to false: an absent one would be read as a word of the language.
-- `read` tells whether any operation was given the node.
local function intern(graph, key, op, x, y, z)
  local found = graph.by_key[key]
  if found then return found end
  graph.count = graph.count + 1
  found = setmetatable({ x or false, y or false, z or false, op = op, graph = graph,
    id = graph.count, number = false, parameter = false, name = false, read = false }, Symbol)
  graph.nodes[graph.count] = found
  graph.by_key[key] = found
  return found
end

local function constant(graph, value)
  local leaf = intern(graph, ("#%.17g"):format(value), "number")
  leaf.number = value
  return leaf
end

local simplify -- by operation: nil, or a simpler node for these operands

local function node(op, x, y, z)
  local graph = x.graph
  x.read = true
  if y then y.read = true end
  if z then z.read = true end
  if x.number and (not y or y.number) and (not z or z.number) then
    return constant(graph, FOLD[op](x.number, y and y.number, z and z.number))
  end
  local rule = simplify[op]
  local simpler = rule and rule(x, y, z)
  if simpler then return simpler end
  local key = op .. ":" .. x.id .. ":" .. (y and y.id or "") .. ":" .. (z and z.id or "")
  return intern(graph, key, op, x, y, z)
end

local function is(x, value) return x.number == value end

local function number(x, value) return constant(x.graph, value) end

local function add(x, y) return node("add", x, y) end
local function sub(x, y) return node("sub", x, y) end
local function mul(x, y) return node("mul", x, y) end
local function div(x, y) return node("div", x, y) end
local function neg(x) return node("neg", x) end

-- x as a node and the number that it is multiplied by. Numbers stand outermost in products and
-- quotients, so that they meet and fold.
local function scaled(x)
  if x.op == "neg" then return x[1], -1 end
  if x.op == "mul" and x[2].number then return x[1], x[2].number end
  return x, 1
end

local function times(x, factor)
  if factor == 1 then return x end
  return factor == -1 and neg(x) or mul(x, number(x, factor))
end

local function factor(x, y)
  if x == y then return number(x, 1) end
  if x.op == "square" and x[1] == y then return y end
end

local function dividend(x, y)
  if x.op == "div" and x[2] == y then return x[1] end
end

local DEPTH = 4 -- how far `without` looks into a product, whose factors may be many

-- The product x where part(z, y), a factor or dividend, takes the place of one of its factors z;
-- nil where none has that part.
local function without(x, y, part, depth)
  local found = part(x, y)
  if found or depth == 0 or x.op ~= "mul" and x.op ~= "div" then return found end
  local left = without(x[1], y, part, depth - 1)
  if left then return node(x.op, left, x[2]) end
  local right = x.op == "mul" and without(x[2], y, part, depth - 1)
  return right and mul(x[1], right)
end

simplify = {
  neg = function(x)
    local y, c = scaled(x)
    if x.op == "neg" then return y end
    if x.op == "sub" then return sub(x[2], x[1]) end
    if y.op == "sub" and c > 0 then return times(sub(y[2], y[1]), c) end
    if c ~= 1 then return times(y, -c) end
    if x.op == "div" and x[1].number then return div(number(x, -x[1].number), x[2]) end
    if x.op == "add" and x[2].number then return sub(number(x, -x[2].number), x[1]) end
  end,
  add = function(x, y)
    if is(x, 0) then return y end
    if is(y, 0) then return x end
    local a, c = scaled(x)
    local b, d = scaled(y)
    if a == b then return times(a, c + d) end
    if y.op == "neg" then return sub(x, y[1]) end
    if x.op == "neg" then return sub(y, x[1]) end
    -- (1 - s) + 1e-8 stays: folded, the number would round the 1e-8 away.
    if x.number or (not y.number and x.id > y.id) then return add(y, x) end
  end,
  sub = function(x, y)
    if y.number then return add(x, number(x, -y.number)) end
    if is(x, 0) then return neg(y) end
    local a, c = scaled(x)
    local b, d = scaled(y)
    if a == b then return times(a, c - d) end
    if y.op == "neg" then return add(x, y[1]) end
  end,
  mul = function(x, y)
    if is(x, 0) or is(y, 0) then return number(x, 0) end
    if x.number then return mul(y, x) end
    if is(y, 1) or is(y, -1) then return times(x, y.number) end
    local a, c = scaled(x)
    if y.number and c ~= 1 then return times(a, c * y.number) end
    if y.number and x.op == "div" and x[1].number then
      return div(number(x, x[1].number * y.number), x[2])
    end
    if y.number then return nil end
    local b, d = scaled(y)
    if c ~= 1 or d ~= 1 then return times(mul(a, b), c * d) end
    if x == y then return node("square", x) end
    local cancelled = without(x, y, dividend, DEPTH) or without(y, x, dividend, DEPTH)
    if cancelled then return cancelled end
    if x.op == "div" and x[1].number then x, y = y, x end
    if y.op == "div" and y[1].number then return times(div(x, y[2]), y[1].number) end
    if x.id > y.id then return mul(y, x) end
  end,
  div = function(x, y)
    if is(x, 0) then return x end
    if y.number and y.number ~= 0 then return times(x, 1 / y.number) end
    local a, c = scaled(x)
    local b, d = scaled(y)
    if x.number and d ~= 1 then return div(number(x, x.number / d), b) end
    if c ~= 1 or d ~= 1 then return times(div(a, b), c / d) end
    local cancelled = without(x, y, factor, DEPTH)
    if cancelled then return cancelled end
    if is(x, 1) and y.op == "add" and is(y[2], 1) and y[1].op == "exp" then
      return node("sigmoid", neg(y[1][1])) -- 1 / (1 + exp(x))
    end
  end,
  pow = function(x, y)
    if is(y, 0) then return number(x, 1) end
    if is(y, 1) then return x end
    if is(y, 2) then return node("square", x) end
    if is(y, 0.5) then return node("sqrt", x) end
    if is(y, -1) then return div(number(x, 1), x) end
  end,
  log = function(x)
    if x.op == "exp" then return x[1] end
    if x.op == "add" and is(x[2], 1) then
      if x[1].op == "exp" then return node("softplus", x[1][1]) end
      return node("log1p", x[1])
    end
    if x.op == "sub" and is(x[1], 1) then return node("log1p", neg(x[2])) end
  end,
  log1p = function(x)
    if x.op == "exp" then return node("softplus", x[1]) end
  end,
  exp = function(x)
    if x.op == "log" then return x[1] end
  end,
  abs = function(x)
    if x.op == "neg" or x.op == "abs" then return node("abs", x[1]) end
  end,
  square = function(x)
    if x.op == "neg" or x.op == "abs" then return node("square", x[1]) end
  end,
  -- A number is a bound and stands second, as in clamp.
  min = function(x, y) return x.number and node("min", y, x) end,
  max = function(x, y) return x.number and node("max", y, x) end,
  where = function(c, x, y)
    if x == y then return x end
    if c.number then return c.number ~= 0 and x or y end
    if is(x, 1) and is(y, 0) and COMPARISONS[c.op] then return c end
  end,
}

-- ---- Derivatives -----------------------------------------------------------------------------

local function choose(c, x, y) return node("where", c, x, y) end

-- Of the smaller or larger: ties share the gradient, but a bound that is a number has none.
local function of_extreme(wins)
  return function(_, x, dx, y, dy)
    local one = choose(node(wins, x, y), dx, dy)
    if y.number then return one end
    return choose(node("eq", x, y), mul(add(dx, dy), number(x, 0.5)), one)
  end
end

local TINY = 1e-37 -- a normal number of float32 too

-- Whether x is 0 or above by its form, and may be 0.
local function reaches_zero(x)
  local y = x[2]
  if x.op == "relu" or x.op == "abs" or x.op == "square" or x.op == "sqrt" then return true end
  if x.op == "max" then return is(y, 0) end
  return (x.op == "min" or x.op == "mul") and y.number and y.number > 0 and reaches_zero(x[1])
end

-- log of a power's base, beside the power: 0 to a power above 0 is 0, and so is their product.
local function log_of_base(x)
  return node("log", reaches_zero(x) and node("max", x, number(x, TINY)) or x)
end

-- By operation: the derivative from the node itself, its operands and their derivatives.
local DERIVATIVE = {
  neg = function(_, _, dx) return neg(dx) end,
  abs = function(_, x, dx)
    local zero = number(x, 0)
    local sign = sub(node("gt", x, zero), node("lt", x, zero))
    return mul(sign, dx)
  end,
  square = function(_, x, dx) return mul(mul(x, number(x, 2)), dx) end,
  sqrt = function(f, x, dx) return div(mul(dx, number(x, 0.5)), f) end,
  exp = function(f, _, dx) return mul(f, dx) end,
  expm1 = function(f, x, dx) return mul(add(f, number(x, 1)), dx) end,
  log = function(_, x, dx) return div(dx, x) end,
  log1p = function(_, x, dx) return div(dx, add(x, number(x, 1))) end,
  tanh = function(f, x, dx) return mul(sub(number(x, 1), node("square", f)), dx) end,
  sigmoid = function(f, x, dx) return mul(mul(f, sub(number(x, 1), f)), dx) end,
  softplus = function(_, x, dx) return mul(node("sigmoid", x), dx) end,
  add = function(_, _, dx, _, dy) return add(dx, dy) end,
  sub = function(_, _, dx, _, dy) return sub(dx, dy) end,
  mul = function(_, x, dx, y, dy) return add(mul(dx, y), mul(x, dy)) end,
  div = function(f, _, dx, y, dy) return div(sub(dx, mul(f, dy)), y) end,
  pow = function(f, x, dx, y, dy)
    local by_base = mul(mul(y, node("pow", x, sub(y, number(y, 1)))), dx)
    if is(dy, 0) then return by_base end
    return add(by_base, mul(mul(f, log_of_base(x)), dy))
  end,
  min = of_extreme "le",
  max = of_extreme "ge",
  relu = function(_, x, dx, zero) return choose(node("gt", x, zero), dx, zero) end,
}
for op in pairs(COMPARISONS) do
  DERIVATIVE[op] = function(_, x) return number(x, 0) end
end

--- The derivative of f with respect to a leaf.
---@param f lunce.Symbol
---@param leaf lunce.Symbol
---@return lunce.Symbol
function M.derivative(f, leaf)
  local done = { [leaf] = number(leaf, 1) }
  local function d(x)
    local found = done[x]
    if found then return found end
    if not x[1] then
      found = number(x, 0)
    elseif x.op == "where" then
      found = choose(x[1], d(x[2]), d(x[3]))
    else
      local dx, dy = d(x[1]), x[2] and d(x[2])
      local still = is(dx, 0) and (not dy or is(dy, 0))
      found = still and dx or DERIVATIVE[x.op](x, x[1], dx, x[2], dy)
    end
    done[x] = found
    return found
  end
  return d(f)
end

-- ---- What a link function may do with a symbol -----------------------------------------------

-- x as a node of the graph: a symbol, a number, or whatever the graph's owner takes as a parameter.
local function operand(graph, x)
  if is_symbol(x) then
    if x.graph ~= graph then
      raise("link: a symbol of another trace; a link may use only its own s and parameters")
    end
    return x
  end
  if type(x) == "number" then return constant(graph, x) end
  local captured = graph.capture(x)
  if captured then return captured end
  raise("link: an operand is %s; numbers, tensors and the link's own symbols are taken",
    describe(x))
end

local function binary(op)
  return function(x, y)
    local graph = is_symbol(x) and x.graph or y.graph
    return node(op, operand(graph, x), operand(graph, y))
  end
end

local methods = { minimum = binary "min", maximum = binary "max" }
for _, op in ipairs { "abs", "square", "sqrt", "exp", "expm1", "log", "log1p", "tanh", "sigmoid",
  "softplus", "neg" } do
  methods[op] = function(x) return node(op, x) end
end
for _, op in ipairs { "add", "sub", "mul", "div", "pow", "lt", "le", "gt", "ge", "eq" } do
  methods[op] = binary(op)
end
-- max(x, 0) with a gradient of 0 at 0.
methods.relu = function(x) return node("relu", x, number(x, 0)) end
methods.clamp = function(x, lo, hi)
  if lo and lo ~= -math.huge then x = node("max", x, operand(x.graph, lo)) end
  if hi and hi ~= math.huge then x = node("min", x, operand(x.graph, hi)) end
  return x
end
-- Whether a condition is one for tensors too, whose where takes bool.
local function decides(c)
  if c.op == "where" then return decides(c[2]) and decides(c[3]) end
  if c.op == "mul" or c.op == "add" then return decides(c[1]) and decides(c[2]) end
  return COMPARISONS[c.op] or c.op == "square" and decides(c[1]) or c.parameter or c.number
end

methods.where = function(c, x, y)
  local graph = is_symbol(c) and c.graph or is_symbol(x) and x.graph or y.graph
  c = operand(graph, c)
  if not decides(c) then
    raise("link: where's condition is %s; a comparison is taken: link.lt(s, x)", tostring(c))
  end
  return node("where", c, operand(graph, x), operand(graph, y))
end
-- Also what a tensor on the left asks for: captured * s.
Symbol.operators = methods

Symbol.__add, Symbol.__sub, Symbol.__mul = methods.add, methods.sub, methods.mul
Symbol.__div, Symbol.__pow, Symbol.__unm = methods.div, methods.pow, methods.neg

local function refuse_comparison()
  raise("link: < and > cannot compare a symbol; write link.where(link.lt(s, x), a, b), or"
    .. " link.min, link.max, link.clamp")
end
Symbol.__lt, Symbol.__le = refuse_comparison, refuse_comparison
function Symbol.__concat()
  raise("link: a symbol has no text; a link computes with numbers only")
end
function Symbol.__len() raise("link: a symbol is one number; it has no length") end
function Symbol.__index(_, key)
  local method = methods[key]
  if method then return method end
  raise("link: a symbol has no %s; the words of a link are + - * / ^, exp, log, log1p, expm1, sqrt,"
    .. " square, abs, min, max, clamp, tanh, sigmoid, softplus, relu, where, lt, le, gt, ge, eq",
    describe(key))
end

-- ---- Printing --------------------------------------------------------------------------------

-- Binding strengths of what Lua writes with a sign; whatever else is a call or a leaf.
local SUM, PRODUCT, NEGATION, POWER, ATOM = 1, 2, 3, 4, 5
local STRENGTH = { add = SUM, sub = SUM, mul = PRODUCT, div = PRODUCT, neg = NEGATION, pow = POWER,
  relu = ATOM }

-- The shortest text that reads back as the number, where that is short; else six digits.
local function number_text(x)
  for digits = 6, 12 do
    local text = ("%." .. digits .. "g"):format(x)
    if tonumber(text) == x then return text end
  end
  return ("%.6g"):format(x)
end

local text_of

-- An operand, in brackets where it binds less than it must.
local function bound(x, names, least)
  local text, strength = text_of(x, names)
  return strength < least and "(" .. text .. ")" or text
end

local WRITE = {
  add = function(x, y, names)
    local second = bound(y, names, SUM)
    local opposed = second:match "^%-(.*)"
    return bound(x, names, SUM) .. (opposed and " - " .. opposed or " + " .. second)
  end,
  sub = function(x, y, names)
    local second = bound(y, names, PRODUCT)
    local opposed = second:match "^%-(.*)"
    return bound(x, names, SUM) .. (opposed and " + " .. opposed or " - " .. second)
  end,
  mul = function(x, y, names)
    if y.number then x, y = y, x end
    return bound(x, names, PRODUCT) .. " * " .. bound(y, names, PRODUCT)
  end,
  div = function(x, y, names)
    return bound(x, names, PRODUCT) .. " / " .. bound(y, names, NEGATION)
  end,
  neg = function(x, _, names) return "-" .. bound(x, names, PRODUCT) end,
  pow = function(x, y, names)
    return bound(x, names, ATOM) .. " ^ " .. bound(y, names, NEGATION)
  end,
  relu = function(x, _, names) return "relu(" .. text_of(x, names) .. ")" end,
}

-- The text of x and how strongly it binds.
function text_of(x, names)
  local name = names and names[x]
  if name then return name, ATOM end
  if x.number then return number_text(x.number), x.number < 0 and NEGATION or ATOM end
  if x.op == "s" then return "s", ATOM end
  if x.op == "parameter" then return x.name, ATOM end
  if WRITE[x.op] then return WRITE[x.op](x[1], x[2], names), STRENGTH[x.op] end
  local parts = {}
  for i = 1, 3 do parts[i] = x[i] and text_of(x[i], names) or nil end
  return x.op .. "(" .. table.concat(parts, ", ") .. ")", ATOM
end

--- An expression in Lua's words, those of lunce.link. Nodes that have a name stand by it.
---@param x lunce.Symbol
---@param names table<lunce.Symbol, string>|nil
---@return string
function M.text(x, names) return (text_of(x, names)) end

function Symbol.__tostring(x) return M.text(x) end

--- A new graph. capture(x) turns a foreign operand into a node, or returns nil.
---@param capture fun(x: any): lunce.Symbol|nil
function M.graph(capture)
  return { count = 0, nodes = {}, by_key = {}, capture = capture }
end

--- The similarity's symbol.
function M.similarity(graph) return intern(graph, "s", "s") end

--- The symbol of parameter `place`.
function M.parameter(graph, place, name)
  local leaf = intern(graph, "parameter:" .. place, "parameter")
  leaf.parameter, leaf.name = place, name
  return leaf
end

--- A number's node.
M.constant = constant

return M

-- Elementwise operators and their backward rules: a function of each element, or of two that
-- broadcast. Invariant: the gradient of a broadcast or promoted input has that input's shape and
-- dtype again.
local lib = require "lunce.ffi"
local tensor = require "lunce.tensor"
local autocast = require "lunce.autocast"
local autograd = require "lunce.autograd"
local create = require "lunce.ops.create"
local option = require "lunce.options"

local C, raise, call = lib.C, lib.raise, lib.call
local Tensor, out, take = tensor.Tensor, tensor.out, tensor.take
local tape, record, save, rule = autograd.tape, autograd.record, autograd.save, autograd.rule

local M = {}

-- Reports the argument that is not a tensor (or, where there are several, a number).
local function refuse(name, ...)
  local n = select("#", ...)
  local or_number = n > 1 and " or a number" or ""
  for i = 1, n do
    local x = select(i, ...)
    if getmetatable(x) ~= Tensor and (n == 1 or type(x) ~= "number") then
      raise("%s: argument %d is %s; a tensor%s is taken", name, i, option.describe(x), or_number)
    end
  end
  raise("%s: only numbers are given; a tensor is taken", name)
end

-- An operand of another kind may know the operator beside a tensor, as a symbol of a link does.
local function ask_others(name, ...)
  for i = 1, select("#", ...) do
    local kind = getmetatable((select(i, ...)))
    local operator = type(kind) == "table" and kind.operators and kind.operators[name]
    if operator then return operator(...) end
  end
  refuse(name, ...)
end

local function unary(op, x, a, b)
  call(C.ln_unary, out(), op, x.h, a or 0, b or 0)
  return take()
end

local function binary(op, x, y)
  call(C.ln_binary, out(), op, x.h, y.h)
  return take()
end

-- ---- Of one tensor ---------------------------------------------------------------------------

local function zero_gradient(_, dy) return create.zeros_like(dy) end

-- By name: the operator; what its gradient needs, the input "x" or the result "y"; and how it is
-- made of dy and that, as a binary operator or as a rule. Without these it has no gradient.
local unaries = {
  neg = { C.LN_NEG, nil, function(_, dy) return unary(C.LN_NEG, dy) end },
  abs = { C.LN_ABS, "x", C.LN_ABS_BACKWARD },
  square = { C.LN_SQUARE, "x", C.LN_SQUARE_BACKWARD },
  sign = { C.LN_SIGN, nil, zero_gradient },
  exp = { C.LN_EXP, "y", C.LN_MUL },
  expm1 = { C.LN_EXPM1, "y", function(node, dy) return dy * (node.x + 1) end },
  log = { C.LN_LOG, "x", C.LN_LOG_BACKWARD },
  log1p = { C.LN_LOG1P, "x", C.LN_LOG1P_BACKWARD },
  sqrt = { C.LN_SQRT, "y", C.LN_SQRT_BACKWARD },
  rsqrt = { C.LN_RSQRT, "y", C.LN_RSQRT_BACKWARD },
  reciprocal = { C.LN_RECIPROCAL, "y", C.LN_RECIPROCAL_BACKWARD },
  sin = { C.LN_SIN, "x", C.LN_SIN_BACKWARD },
  cos = { C.LN_COS, "x", C.LN_COS_BACKWARD },
  tanh = { C.LN_TANH, "y", C.LN_TANH_BACKWARD },
  sigmoid = { C.LN_SIGMOID, "y", C.LN_SIGMOID_BACKWARD },
  softplus = { C.LN_SOFTPLUS, "x", C.LN_SOFTPLUS_BACKWARD },
  gelu = { C.LN_GELU, "x", C.LN_GELU_BACKWARD },
  erf = { C.LN_ERF, "x", C.LN_ERF_BACKWARD },
  relu = { C.LN_RELU, "y", C.LN_RELU_BACKWARD },
  floor = { C.LN_FLOOR, nil, zero_gradient },
  ceil = { C.LN_CEIL, nil, zero_gradient },
  round = { C.LN_ROUND, nil, zero_gradient },
  isfinite = { C.LN_ISFINITE },
  isnan = { C.LN_ISNAN },
  logical_not = { C.LN_LOGICAL_NOT },
}

-- Those that autocasting takes as float32: they leave a half's range, or need more digits.
local WIDE = { square = true, exp = true, expm1 = true, log = true, log1p = true, rsqrt = true,
  reciprocal = true, softplus = true }

local function define_unary(name, op, saved, backward)
  local widens = WIDE[name]
  if type(backward) == "number" then
    local backward_op = backward
    backward = function(node, dy) return binary(backward_op, dy, node.x) end
  end
  local back = backward and rule(name, backward)
  M[name] = function(x)
    if getmetatable(x) ~= Tensor then refuse(name, x) end
    if widens and tape.low then x = autocast.wide(x) end
    call(C.ln_unary, out(), op, x.h, 0, 0)
    local y = take()
    if back and tape.on and x.requires_grad then
      local node = record(y, back, x)
      if saved then save(node, saved == "x" and x or y) end
    end
    return y
  end
end

for name, row in pairs(unaries) do define_unary(name, row[1], row[2], row[3]) end

local clamp_rule = rule("clamp", function(node, dy)
  call(C.ln_clamp_backward, out(), dy.h, node.x.h, node.low, node.high)
  return take()
end)

local function clamp(x, low, high)
  local y = unary(C.LN_CLAMP, x, low, high)
  if tape.on and x.requires_grad then
    local node = save(record(y, clamp_rule, x), x)
    node.low, node.high = low, high
  end
  return y
end

-- The bounds of clamp(x, 0, 1), clamp(x, nil, 1) or clamp(x, { min = 0 }).
local function bounds(what, low, high)
  if type(low) == "table" then
    local set = option.options(low, { min = false, max = false }, what)
    low, high = set.min or nil, set.max or nil
  end
  if low == nil and high == nil then raise("%s: neither min nor max is given", what) end
  return tensor.need_number(low or -math.huge, what, "min"),
    tensor.need_number(high or math.huge, what, "max")
end
M.bounds = bounds

--- x kept within bounds; the gradient is 1 between and at them, 0 outside.
function M.clamp(x, low, high)
  if getmetatable(x) ~= Tensor then refuse("clamp", x) end
  return clamp(x, bounds("clamp", low, high))
end

-- ---- Of two ----------------------------------------------------------------------------------

-- The shape and dtype to bring the gradient of x back to, after an operator with result z; false
-- where they are z's.
local function origin(x, z)
  local about = tensor.info(z)
  local numel, ndim, dtype = about.numel, about.ndim, about.dtype
  about = tensor.info(x)
  if about.numel == numel and about.ndim == ndim and about.dtype == dtype and numel > 0 then
    return false
  end
  return { shape = x.shape, dtype = x.dtype }
end

local function fit(d, origin_)
  if not origin_ then return d end
  return d:sum_to_size(origin_.shape):to(origin_.dtype)
end

local function record_pair(z, back, x, y)
  local node = record(z, back, x, y)
  node.of_x, node.of_y = node[1] and origin(x, z), node[2] and origin(y, z)
  return node
end

-- Keeps what `names` says of z = op(x, y), in its order, as node.x and node.y.
local function save_of(node, names, x, y, z)
  if names == "xy" then
    save(node, x, y)
  elseif names == "yz" then
    save(node, y, z)
  elseif names == "xz" then
    save(node, x, z)
  elseif names == "x" then
    save(node, x)
  elseif names == "z" then
    save(node, z)
  end
end

-- An operator on two tensors that broadcast, or on a tensor and a number on either side. Its rules:
-- `pair` for two tensors, `number` for a tensor and node.number, `swapped` for node.number and a
-- tensor; `<rule>_saves` names what the rule finds in node.x and node.y. Without rules it has no
-- gradient. Autocasting takes the tensors as float32 with `widens`, or beside a number on the left
-- with `swapped_widens`.
local function define_binary(name, op, rules)
  local pair = rules.pair and rule(name, rules.pair)
  local number = rules.number and rule(name, rules.number)
  local swapped = rules.swapped and rule(name, rules.swapped)
  local pair_saves, number_saves = rules.pair_saves, rules.number_saves
  local swapped_saves, widens = rules.swapped_saves, rules.widens
  local swapped_widens = widens or rules.swapped_widens

  local function with_number(x, value, is_swapped)
    if swapped_widens and tape.low and (widens or is_swapped) then x = autocast.wide(x) end
    call(C.ln_binary_scalar, out(), op, x.h, value, is_swapped)
    local z = take()
    if number and tape.on and x.requires_grad then
      local node = record(z, is_swapped and swapped or number, x)
      node.number = value
      save_of(node, is_swapped and swapped_saves or number_saves, x, nil, z)
    end
    return z
  end

  M[name] = function(x, y)
    local left, right = getmetatable(x) == Tensor, getmetatable(y) == Tensor
    if left and right then
      if widens and tape.low then x, y = autocast.wide(x), autocast.wide(y) end
      call(C.ln_binary, out(), op, x.h, y.h)
      local z = take()
      if pair and tape.on and (x.requires_grad or y.requires_grad) then
        save_of(record_pair(z, pair, x, y), pair_saves, x, y, z)
      end
      return z
    elseif left and type(y) == "number" then
      return with_number(x, y, false)
    elseif right and type(x) == "number" then
      return with_number(y, x, true)
    end
    return ask_others(name, x, y)
  end
end

local function pass(_, dy) return dy end

define_binary("add", C.LN_ADD, {
  pair = function(node, dy) return fit(dy, node.of_x), fit(dy, node.of_y) end,
  number = pass,
  swapped = pass,
})

define_binary("sub", C.LN_SUB, {
  pair = function(node, dy) return fit(dy, node.of_x), node[2] and fit(-dy, node.of_y) end,
  number = pass,
  swapped = function(_, dy) return -dy end,
})

local function times(node, dy) return dy * node.number end

define_binary("mul", C.LN_MUL, {
  pair_saves = "xy",
  pair = function(node, dy)
    return node[1] and fit(dy * node.y, node.of_x), node[2] and fit(dy * node.x, node.of_y)
  end,
  number = times,
  swapped = times,
})

-- d(x / y) = dx / y - (x / y) dy / y
define_binary("div", C.LN_DIV, {
  pair_saves = "yz",
  pair = function(node, dy)
    local dx = dy / node.x
    return node[1] and fit(dx, node.of_x), node[2] and fit(-(dx * node.y), node.of_y)
  end,
  number = function(node, dy) return dy / node.number end,
  swapped_widens = true,
  swapped_saves = "xz",
  swapped = function(node, dy) return -(dy / node.x * node.y) end,
})

-- d(x ^ y) = y x ^ (y - 1) dx + log(x) x ^ y dy. Where y is 0 the power does not vary with x, and
-- at x = 0 not with y unless y is negative.
define_binary("pow", C.LN_POW, {
  widens = true,
  pair_saves = "xy",
  pair = function(node, dy)
    local x, y, dx, dexponent = node.x, node.y, nil, nil
    if node[1] then dx = M.where(y:eq(0), 0, dy * y * x ^ (y - 1)) end
    if node[2] then
      dexponent = M.where(x:eq(0):logical_and(y:ge(0)), 0, dy * x ^ y * x:log())
    end
    return dx and fit(dx, node.of_x), dexponent and fit(dexponent, node.of_y)
  end,
  number_saves = "x",
  number = function(node, dy)
    local x, number = node.x, node.number
    if number == 0 then return create.zeros_like(dy) end
    if number == 2 then return binary(C.LN_SQUARE_BACKWARD, dy, x) end
    return dy * number * x ^ (number - 1)
  end,
  swapped_saves = "xz",
  swapped = function(node, dy)
    if node.number == 0 then return M.where(node.x:ge(0), 0, dy * node.y * -math.huge) end
    return dy * node.y * math.log(node.number)
  end,
})

-- Where two tensors are equal each has half of the gradient; a number is a bound, as in clamp.
local function define_extreme(name, op, wins)
  define_binary(name, op, {
    pair_saves = "xy",
    pair = function(node, dy)
      local x, y = node.x, node.y
      local half = binary(C.LN_EQ, x, y) * 0.5
      return node[1] and fit(dy * (binary(wins, x, y) + half), node.of_x),
        node[2] and fit(dy * (binary(wins, y, x) + half), node.of_y)
    end,
  })
  local tensors = M[name]
  M[name] = function(x, y)
    if type(x) == "number" then x, y = y, x end
    if type(y) == "number" and getmetatable(x) == Tensor then
      if op == C.LN_MINIMUM then return clamp(x, -math.huge, y) end
      return clamp(x, y, math.huge)
    end
    return tensors(x, y)
  end
end

define_extreme("minimum", C.LN_MINIMUM, C.LN_LT)
define_extreme("maximum", C.LN_MAXIMUM, C.LN_GT)

for name, op in pairs { eq = C.LN_EQ, ne = C.LN_NE, lt = C.LN_LT, le = C.LN_LE, gt = C.LN_GT,
  ge = C.LN_GE, logical_and = C.LN_LOGICAL_AND, logical_or = C.LN_LOGICAL_OR,
  logical_xor = C.LN_LOGICAL_XOR } do
  define_binary(name, op, {})
end

-- ---- Choosing --------------------------------------------------------------------------------

local where_rule = rule("where", function(node, dy)
  local cond = node.x
  return node[1] and fit(M.where(cond, dy, 0), node.of_x),
    node[2] and fit(M.where(cond, 0, dy), node.of_y)
end)

-- A number as a tensor without dimensions, of the dtype of the tensor beside it.
local function scalar(number, beside)
  if getmetatable(beside) == Tensor then return create.new_full(beside, {}, number) end
  return create.full({}, number)
end

local function choose(cond, x, y, back)
  call(C.ln_where, out(), cond.h, x.h, y.h)
  local z = take()
  if tape.on and (x.requires_grad or y.requires_grad) then
    save(record_pair(z, back, x, y), cond)
  end
  return z
end

--- x where cond (bool) holds, y elsewhere; all broadcast, and x and y may be numbers.
---@param cond lunce.Tensor
---@param x lunce.Tensor|number
---@param y lunce.Tensor|number
---@return lunce.Tensor
function M.where(cond, x, y)
  tensor.need(cond, "where", 1)
  local a = type(x) == "number" and scalar(x, y) or x
  local b = type(y) == "number" and scalar(y, x) or y
  if getmetatable(a) ~= Tensor or getmetatable(b) ~= Tensor then
    return ask_others("where", cond, x, y)
  end
  return choose(cond, a, b, where_rule)
end

local masked_fill_rule = rule("masked_fill", function(node, dy)
  local mask = node.x
  return node[1] and fit(M.where(mask, dy, 0), node.of_x),
    node[2] and fit(M.where(mask, 0, dy), node.of_y)
end)

--- value (a number, or a tensor of one) where mask holds, x elsewhere.
function M.masked_fill(x, mask, value)
  tensor.need(x, "masked_fill", 1)
  tensor.need(mask, "masked_fill", 2)
  local v = type(value) == "number" and scalar(value, x) or tensor.need(value, "masked_fill", 3)
  return choose(mask, v, x, masked_fill_rule)
end

return M

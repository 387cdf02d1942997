-- Reductions over dimensions and their backward rules. `dim` is a dimension, a list of them, or
-- nil for all; `keepdim` a boolean, or in options. Invariant: the gradient of a reduction is
-- computed from its input as it was, and has that input's shape.
local bit = require "bit"
local lib = require "lunce.ffi"
local tensor = require "lunce.tensor"
local autocast = require "lunce.autocast"
local autograd = require "lunce.autograd"
local create = require "lunce.ops.create"
local describe, options = require("lunce.options").describe, require("lunce.options").options

local C, raise, call = lib.C, lib.raise, lib.call
local out, out2, take, take2, need = tensor.out, tensor.out2, tensor.take, tensor.take2, tensor.need
local dim_index, dim_set = tensor.dim_index, tensor.dim_set
local tape, record, save, rule = autograd.tape, autograd.record, autograd.save, autograd.rule

local M = {}

local function raw(op, x, set, keepdim, a)
  call(C.ln_reduce, out(), op, x.h, set, keepdim or false, a or 0)
  return take()
end

local KEEPDIM, KEEPDIM_FLAGS = { keepdim = false }, { keepdim = true }

local function keeps(name, keepdim)
  if type(keepdim) == "table" then
    return options(keepdim, KEEPDIM, name, KEEPDIM_FLAGS).keepdim
  end
  if keepdim ~= nil and type(keepdim) ~= "boolean" then
    raise("%s: keepdim is %s; a boolean is taken", name, describe(keepdim))
  end
  return keepdim or false
end

-- The reduction of x; its node where it is recorded.
local function reduce(name, op, back, x, dim, keepdim, a)
  local set = dim_set(dim, tensor.ndim(need(x, name, 1)), name)
  local y = raw(op, x, set, keeps(name, keepdim), a)
  if back and tape.on and x.requires_grad then
    local node = record(y, back, x)
    node.shape, node.set = x.shape, set
    return y, node
  end
  return y
end

-- t, of the reduced shape, with the reduced dimensions back at extent 1.
local function unreduced(node, t)
  local shape = {}
  for i, n in ipairs(node.shape) do
    shape[i] = (node.set == 0 or bit.band(node.set, bit.lshift(1, i - 1)) ~= 0) and 1 or n
  end
  return t:reshape(shape)
end

-- How many elements went into each result.
local function reduced_count(node)
  local count = 1
  for i, n in ipairs(node.shape) do
    if node.set == 0 or bit.band(node.set, bit.lshift(1, i - 1)) ~= 0 then count = count * n end
  end
  return count
end

local function sum_of(t, node)
  return raw(C.LN_SUM, t, node.set, true)
end

-- ---- Sums and products -----------------------------------------------------------------------

local sum_rule = rule("sum", function(node, dy)
  return unreduced(node, dy):expand(node.shape)
end)

---@param dim integer|integer[]|nil
---@param keepdim boolean|nil
function M.sum(x, dim, keepdim)
  if tape.low then x = autocast.wide(x) end
  return (reduce("sum", C.LN_SUM, sum_rule, x, dim, keepdim))
end

local mean_rule = rule("mean", function(node, dy)
  return (unreduced(node, dy) / reduced_count(node)):expand(node.shape)
end)

function M.mean(x, dim, keepdim)
  if tape.low then x = autocast.wide(x) end
  return (reduce("mean", C.LN_MEAN, mean_rule, x, dim, keepdim))
end

-- Each element's gradient is the product of the others, which is the product of those that are
-- not zero, over the element, unless a zero is among the others.
local prod_rule = rule("prod", function(node, dy)
  local x = node.x
  local zero = x:eq(0)
  local nonzero = x:masked_fill(zero, 1)
  local others = raw(C.LN_PROD, nonzero, node.set, true) / nonzero
  local zeros_among_others = sum_of(zero, node):ne(zero)
  return others:masked_fill(zeros_among_others, 0) * unreduced(node, dy)
end)

function M.prod(x, dim, keepdim)
  if tape.low then x = autocast.wide(x) end
  local y, node = reduce("prod", C.LN_PROD, prod_rule, x, dim, keepdim)
  if node then save(node, x) end
  return y
end

local cumsum_rule = rule("cumsum", function(node, dy)
  call(C.ln_cumsum, out(), dy.h, node.dim, true)
  return take()
end)

--- Sums of the elements up to each position along dim.
---@param dim integer
function M.cumsum(x, dim)
  if tape.low then x = autocast.wide(x) end
  local d = dim_index(dim, tensor.ndim(need(x, "cumsum", 1)), "cumsum")
  call(C.ln_cumsum, out(), x.h, d, false)
  local y = take()
  if tape.on and x.requires_grad then record(y, cumsum_rule, x).dim = d end
  return y
end

-- ---- Spread ----------------------------------------------------------------------------------

local function deviation_gradient(node, dvar)
  local x = node.x
  local scale = 2 / math.max(0, reduced_count(node) - node.correction)
  return (x - raw(C.LN_MEAN, x, node.set, true)) * (dvar * scale)
end

local var_rule = rule("var", function(node, dy)
  return deviation_gradient(node, unreduced(node, dy))
end)

local std_rule = rule("std", function(node, dy)
  local std = unreduced(node, node.y)
  local dvar = (unreduced(node, dy) / (std * 2)):masked_fill(std:eq(0), 0)
  return deviation_gradient(node, dvar)
end)

-- Options may stand in the place of dim or keepdim.
local function correction_of(what, dim, keepdim, given)
  if type(dim) == "table" and dim[1] == nil then dim, given = nil, dim end
  if type(keepdim) == "table" then keepdim, given = nil, keepdim end
  local set = options(given, { correction = 1, keepdim = false }, what, KEEPDIM_FLAGS)
  return dim, keepdim or set.keepdim, set.correction
end

--- The variance, divided by the count minus `correction`.
---@param given { correction: number, keepdim: boolean }|nil correction: 1
function M.var(x, dim, keepdim, given)
  if tape.low then x = autocast.wide(x) end
  local correction
  dim, keepdim, correction = correction_of("var", dim, keepdim, given)
  local y, node = reduce("var", C.LN_VAR, var_rule, x, dim, keepdim, correction)
  if node then save(node, x).correction = correction end
  return y
end

--- The square root of the variance; its gradient is 0 where it is 0.
---@param given { correction: number, keepdim: boolean }|nil correction: 1
function M.std(x, dim, keepdim, given)
  if tape.low then x = autocast.wide(x) end
  local correction
  dim, keepdim, correction = correction_of("std", dim, keepdim, given)
  local y, node = reduce("std", C.LN_VAR, std_rule, x, dim, keepdim, correction)
  call(C.ln_unary, tensor.into(y), C.LN_SQRT, y.h, 0, 0)
  if node then save(node, x, y).correction = correction end
  return y
end

-- ---- Extremes --------------------------------------------------------------------------------

-- Over all elements: those equal to the extreme share its gradient.
local extreme_all_rule = rule("max", function(node, dy)
  local hit = node.x:eq(node.y)
  return hit * (dy / hit:sum())
end)

local extreme_rule = rule("max", function(node, dy)
  local dx = create.new_zeros(dy, node.shape)
  local at = node.private[1]
  if not node.keepdim then dy, at = dy:unsqueeze(node.dim), at:unsqueeze(node.dim) end
  call(C.ln_scatter_add, dx.h, node.dim - 1, at.h, dy.h)
  return dx
end)

local function extreme_along(name, x, dim, keepdim, largest)
  local d = dim_index(dim, tensor.ndim(need(x, name, 1)), name)
  keepdim = keeps(name, keepdim)
  call(C.ln_extreme, out(), out2(), x.h, d, keepdim, largest)
  local values, indices = take(), take2()
  if tape.on and x.requires_grad then
    local node = record(values, extreme_rule, x)
    node.shape, node.dim, node.keepdim = x.shape, d + 1, keepdim
    autograd.own(node, indices:detach())
  end
  return values, indices
end

local function define_extreme(name, op, largest, elementwise)
  M[name] = function(x, dim, keepdim)
    if tensor.is_tensor(dim) then return tensor.methods[elementwise](x, dim) end
    if dim then return extreme_along(name, x, dim, keepdim, largest) end
    local y, node = reduce(name, op, extreme_all_rule, x)
    if node then save(node, x, y) end
    return y
  end

  M["arg" .. name] = function(x, dim, keepdim)
    need(x, "arg" .. name, 1)
    local values, indices = extreme_along("arg" .. name, dim and x:detach() or x:detach():flatten(),
      dim or 1, keepdim, largest)
    values:free()
    return indices
  end
end

--- max() over all; max(dim, keepdim) -> values and indices; max(other) elementwise. min likewise.
define_extreme("max", C.LN_MAX, true, "maximum")
define_extreme("min", C.LN_MIN, false, "minimum")

function M.any(x, dim, keepdim)
  return (reduce("any", C.LN_ANY, nil, x, dim, keepdim))
end

function M.all(x, dim, keepdim)
  return (reduce("all", C.LN_ALL, nil, x, dim, keepdim))
end

-- ---- Logarithms and norms --------------------------------------------------------------------

-- A row of -inf has the sum -inf; exp(x - 0) is then the gradient 0, where x - y would be NaN.
local logsumexp_rule = rule("logsumexp", function(node, dy)
  local y = unreduced(node, node.y)
  y = y:masked_fill(y:eq(-math.huge), 0)
  return (node.x - y):exp() * unreduced(node, dy)
end)

--- log(sum(exp(x))), without overflow.
function M.logsumexp(x, dim, keepdim)
  if tape.low then x = autocast.wide(x) end
  local y, node = reduce("logsumexp", C.LN_LOGSUMEXP, logsumexp_rule, x, dim, keepdim)
  if node then save(node, x, y) end
  return y
end

local norm_rule = rule("norm", function(node, dy)
  local x, y, p = node.x, unreduced(node, node.y), node.p
  dy = unreduced(node, dy)
  if p == 1 then return x:sign() * dy end
  if p == 2 then return x * (dy / y):masked_fill(y:eq(0), 0) end
  local hit = x:abs():eq(y)
  return x:sign() * hit * (dy / sum_of(hit, node))
end)

--- The p-norm (2 where not given); its gradient is 0 where it is 0.
---@param p number|nil 1, 2 or math.huge are computed in one pass
function M.norm(x, p, dim, keepdim)
  if tape.low then x = autocast.wide(x) end
  p = tensor.need_number(p or 2, "norm", "the order")
  if p ~= 1 and p ~= 2 and p ~= math.huge then
    if not (p > 0) then raise("norm: order %g; a positive one is taken", p) end
    return (need(x, "norm", 1):abs() ^ p):sum(dim, keepdim) ^ (1 / p)
  end
  local y, node = reduce("norm", C.LN_NORM, norm_rule, x, dim, keepdim, p)
  if node then save(node, x, y).p = p end
  return y
end

return M

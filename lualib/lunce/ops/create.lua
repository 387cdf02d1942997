-- New tensors: from Lua values, constants, sequences and random numbers. Holds no operator on
-- tensors. Invariant: float32 on the CPU unless the options say otherwise.
local ffi = require "ffi"
local lib = require "lunce.ffi"
local tensor = require "lunce.tensor"
local random = require "lunce.random"
local option = require "lunce.options"

local C, raise, call = lib.C, lib.raise, lib.call
local out, take, extents = tensor.out, tensor.take, tensor.extents
local need_integer, need_number = tensor.need_integer, tensor.need_number
local describe = option.describe

local M = {}

local common = { dtype = "float32", device = "cpu", requires_grad = false }
local drawn = { dtype = "float32", device = "cpu", requires_grad = false, seed = false,
  stream = false }
local flags = { requires_grad = true }
local positions = { dtype = "int64", device = "cpu", requires_grad = false, seed = false,
  stream = false }

local function empty(set, what, ndim, shape)
  call(C.ln_tensor_empty, out(), tensor.dtype(set.dtype, what), tensor.device(set.device, what),
    ndim, shape)
  return take()
end

local function finish(t, set)
  return set.requires_grad and t:requires_grad_() or t
end

-- Refuses { 2, 3, dtype = "float64" }, whose options would not be seen.
local function check_list(list, what)
  if list.dtype or list.device or list.seed or list.requires_grad ~= nil then
    raise("%s: options stand in a table of their own, the last argument", what)
  end
end

-- Splits (2, 3, { options }) or ({ 2, 3 }, { options }) into a list and the options.
local function split(defaults, what, ...)
  local n, shape, given = select("#", ...), ..., nil
  if type(shape) == "table" and (shape[1] ~= nil or next(shape) == nil) then
    given = select(2, ...)
    check_list(shape, what)
  else
    shape = { ... }
    if type(shape[n]) == "table" then given, shape[n], n = shape[n], nil, n - 1 end
    for i = 1, n do
      if shape[i] == nil then raise("%s: extent %d is nil; a whole number is taken", what, i) end
    end
  end
  return shape, option.options(given, defaults, what, flags)
end

local function shaped(defaults, what, ...)
  local shape, set = split(defaults, what, ...)
  return empty(set, what, extents(what, 0, shape)), set
end

-- ---- Lua values ------------------------------------------------------------------------------

-- The shape that the first elements of nested tables tell, and the kind of value inside.
local function shape_of(value)
  local shape = {}
  while type(value) == "table" do
    if getmetatable(value) then raise("tensor: a table holds %s; numbers, booleans and tables of"
      .. " them are taken (lunce.stack joins tensors)", describe(value)) end
    shape[#shape + 1] = table.maxn(value)
    value = value[1]
  end
  return shape, type(value)
end

local function fill(values, at, value, shape, depth, kind)
  if depth > #shape then
    if type(value) ~= kind then
      raise("tensor: element %d is %s among values of type %s", at + 1, describe(value), kind)
    end
    values[at] = kind == "boolean" and (value and 1 or 0) or value
    return at + 1
  end
  if type(value) ~= "table" or table.maxn(value) ~= shape[depth] then
    raise("tensor: ragged: %s at depth %d, where the first has %d elements",
      type(value) == "table" and ("a table of %d"):format(table.maxn(value)) or describe(value),
      depth, shape[depth])
  end
  for i = 1, shape[depth] do at = fill(values, at, value[i], shape, depth + 1, kind) end
  return at
end

--- A tensor of a number, a boolean, nested tables of them, or a copy of a tensor. Booleans make
--- dtype bool.
---@param value number|boolean|table|lunce.Tensor
---@param given { dtype: string, device: string, requires_grad: boolean }|nil
---@return lunce.Tensor
function M.tensor(value, given)
  local set = option.options(given, { dtype = false, device = false, requires_grad = false },
    "tensor", flags)
  if tensor.is_tensor(value) then
    return finish(value:detach():to({ dtype = set.dtype or nil, device = set.device or nil })
      :clone(), set)
  end
  if type(value) == "table" and not getmetatable(value) then check_list(value, "tensor") end
  local shape, kind = shape_of(value)
  if kind == "nil" and #shape > 0 and shape[#shape] == 0 then kind = "number" end
  if kind ~= "number" and kind ~= "boolean" then
    raise("tensor: %s; a number, a boolean or nested tables of them is taken",
      #shape > 0 and "a table of " .. kind or describe(value))
  end
  local ndim, sizes = extents("tensor", 0, shape)
  local count = 1
  for i = 1, ndim do count = count * shape[i] end
  local t = empty({ dtype = set.dtype or (kind == "boolean" and "bool" or "float32"),
    device = set.device or "cpu" }, "tensor", ndim, sizes)
  local values = ffi.new("double[?]", math.max(count, 1))
  fill(values, 0, value, shape, 1, kind)
  call(C.ln_tensor_write, t.h, values, count)
  return finish(t, set)
end

-- ---- Constants -------------------------------------------------------------------------------

--- A tensor of this shape, contents undefined. Shapes are given as (2, 3) or ({ 2, 3 }).
function M.empty(...)
  local t, set = shaped(common, "empty", ...)
  return finish(t, set)
end

local function filled(value, what, ...)
  local t, set = shaped(common, what, ...)
  call(C.ln_fill, t.h, value)
  return finish(t, set)
end

---@return lunce.Tensor
function M.zeros(...) return filled(0, "zeros", ...) end

---@return lunce.Tensor
function M.ones(...) return filled(1, "ones", ...) end

--- full({ 2, 3 }, value, options)
---@param shape integer[]|integer
---@param value number
---@return lunce.Tensor
function M.full(shape, value, given)
  need_number(value, "full", "the value")
  return filled(value, "full", type(shape) == "table" and shape or { shape }, given)
end

-- A new tensor of t's dtype and device filled with value; t's shape and memory format unless
-- another shape is given.
local function like(t, value, shape)
  if shape then
    local about = tensor.info(t)
    call(C.ln_tensor_empty, out(), about.dtype, about.device, extents("zeros", 0, shape))
  else
    call(C.ln_empty_like, out(), t.h)
  end
  local new = take()
  call(C.ln_fill, new.h, value)
  return new
end

-- Refuses options, which would not be seen.
local function no_options(given, what)
  if given ~= nil then
    raise("%s: options are not taken: the result has the tensor's dtype and device; t:to changes"
      .. " them", what)
  end
end

function M.zeros_like(t, given)
  no_options(given, "zeros_like")
  return like(tensor.need(t, "zeros_like", 1), 0)
end

function M.ones_like(t, given)
  no_options(given, "ones_like")
  return like(tensor.need(t, "ones_like", 1), 1)
end

function M.full_like(t, value, given)
  no_options(given, "full_like")
  return like(tensor.need(t, "full_like", 1), need_number(value, "full_like", "the value"))
end

--- t:new_zeros(shape), t:new_full(shape, value): t's dtype and device in another shape.
function M.new_zeros(t, ...)
  local first, given = ...
  if type(first) == "table" then no_options(given, "new_zeros") end
  return like(tensor.need(t, "new_zeros", 1), 0, type(first) == "table" and first or { ... })
end

function M.new_full(t, shape, value, given)
  no_options(given, "new_full")
  return like(tensor.need(t, "new_full", 1), need_number(value, "new_full", "the value"), shape)
end

-- ---- Sequences -------------------------------------------------------------------------------

local function sequence(start, step, n, set, what)
  local t = empty(set, what, extents(what, 0, { n }))
  call(C.ln_arange, t.h, start, step)
  return finish(t, set)
end

--- start, start + step, ... up to and with stop, as Lua's for counts; arange(n) is 1 to n.
---@return lunce.Tensor
function M.arange(start, stop, step, given)
  if type(stop) == "table" then stop, given = nil, stop end
  if type(step) == "table" then step, given = nil, step end
  if stop == nil then start, stop = 1, start end
  step = step or 1
  need_number(start, "arange", "start")
  need_number(stop, "arange", "stop")
  if need_number(step, "arange", "step") == 0 then raise("arange: step is 0") end
  -- The allowance keeps the last of 0, 0.1, ..., 0.3, which rounding puts past 0.3.
  local n = math.max(0, math.floor((stop - start) / step + 1e-9) + 1)
  return sequence(start, step, n, option.options(given, common, "arange", flags), "arange")
end

--- n evenly spaced numbers from start to stop, both included.
---@return lunce.Tensor
function M.linspace(start, stop, n, given)
  need_number(start, "linspace", "start")
  need_number(stop, "linspace", "stop")
  need_integer(n, "linspace", "the count")
  return sequence(start, n > 1 and (stop - start) / (n - 1) or 0, n,
    option.options(given, common, "linspace", flags), "linspace")
end

--- The n x m identity (m: n where not given).
---@return lunce.Tensor
function M.eye(n, m, given)
  if type(m) == "table" then m, given = nil, m end
  need_integer(n, "eye", "the number of rows")
  local set = option.options(given, common, "eye", flags)
  local t = M.zeros({ n, m or n }, { dtype = set.dtype, device = set.device })
  t:diagonal():fill_(1)
  return finish(t, set)
end

-- ---- Random numbers --------------------------------------------------------------------------

local function draw(t, set, distribution, a, b)
  local seed, stream, address = random.address(set, t)
  call(C.ln_random, t.h, distribution, a, b, seed, stream, 0, address)
  return finish(t, set)
end

--- Uniform on [0, 1). Options: dtype, device, seed and stream (an address of its own, which leaves
--- the global generator alone).
---@return lunce.Tensor
function M.rand(...)
  local t, set = shaped(drawn, "rand", ...)
  return draw(t, set, C.LN_UNIFORM, 0, 1)
end

--- Standard normal.
---@return lunce.Tensor
function M.randn(...)
  local t, set = shaped(drawn, "randn", ...)
  return draw(t, set, C.LN_NORMAL, 0, 1)
end

--- Whole numbers from low to high, both included: randint(low, high, shape, options); int64.
---@return lunce.Tensor
function M.randint(low, high, ...)
  need_integer(low, "randint", "the lowest value")
  if need_integer(high, "randint", "the highest value") < low then
    raise("randint: no whole number from %d to %d", low, high)
  end
  local t, set = shaped(positions, "randint", ...)
  return draw(t, set, C.LN_INTEGERS, low, high + 1)
end

--- 1 with probability p, else 0: bernoulli(p, shape, options).
---@return lunce.Tensor
function M.bernoulli(p, ...)
  if need_number(p, "bernoulli", "the probability") < 0 or p > 1 then
    raise("bernoulli: probability %g; 0 to 1 is taken", p)
  end
  local t, set = shaped(drawn, "bernoulli", ...)
  return draw(t, set, C.LN_BERNOULLI, p, 0)
end

--- A permutation of 1..n.
---@return lunce.Tensor
function M.randperm(n, given)
  local set = option.options(given, positions, "randperm", flags)
  tensor.no_capture("randperm", "the host draws it; draw it before, and give it as an argument")
  local t = empty(set, "randperm", extents("randperm", 0, { n }))
  local seed, stream = random.address(set, t)
  call(C.ln_randperm, t.h, seed, stream)
  return t
end

return M

-- In-place operators, named as PyTorch names them, with a final underscore. Invariant: none is
-- recorded; each refuses, outside no_grad, to change what the tape would need to know of.
local lib = require "lunce.ffi"
local tensor = require "lunce.tensor"
local autograd = require "lunce.autograd"
local elementwise = require "lunce.ops.elementwise"
local random = require "lunce.random"
local option = require "lunce.options"

local C, raise, call = lib.C, lib.raise, lib.call
local into, need, guard = tensor.into, tensor.need, autograd.guard

local M = {}

--- Writes src, broadcast and cast, into x.
function M.copy_(x, src)
  guard(x, "copy_", src)
  call(C.ln_copy, x.h, need(src, "copy_", 2).h)
  return x
end

--- Writes src at the positions of dimension dim that the 1-D index lists; of what goes to one
--- place the last stays. dtypes are equal, and src is no view of x's memory.
---@param dim integer
---@param index lunce.Tensor
---@param src lunce.Tensor
function M.index_copy_(x, dim, index, src)
  guard(x, "index_copy_", src)
  local d = tensor.dim_index(dim, tensor.ndim(x), "index_copy_")
  call(C.ln_index_copy, x.h, d, need(index, "index_copy_", 3).h, need(src, "index_copy_", 4).h)
  return x
end

---@param value number|boolean
function M.fill_(x, value)
  guard(x, "fill_")
  if type(value) == "boolean" then value = value and 1 or 0 end
  call(C.ln_fill, x.h, tensor.need_number(value, "fill_", "the value"))
  return x
end

function M.zero_(x)
  guard(x, "zero_")
  call(C.ln_fill, x.h, 0)
  return x
end

local function apply(name, op, x, y)
  if type(y) == "number" then
    call(C.ln_binary_scalar, into(x), op, x.h, y, false)
  elseif tensor.is_tensor(y) then
    call(C.ln_binary, into(x), op, x.h, y.h)
  else
    raise("%s: argument 2 is %s; a tensor or a number is taken", name, option.describe(y))
  end
  return x
end

local function define(name, op)
  M[name] = function(x, y)
    guard(x, name, y)
    return apply(name, op, x, y)
  end
end

define("mul_", C.LN_MUL)
define("div_", C.LN_DIV)
define("pow_", C.LN_POW)

local function define_sum(name, op, sign)
  M[name] = function(x, y, given)
    guard(x, name, y)
    if given == nil then return apply(name, op, x, y) end
    local alpha = option.options(given, { alpha = 1 }, name).alpha
    if type(y) == "number" then return apply(name, op, x, alpha * y) end
    call(C.ln_axpby, x.h, sign * alpha, need(y, name, 2).h, 1)
    return x
  end
end

--- x:add_(y, { alpha = a }): x = x + a y; sub_ likewise.
define_sum("add_", C.LN_ADD, 1)
define_sum("sub_", C.LN_SUB, -1)

--- x:clamp_(low, high) or x:clamp_{ min =, max = }.
function M.clamp_(x, low, high)
  guard(x, "clamp_")
  low, high = elementwise.bounds("clamp_", low, high)
  call(C.ln_unary, into(x), C.LN_CLAMP, x.h, low, high)
  return x
end

local address = { seed = false, stream = false }

local function draw(name, x, distribution, a, b, given)
  guard(x, name)
  tensor.need_number(a, name, "the first parameter")
  tensor.need_number(b, name, "the second parameter")
  local seed, stream, at = random.address(option.options(given, address, name), x)
  call(C.ln_random, x.h, distribution, a, b, seed, stream, 0, at)
  return x
end

--- Draws every element anew. Options: seed, stream.
function M.uniform_(x, low, high, given)
  return draw("uniform_", x, C.LN_UNIFORM, low or 0, high or 1, given)
end

function M.normal_(x, mean, std, given)
  return draw("normal_", x, C.LN_NORMAL, mean or 0, std or 1, given)
end

function M.bernoulli_(x, p, given)
  return draw("bernoulli_", x, C.LN_BERNOULLI, p, 0, given)
end

return M

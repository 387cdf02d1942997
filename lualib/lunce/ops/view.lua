-- Views: other shapes and parts of the same elements, and their backward rules. Holds no
-- arithmetic. Invariant: a result shares its tensor's storage, except where reshape must copy.
local ffi = require "ffi"
local lib = require "lunce.ffi"
local tensor = require "lunce.tensor"
local autograd = require "lunce.autograd"
local create = require "lunce.ops.create"
local option = require "lunce.options"
local describe, describe_list = option.describe, option.describe_list

local C, raise, call = lib.C, lib.raise, lib.call
local out, take, need, extents = tensor.out, tensor.take, tensor.need, tensor.extents
local dim_index, need_integer = tensor.dim_index, tensor.need_integer
local tape, record, rule = autograd.tape, autograd.record, autograd.rule

local M = {}

-- ---- Shape -----------------------------------------------------------------------------------

local reshape_rule = rule("reshape", function(node, dy) return dy:reshape(node.shape) end)

-- x seen in the shape that the call left in the out-box.
local function reshaped(x)
  local y = take()
  if tape.on and x.requires_grad then record(y, reshape_rule, x).shape = x.shape end
  return y
end

--- x in another shape, one extent of which may be -1; a copy only where no view exists.
---@param x lunce.Tensor
---@return lunce.Tensor
function M.reshape(x, ...)
  need(x, "reshape", 1)
  call(C.ln_reshape, out(), x.h, extents("reshape", -1, ...))
  return reshaped(x)
end

--- As reshape, and an error where no view exists.
function M.view(x, ...)
  need(x, "view", 1)
  call(C.ln_view, out(), x.h, extents("view", -1, ...))
  return reshaped(x)
end

local function viewed(x, shape, what)
  call(C.ln_view, out(), x.h, extents(what, 0, shape))
  return reshaped(x)
end

--- Without dimension dim, where its extent is 1; without all such where dim is not given.
---@param dim integer|nil
function M.squeeze(x, dim)
  local given = need(x, "squeeze", 1).shape
  local at = dim and dim_index(dim, #given, "squeeze") + 1
  local shape = {}
  for i, n in ipairs(given) do
    if n ~= 1 or (at and i ~= at) then shape[#shape + 1] = n end
  end
  return viewed(x, shape, "squeeze")
end

--- With a dimension of extent 1 at place dim (-1: after the last).
---@param dim integer
function M.unsqueeze(x, dim)
  local shape = { unpack(need(x, "unsqueeze", 1).shape) }
  table.insert(shape, dim_index(dim, #shape + 1, "unsqueeze") + 1, 1)
  return viewed(x, shape, "unsqueeze")
end

--- Dimensions first to last (all of them where not given) as one.
function M.flatten(x, first, last)
  local given = need(x, "flatten", 1).shape
  if #given == 0 then return M.reshape(x, 1) end
  local a = dim_index(first or 1, #given, "flatten") + 1
  local b = dim_index(last or -1, #given, "flatten") + 1
  if a > b then raise("flatten: the first dimension %d is after the last, %d", a, b) end
  local shape, n = {}, 1
  for i = 1, #given do
    if i >= a and i <= b then n = n * given[i] end
    if i < a or i > b then shape[#shape + 1] = given[i] end
    if i == b then shape[#shape + 1] = n end
  end
  return M.reshape(x, shape)
end

local order = ffi.new "int[8]"

local permute_rule = rule("permute", function(node, dy)
  local inverse = {}
  for i, d in ipairs(node.dims) do inverse[d] = i end
  return dy:permute(inverse)
end)

--- The dimensions in another order: permute(2, 1) transposes a matrix.
function M.permute(x, ...)
  local ndim = tensor.ndim(need(x, "permute", 1))
  local given = type((...)) == "table" and (...) or { ... }
  if #given ~= ndim then
    raise("permute: %d dimensions are given; the tensor has %d", #given, ndim)
  end
  local dims = {}
  for i = 1, ndim do
    order[i - 1] = dim_index(given[i], ndim, "permute")
    dims[i] = order[i - 1] + 1
  end
  call(C.ln_permute, out(), x.h, ndim, order)
  local y = take()
  if tape.on and x.requires_grad then record(y, permute_rule, x).dims = dims end
  return y
end

--- Dimensions a and b exchanged.
---@param a integer
---@param b integer
function M.transpose(x, a, b)
  local ndim = tensor.ndim(need(x, "transpose", 1))
  a, b = dim_index(a, ndim, "transpose") + 1, dim_index(b, ndim, "transpose") + 1
  local dims = {}
  for i = 1, ndim do dims[i] = i end
  dims[a], dims[b] = b, a
  return M.permute(x, dims)
end

--- The transpose of a matrix; a vector or a scalar as it is.
function M.t(x)
  local ndim = tensor.ndim(need(x, "t", 1))
  if ndim > 2 then raise("t: a tensor of %d dimensions; at most 2 are taken", ndim) end
  if ndim < 2 then return x end
  return M.permute(x, { 2, 1 })
end

local function refuse_size(from, shape)
  if type(shape) ~= "table" or getmetatable(shape) then
    raise("sum_to_size: the shape is %s; a list of extents is taken", describe(shape))
  end
  raise("sum_to_size: a tensor (%s) was not broadcast from %s", table.concat(from, ","),
    describe_list(shape))
end

--- x summed over the dimensions along which it was broadcast from `shape`.
---@param shape integer[]
function M.sum_to_size(x, shape)
  local from, sum = need(x, "sum_to_size", 1).shape, x
  if type(shape) ~= "table" or getmetatable(shape) or #shape > #from then
    refuse_size(from, shape)
  end
  local lead, dims = #from - #shape, {}
  for i = 1, #from do
    local n = shape[i - lead]
    if i <= lead or (n == 1 and from[i] ~= 1) then
      dims[#dims + 1] = i
    elseif n ~= from[i] then
      refuse_size(from, shape)
    end
  end
  if #dims > 0 then sum = sum:sum(dims, true) end
  return lead > 0 and sum:reshape(shape) or sum
end

local expand_rule = rule("expand", function(node, dy) return dy:sum_to_size(node.shape) end)

--- x with dimensions of extent 1 repeated, without a copy; -1 keeps an extent.
function M.expand(x, ...)
  local from = need(x, "expand", 1).shape
  local ndim, sizes = extents("expand", -1, ...)
  local lead = ndim - #from
  for i = 0, ndim - 1 do
    if sizes[i] == -1 then
      if i < lead then raise("expand: extent %d is -1 and the tensor has none to keep", i + 1) end
      sizes[i] = from[i - lead + 1]
    end
  end
  call(C.ln_expand, out(), x.h, ndim, sizes)
  local y = take()
  if tape.on and x.requires_grad then record(y, expand_rule, x).shape = from end
  return y
end

-- ---- Parts -----------------------------------------------------------------------------------

-- A zero tensor of x's shape, of which place(dx) is the part that dy belongs to.
local function spread(node, dy, place)
  local dx = create.new_zeros(dy, node.shape)
  local part = place(dx, node)
  call(C.ln_copy, part.h, dy.h)
  return dx
end

local function raw_slice(x, dim, start, count, step)
  call(C.ln_slice, out(), x.h, dim, start, count, step)
  return take()
end

local slice_rule = rule("slice", function(node, dy)
  return spread(node, dy, function(dx)
    return raw_slice(dx, node.dim, node.start, node.count, node.step)
  end)
end)

local function sliced(x, dim, start, count, step)
  local y = raw_slice(x, dim, start, count, step)
  if tape.on and x.requires_grad then
    local node = record(y, slice_rule, x)
    node.shape, node.dim, node.start, node.count, node.step = x.shape, dim, start, count, step
  end
  return y
end

-- The place from 0 of position i (from 1, or -1 for the last) of n.
local function place(i, n, what, name)
  need_integer(i, what, name)
  if i == 0 or i > n or i < -n then raise("%s: %s %d is outside 1..%d", what, name, i, n) end
  return i > 0 and i - 1 or n + i
end

--- `length` positions of dimension dim from `start` on.
---@param dim integer
---@param start integer
---@param length integer
function M.narrow(x, dim, start, length)
  local shape = need(x, "narrow", 1).shape
  local d = dim_index(dim, #shape, "narrow")
  local n = shape[d + 1]
  need_integer(length, "narrow", "the length")
  local first = length == 0 and start == n + 1 and n or place(start, n, "narrow", "position")
  if length < 0 or first + length > n then
    raise("narrow: %d positions from %d; dimension %d has %d", length, first + 1, d + 1, n)
  end
  return sliced(x, d, first, length, 1)
end

--- Positions first to last (both included) of dimension dim, each step-th of them.
---@param dim integer
---@param first integer|nil 1
---@param last integer|nil -1
---@param step integer|nil 1
function M.slice(x, dim, first, last, step)
  local shape = need(x, "slice", 1).shape
  local d = dim_index(dim, #shape, "slice")
  local n = shape[d + 1]
  step = need_integer(step or 1, "slice", "the step")
  if step < 1 then raise("slice: step %d; at least 1 is taken", step) end
  if n == 0 and (first or 1) == 1 and (last or -1) == -1 then return sliced(x, d, 0, 0, 1) end
  local a = place(first or 1, n, "slice", "position")
  local b = place(last or -1, n, "slice", "position")
  return sliced(x, d, a, math.max(0, math.floor((b - a) / step) + 1), step)
end

local function raw_select(x, dim, position)
  call(C.ln_select, out(), x.h, dim, position)
  return take()
end

local select_rule = rule("select", function(node, dy)
  return spread(node, dy, function(dx) return raw_select(dx, node.dim, node.position) end)
end)

--- Position i of dimension dim, which is dropped.
---@param dim integer
---@param i integer
function M.select(x, dim, i)
  local shape = need(x, "select", 1).shape
  local d = dim_index(dim, #shape, "select")
  local position = place(i, shape[d + 1], "select", "position")
  local y = raw_select(x, d, position)
  if tape.on and x.requires_grad then
    local node = record(y, select_rule, x)
    node.shape, node.dim, node.position = shape, d, position
  end
  return y
end

local function raw_diagonal(x, offset, dim1, dim2)
  call(C.ln_diagonal, out(), x.h, offset, dim1, dim2)
  return take()
end

local diagonal_rule = rule("diagonal", function(node, dy)
  return spread(node, dy, function(dx)
    return raw_diagonal(dx, node.offset, node.dim1, node.dim2)
  end)
end)

--- The diagonal of dimensions dim1 and dim2, as the last dimension; offset > 0 is above the main
--- one.
---@param offset integer|nil 0
---@param dim1 integer|nil 1
---@param dim2 integer|nil 2
function M.diagonal(x, offset, dim1, dim2)
  local ndim = tensor.ndim(need(x, "diagonal", 1))
  offset = need_integer(offset or 0, "diagonal", "the offset")
  local a, b = dim_index(dim1 or 1, ndim, "diagonal"), dim_index(dim2 or 2, ndim, "diagonal")
  local y = raw_diagonal(x, offset, a, b)
  if tape.on and x.requires_grad then
    local node = record(y, diagonal_rule, x)
    node.shape, node.offset, node.dim1, node.dim2 = x.shape, offset, a, b
  end
  return y
end

-- ---- Indexing --------------------------------------------------------------------------------

--- t[i] and t[{ 2, { 3, 5 }, {} }]: for each dimension from the first on, a position (drops it),
--- { first, last, step } (both included), { i } (keeps it with extent 1) or {} (all).
---@param key integer|table
function M.at(x, key)
  if type(key) == "number" then return M.select(x, 1, key) end
  if type(key) ~= "table" or getmetatable(key) then
    raise("index: a tensor is indexed by a number or a table of positions and ranges; got %s"
      .. " (index_select and gather take tensors)", describe(key))
  end
  local y, d = x, 1
  if key[1] == nil and next(key) ~= nil then
    raise "index: a table without a first entry; it lists a position or a range by dimension"
  end
  for _, part in ipairs(key) do
    if type(part) == "number" then
      y = M.select(y, d, part)
    elseif type(part) == "table" and not getmetatable(part) then
      if part[1] then
        y = M.slice(y, d, part[1], part[2] or part[1], part[3])
      elseif next(part) ~= nil then
        raise "index: a range has no first position; { 1, last } starts at the first"
      end
      d = d + 1
    else
      raise("index: %s; a position or a range { first, last } is taken", describe(part))
    end
  end
  return y == x and M.view(need(x, "index", 1), x.shape) or y
end

--- t[key] = value: writes a number, or a tensor that broadcasts, into that part of t.
function M.set_at(x, key, value)
  autograd.guard(x, "index assignment", value)
  local part = autograd.no_grad(M.at, x, key)
  if type(value) == "number" or type(value) == "boolean" then
    part:fill_(value)
  else
    part:copy_(value)
  end
end

return M

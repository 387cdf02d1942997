-- Selecting and joining: elements chosen by index tensors (positions from 1, -1 the last), sorting,
-- concatenation; with their backward rules. Invariant: every gradient returns to the places its
-- values were taken from, in a fixed order.
local lib = require "lunce.ffi"
local tensor = require "lunce.tensor"
local autocast = require "lunce.autocast"
local autograd = require "lunce.autograd"
local create = require "lunce.ops.create"
local option = require "lunce.options"

local C, raise, call = lib.C, lib.raise, lib.call
local out, out2, take, take2, need = tensor.out, tensor.out2, tensor.take, tensor.take2, tensor.need
local dim_index = tensor.dim_index
local tape, record, save, rule = autograd.tape, autograd.record, autograd.save, autograd.rule

local M = {}

-- ---- By index --------------------------------------------------------------------------------

-- The dimension from 0 of an operator on x with an index tensor.
local function indexed(x, dim, index, what)
  local d = dim_index(dim, tensor.ndim(need(x, what, 1)), what)
  need(index, what, 3)
  return d
end

local index_select_rule = rule("index_select", function(node, dy)
  local dx = create.new_zeros(dy, node.shape)
  call(C.ln_index_add, dx.h, node.dim, node.x.h, dy.h)
  return dx
end)

--- The positions of dimension dim that the 1-D index lists.
---@param dim integer
---@param index lunce.Tensor
function M.index_select(x, dim, index)
  local d = indexed(x, dim, index, "index_select")
  call(C.ln_index_select, out(), x.h, d, index.h)
  local y = take()
  if tape.on and x.requires_grad then
    local node = save(record(y, index_select_rule, x), index)
    node.shape, node.dim = x.shape, d
  end
  return y
end

local function raw_gather(x, d, index)
  call(C.ln_gather, out(), x.h, d, index.h)
  return take()
end

local gather_rule = rule("gather", function(node, dy)
  local dx = create.new_zeros(dy, node.shape)
  call(C.ln_scatter_add, dx.h, node.dim, node.x.h, dy.h)
  return dx
end)

--- y[i][j] = x[index[i][j]][j] for dim 1, and so on (torch.gather).
---@param dim integer
---@param index lunce.Tensor
function M.gather(x, dim, index)
  local d = indexed(x, dim, index, "gather")
  local y = raw_gather(x, d, index)
  if tape.on and x.requires_grad then
    local node = save(record(y, gather_rule, x), index)
    node.shape, node.dim = x.shape, d
  end
  return y
end

local scatter_add_rule = rule("scatter_add", function(node, dy)
  return dy, node[2] and raw_gather(dy, node.dim, node.x)
end)

--- x with src added at index along dim (torch.scatter_add).
---@param dim integer
---@param index lunce.Tensor
---@param src lunce.Tensor
function M.scatter_add(x, dim, index, src)
  local d = indexed(x, dim, index, "scatter_add")
  need(src, "scatter_add", 4)
  if tape.low then x, src = unpack(autocast.widest { x, src }) end
  call(C.ln_contiguous, out(), x.h)
  local y = take()
  call(C.ln_scatter_add, y.h, d, index.h, src.h)
  if tape.on and (x.requires_grad or src.requires_grad) then
    local node = save(record(y, scatter_add_rule, x, src), index)
    node.dim = d
  end
  return y
end

--- A new last dimension of `classes` zeros with a 1 at each label (from 1); int64.
---@param classes integer|nil the largest label where not given
function M.one_hot(labels, classes)
  local shape = { unpack(need(labels, "one_hot", 1).shape) }
  classes = tensor.need_integer(classes or labels:max():item(), "one_hot", "the class count")
  if labels.dtype:find "float" or labels.dtype == "bool" then
    raise("one_hot: labels are %s; an integer dtype is taken", labels.dtype)
  end
  if labels.device ~= "cpu" then
    call(C.ln_index_check, labels:to("int64").h, classes, "one_hot")
  elseif labels:numel() > 0 and (labels:min():item() < 1 or labels:max():item() > classes) then
    raise("one_hot: labels run from %d to %d; 1 to %d are taken", labels:min():item(),
      labels:max():item(), classes)
  end
  local index = labels:unsqueeze(-1)
  shape[#shape + 1] = classes
  local y = create.zeros(shape, { dtype = "int64", device = labels.device })
  local ones = create.ones(index.shape, { dtype = "int64", device = labels.device })
  call(C.ln_scatter_add, y.h, #shape - 1, index.h, ones.h)
  return y
end

-- ---- Sorting ---------------------------------------------------------------------------------

-- The values of sort and topk lead back along the indices, of which the node has its own handle.
local sorted_rule = rule("sort", function(node, dy)
  local dx = create.new_zeros(dy, node.shape)
  call(C.ln_scatter_add, dx.h, node.dim, node.private[1].h, dy.h)
  return dx
end)

local function sorted(x, d)
  local values, indices = take(), take2()
  if tape.on and x.requires_grad then
    local node = record(values, sorted_rule, x)
    node.shape, node.dim = x.shape, d
    autograd.own(node, indices:detach())
  end
  return values, indices
end

local SORT, SORT_FLAGS = { descending = false }, { descending = true }

--- The elements along dim (the last where not given) in rising order, and their positions; stable.
---@param dim integer|nil
---@param given { descending: boolean }|nil
---@return lunce.Tensor values
---@return lunce.Tensor indices
function M.sort(x, dim, given)
  local set = option.options(given, SORT, "sort", SORT_FLAGS)
  local d = dim_index(dim or -1, tensor.ndim(need(x, "sort", 1)), "sort")
  call(C.ln_sort, out(), out2(), x.h, d, set.descending)
  return sorted(x, d)
end

function M.argsort(x, dim, given)
  local values, indices = M.sort(need(x, "argsort", 1):detach(), dim, given)
  values:free()
  return indices
end

--- The k largest along dim (the last where not given), largest first, and their positions; the
--- smallest with { largest = false }.
---@param k integer
---@param dim integer|nil
---@param given { largest: boolean }|nil
---@return lunce.Tensor values
---@return lunce.Tensor indices
function M.topk(x, k, dim, given)
  local set = option.options(given, { largest = true }, "topk")
  local d = dim_index(dim or -1, tensor.ndim(need(x, "topk", 1)), "topk")
  tensor.need_integer(k, "topk", "k")
  call(C.ln_topk, out(), out2(), x.h, k, d, set.largest)
  return sorted(x, d)
end

-- ---- Joining ---------------------------------------------------------------------------------

local function narrowed(x, dim, start, count)
  call(C.ln_slice, out(), x.h, dim, start, count, 1)
  return take()
end

local cat_rule = rule("cat", function(node, dy)
  local parts, start = {}, 0
  for i, count in ipairs(node.counts) do
    parts[i] = node[i] and narrowed(dy, node.dim, start, count)
    start = start + count
  end
  return parts
end)

local function need_list(list, what)
  if type(list) ~= "table" or getmetatable(list) or #list == 0 then
    raise("%s: argument 1 is %s; a list of at least one tensor is taken", what,
      option.describe(list))
  end
  for i = 1, #list do
    local x = list[i]
    if not tensor.is_tensor(x) then
      raise("%s: element %d of the list is %s; a tensor is taken", what, i, option.describe(x))
    end
  end
end

-- The shape of the joined tensor: the tensors agree in all but dimension d (from 1).
local function joined_shape(list, d)
  local shape, counts = { unpack(list[1].shape) }, {}
  shape[d] = 0
  for i, x in ipairs(list) do
    local fits = #x.shape == #shape
    for j = 1, fits and #shape or 0 do fits = fits and (j == d or x.shape[j] == shape[j]) end
    if not fits or x.dtype ~= list[1].dtype then
      raise("cat: tensor %d is (%s) %s; the first is (%s) %s, and all but dimension %d must agree",
        i, table.concat(x.shape, ","), x.dtype, table.concat(list[1].shape, ","), list[1].dtype, d)
    end
    counts[i] = x.shape[d]
    shape[d] = shape[d] + counts[i]
  end
  return shape, counts
end

--- The tensors of the list one after the other along dim.
---@param list lunce.Tensor[]
---@param dim integer|nil 1
---@return lunce.Tensor
function M.cat(list, dim)
  need_list(list, "cat")
  if tape.low then list = autocast.widest(list) end
  local d = dim_index(dim or 1, #list[1].shape, "cat")
  local shape, counts = joined_shape(list, d + 1)
  local about = tensor.info(list[1])
  call(C.ln_tensor_empty, out(), about.dtype, about.device, tensor.extents("cat", 0, shape))
  local y, start, wanted = take(), 0, false
  for i, x in ipairs(list) do
    local part = narrowed(y, d, start, counts[i])
    call(C.ln_copy, part.h, x.h)
    part:free()
    start = start + counts[i]
    wanted = wanted or x.requires_grad
  end
  if tape.on and wanted then
    local node = autograd.record_list(y, cat_rule, list)
    node.dim, node.counts, node.splits = d, counts, true
  end
  return y
end

--- The tensors of the list, all of one shape, along a new dimension dim.
---@param list lunce.Tensor[]
---@param dim integer|nil 1
---@return lunce.Tensor
function M.stack(list, dim)
  need_list(list, "stack")
  dim = dim_index(dim or 1, #list[1].shape + 1, "stack") + 1
  local layers = {}
  for i, x in ipairs(list) do layers[i] = x:unsqueeze(dim) end
  return M.cat(layers, dim)
end

return M

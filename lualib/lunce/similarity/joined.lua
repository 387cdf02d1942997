-- The rows of a matrix as the fused engine takes them: those of two tensors on a CUDA device as
-- they lie, one after the other, where a copy of both would be as large as their gradients. May not
-- compute with elements. Invariant: to everything but the engine, joined rows are a tensor like any
-- other, which is made where it is first used.
local autograd = require "lunce.autograd"
local lib = require "lunce.ffi"
local lunce = require "lunce"
local tensor = require "lunce.tensor"

local C, call, out, take = lib.C, lib.call, tensor.out, tensor.take

local M = {}

local join_rule = autograd.rule("similarity.rows", function(node, dy)
  local first = node.first
  return { node[1] and dy:narrow(1, 1, first),
    node[2] and dy:narrow(1, first + 1, dy.shape[1] - first) }
end)

local function joins(list)
  if #list ~= 2 or autograd.tape.anomaly or list[1].device == "cpu" then return false end
  return list[1].device == list[2].device and tensor.info(list[1]).contiguous
    and tensor.info(list[2]).contiguous
end

--- The rows of the tensors of a list, one after the other.
---@param list lunce.Tensor[] each (N,D) of one D and dtype
---@return lunce.Tensor
function M.join(list)
  if #list == 1 then return list[1] end
  if not joins(list) then return lunce.cat(list, 1) end
  local a, b = list[1], list[2]
  local y = tensor.defer(function() return lunce.no_grad(lunce.cat, list, 1) end)
  rawset(y, "joined", list)
  rawset(y, "known_shape", { a.shape[1] + b.shape[1], a.shape[2] })
  rawset(y, "known_dtype", a.dtype)
  if autograd.tape.on and (a.requires_grad or b.requires_grad) then
    local node = autograd.record_list(y, join_rule, list)
    node.first, node.splits = a.shape[1], true
  end
  return y
end

--- x as the engine reads it, contiguous: joined rows from where they lie.
---@param x lunce.Tensor
---@return lunce.Tensor
function M.read(x)
  local list = rawget(x, "joined")
  if not list then return tensor.info(x).contiguous and x or x:detach():contiguous() end
  call(C.ln_tensor_join, out(), list[1].h, list[2].h)
  return take()
end

--- The number of x's device.
function M.device(x)
  local list = rawget(x, "joined")
  return tensor.info(list and list[1] or x).device
end

--- Another number after each change of the rows in place.
function M.version(x)
  local list = rawget(x, "joined")
  if not list then return C.ln_tensor_version(x.h) end
  return C.ln_tensor_version(list[1].h) + C.ln_tensor_version(list[2].h)
end

return M

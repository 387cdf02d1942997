-- Products of matrices and their backward rules. Invariant: transposes are views; a batch that was
-- broadcast is summed in the gradient.
local lib = require "lunce.ffi"
local tensor = require "lunce.tensor"
local autocast = require "lunce.autocast"
local autograd = require "lunce.autograd"

local C, raise, call = lib.C, lib.raise, lib.call
local out, take, need = tensor.out, tensor.take, tensor.need
local tape, record, save, rule = autograd.tape, autograd.record, autograd.save, autograd.rule

local M = {}

local function product(x, y, bias)
  call(C.ln_matmul, out(), x.h, y.h, bias and bias.h)
  return take()
end

local matmul_rule = rule("matmul", function(node, dz)
  local x, y = node.x, node.y
  return node[1] and product(dz, y:transpose(-1, -2)):sum_to_size(x.shape),
    node[2] and product(x:transpose(-1, -2), dz):sum_to_size(y.shape)
end)

local function matrices(x, y)
  local z = product(x, y)
  if tape.on and (x.requires_grad or y.requires_grad) then
    save(record(z, matmul_rule, x, y), x, y)
  end
  return z
end

--- torch.matmul: a vector counts as a row on the left and a column on the right, and its dimension
--- is gone from the result; leading dimensions are a batch and broadcast.
---@param x lunce.Tensor
---@param y lunce.Tensor
---@return lunce.Tensor
function M.matmul(x, y)
  local left = tensor.ndim(need(x, "matmul", 1))
  local right = tensor.ndim(need(y, "matmul", 2))
  if left == 0 or right == 0 then
    raise("matmul: argument %d has no dimensions; at least 1 is taken", left == 0 and 1 or 2)
  end
  if tape.low then x, y = autocast.low(x, y) end
  if left > 2 and right == 2 then -- one product of all rows
    local shape = { unpack(x.shape) }
    shape[left] = y.shape[2]
    return matrices(x:flatten(1, -2), y):reshape(shape)
  end
  local z = matrices(left == 1 and x:unsqueeze(1) or x, right == 1 and y:unsqueeze(2) or y)
  if right == 1 then z = z:squeeze(-1) end
  if left == 1 then z = z:squeeze(right == 1 and -1 or -2) end
  return z
end

--- The product of two matrices.
function M.mm(x, y)
  local left = tensor.ndim(need(x, "mm", 1))
  local right = tensor.ndim(need(y, "mm", 2))
  if left ~= 2 or right ~= 2 then
    raise("mm: %d and %d dimensions; two matrices are taken (matmul has batches)", left, right)
  end
  if tape.low then x, y = autocast.low(x, y) end
  return matrices(x, y)
end

local linear_rule = rule("linear", function(node, dy)
  return node[1] and product(dy, node.y), node[2] and product(dy:t(), node.x),
    node[3] and dy:sum(1)
end)

--- x w^T + bias: x (..., in), w (out, in), bias (out) or nil -> (..., out).
---@param x lunce.Tensor
---@param w lunce.Tensor
---@param bias lunce.Tensor|nil
---@return lunce.Tensor
function M.linear(x, w, bias)
  local shape = { unpack(need(x, "linear", 1).shape) }
  local of_w = need(w, "linear", 2).shape
  if bias ~= nil then need(bias, "linear", 3) end
  if #of_w ~= 2 or shape[#shape] ~= of_w[2] then
    raise("linear: input (%s) and weight (%s); (..., n) and (m, n) are taken",
      table.concat(shape, ","), table.concat(of_w, ","))
  end
  if tape.low then x, w, bias = autocast.low(x, w, bias) end
  local rows = #shape == 2 and x or x:reshape(-1, of_w[2])
  local transposed = autograd.no_grad(w.t, w)
  local y = product(rows, transposed, bias)
  transposed:free()
  if tape.on and (x.requires_grad or w.requires_grad or (bias and bias.requires_grad)) then
    save(record(y, linear_rule, rows, w, bias), rows, w)
  end
  if #shape == 2 then return y end
  shape[#shape] = of_w[1]
  return y:reshape(shape)
end

return M

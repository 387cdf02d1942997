-- Gradient clipping, between backward and step. Holds no optimiser.
local lunce = require "lunce"
local describe, options = require("lunce.options").describe, require("lunce.options").options
local tensor = require "lunce.tensor"
local raise = require("lunce.ffi").raise

local need_number = tensor.need_number

local M = {}

-- A tensor or a module would look like a list without parameters.
local function check_params(params, what)
  if type(params) ~= "table" or getmetatable(params) or (#params == 0 and next(params) ~= nil) then
    raise("%s: parameters are %s; a list is taken, such as m:parameters()", what,
      describe(params))
  end
  for i = 1, #params do
    if not tensor.is_tensor(params[i]) then
      raise("%s: parameter %d is %s; a tensor is taken", what, i, describe(params[i]))
    end
  end
end

local defaults = { norm_type = 2, error_if_nonfinite = true }

-- The norm of all gradients as one vector, a tensor without dimensions; nil where there are none.
local function total_norm(params, order)
  local norms = {}
  for _, p in ipairs(params) do
    if p.grad then norms[#norms + 1] = p.grad:norm(order) end
  end
  return norms[1] and lunce.stack(norms):norm(order)
end

-- PyTorch's allowance of 1e-6 keeps a norm of zero from dividing by it.
local function factor_of(max_norm, norm) return max_norm / (norm + 1e-6) end

-- The same where the host cannot look at the norm: a factor of 1 changes no bits.
local function scale_unseen(params, max_norm, norm)
  if not norm then return nil end
  local factor = factor_of(max_norm, norm:double())
  factor = lunce.where(factor:lt(1), factor, lunce.ones_like(factor))
  for _, p in ipairs(params) do
    if p.grad then p.grad:mul_(factor:to(p.grad.dtype)) end
  end
  return norm
end

--- Scales the gradients so that their norm, as of one vector, is at most max_norm. A norm that is
--- not finite is an error unless { error_if_nonfinite = false }. In a captured step (lunce.graph)
--- it is a tensor, nil where there are no gradients, and no error.
---@param params lunce.Tensor[]
---@param max_norm number
---@param opts? { norm_type: number, error_if_nonfinite: boolean }
---@return number|lunce.Tensor|nil norm before the scaling
function M.clip_grad_norm(params, max_norm, opts)
  local set = options(opts, defaults, "clip_grad_norm")
  check_params(params, "clip_grad_norm")
  need_number(max_norm, "clip_grad_norm", "max_norm")
  return lunce.no_grad(lunce.scope, function()
    local norm = total_norm(params, set.norm_type)
    if tensor.state.step then return scale_unseen(params, max_norm, norm) end
    norm = norm and norm:item() or 0
    if set.error_if_nonfinite and (norm ~= norm or norm == math.huge) then
      raise("clip_grad_norm: the norm of the gradients is %g", norm)
    end
    local factor = factor_of(max_norm, norm)
    for _, p in ipairs(params) do
      if p.grad and factor < 1 then p.grad:mul_(factor) end
    end
    return norm
  end)
end

--- Clamps every element of the gradients to [-limit, limit].
---@param params lunce.Tensor[]
---@param limit number
function M.clip_grad_value(params, limit)
  check_params(params, "clip_grad_value")
  need_number(limit, "clip_grad_value", "the limit")
  lunce.no_grad(function()
    for _, p in ipairs(params) do
      if p.grad then p.grad:clamp_(-limit, limit) end
    end
  end)
end

return M

-- What hcl and debiased share: InfoNCE of two views over an estimate of the true negatives' mass.
-- Holds no state. Invariant: everything is computed as logarithms relative to the positive, so that
-- no exponential of a logit overflows at any temperature.
local raise = require("lunce.ffi").raise
local similarity = require "lunce.similarity"
local views = require "lunce.loss.views"

local M = {}

M.tau_plus = { "tau_plus", 0.1, "the share of false negatives expected among the negatives" }

local function scaled(s, scale) return s * scale end

--- mean_a log(1 + G_a/exp(s_ap/tau)) with hcl's G; a beta of nil or 0 weights the negatives alike.
---@param z_i lunce.Tensor (N,D)
---@param z_j lunce.Tensor (N,D)
---@param o table options tau, tau_plus, beta
---@param what string the loss, for messages
---@return lunce.Tensor scalar
function M.loss(z_i, z_j, o, what)
  if not (o.tau_plus >= 0 and o.tau_plus < 1) then
    raise("%s: tau_plus is %g; 0 up to below 1 is taken", what, o.tau_plus)
  end
  local pair, beta = views.pair(z_i, z_j, what), o.beta or 0
  if pair.N < 2 then raise("%s: one pair has no negatives; two pairs or more are taken", what) end
  local log_K, inverse = math.log(2 * pair.N - 2), 1 / o.tau
  local positive = pair.positive * inverse

  local hard, weights = similarity.together(function()
    return pair.negatives:lse(scaled, inverse * (beta + 1)),
      beta == 0 and log_K or pair.negatives:lse(scaled, inverse * beta)
  end)
  local log_H = log_K + hard - weights - positive
  -- log(H - tau_plus K) = log H + log(1 - exp(excess)); the floor holds where nothing is left.
  local excess = (math.log(o.tau_plus) + log_K - log_H):clamp(-math.huge, -1e-30)
  local log_G = log_H + (-excess:expm1()):log() - math.log(1 - o.tau_plus)
  return log_G:maximum(log_K - inverse - positive):softplus():mean()
end

return M

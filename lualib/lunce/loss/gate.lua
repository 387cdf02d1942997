-- Gate: the mixed link of WEINCE with a fixed gate on each anchor's nearest negative, an ablation.
-- Holds no state of its own: a moving shape is the caller's, in options.
local check = require "lunce.loss.check"
local evt = require "lunce.evt"
local options = require("lunce.options").options
local raise = require("lunce.ffi").raise
local views = require "lunce.loss.views"

local DEFAULTS = { tau = false, beta = false, rho0 = 0.05, scale = 5, state = false }

--- InfoNCE with the link (1 - lambda) s/tau + lambda w(s; beta), where
--- lambda = sigmoid(scale (log rho0 - log rho)).
---@param z_i lunce.Tensor (N,D)
---@param z_j lunce.Tensor (N,D)
---@param given table|nil tau (0.5); beta: a number (4), a tensor of one element, or "batch" with
---  state, a loss.beta_state updated by this batch: lambda stays 0 until it has seen a trusted fit
---@return lunce.Tensor scalar
---@return table statistics lambda, rho: (2N) float64; beta
return function(z_i, z_j, given)
  local o = options(given, DEFAULTS, "gate")
  local tau = check.positive(o.tau or 0.5, "tau", "gate")
  if not (o.rho0 > 0) then raise("gate: rho0 is %g; a number above 0 is taken", o.rho0) end
  if o.beta == "anchor" then raise('gate: beta is a number, a tensor of one element or "batch"') end
  local pair = views.pair(z_i, z_j, "gate")
  local beta = views.shape(pair, nil, o.beta or 4, o)
  local rho = pair.negatives:tail{ k = 0 }.rho
  local lambda = evt.rho_gate(rho, o.rho0, o.scale)
  if o.beta == "batch" and not o.state.fitted then lambda = lambda * 0 end
  local function mixture(s, mix, shape) return views.mixture(s, tau, mix, shape) end
  local loss = views.contrast(pair, mixture, lambda:to(pair.positive.dtype), beta):mean()
  return loss, { lambda = lambda, rho = rho, beta = beta }
end

-- Soft selection: each anchor mixes two losses by the evidence of its tail, an ablation of WEINCE.
-- Holds no state of its own: a moving shape is the caller's, in options.
local check = require "lunce.loss.check"
local options = require("lunce.options").options
local views = require "lunce.loss.views"

local DEFAULTS = { tau = false, margin = 2, kappa_rho = 10, kappa_aic = 1, q = 0.2,
  evidence = "both", top_m = 16, beta_t = 4, shrink_c = 100, r2_min = 0.2, state = false }

--- (1 - lambda) NT-Xent + lambda Weibit over the positive and the top_m hardest negatives, with
--- lambda as in WEINCE and the anchor's shrunk shape.
---@param z_i lunce.Tensor (N,D)
---@param z_j lunce.Tensor (N,D)
---@param given table|nil tau (0.5), margin, kappa_rho, kappa_aic, q, evidence, top_m, beta_t,
---  shrink_c, r2_min, state
---@return lunce.Tensor scalar
---@return table statistics as for weince
return function(z_i, z_j, given)
  local o = options(given, DEFAULTS, "soft_select")
  local tau = check.positive(o.tau or 0.5, "tau", "soft_select")
  local pair = views.pair(z_i, z_j, "soft_select")
  local lambda, tail = views.evidence(pair, o)
  tail.beta = views.shape(pair, tail, "anchor", o)
  local weibit = views.contrast_hardest(pair, o.top_m, views.shortfall, tail.beta)
  local softmax = views.contrast(pair, views.softmax, tau)
  return ((1 - lambda) * softmax + lambda * weibit):mean(), tail
end

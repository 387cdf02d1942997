-- Hard selection: each anchor takes one of two losses by the evidence of its tail, an ablation of
-- WEINCE. Holds no state of its own: a moving shape is the caller's, in options.
local check = require "lunce.loss.check"
local evt = require "lunce.evt"
local lunce = require "lunce"
local options = require("lunce.options").options
local views = require "lunce.loss.views"

local DEFAULTS = { tau = false, q = 0.2, margin = 2, top_m = 16, beta_t = 4, shrink_c = 100,
  r2_min = 0.2, state = false }

--- Weibit with the anchor's shrunk shape over the positive and the top_m hardest negatives where
--- rho <= rho0 and dAIC >= margin; NT-Xent elsewhere.
---@param z_i lunce.Tensor (N,D)
---@param z_j lunce.Tensor (N,D)
---@param given table|nil tau (0.5), q, margin, top_m, beta_t, shrink_c, r2_min, state
---@return lunce.Tensor scalar
---@return table statistics the anchors' tail, float64, with rho0, chosen (bool) and beta
return function(z_i, z_j, given)
  local o = options(given, DEFAULTS, "hard_select")
  local tau = check.positive(o.tau or 0.5, "tau", "hard_select")
  local pair = views.pair(z_i, z_j, "hard_select")
  local tail = pair.negatives:tail()
  local beta = views.shape(pair, tail, "anchor", o)
  tail.rho0, tail.beta = evt.quantile(tail.rho, o.q), beta
  tail.chosen = tail.rho:le(tail.rho0):logical_and(tail.delta_aic:ge(o.margin))
  local weibit = views.contrast_hardest(pair, o.top_m, views.shortfall, beta)
  local softmax = views.contrast(pair, views.softmax, tau)
  return lunce.where(tail.chosen, weibit, softmax):mean(), tail
end

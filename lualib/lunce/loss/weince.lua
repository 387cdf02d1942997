-- WEINCE (arXiv 2606.00262): InfoNCE of two views whose link moves, anchor by anchor, from softmax
-- to Weibull as the evidence for an extreme-value tail of the negatives grows. Holds no state of
-- its own: a moving shape is the caller's, in options.
local check = require "lunce.loss.check"
local options = require("lunce.options").options
local views = require "lunce.loss.views"

local DEFAULTS = { tau = false, margin = 2, kappa_rho = 10, kappa_aic = 1, q = 0.2,
  evidence = "both", beta = false, beta_t = 4, shrink_c = 100, r2_min = 0.2, state = false,
  top_weibit = 0, top_softmax = 0, top_m = 50 }

--- l_ab = (1 - lambda_a) s_ab/tau + lambda_a w(s_ab; beta_a), with
--- lambda_a = sigmoid(kappa_rho (log rho0 - log rho_a)) sigmoid(kappa_aic (dAIC_a - margin)).
---@param z_i lunce.Tensor (N,D)
---@param z_j lunce.Tensor (N,D)
---@param given table|nil tau (0.5), margin, kappa_rho, kappa_aic, q (rho0 is this quantile of rho);
---  evidence: "both" factors of lambda, or "rho" or "aic" alone;
---  beta: 1 (the released code), a number, a tensor of one element, "anchor" (each anchor's fitted
---  shape, shrunk towards beta_t with weight shrink_c, ignoring fits of R2 < r2_min) or "batch"
---  (beta_t itself); state: a loss.beta_state that gives beta_t, brought up to date by these two;
---  top_weibit, top_softmax: weights of Weibit (beta_t) and softmax terms over the positive and the
---  top_m hardest negatives (0.5 each in the released runs)
---@return lunce.Tensor scalar
---@return table statistics (2N) float64, no gradient: lambda, lambda_rho, lambda_aic, rho,
---  delta_aic, beta_hat, r2; rho0 (scalar tensor); beta (what the link used); k, n (tail points)
return function(z_i, z_j, given)
  local o = options(given, DEFAULTS, "weince")
  local tau = check.positive(o.tau or 0.5, "tau", "weince")
  local pair = views.pair(z_i, z_j, "weince")
  local lambda, statistics = views.evidence(pair, o)
  local beta = views.shape(pair, statistics, o.beta or 1, o)
  statistics.beta = beta

  local function mixture(s, mix, shape) return views.mixture(s, tau, mix, shape) end
  local loss = views.contrast(pair, mixture, lambda, beta):mean()
  if o.top_weibit ~= 0 then
    local shape = o.state and o.state.beta or o.beta_t
    local term = views.contrast_hardest(pair, o.top_m, views.shortfall, shape)
    loss = loss + o.top_weibit * term:mean()
  end
  if o.top_softmax ~= 0 then
    local term = views.contrast_hardest(pair, o.top_m, views.softmax, tau)
    loss = loss + o.top_softmax * term:mean()
  end
  return loss, statistics
end

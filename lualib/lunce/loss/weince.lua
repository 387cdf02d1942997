-- WEINCE: InfoNCE of two views whose link moves, anchor by anchor, from softmax to Weibull as the
-- evidence for an extreme-value tail of the negatives grows. Holds no state of its own: a moving
-- shape is the caller's, in options.
local define = require "lunce.loss.define"
local views = require "lunce.loss.views"

-- The terms over the positive and the hardest negatives that the options ask for.
local function top_terms(pair, o)
  local sum = 0
  if o.top_weibit ~= 0 then
    local shape = o.state and o.state.beta or o.beta_t
    local term = views.contrast_hardest(pair, o.top_m, views.shortfall, shape)
    sum = sum + o.top_weibit * term:mean()
  end
  if o.top_softmax ~= 0 then
    local term = views.contrast_hardest(pair, o.top_m, views.softmax, o.tau)
    sum = sum + o.top_softmax * term:mean()
  end
  return sum
end

return define({
  name = "weince",
  summary = "InfoNCE with an extreme-value correction where the negatives' tail asks for it",
  takes = { "z_i (N,D)", "z_j (N,D)" },
  gives = "statistics, (2N) float64 without gradient: lambda, lambda_rho, lambda_aic, rho, "
    .. "delta_aic, beta_hat, r2; rho0 (scalar tensor); beta (what the link used); k, n (points)",
  formula = "mean_a log(exp l_ap + sum_n exp l_an) - l_ap\n"
    .. "l_ab = (1 - lambda_a) s_ab/tau + lambda_a w(s_ab; beta_a)\n"
    .. "lambda_a = lambda_rho_a lambda_aic_a\n"
    .. "lambda_rho_a = sigmoid(kappa_rho (log rho0 - log rho_a))\n"
    .. "lambda_aic_a = sigmoid(kappa_aic (dAIC_a - margin))\n"
    .. views.WEIBULL,
  where = views.NOTATION .. "; rho_a is the least 1 - s_an, dAIC_a compares a Weibull with a "
    .. "Gumbel fit to the smallest",
  source = "arXiv 2606.00262",
  options = {
    views.options.tau, views.options.margin, views.options.kappa_rho, views.options.kappa_aic,
    views.options.q, views.options.evidence,
    { "beta", 1, "shape: a number (1 in the released code), a tensor of one element, "
      .. '"anchor" (each anchor\'s fitted one, drawn towards beta_t) or "batch" (beta_t of state)',
      "any" },
    views.options.beta_t, views.options.shrink_c, views.options.r2_min,
    { "state", false, 'a loss.beta_state, which gives beta_t; "anchor" and "batch" update it' },
    { "top_weibit", 0, "weight of Weibit (beta_t) over the top_m; 0.5 in the released runs" },
    { "top_softmax", 0, "weight of NT-Xent over the top_m; 0.5 in the released runs" },
    { "top_m", 50, "how many of the hardest negatives these two terms take" },
  },
}, function(z_i, z_j, o)
  local pair = views.pair(z_i, z_j, "weince")
  local lambda, statistics = views.evidence(pair, o)
  statistics.beta = views.shape(pair, statistics, o.beta, o)
  local function mixture(s, mix, shape) return views.mixture(s, o.tau, mix, shape) end
  local loss = views.contrast(pair, mixture, lambda, statistics.beta):mean()
  return loss + top_terms(pair, o), statistics
end)

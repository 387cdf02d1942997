-- Soft selection: each anchor mixes two losses by the evidence of its tail. Holds no state of its
-- own: a moving shape is the caller's, in options.
local define = require "lunce.loss.define"
local views = require "lunce.loss.views"

return define({
  name = "soft_select",
  summary = "Weibit and NT-Xent mixed anchor by anchor, an ablation of WEINCE",
  takes = { "z_i (N,D)", "z_j (N,D)" },
  gives = "statistics, as weince's",
  formula = "mean_a (1 - lambda_a) NT-Xent + lambda_a Weibit over the positive and the top_m "
    .. "hardest negatives, with weince's lambda and the anchor's shrunk shape",
  source = "arXiv 2606.00262",
  options = {
    views.options.tau, views.options.margin, views.options.kappa_rho, views.options.kappa_aic,
    views.options.q, views.options.evidence,
    { "top_m", 16, "how many of the hardest negatives Weibit takes" },
    views.options.beta_t, views.options.shrink_c, views.options.r2_min, views.options.state,
  },
}, function(z_i, z_j, o)
  local pair = views.pair(z_i, z_j, "soft_select")
  local lambda, tail = views.evidence(pair, o)
  tail.beta = views.shape(pair, tail, "anchor", o)
  local weibit = views.contrast_hardest(pair, o.top_m, views.shortfall, tail.beta)
  local softmax = views.contrast(pair, views.softmax, o.tau)
  return ((1 - lambda) * softmax + lambda * weibit):mean(), tail
end)

-- Hard selection: each anchor takes one of two losses by the evidence of its tail. Holds no state
-- of its own: a moving shape is the caller's, in options.
local define = require "lunce.loss.define"
local evt = require "lunce.evt"
local lunce = require "lunce"
local views = require "lunce.loss.views"

return define({
  name = "hard_select",
  summary = "Weibit or NT-Xent, anchor by anchor, an ablation of WEINCE",
  takes = { "z_i (N,D)", "z_j (N,D)" },
  gives = "statistics: the anchors' tail, (2N) float64 without gradient, rho0, chosen and beta",
  formula = "mean_a of Weibit over the positive and the top_m hardest negatives, with the anchor's "
    .. "shrunk shape, where rho_a <= rho0 and dAIC_a >= margin; of NT-Xent elsewhere",
  source = "arXiv 2606.00262",
  options = {
    views.options.tau, views.options.q, views.options.margin,
    { "top_m", 16, "how many of the hardest negatives Weibit takes" },
    views.options.beta_t, views.options.shrink_c, views.options.r2_min, views.options.state,
  },
}, function(z_i, z_j, o)
  local pair = views.pair(z_i, z_j, "hard_select")
  local tail = pair.negatives:tail{ candidates = pair.candidates }
  local beta = views.shape(pair, tail, "anchor", o)
  tail.rho0, tail.beta = evt.quantile(tail.rho, o.q), beta
  tail.chosen = tail.rho:le(tail.rho0):logical_and(tail.delta_aic:ge(o.margin))
  local weibit = views.contrast_hardest(pair, o.top_m, views.shortfall, beta)
  local softmax = views.contrast(pair, views.softmax, o.tau)
  return lunce.where(tail.chosen, weibit, softmax):mean(), tail
end)

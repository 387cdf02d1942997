-- Weibit: InfoNCE of two views with the Weibull link in place of s/tau. Holds no state of its own:
-- a moving shape is the caller's, in options.
local define = require "lunce.loss.define"
local views = require "lunce.loss.views"

return define({
  name = "weibit",
  summary = "InfoNCE of two views with the Weibull link, an ablation of WEINCE",
  takes = { "z_i (N,D)", "z_j (N,D)" },
  formula = "mean_a log(exp w(s_ap) + sum_n exp w(s_an)) - w(s_ap)\n" .. views.WEIBULL,
  where = views.NOTATION,
  source = "arXiv 2606.00262",
  options = {
    { "beta", 4, 'shape: a number, a tensor of one element, "anchor" (each anchor\'s fitted shape, '
      .. 'drawn towards beta_t) or "batch" (beta_t of state)', "any" },
    views.options.beta_t, views.options.shrink_c, views.options.r2_min, views.options.state,
  },
}, function(z_i, z_j, o)
  local pair = views.pair(z_i, z_j, "weibit")
  -- The released code cuts the tail's size to an integer here and rounds it elsewhere.
  local K = 2 * pair.N - 2
  local tail = o.beta == "anchor"
    and pair.negatives:tail{ k = math.min(math.max(32, math.floor(0.10 * K)), K), candidates = K }
  local beta = views.shape(pair, tail, o.beta, o)
  return views.contrast(pair, views.shortfall, beta):mean()
end)

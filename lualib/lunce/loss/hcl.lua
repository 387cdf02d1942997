-- HCL: InfoNCE of two views whose negatives are drawn towards the hard ones and cleared of false
-- ones. Holds no state.
local define = require "lunce.loss.define"
local reweighted = require "lunce.loss.reweighted"
local views = require "lunce.loss.views"

return define({
  name = "hcl",
  summary = "InfoNCE of two views with hard, debiased negatives",
  takes = { "z_i (N,D)", "z_j (N,D)" },
  formula = "mean_a log(exp(s_ap/tau) + G_a) - s_ap/tau\n"
    .. "G_a = max((H_a - tau_plus K exp(s_ap/tau)) / (1 - tau_plus), K exp(-1/tau))\n"
    .. "H_a = K sum_n exp((beta + 1) s_an/tau) / sum_n exp(beta s_an/tau), K = 2N - 2",
  where = views.NOTATION,
  source = "Robinson et al. 2021, arXiv 2010.04592",
  options = {
    views.options.tau,
    { "beta", 1, "how far the negatives are drawn towards the hard ones; 0 is debiased" },
    reweighted.tau_plus,
  },
}, function(z_i, z_j, o) return reweighted.loss(z_i, z_j, o, "hcl") end)

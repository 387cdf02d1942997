-- Debiased: InfoNCE of two views whose negatives are cleared of the false ones expected among them.
-- Holds no state.
local define = require "lunce.loss.define"
local reweighted = require "lunce.loss.reweighted"
local views = require "lunce.loss.views"

return define({
  name = "debiased",
  summary = "InfoNCE of two views with debiased negatives",
  takes = { "z_i (N,D)", "z_j (N,D)" },
  formula = "mean_a log(exp(s_ap/tau) + G_a) - s_ap/tau\n"
    .. "G_a = max((H_a - tau_plus K exp(s_ap/tau)) / (1 - tau_plus), K exp(-1/tau))\n"
    .. "H_a = sum_n exp(s_an/tau), K = 2N - 2",
  where = views.NOTATION,
  source = "Chuang et al. 2020, arXiv 2007.00224",
  options = { views.options.tau, reweighted.tau_plus },
}, function(z_i, z_j, o) return reweighted.loss(z_i, z_j, o, "debiased") end)

-- NT-Xent, the InfoNCE loss of two views. Holds no state.
local define = require "lunce.loss.define"
local views = require "lunce.loss.views"

return define({
  name = "nt_xent",
  summary = "InfoNCE of two views",
  takes = { "z_i (N,D)", "z_j (N,D)" },
  formula = "mean_a log(exp(s_ap/tau) + sum_n exp(s_an/tau)) - s_ap/tau",
  where = views.NOTATION,
  source = "Chen et al. 2020, arXiv 2002.05709, eq. 1",
  options = { views.options.tau },
}, function(z_i, z_j, o)
  return views.contrast(views.pair(z_i, z_j, "nt_xent"), views.softmax, o.tau):mean()
end)

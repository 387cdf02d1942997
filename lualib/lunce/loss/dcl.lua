-- DCL, decoupled contrastive learning: NT-Xent without the positive in its denominator. Holds no
-- state.
local define = require "lunce.loss.define"
local raise = require("lunce.ffi").raise
local views = require "lunce.loss.views"

return define({
  name = "dcl",
  summary = "InfoNCE of two views without the positive in the denominator",
  takes = { "z_i (N,D)", "z_j (N,D)" },
  formula = "mean_a log sum_n exp(s_an/tau) - s_ap/tau",
  where = views.NOTATION,
  source = "Yeh et al. 2022, arXiv 2110.06848",
  options = { views.options.tau },
}, function(z_i, z_j, o)
  local pair = views.pair(z_i, z_j, "dcl")
  if pair.N < 2 then raise("dcl: one pair has no negatives; two pairs or more are taken") end
  return (pair.negatives:lse(views.softmax, o.tau) - views.softmax(pair.positive, o.tau)):mean()
end)

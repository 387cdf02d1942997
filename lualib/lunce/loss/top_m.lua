-- Top-M: InfoNCE over the positive and the M hardest negatives alone, in either link; the terms
-- that WEINCE can add. Holds no state.
local define = require "lunce.loss.define"
local raise = require("lunce.ffi").raise
local views = require "lunce.loss.views"

return define({
  name = "top_m",
  summary = "InfoNCE over the positive and the hardest negatives, an ablation of WEINCE",
  takes = { "z_i (N,D)", "z_j (N,D)" },
  formula = "nt_xent's or weibit's, n running over the m largest s_an; gradients flow through them",
  source = "arXiv 2606.00262",
  options = {
    { "link", "softmax", '"softmax" (with tau) or "weibit" (with beta)' },
    { "m", 50, "how many negatives" },
    views.options.tau,
    { "beta", 4, "Weibull shape", "positive" },
  },
}, function(z_i, z_j, o)
  local pair = views.pair(z_i, z_j, "top_m")
  if o.link == "softmax" then
    return views.contrast_hardest(pair, o.m, views.softmax, o.tau):mean()
  elseif o.link == "weibit" then
    return views.contrast_hardest(pair, o.m, views.shortfall, o.beta):mean()
  end
  raise('top_m: link is %q; "softmax" or "weibit" is taken', o.link)
end)

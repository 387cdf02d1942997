-- Soft: a fixed mixture of NT-Xent and Weibit. Holds no state.
local define = require "lunce.loss.define"
local raise = require("lunce.ffi").raise
local similarity = require "lunce.similarity"
local views = require "lunce.loss.views"

return define({
  name = "soft",
  summary = "a fixed mixture of NT-Xent and Weibit, an ablation of WEINCE",
  takes = { "z_i (N,D)", "z_j (N,D)" },
  formula = "(1 - mix) nt_xent + mix weibit",
  source = "arXiv 2606.00262",
  options = {
    views.options.tau,
    { "beta", 4, "Weibull shape", "positive" },
    { "mix", 0.5, "Weibit's weight, 0 to 1" },
  },
}, function(z_i, z_j, o)
  if not (o.mix >= 0 and o.mix <= 1) then raise("soft: mix is %g; 0 to 1 is taken", o.mix) end
  local pair = views.pair(z_i, z_j, "soft")
  local softmax, weibit = similarity.together(function()
    return pair.negatives:lse(views.softmax, o.tau), pair.negatives:lse(views.shortfall, o.beta)
  end)
  softmax = (softmax - views.softmax(pair.positive, o.tau)):softplus()
  weibit = (weibit - views.shortfall(pair.positive, o.beta)):softplus()
  return ((1 - o.mix) * softmax + o.mix * weibit):mean()
end)

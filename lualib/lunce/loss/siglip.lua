-- SigLIP: each pair of two modalities classified as matching or not. Holds no state: a learnable
-- scale and bias are the caller's.
local arguments = require "lunce.loss.arguments"
local define = require "lunce.loss.define"
local link = require "lunce.link"
local similarity = require "lunce.similarity"
local views = require "lunce.loss.views"

local function logit(s, scale, bias) return scale * s + bias end
local function mismatch(s, scale, bias) return link.softplus(logit(s, scale, bias)) end

return define({
  name = "siglip",
  summary = "a binary classification of each pair of two modalities",
  takes = { "z_i (N,D)", "z_j (N,D)" },
  formula = "mean_a softplus(-l_aa) + sum_{b != a} softplus(l_ab)\nl_ab = scale s_ab + bias",
  where = "s_ab is the cosine of row a of z_i and row b of z_j",
  source = "Zhai et al. 2023, arXiv 2303.15343, algorithm 1",
  options = {
    { "scale", 10, "inverse temperature; one learned as its logarithm is given as log_scale:exp()",
      "positive" },
    { "bias", -10, "logit of a pair at similarity 0", "scalar" },
  },
}, function(z_i, z_j, o)
  arguments.pair(z_i, z_j, "z_i", "z_j", "siglip")
  local S = similarity.cosine(z_i, z_j)
  local own = logit(S:at(views.own(z_i)), o.scale, o.bias)
  return ((-own):softplus() + S:without_self():sum(mismatch, o.scale, o.bias)):mean()
end)

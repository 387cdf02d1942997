-- CLIP: InfoNCE between two modalities, in both directions. Holds no state: a learnable scale is
-- the caller's.
local arguments = require "lunce.loss.arguments"
local define = require "lunce.loss.define"
local similarity = require "lunce.similarity"
local views = require "lunce.loss.views"

local function logit(s, scale) return scale * s end

return define({
  name = "clip",
  summary = "InfoNCE between two modalities, in both directions",
  takes = { "z_i (N,D)", "z_j (N,D)" },
  formula = "mean_a (log sum_b exp(scale s_ab) + log sum_b exp(scale s_ba)) / 2 - scale s_aa",
  where = "s_ab is the cosine of row a of z_i and row b of z_j",
  source = "Radford et al. 2021, arXiv 2103.00020, fig. 3",
  options = { { "scale", 1 / 0.07, "inverse temperature; one learned as its logarithm is given as "
    .. "log_scale:exp()", "positive" } },
}, function(z_i, z_j, o)
  arguments.pair(z_i, z_j, "z_i", "z_j", "clip")
  local S = similarity.cosine(z_i, z_j)
  local own = logit(S:at(views.own(z_i)), o.scale)
  local by_row, by_column = similarity.together(function()
    return S:without_self():lse(logit, o.scale), S:t():without_self():lse(logit, o.scale)
  end)
  return ((by_row - own):softplus() + (by_column - own):softplus()):mean() / 2
end)

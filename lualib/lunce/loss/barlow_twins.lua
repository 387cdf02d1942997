-- Barlow Twins: the cross-correlation of two views' features drawn towards the identity. Not
-- contrastive: features, not samples, are compared. Holds no state.
local arguments = require "lunce.loss.arguments"
local define = require "lunce.loss.define"
local link = require "lunce.link"
local similarity = require "lunce.similarity"
local views = require "lunce.loss.views"

-- The features as rows, without their mean over the batch.
local function centred(z) return (z - z:mean(1, true)):t() end

return define({
  name = "barlow_twins",
  summary = "cross-correlation of two views' features drawn towards the identity",
  takes = { "z_i (N,D)", "z_j (N,D)" },
  formula = "sum_c (1 - C_cc)^2 + lambda sum_{c != d} C_cd^2",
  where = "C_cd is the correlation, over the batch, of feature c of z_i with feature d of z_j",
  source = "Zbontar et al. 2021, arXiv 2103.03230, eqs. 1 and 2",
  options = { { "lambda", 5e-3, "weight of the redundancy between features" } },
}, function(z_i, z_j, o)
  arguments.pair(z_i, z_j, "z_i", "z_j", "barlow_twins")
  local C = similarity.cosine(centred(z_i), centred(z_j))
  local own = C:at(views.own(C.q))
  return (1 - own):square():sum() + o.lambda * C:without_self():sum(link.square):sum()
end)

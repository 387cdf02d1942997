-- BYOL: predictions drawn towards the projections that a slowly moving network makes of the other
-- view. Not contrastive. Holds no state: the moving network is the caller's.
local define = require "lunce.loss.define"
local views = require "lunce.loss.views"

return define({
  name = "byol",
  summary = "predictions drawn towards a moving network's projections",
  takes = { "p_i (N,D)", "p_j (N,D)", "z_i (N,D)", "z_j (N,D)" },
  formula = "mean_a |p_i/|p_i| - z_j/|z_j||^2 + |p_j/|p_j| - z_i/|z_i||^2",
  where = "p are the predictions of the network, z the projections of the moving one, without "
    .. "gradient",
  source = "Grill et al. 2020, arXiv 2006.07733, eq. 2 for both views",
  options = {},
}, function(p_i, p_j, z_i, z_j)
  local first, second = views.predicted(p_i, z_j, "p_i", "z_j", "byol"),
    views.predicted(p_j, z_i, "p_j", "z_i", "byol")
  return (4 - 2 * (first + second)):mean()
end)

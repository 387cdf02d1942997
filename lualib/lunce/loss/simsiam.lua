-- SimSiam: predictions drawn towards the projections of the other view. Not contrastive. Holds no
-- state.
local define = require "lunce.loss.define"
local views = require "lunce.loss.views"

return define({
  name = "simsiam",
  summary = "predictions drawn towards the projections of the other view",
  takes = { "p_i (N,D)", "p_j (N,D)", "z_i (N,D)", "z_j (N,D)" },
  formula = "-mean_a (cos(p_i, z_j) + cos(p_j, z_i)) / 2",
  where = "p are predictions, z projections, without gradient",
  source = "Chen and He 2021, arXiv 2011.10566, eq. 4",
  options = {},
}, function(p_i, p_j, z_i, z_j)
  local first, second = views.predicted(p_i, z_j, "p_i", "z_j", "simsiam"),
    views.predicted(p_j, z_i, "p_j", "z_i", "simsiam")
  return -(first + second):mean() / 2
end)

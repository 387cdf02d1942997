-- VICReg: the views of a sample alike, each feature's variance kept up, features decorrelated. Not
-- contrastive. Holds no state.
local arguments = require "lunce.loss.arguments"
local define = require "lunce.loss.define"
local link = require "lunce.link"
local raise = require("lunce.ffi").raise
local similarity = require "lunce.similarity"

-- The variance and covariance terms of one view.
local function spread(z, o)
  local N, D = z.shape[1], z.shape[2]
  local std = (z:var(1) + o.epsilon):sqrt()
  local features = (z - z:mean(1, true)):t() / math.sqrt(N - 1)
  local covariance = similarity.dot(features):without_self():sum(link.square):sum() / D
  return (o.gamma - std):relu():mean(), covariance
end

return define({
  name = "vicreg",
  summary = "variance, invariance and covariance of two views",
  takes = { "z_i (N,D)", "z_j (N,D)" },
  formula = "invariance mean (z_i - z_j)^2 + variance (v(z_i) + v(z_j))/2\n"
    .. "+ covariance (c(z_i) + c(z_j))\n"
    .. "v(z) = mean_c max(0, gamma - sqrt(Var z_c + epsilon))\n"
    .. "c(z) = sum_{c != d} Cov(z_c, z_d)^2 / D",
  where = "the first mean is over all N D elements and the variance terms are halved, as in the "
    .. "released code; the paper's eqs. 5 and 6 divide by N alone and add them",
  source = "Bardes et al. 2022, arXiv 2105.04906, eqs. 1 to 6",
  options = {
    { "invariance", 25, "weight of the distance between views" },
    { "variance", 25, "weight of the variance term" },
    { "covariance", 1, "weight of the covariance term" },
    { "gamma", 1, "the standard deviation that each feature is held to" },
    { "epsilon", 1e-4, "added to the variance under the root" },
  },
}, function(z_i, z_j, o)
  arguments.pair(z_i, z_j, "z_i", "z_j", "vicreg")
  if z_i.shape[1] < 2 then raise("vicreg: one row has no variance; two rows or more are taken") end
  local v_i, c_i = spread(z_i, o)
  local v_j, c_j = spread(z_j, o)
  return o.invariance * (z_i - z_j):square():mean() + o.variance / 2 * (v_i + v_j)
    + o.covariance * (c_i + c_j)
end)

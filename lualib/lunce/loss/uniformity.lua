-- Uniformity: how evenly rows cover the sphere, by the Gaussian potential of their pairs. Holds no
-- state.
local arguments = require "lunce.loss.arguments"
local define = require "lunce.loss.define"
local raise = require("lunce.ffi").raise
local similarity = require "lunce.similarity"

-- -t |x - y|^2 of unit vectors by their cosine.
local function potential(s, t) return 2 * t * (s - 1) end

return define({
  name = "uniformity",
  summary = "how evenly rows cover the sphere",
  takes = { "z (N,D)" },
  formula = "log mean_{a < b} exp(-t |x_a - x_b|^2), x being the normalised rows of z",
  where = "for two views the paper takes the mean of both uniformities",
  source = "Wang and Isola 2020, arXiv 2005.10242",
  options = { { "t", 2, "width of the potential", "positive" } },
}, function(z, o)
  local N = arguments.rows(z, "z", "uniformity").shape[1]
  if N < 2 then raise("uniformity: z has %d rows; two or more are taken", N) end
  local pairs_of_rows = similarity.cosine(z):triangle():lse(potential, o.t)
  return pairs_of_rows:logsumexp(1) - math.log(N * (N - 1) / 2)
end)

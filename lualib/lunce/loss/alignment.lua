-- Alignment: how far apart the two views of a sample lie on the sphere. Holds no state.
local arguments = require "lunce.loss.arguments"
local define = require "lunce.loss.define"
local raise = require("lunce.ffi").raise

local LEAST_NORM = 1e-8

local function normalised(x) return x / x:norm(2, 2, true):clamp(LEAST_NORM, math.huge) end

return define({
  name = "alignment",
  summary = "the distance between the views of a sample on the sphere",
  takes = { "z_i (N,D)", "z_j (N,D)" },
  formula = "mean_a |x_a - y_a|^alpha, x and y being the normalised rows of z_i and z_j",
  source = "Wang and Isola 2020, arXiv 2005.10242",
  options = { { "alpha", 2, "power of the distance" } },
}, function(z_i, z_j, o)
  arguments.pair(z_i, z_j, "z_i", "z_j", "alignment")
  if not (o.alpha >= 1) then raise("alignment: alpha is %g; 1 or more is taken", o.alpha) end
  -- The difference itself: 2 - 2 s would lose the small distances that are left after training.
  return ((normalised(z_i) - normalised(z_j)):norm(2, 2) ^ o.alpha):mean()
end)

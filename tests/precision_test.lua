-- The precision of float32 gradients against float64 ones on clustered pairs, 4096 rows of 128: the
-- relative error of the norm over all rows. The gradient of a cosine lies in the tangent space of
-- its rows, so nothing else hides in the norm.
local lunce = require "lunce"

local PAIRS, D = 2048, 128

-- Two views on the sphere: 64 clusters, pairs much nearer than the members of a cluster.
local function views()
  local function normal(rows, seed)
    return lunce.randn(rows, D, { seed = seed, dtype = "float64" })
  end
  local cluster = lunce.randint(1, 64, { PAIRS }, { seed = 2 })
  local base = normal(64, 1):index_select(1, cluster) + 0.7 * normal(PAIRS, 3)
  local list = {}
  for i = 1, 2 do
    local z = base + 0.3 * normal(PAIRS, 3 + i)
    list[i] = (z / z:norm(2, 2, true)):to "float32"
  end
  return unpack(list)
end

local z_i, z_j = views()

local function gradient(loss, dtype)
  local a = z_i:to(dtype):detach():clone():requires_grad_()
  local b = z_j:to(dtype):detach():clone():requires_grad_()
  loss(a, b):backward()
  return lunce.cat({ a.grad, b.grad }, 1):to "float64"
end

describe("the gradient in float32", function()
  for _, name in ipairs{ "nt_xent", "weince", "dcl" } do
    for _, tau in ipairs{ 0.5, 0.1, 0.05, 0.02 } do
      it(("of %s at tau %g is that of float64 within 1e-5"):format(name, tau), function()
        local function loss(a, b) return (lunce.loss[name](a, b, { tau = tau })) end
        local exact = gradient(loss, "float64")
        local error = ((gradient(loss, "float32") - exact):norm() / exact:norm()):item()
        assert.is_true(error <= 1e-5, ("%.1e"):format(error))
      end)
    end
  end
end)

-- The dtype of the tiles of a similarity matrix on a CUDA device: the precision of values and
-- gradients beside float64 on clustered pairs, masks and parameters, weights of any size. All of
-- that of rows of up to 256 features, whose tiles are written nowhere, and of wider ones. Runs on a
-- CUDA device, on the host's stand-in for one, and on the CPU, where the setting changes nothing.
local lunce = require "lunce"
local device = require("tests.on_device").name
local similarity, link = lunce.similarity, lunce.link

local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local with = dofile(here .. "with_tiles.lua")

local CUDA = device ~= "cpu"
local HALVES = { "float16", "bfloat16" }
local WIDTHS = { false, 272 } -- rows as they are, and the same with zeros up to so many features

local function widen(x, width)
  if not width then return x end
  return lunce.cat({ x, lunce.zeros(x:size(1), width - x:size(2)):to(x.dtype):to(x.device) }, 2)
end

local function distance(x, exact)
  x, exact = x:to("cpu"):double(), exact:to("cpu"):double()
  return ((x - exact):norm() / exact:norm()):item()
end

local function equal(x, y) return x:eq(y):all():item() end

-- Two views on the sphere: clusters, pairs much nearer than the members of a cluster.
local function views(pairs, d)
  local function normal(rows, seed) return lunce.randn(rows, d, { seed = seed }) end
  local cluster = lunce.randint(1, 8, { pairs }, { seed = 2 })
  local base = normal(8, 1):index_select(1, cluster) + 0.7 * normal(pairs, 3)
  local list = {}
  for i = 1, 2 do
    local z = base + 0.3 * normal(pairs, 3 + i)
    list[i] = z / z:norm(2, 2, true)
  end
  return unpack(list)
end

-- A loss's value, and its gradient for both views, of the same rows in another dtype and place.
local function evaluate(loss, z_i, z_j, dtype, where)
  local a = z_i:to(dtype):to(where):clone():requires_grad_()
  local b = z_j:to(dtype):to(where):clone():requires_grad_()
  local y = loss(a, b)
  y:backward()
  return y:detach(), lunce.cat({ a.grad, b.grad }, 1)
end

describe("the dtype of tiles", function()
  after_each(function() similarity.tile_dtype "float32" end)

  it("is float32 until another is set, which an unknown name does not change", function()
    assert.equal("float32", similarity.tile_dtype())
    for _, name in ipairs{ "float16", "bfloat16", "tf32" } do
      assert.equal(name, similarity.tile_dtype(name))
      assert.has_error(function() similarity.tile_dtype "float8" end,
        'similarity.tile_dtype: "float8"; "float16", "bfloat16", "tf32" or "float32" is taken')
      assert.equal(name, similarity.tile_dtype())
    end
  end)

  -- The figures for 4096 rows are 3e-3 to 6e-3 for bfloat16, 4e-4 to 8e-4 for float16 and TF32.
  local z_i, z_j = views(40, 128)
  local MOST = { float16 = 1e-3, tf32 = 1e-3, bfloat16 = 1e-2 }
  for _, name in ipairs{ "nt_xent", "weince", "clip" } do
    for _, tau in ipairs{ 0.5, 0.1, 0.05 } do
      it(("keeps %s at tau %g near float64"):format(name, tau), function()
        local function loss(a, b)
          return (lunce.loss[name](a, b, name == "clip" and { scale = 1 / tau } or { tau = tau }))
        end
        local exact_y, exact = evaluate(loss, z_i, z_j, "float64", "cpu")
        local _, full = evaluate(loss, z_i, z_j, "float32", device)
        for dtype, most in pairs(MOST) do
          for _, width in ipairs(WIDTHS) do
            local y, g = with(dtype, evaluate, function(a, b)
              return loss(widen(a, width), widen(b, width))
            end, z_i, z_j, "float32", device)
            local off = distance(g, exact)
            assert.is_true(off <= most, ("%s: %.1e"):format(dtype, off))
            assert.is_true(distance(y, exact_y) <= most)
            -- The device rounds, the CPU does not.
            if not width then assert.equal(not CUDA, equal(g, full)) end
          end
        end
      end)
    end
  end

  -- More rows than a block owns, more than are made at once, and features that fill no 16.
  it("serves several blocks of rows and of columns", function()
    local q = lunce.randn(250, 9, { seed = 1 })
    local k = lunce.randn(230, 9, { seed = 2 })
    local function step(dtype, where)
      local a = q:to(dtype):to(where):requires_grad_()
      local b = k:to(dtype):to(where):requires_grad_()
      local S = similarity.cosine(a, b)
      local y = S:lse(function(s) return s / 0.1 end)
      local z = S:t():lse(function(s) return s / 0.01 end) -- too far for a fixed shift
      local own = similarity.cosine(a):without_self():lse(function(s) return s / 0.1 end)
      lunce.cat({ y, z, own }, 1):sum():backward()
      return { y:detach(), z:detach(), own:detach(), a.grad, b.grad }
    end
    local exact = step("float64", "cpu")
    local got = with("float16", step, "float32", device)
    for i = 1, #exact do -- the gradient's error is that of the lower temperature
      local off = distance(got[i], exact[i])
      assert.is_true(off <= (i <= 3 and 1e-3 or 1e-2), ("%d: %.1e"):format(i, off))
    end
  end)

  it("changes no matrix of float64", function()
    local function loss(a, b) return lunce.loss.nt_xent(a, b, { tau = 0.1 }) end
    local a, b = z_i:narrow(1, 1, 20), z_j:narrow(1, 1, 20)
    local _, full = evaluate(loss, a, b, "float64", device)
    local _, g = with("float16", evaluate, loss, a, b, "float64", device)
    assert.is_true(equal(g, full))
  end)

  -- All masks, a symmetric and a rectangular matrix, parameters of every kind.
  local MASKS = {
    none = function(S) return S end,
    self = function(S) return S.N == S.M and S:without_self() or S end,
    index = function(S, label) return S:without(label(8, S.N, S.M)) end,
    same = function(S, label) return S:same(label(6, S.N, 3), label(7, S.M, 3)) end,
    different = function(S, label) return S:different(label(6, S.N, 3), label(7, S.M, 3)) end,
    triangle = function(S) return S.N == S.M and S:triangle() or S end,
  }
  local function curve(s, a, r, c) return link.softplus(a * s + r) * (s + c) end

  local function masked(mask, kind, reduction, symmetric, dtype, where, width)
    local function leaf(seed, ...)
      return lunce.randn({ ... }, { seed = seed }):to(dtype):to(where):requires_grad_()
    end
    local q, k = leaf(1, 50, 20), not symmetric and leaf(2, 44, 20) or nil
    local p = { leaf(3, 1), leaf(4, 50, 1), leaf(5, 1, symmetric and 50 or 44) }
    local S = mask(similarity[kind](widen(q, width), k and widen(k, width)), function(seed, n, most)
      return lunce.randint(1, most, { n }, { seed = seed }):to(where)
    end)
    local y = S[reduction](S, curve, unpack(p))
    y = y:masked_fill(y:eq(-math.huge), 0)
    local w = (lunce.rand(50, { seed = 9 }) + 0.5):to(dtype):to(where);
    (y * w):sum():backward()
    return { y:detach(), q.grad, p[1].grad, p[2].grad, p[3].grad, k and k.grad }
  end

  for _, reduction in ipairs{ "lse", "sum" } do
    it(("serves every mask and parameter of %s"):format(reduction), function()
      for name, mask in pairs(MASKS) do
        for _, symmetric in ipairs{ true, false } do
          local exact = masked(mask, "cosine", reduction, symmetric, "float64", "cpu")
          for _, dtype in ipairs(HALVES) do
            for _, width in ipairs(WIDTHS) do
              local got = with(dtype, masked, mask, "cosine", reduction, symmetric, "float32",
                device, width)
              for i = 1, #exact do -- sums cancel, which a scalar's gradient feels most
                local off = distance(got[i], exact[i])
                assert.is_true(off <= (dtype == "float16" and 1e-2 or 8e-2),
                  ("%s %s %s %d: %.1e"):format(name, dtype, width, i, off))
              end
            end
          end
        end
      end
    end)
  end

  it("takes dot products of any size", function()
    local exact = masked(MASKS.none, "dot", "sum", false, "float64", "cpu")
    for _, dtype in ipairs{ "float16", "bfloat16", "tf32" } do
      local got = with(dtype, masked, MASKS.none, "dot", "sum", false, "float32", device)
      for i = 1, #exact do assert.is_true(distance(got[i], exact[i]) <= 4e-2) end
      local x = (lunce.randn(9, 5, { seed = 1 }) * 1e5):requires_grad_()
      local function total(z) return similarity.dot(z):sum(function(s) return s * s end):sum() end
      local far = with(dtype, total, x)
      far:backward()
      local near = x:detach():to("cpu"):double():requires_grad_()
      total(near):backward()
      assert.is_true(distance(x.grad, near.grad) <= 1e-2)
    end
  end)

  it("scales weights of any size into its range", function()
    local x = lunce.randn(80, 20, { seed = 3 })
    local function gradient(size, dtype, where, width)
      local z = x:to(dtype):to(where):clone():requires_grad_()
      local S = similarity.cosine(widen(z, width)):without_self();
      (S:lse(function(s) return s / 0.01 end):sum() * size):backward()
      return z.grad
    end
    local exact = gradient(1, "float64", "cpu")
    for _, width in ipairs(WIDTHS) do
      for _, size in ipairs{ 2 ^ -90, 2 ^ -30, 2 ^ 30, 2 ^ 90 } do
        local got = with("float16", gradient, size, "float32", device, width)
        -- At this temperature a rounded similarity changes its weight by some hundredths.
        assert.is_true(distance(got / size, exact) <= 3e-2)
      end
      local none = with("float16", gradient, 0, "float32", device, width)
      assert.is_true(equal(none, lunce.zeros(80, 20)))
    end
  end)

  it("of a gradient is its forward pass's", function()
    local function step(before, after)
      local z = z_i:clone():requires_grad_()
      local y = with(before, function() return similarity.cosine(z):lse():sum() end)
      with(after, function() y:backward() end)
      return z.grad
    end
    for _, dtype in ipairs(HALVES) do
      assert.is_true(equal(step(dtype, "float32"), step(dtype, dtype)))
      assert.is_true(equal(step("float32", dtype), step("float32", "float32")))
    end
  end)

  it("gives the same bits again", function()
    local function loss(a, b) return lunce.loss.nt_xent(a, b, { tau = 0.05 }) end
    for _, dtype in ipairs(HALVES) do
      local y, g = with(dtype, evaluate, loss, z_i, z_j, "float32", device)
      local again, same = with(dtype, evaluate, loss, z_i, z_j, "float32", device)
      assert.is_true(equal(y, again) and equal(g, same))
    end
  end)
end)

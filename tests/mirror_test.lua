-- The tiles of a symmetric matrix in halves, of which one on each side of the diagonal serves both:
-- values beside those of the same matrix as one of two sets, which has all its tiles; parameters
-- and masks that see an entry and its mirror image differently; repeated bits; how many tiles are
-- made. Runs on a CUDA device, on the host's stand-in for one, and on the CPU, which has no such
-- tiles.
local lunce = require "lunce"
local device = require("tests.on_device").name
local similarity, link = lunce.similarity, lunce.link

local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local with = dofile(here .. "with_tiles.lua")

local shim = (os.getenv "LUNCE_CUDA" or ""):match "^(.*/tests/)liblunce_cuda%.so$"

-- The relative distance of values that are finite in the same places.
local function distance(x, exact)
  x, exact = x:to("cpu"):double(), exact:to("cpu"):double()
  assert.is_true(x:eq(-math.huge):eq(exact:eq(-math.huge)):all():item())
  x, exact = x:masked_fill(x:eq(-math.huge), 0), exact:masked_fill(exact:eq(-math.huge), 0)
  return (x - exact):norm():item() / (exact:norm():item() + 1e-30)
end

local function equal(x, y) return x:eq(y):all():item() end

-- Sums of the same float32 values in another order.
local CLOSE = 2e-6

local function integers(n, most, seed, where)
  return lunce.randint(1, most, { n }, { seed = seed }):to(where)
end

local function same(S, a, b, where)
  return S:same(integers(S.N, 3, a, where), integers(S.N, 3, b, where))
end

local function different(S, a, b, where)
  return S:different(integers(S.N, 3, a, where), integers(S.N, 3, b, where))
end

local function index(S, where) return S:without(integers(S.N, S.N, 8, where)) end

-- Even masks leave out an entry with its mirror image.
local MASKS = {
  none = function(S) return S end,
  self = function(S) return S:without_self() end,
  index = index,
  triangle = function(S) return S:triangle() end,
  ["same, even"] = function(S, where) return same(S, 6, 6, where) end,
  ["same, uneven"] = function(S, where) return same(S, 6, 7, where) end,
  ["different, even"] = function(S, where) return different(S, 6, 6, where) end,
  ["different, uneven"] = function(S, where) return different(S, 6, 7, where) end,
  ["all at once"] = function(S, where)
    return index(different(S:without_self(), 6, 7, where), where)
  end,
}

-- Of a scalar alone, and of every kind of parameter; a sum, with a fixed shift, with maxima.
local function scaled(s, a) return a * s end
local function curve(s, a, r, c) return link.softplus(a * s + r) * (s + c) end
local REDUCTIONS = {
  { "sum", scaled }, { "lse", scaled }, { "lse", function(s, a) return s * a * 200 end },
  { "sum", curve }, { "lse", curve },
  { "lse", function(s, a, r, c) return (s * a + link.tanh(r)) * (100 + c) end },
}

local function parameters(n, dtype, where)
  local list = { lunce.rand({ 1 }, { seed = 3 }) + 0.5, lunce.randn(n, 1, { seed = 4 }),
    lunce.randn(1, n, { seed = 5 }) }
  for i, p in ipairs(list) do list[i] = p:to(dtype or p.dtype):to(where or p.device) end
  return list
end

local function reduce(S, how, p)
  local name, f = unpack(how)
  return f == scaled and S[name](S, f, p[1]) or S[name](S, f, unpack(p))
end

local function rows(n, d) return lunce.randn(n, d, { seed = 10 * n + d }) end

-- One set with itself beside two sets that are the same.
local function compare(kind, z, mask, how, what)
  local p = parameters(z:size(1))
  local half = reduce(mask(similarity[kind](z), device), how, p)
  local whole = reduce(mask(similarity[kind](z, z:clone()), device), how, p)
  local off = distance(half, whole)
  assert.is_true(off <= CLOSE, ("%s: %.1e"):format(what, off))
end

describe("half of a symmetric matrix gives the sums of the whole:", function()
  after_each(function() similarity.tile_dtype "float32" end)

  -- 150 rows are two blocks of 128.
  for name, mask in pairs(MASKS) do
    it("mask " .. name, function()
      for i, how in ipairs(REDUCTIONS) do
        with("float16", compare, "cosine", rows(150, 20), mask, how, "reduction " .. i)
      end
    end)
  end

  -- About a tile of 64, a block of 64 or 128 rows, and what is made at once; of 13 to 16 and of 200
  -- features, whose blocks differ.
  for _, d in ipairs{ 13, 100, 200 } do
    it(("sizes, of %d features"):format(d), function()
      for _, n in ipairs{ 1, 2, 63, 64, 65, 127, 128, 129, 150, 192, 200, 201, 265, 450 } do
        for _, i in ipairs(d == 100 and { 4, 6 } or { 2, 3, 4, 6 }) do
          with("float16", compare, "cosine", rows(n, d), MASKS["same, uneven"], REDUCTIONS[i],
            ("%d rows, reduction %d"):format(n, i))
        end
      end
    end)
  end

  it("dot products", function()
    for _, dtype in ipairs{ "bfloat16", "tf32" } do
      for i, how in ipairs(REDUCTIONS) do
        with(dtype, compare, "dot", rows(150, 20), MASKS.self, how,
          ("%s, reduction %d"):format(dtype, i))
      end
    end
  end)

  it("values that are not finite", function()
    local z = rows(150, 20)
    z:narrow(1, 140, 1):fill_(0 / 0)
    local function nans(S) return S:lse(function(s) return s * 200 end):isnan() end
    for _, mask in ipairs{ MASKS.none, MASKS.triangle, MASKS["same, uneven"] } do
      with("float16", function()
        local half = nans(mask(similarity.cosine(z), device))
        assert.is_true(equal(half, nans(mask(similarity.cosine(z, z:clone()), device))))
        assert.is_true(half:any():item())
      end)
    end
    with("float16", function()
      local y = similarity.cosine(rows(150, 20)):triangle():lse(function(s) return s * 200 end)
      assert.is_true(y[150]:eq(-math.huge):item())
      assert.is_false(y:narrow(1, 1, 149):eq(-math.huge):any():item())
    end)
  end)
end)

describe("a symmetric matrix in halves", function()
  after_each(function() similarity.tile_dtype "float32" end)

  -- Of several reductions at once, one of them of the transposed matrix, that of all its tiles.
  local function step(n, d, dtype, where)
    local z = rows(n, d):to(dtype):to(where):requires_grad_()
    local p = parameters(n, dtype, where)
    for i = 1, 3 do p[i]:requires_grad_() end
    local S = same(similarity.cosine(z), 6, 7, where)
    local a, b, c = similarity.together(function()
      return reduce(S, REDUCTIONS[4], p), reduce(S, REDUCTIONS[5], p),
        S:lse(function(s, r) return s * 200 + r end, p[2])
    end)
    local t = similarity.cosine(z):t():without_self():lse(scaled, p[1])
    local w = (lunce.rand(n, { seed = 9 }) + 0.5):to(dtype):to(where);
    ((a * 0.01 + b + c + t) * w):sum():backward()
    return { a:detach(), b:detach(), c:detach(), t:detach(), z.grad, p[1].grad, p[2].grad,
      p[3].grad }
  end

  it("is near float64, with the gradients of rows and of every parameter", function()
    for _, case in ipairs{ { 40, 13 }, { 265, 13 }, { 265, 200 } } do
      local exact = step(case[1], case[2], "float64", "cpu")
      for dtype, most in pairs{ float16 = 1e-2, bfloat16 = 8e-2 } do
        local got = with(dtype, step, case[1], case[2], "float32", device)
        for i = 1, #exact do -- at this temperature a rounded similarity changes its weight
          local off = distance(got[i], exact[i])
          assert.is_true(off <= (i <= 4 and most / 10 or most),
            ("%d rows, %s, %d: %.1e"):format(case[1], dtype, i, off))
        end
      end
    end
  end)

  it("gives the same bits again", function()
    for _, d in ipairs{ 13, 200 } do
      local first = with("float16", step, 265, d, "float32", device)
      local again = with("float16", step, 265, d, "float32", device)
      for i = 1, #first do assert.is_true(equal(first[i], again[i])) end
    end
  end)

  -- In a process of its own, whose tensor cores are counted: multiplications of a warp.
  local function products(n, d, pair, backward)
    local code = ([[
      local lunce = require "lunce"
      lunce.similarity.tile_dtype "float16"
      local z = lunce.randn(%d, %d, { device = "cuda" })%s
      local S = lunce.similarity.cosine(z%s)
      S:lse(function(s) return s / 0.1 end)%s]]):format(n, d,
      backward and ":requires_grad_()" or "", pair and ", z:clone()" or "",
      backward and ":sum():backward()" or "")
    local child = io.popen(("LUNCE_CUDA_HOST_COUNT=1 %s -e '%s' 2>&1"):format(
      os.getenv "LUNCE_PROGRAM" or "./lunce", code))
    local text = child:read "*a"
    child:close()
    return tonumber(text:match "^cuda%-host: (%d+) multiplications of tensor cores\n$") or text
  end

  it("takes the tiles on and right of the diagonal, once", function()
    if not shim then return pending "takes a stand-in, which counts" end
    for d, block in pairs{ [16] = 128, [256] = 64 } do
      local function tiles(n, of)
        local count = 0
        for row = 1, n, 200 do -- rows and columns are made 200 at once
          for column = of == "whole" and 1 or row, n, 200 do
            local high, wide = math.min(200, n - row + 1), math.min(200, n - column + 1)
            for first = 0, high - 1, block do
              local from = of == "half" and row == column and first or 0
              count = count + math.ceil(wide / 32) - from / 32
            end
          end
        end
        return count * (block / 16) * 4 * (d / 16) -- of 16 x 8 entries and 16 features
      end
      for _, n in ipairs{ 100, 150, 450 } do
        local half, whole = tiles(n, "half"), tiles(n, "whole")
        assert.equal(half, products(n, d))
        assert.equal(whole, products(n, d, true))
        assert.is_true(n < 450 or half <= 0.65 * whole)
      end
      -- The gradient takes the whole once more, and as many products of weights.
      assert.equal(tiles(150, "half") + 2 * tiles(150, "whole"), products(150, d, false, true))
    end
  end)
end)

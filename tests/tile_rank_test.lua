-- Order statistics under tiles of halves: top-k and tails of cosines, beside float64 on rows so
-- near each other that a half has lost their shortfalls. Runs on a CUDA device, on the host's
-- stand-in for one, and on the CPU, where the setting changes nothing.
local lunce = require "lunce"
local device = require("tests.on_device").name
local similarity = lunce.similarity

local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local with = dofile(here .. "with_tiles.lua")

local CPU = { device = "cpu", dtype = "float64" }
local N, M = 40, 130

-- How far values may be off. Sums of float32 are by up to 6e-7 here; tensor cores, which cut sums
-- off, are expected to lose up to 1e-8 a feature. Without the low parts it is 7e-5 to 5e-4.
local function most(d) return 1e-6 + 2e-8 * d end

-- The same of slopes and the like, which in float32 are by up to 1e-5, and of the AIC's difference,
-- a logarithm of a ratio of residuals, by 3e-4 to 1e-3, as the compiler orders the sums.
local SHAPE, AIC = 2e-4, 4e-3

local function unit(x) return x / x:norm(2, 2, true) end

-- 1 to `last` over and over, n numbers.
local function round(n, last)
  local list = {}
  for i = 1, n do list[i] = (i - 1) % last + 1 end
  return lunce.tensor(list, { device = "cpu", dtype = "int64" })
end

-- Rows of d > 2 features in four clusters: q (N,d), and k (M,d), each at a distance from one of q
-- with which it has a cosine of 0.9999 to 0.95. float32 on the CPU.
local function rows(d)
  local function normal(n, seed)
    return lunce.randn(n, d, { seed = seed, device = "cpu", dtype = "float64" })
  end
  local q = unit(normal(4, 1):index_select(1, round(N, 4)) + 0.5 * normal(N, 2))
  local base, aside = q:index_select(1, round(M, N)), normal(M, 3)
  aside = unit(aside - (aside * base):sum(2, true) * base)
  local tangent = lunce.arange(0, M - 1, 1, CPU):reshape(M, 1) / M * 0.32 + 0.0142
  return q:float(), (base + tangent * aside):float()
end

local MASKS = {
  none = function(S) return S end,
  index = function(S, label) return S:without(label(8, S.N, S.M)) end,
  different = function(S, label) return S:different(label(6, S.N, 3), label(7, S.M, 3)) end,
}

-- The matrix of q and k, or of q with itself but for the diagonal, in a dtype somewhere.
local function matrix(kind, mask, q, k, dtype, where)
  local S = similarity[kind](q:to(dtype):to(where), k and k:to(dtype):to(where))
  return MASKS[mask](k and S or S:without_self(), function(seed, n, last)
    return lunce.randint(1, last, { n }, { seed = seed, device = "cpu" }):to(where)
  end)
end

-- A matrix's order statistics: a row's best and their columns, its tail, that of all.
local NAMES = { "values", "columns", "rho", "beta_hat", "r2", "delta_aic", "the pooled beta_hat",
  "the pooled r2", "the pooled delta_aic" }

local function statistics(S)
  local values, columns = S:topk(12)
  local tail, pooled = S:tail{ k = 20 }, S:tail{ k = 160, pooled = true }
  local list = { values, columns, tail.rho, tail.beta_hat, tail.r2, tail.delta_aic }
  for i, x in ipairs{ pooled.beta_hat, pooled.r2, pooled.delta_aic } do
    list[6 + i] = lunce.is_tensor(x) and x
      or lunce.full({ 1 }, x, { dtype = "float64", device = values.device })
  end
  return list
end

local function brought(list)
  for i, x in ipairs(list) do list[i] = x:to "cpu" end
  return list
end

local function largest(x) return x:abs():max():item() end

local function near(exact, got, S, what)
  local d = S.q:size(2)
  local function within(off, bound, name)
    assert(off <= bound, ("%s: %s off by %.1e"):format(what, name, off))
  end
  within(largest(got[1]:double() - exact[1]), most(d), "values")
  within(largest(got[1]:double() - S:dense():gather(2, got[2])), most(d), "values of the columns")
  within(largest(got[3] - exact[3]), most(d), "rho")
  for i = 4, #NAMES do
    local off = largest((got[i] - exact[i]) / (exact[i]:abs() + 1))
    within(off, NAMES[i]:match "aic" and AIC or SHAPE, NAMES[i])
  end
end

local function same(a, b)
  assert.equal(#a, #b)
  for i, x in ipairs(a) do
    assert(x:eq(b[i]):logical_or(x:isnan():logical_and(b[i]:isnan())):all():item(), NAMES[i])
  end
end

describe("order statistics with tiles of halves", function()
  after_each(function() similarity.tile_dtype "float32" end)

  for _, d in ipairs{ 5, 100, 128, 300 } do
    it(("are float64's, of %d features"):format(d), function()
      local q, k = rows(d)
      local all = lunce.cat({ q, k }, 1)
      for mask in pairs(MASKS) do
        for set, given in pairs{ two = { q, k }, one = { all } } do
          local S = matrix("cosine", mask, given[1], given[2], "float64", "cpu")
          local got = with("float16", statistics,
            matrix("cosine", mask, given[1], given[2], "float32", device))
          near(statistics(S), brought(got), S, ("%s, %s"):format(mask, set))
        end
      end
    end)
  end

  it("have the same bits again, and with either half", function()
    local q, k = rows(33)
    local S = matrix("cosine", "different", q, k, "float32", device)
    local first = with("float16", statistics, S)
    same(first, with("float16", statistics, S))
    same(first, with("bfloat16", statistics, S))
  end)

  it("are float32's of dot products, with TF32, and float64's of float64", function()
    local q, k = rows(20)
    for _, case in ipairs{ { "dot", "float32", "float16" }, { "dot", "float32", "bfloat16" },
      { "cosine", "float32", "tf32" }, { "cosine", "float64", "float16" } } do
      local kind, dtype, tiles = unpack(case)
      local S = matrix(kind, "none", q * 100, k * 1e6, dtype, device)
      same(statistics(S), with(tiles, statistics, S))
    end
  end)

  -- Cosines of one feature are signs; a row of zeros is at right angles to all.
  it("take rows of any size, of zeros and of one feature", function()
    local q, k = rows(7)
    local sizes = lunce.tensor({ 1e-12, 1e15, 1, 3e-5, 700 }, CPU):index_select(1, round(M, 5))
    local scaled = k * sizes:float():reshape(M, 1)
    for _, case in ipairs{ { q * 1e-3, scaled }, { q:narrow(2, 1, 1), k:narrow(2, 1, 1) } } do
      local a, b = case[1]:clone(), case[2]:clone()
      a:narrow(1, 3, 2):fill_(0)
      b:narrow(1, 100, 3):fill_(0)
      local exact = similarity.cosine(a:double(), b:double())
      local S = similarity.cosine(a:to(device), b:to(device))
      local values, columns = with("float16", S.topk, S, M)
      local rho = with("float16", S.tail, S, { k = 50 }).rho:to "cpu"
      assert.is_true(largest(values:to "cpu":double() - (exact:topk(M))) <= most(7))
      assert.is_true(largest(values:to "cpu":double()
        - exact:dense():gather(2, columns:to "cpu")) <= most(7))
      assert.is_true(largest(rho - exact:tail{ k = 50 }.rho) <= most(7))
      assert.equal(0, largest(values:narrow(1, 3, 2)))
    end
    local none = similarity.cosine(lunce.zeros(3, 0), lunce.zeros(5, 0))
    assert.equal(0, largest((with("float16", none.topk, none, 4))))
  end)

  it("pass on what is not finite", function()
    local q, k = rows(9)
    k[{ 7, 2 }], k[{ 9, 1 }], q[{ 5, 3 }] = 0 / 0, math.huge, -math.huge
    local S = similarity.cosine(q:to(device), k:to(device))
    local full = S:topk(M):isnan()
    local halves = with("float16", S.topk, S, M):isnan()
    assert.is_true(full:eq(halves):all():item())
    assert.equal(2 * (N - 1) + M, full:sum():item())
  end)

  it("give weince its statistics and gradient", function()
    local q, k = rows(128)
    local function step(dtype, where, tau)
      local a = q:to(dtype):to(where):clone():requires_grad_()
      local b = k:narrow(1, 1, N):to(dtype):to(where):clone():requires_grad_()
      local value, tail = lunce.loss.weince(a, b, { tau = tau, beta = "anchor" })
      value:backward()
      return { value:detach():to("cpu"):double(), tail.lambda:to("cpu"):double(),
        lunce.cat({ a.grad, b.grad }, 1):to("cpu"):double() }
    end
    for _, tau in ipairs{ 0.5, 0.1, 0.05 } do
      local exact, got = step("float64", "cpu", tau), with("float16", step, "float32", device, tau)
      assert.is_true(largest(exact[1] - got[1]) <= 1e-4)
      assert.is_true(largest(exact[2] - got[2]) <= 1e-4)
      assert.is_true(((exact[3] - got[3]):norm() / exact[3]:norm()):item() <= 1e-3)
    end
  end)

  if device == "cpu" then return end

  it("are captured with the same bits", function()
    local q, k = rows(20)
    q, k = q:to(device), k:to(device)
    similarity.tile_dtype "float16"
    local function ranks(a, b) return unpack(statistics(similarity.cosine(a, b))) end
    local step = lunce.graph(ranks, { warmup = 1 })
    for i = 1, 4 do
      local a = q + 0.01 * i
      same({ ranks(a, k) }, { step(a, k) })
    end
  end)
end)

-- The fused similarity engine against the dense one: random links over the whole vocabulary with
-- random masks and parameters, value and every gradient; order statistics, shared passes, bits that
-- do not depend on the team.
local lunce = require "lunce"
local link = require "lunce.link"
local similarity = require "lunce.similarity"
local dense = require "lunce.similarity.dense"
local fused = require "lunce.similarity.fused"

-- Where CUDA's kernels run on the host, every element takes thousands of times as long.
local SLOW = os.getenv "LUNCE_CUDA" ~= nil
-- On a device a link's kernels are compiled, ten and more for a link of every kind of parameter.
local COMPILES = require("tests.on_device").name ~= "cpu"

-- A random source that Lua's own state does not disturb.
local function source(seed)
  local state = seed
  return function(n)
    state = (state * 1103515245 + 12345) % 2147483648
    return math.floor(state / 65536) % n + 1
  end
end

-- Random expressions that stay in their domains over [-1, 1]; every word of the vocabulary occurs.
local function expression(pick, depth, leaves)
  local function sub() return expression(pick, depth - 1, leaves) end
  if depth == 0 then
    local leaf = leaves[pick(#leaves)]
    return function(s, p) return leaf(s, p) end
  end
  local a, b = sub(), sub()
  local forms = {
    function(s, p) return a(s, p) + b(s, p) end,
    function(s, p) return a(s, p) - b(s, p) end,
    function(s, p) return a(s, p) * b(s, p) end,
    function(s, p) return a(s, p) / (link.square(b(s, p)) + 1.5) end,
    function(s, p) return link.exp(link.clamp(a(s, p), -2, 2)) end,
    function(s, p) return link.expm1(link.tanh(a(s, p))) end,
    function(s, p) return link.log(link.abs(a(s, p)) + 0.5) end,
    function(s, p) return link.log(1 - link.min(link.tanh(a(s, p)), 0.9)) end,
    function(s, p) return link.log1p(link.square(a(s, p))) end,
    function(s, p) return link.sqrt(link.square(a(s, p)) + 0.3) end,
    function(s, p) return link.sigmoid(a(s, p)) end,
    function(s, p) return link.softplus(a(s, p)) end,
    function(s, p) return link.max(a(s, p), b(s, p)) end,
    function(s, p) return link.where(link.gt(a(s, p), 0.1), a(s, p), b(s, p)) end,
    function(s, p) return link.where(link.le(a(s, p), b(s, p)), b(s, p) * 2, -a(s, p)) end,
    function(s, p) return (link.square(a(s, p)) + 0.7) ^ 1.5 end,
    function(s, p) return (link.sigmoid(a(s, p)) + 0.2) ^ link.tanh(b(s, p)) end,
    function(s, p) return link.relu(a(s, p) + 0.05) - 3 end,
  }
  return forms[pick(#forms)]
end

local LEAVES = {
  function(s) return s end, function(s) return s end, function(s) return 2 * s end,
  function(_, p) return p[1] end, function(_, p) return p[2] end, function(_, p) return p[3] end,
  function(s, p) return s * p[2] end, function(s, p) return s - p[3] end,
  function(s, p) return link.min(s, p[2]) end, function(s, p) return 1 - link.min(p[3], s) end,
  function(s) return 2 * link.min(s, 0.3) + 1 end,
}

local function masked(S, kinds, labels)
  for _, kind in ipairs(kinds) do
    if kind == 1 and S.N == S.M then S = S:without_self()
    elseif kind == 2 then S = S:without(labels.index)
    elseif kind == 3 then S = S:same(labels.rows, labels.columns)
    elseif kind == 4 then S = S:different(labels.rows, labels.columns)
    elseif kind == 5 and S.N == S.M then S = S:triangle() end
  end
  return S
end

-- One random case: the reduction's value and the gradients of q, k and the three parameters.
local function evaluate(engine, case, dtype)
  local function leaf(shape, seed, low, high)
    local x = lunce.rand(shape, { seed = seed, dtype = "float64" }) * (high - low) + low
    return x:to(dtype):requires_grad_()
  end
  local q, k = leaf({ case.N, case.D }, case.seed, -1, 1), nil
  if not case.symmetric then k = leaf({ case.M, case.D }, case.seed + 1, -1, 1) end
  local p = { leaf({ 1 }, case.seed + 2, 0.3, 1.5), leaf({ case.N, 1 }, case.seed + 3, -1, 1),
    leaf({ 1, case.M }, case.seed + 4, -1, 1) }
  local labels = { rows = lunce.randint(1, 3, { case.N }, { seed = case.seed + 5 }),
    columns = lunce.randint(1, 3, { case.M }, { seed = case.seed + 6 }),
    index = lunce.randint(1, case.M, { case.N }, { seed = case.seed + 7 }) }
  local S = masked(similarity.cosine(q, k), case.masks, labels)
  local y = engine[case.kind](S, function(s, a, b, c) return case.f(s, { a, b, c }) + s * 0 end, p)
  local weights = lunce.rand(case.N, { seed = case.seed + 8, dtype = "float64" }):to(dtype)
  local total = (y:masked_fill(y:eq(-math.huge), 0) * weights):sum()
  if total.requires_grad then total:backward() end
  return { y = y:detach(), q = q.grad, k = k and k.grad, p1 = p[1].grad, p2 = p[2].grad,
    p3 = p[3].grad }
end

local function random_case(i)
  local pick = source(7919 * i + 13)
  -- A cosine of exactly 1 would sit on the threshold of s * b <= b: D > 1, no row meets itself.
  local case = { seed = 1000 * i, D = 1 + pick(40), N = pick(120), symmetric = pick(2) == 1,
    kind = pick(2) == 1 and "lse" or "sum", masks = {} }
  if case.symmetric then case.masks[1] = 1 end
  case.M = case.symmetric and case.N or pick(150)
  for _ = 1, pick(3) - 1 do case.masks[#case.masks + 1] = pick(5) end
  case.f = expression(pick, 1 + pick(3), LEAVES)
  return case
end

-- Relative to the larger of the two, in norm: a gradient may be small against what cancels in it.
local function far(a, b, tolerance, scale)
  if not a or not b then
    local there = a or b
    return there and there:to("float64"):norm():item() > tolerance * scale and "one is missing"
  end
  local x, y = a:to("float64"), b:to("float64")
  if not x:eq(-math.huge):eq(y:eq(-math.huge)):all():item() then return "other rows are empty" end
  x, y = x:masked_fill(x:eq(-math.huge), 0), y:masked_fill(y:eq(-math.huge), 0)
  local difference = (x - y):norm():item()
  local size = math.max(y:norm():item(), scale)
  if not (difference <= tolerance * size) then
    return ("off by %.3g of %.3g"):format(difference, size)
  end
end

describe("random links", function()
  it("fused equals dense in float64 and float32, value and every gradient", function()
    local faults = {}
    for i = 1, 500, COMPILES and 10 or 1 do
      local case = random_case(i)
      local expected = evaluate(dense, case, "float64")
      local scale = (expected.q and expected.q:norm():item() or 0) + 1e-3
      -- float32: a where or a clamp may fall to the other side of its threshold, so links are
      -- compared to a hundredth there; float64 shows that the arithmetic is the same.
      -- A gradient that all cancels is rounding: it is measured against its terms, of size 0.1.
      for dtype, tolerance in pairs{ float64 = 1e-9, float32 = 1e-2 } do
        if dtype == "float32" then scale = scale + 0.1 end
        local got = evaluate(fused, case, dtype)
        for _, name in ipairs{ "y", "q", "k", "p1", "p2", "p3" } do
          local fault = far(got[name], expected[name], tolerance, name == "y" and 1e-3 or scale)
          if fault then
            faults[#faults + 1] = ("link %d, %s %s: %s"):format(i, dtype, name, fault)
          end
        end
      end
    end
    assert.equal("", table.concat(faults, "\n"))
  end)
end)

describe("the engine", function()
  local function leaf(n, d, seed) return lunce.randn(n, d, { seed = seed }):requires_grad_() end

  it("gives the same bits for every team, and on repeat", function()
    local before, first = lunce.threads(), nil
    for _, team in ipairs{ 1, 2, 3, 5, 2 } do
      lunce.threads(team)
      -- So large that all kernels have a team; on the host the products are a library's, whose bits
      -- depend on it.
      local z = leaf(700, SLOW and 24 or 190, 3)
      local y = similarity.cosine(z):without_self():lse(function(s) return s / 0.1 end)
      y:sum():backward()
      first = first or { y, z.grad }
      assert.is_true(first[1]:eq(y):all():item())
      assert.is_true(first[2]:eq(z.grad):all():item())
    end
    lunce.threads(before)
  end)

  it("computes reductions of one matrix together, transposed ones too", function()
    local results = {}
    for i, engine in ipairs{ fused, dense } do
      local q, k = leaf(90, 16, 1), leaf(70, 16, 2)
      local scale = lunce.tensor({ 3 }):requires_grad_()
      local S = similarity.cosine(q, k)
      local f = function(s, t) return s * t end
      local parts = { engine.together(function()
        return engine.lse(S, f, { scale }), engine.lse(S:t(), f, { scale }), engine.sum(S, f, { 2 })
      end) }
      (parts[1]:sum() + parts[2]:square():sum() + parts[3]:mean()):backward()
      results[i] = { parts[1], parts[2], parts[3], q.grad, k.grad, scale.grad }
    end
    for i, x in ipairs(results[1]) do
      local y = results[2][i]
      assert.is_true((x - y):norm():item() <= 1e-5 * y:norm():item())
    end
  end)

  it("refuses a shared result before together returns", function()
    local S = similarity.cosine(leaf(5, 3, 1))
    assert.has_error_match(function()
      similarity.together(function() return S:lse() + 1 end)
    end, "when similarity.together returns")
  end)

  it("records of a shared pass what was asked for with the tape on", function()
    local gradients = {}
    for i, engine in ipairs{ fused, dense } do
      local q, k = leaf(30, 8, 1), leaf(20, 8, 2)
      local t = lunce.tensor({ 3 }):requires_grad_()
      local S = similarity.cosine(q, k)
      local function f(s, scale) return s * scale end
      local first, sum, last = engine.together(function()
        return lunce.no_grad(engine.lse, S, f, { t }), engine.sum(S, f, { t }),
          lunce.no_grad(engine.sum, S, f, { t })
      end)
      assert.is_false(first.requires_grad or last.requires_grad)
      assert.is_true(sum.requires_grad);
      (sum * (first + last)):sum():backward()
      gradients[i] = lunce.cat({ q.grad:flatten(), k.grad:flatten(), t.grad }, 1)
    end
    assert.is_true((gradients[1] - gradients[2]):norm():item()
      <= 1e-5 * gradients[2]:norm():item())
    local S = similarity.cosine(leaf(5, 3, 1))
    local y = lunce.no_grad(similarity.together, function() return S:lse() end)
    assert.is_false(y.requires_grad)
  end)

  it("refuses rows that change before together returns", function()
    for _, changed in ipairs{ "q", "k" } do
      local S = similarity.cosine(lunce.ones(5, 3), lunce.ones(4, 3))
      assert.has_error_match(function()
        similarity.together(function()
          S:lse()
          S[changed]:mul_(2)
        end)
      end, "^similarity.together: rows were changed in place")
    end
  end)

  it("takes a second backward only with retain_graph", function()
    local z = leaf(20, 4, 1)
    local y = similarity.cosine(z):lse():sum()
    y:backward{ retain_graph = true }
    local once = z.grad:clone()
    y:backward()
    assert.is_true((z.grad - once * 2):norm():item() <= 1e-6 * once:norm():item())
    assert.has_error_match(function() y:backward() end, "freed")
  end)

  it("finds the same largest entries and tails as a sort", function()
    for _, dtype in ipairs{ "float32", "float64" } do
      local q = lunce.randn(60, 12, { seed = 4 }):to(dtype)
      local k = lunce.randn(500, 12, { seed = 5 }):to(dtype)
      local S = similarity.cosine(q, k):without(lunce.arange(1, 60, 1, { dtype = "int64" }))
      local values, columns = fused.topk(S, 40)
      local expected = dense.topk(S, 40)
      assert.is_true((values - expected):abs():max():item() <= 1e-6)
      assert.is_true((dense.dense(S):gather(2, columns) - expected):abs():max():item() <= 1e-6)
      local a, b = fused.tail(S, 50), dense.tail(S, 50)
      for _, name in ipairs{ "rho", "beta_hat", "r2", "delta_aic" } do
        assert.is_true((a[name] - b[name]):norm():item() <= 1e-4 * b[name]:norm():item(), name)
      end
      local c, d = fused.pooled_tail(S, 1024), dense.pooled_tail(S, 1024)
      for _, name in ipairs{ "beta_hat", "r2", "delta_aic" } do
        local x, y = c[name]:item(), d[name]:item()
        assert.is_true(math.abs(x - y) <= 1e-4 * math.abs(y), name)
      end
      assert.same(dense.count(S):tolist(), fused.count(S):tolist())
    end
  end)

  -- Of 256 and 512 points, in float64 and float32, a block of the tests' build holds the lists.
  it("fits tails of few points and of all, and pools them", function()
    local function same(a, b, tolerance, what)
      for _, name in ipairs{ "rho", "beta_hat", "r2", "delta_aic" } do
        if a[name] then
          assert.same(b[name]:isnan():tolist(), a[name]:isnan():tolist())
          local off = (a[name] - b[name]):abs() / (b[name]:abs() + 1)
          off = off:masked_fill(off:isnan(), 0):max():item()
          assert(off <= tolerance, ("%s, %s: off by %g"):format(what, name, off))
        end
      end
    end
    local few = lunce.randn(40, 9, { seed = 12 })
    local columns = {
      random = lunce.randn(1100, 9, { seed = 11 }),
      repeated = few:index_select(1, lunce.randint(1, 40, { 1100 }, { seed = 13 })),
      broken = lunce.randn(1100, 9, { seed = 11 }),
    }
    columns.broken[{ 700, 2 }] = 0 / 0
    if not SLOW then -- more points than a GPU's block holds
      local S = similarity.cosine(few:narrow(1, 1, 2), lunce.randn(19000, 9, { seed = 16 }))
      same(fused.tail(S, 9000), dense.tail(S, 9000), 1e-3, "9000 points")
    end
    for kind, k in pairs(columns) do
      -- Residuals of few points nearly cancel; the logarithm of their ratio magnifies last bits.
      for dtype, tolerance in pairs{ float64 = 1e-9, float32 = 1e-3 } do
        local S = similarity.cosine(few:narrow(1, 1, 4):to(dtype), k:to(dtype))
        local sparse = S:different(lunce.tensor({ 1, 2, 3, 4 }, { dtype = "int64" }),
          lunce.randint(1, 4, { 1100 }, { seed = 15 }))
        for _, points in ipairs{ 2, 256, 257, 512, 513, 1100 } do
          local what = ("%s, %s, %d points"):format(kind, dtype, points)
          same(fused.tail(S, points), dense.tail(S, points), tolerance, what)
          if points <= 513 then
            local a, b = fused.tail(sparse, points), dense.tail(sparse, points)
            same(a, b, tolerance, what .. ", masks")
          end
        end
        -- A NaN is passed over on the CPU; on a device all of these points are.
        local pooled = { 10, 3000, 4400 }
        if kind == "broken" then pooled = { few.device ~= "cpu" and 3 or nil } end
        for _, points in ipairs(pooled) do
          local what = ("%s, %s, %d points pooled"):format(kind, dtype, points)
          local a, b = fused.pooled_tail(S, points), dense.pooled_tail(S, points)
          a.rho, b.rho = nil, nil
          same(a, b, tolerance, what)
        end
      end
    end
  end)

  -- From 2048 rows on tails come from lists, whose entries are spread over bins by their values.
  for name, rows in pairs{
    ["in space: even"] = function(n) return lunce.randn(n, 3, { seed = 1 }) end,
    ["in 64 dimensions: thin"] = function(n) return lunce.randn(n, 64, { seed = 2 }) end,
    ["each twice: ties"] = function(n)
      local x = lunce.randn(n / 2, 16, { seed = 3 })
      return lunce.cat({ x, x }, 1)
    end,
    ["around ten centres: a gap"] = function(n)
      local centres = lunce.randn(10, 16, { seed = 4 })
      return centres:index_select(1, lunce.randint(1, 10, { n }, { seed = 5 }))
        + 0.1 * lunce.randn(n, 16, { seed = 6 })
    end,
  } do
    it("finds the tails of many rows, " .. name, function()
      local n = SLOW and 240 or 2304
      local S = similarity.cosine(rows(n)):without_self()
      local a, b = fused.tail(S, math.floor(n / 10)), dense.tail(S, math.floor(n / 10))
      for _, statistic in ipairs{ "rho", "beta_hat", "r2", "delta_aic" } do
        local x, y = a[statistic], b[statistic]
        assert.is_true((x - y):norm():item() <= 1e-4 * y:norm():item(), statistic)
      end
    end)
  end

  it("keeps live memory to the tensors of the call, whatever N x M", function()
    local N = SLOW and 256 or 4096
    local z = leaf(N, 32, 1)
    collectgarbage() -- what other tests left is not released in the midst of this one
    collectgarbage()
    local before = lunce.memory().live_bytes
    local kept = similarity.tile_memory()
    similarity.tile_memory(0) -- what it keeps besides is tiles_test.lua's
    lunce.reset_peak_memory()
    local y = similarity.cosine(z):without_self():lse(function(s) return s / 0.5 end):mean()
    y:backward()
    similarity.tile_memory(kept)
    local grown = lunce.memory().peak_bytes - before
    assert.is_true(grown < N * 2 ^ 10, grown) -- dense: 64 MB at 4096 for the matrix alone
  end)

  it("is the same where each pair of blocks packs its rows: long rows", function()
    local q, k = leaf(310, 4800, 11), leaf(250, 4800, 12)
    for _, other in ipairs{ q, k } do
      local function gradient(engine)
        similarity.engine(engine)
        q.grad, k.grad = nil, nil
        local S = similarity.cosine(q, other)
        if other == q then S = S:without_self() end
        S:lse(function(s) return s / 0.1 end):sum():backward()
        similarity.engine "fused"
        return q.grad
      end
      local expected = gradient "dense"
      local off = (gradient "fused" - expected):norm():item()
      assert.is_true(off <= 1e-5 * expected:norm():item(), off)
    end
  end)

  it("keeps a small number beside a large one", function()
    local S = similarity.cosine(lunce.ones(2, 1))
    local y = S:lse(function(s) return link.log(1 - link.min(s, 1) + 1e-8) end)
    assert.is_true(math.abs(y[1]:item() - (math.log(1e-8) + math.log(2))) < 1e-5)
  end)

  it("refuses what has no value, in sums too", function()
    local S = similarity.cosine(lunce.ones(2, 1))
    for _, reduce in ipairs{ S.lse, S.sum } do
      local ok, message = pcall(reduce, S, function(s) return link.log(s) end)
      assert.is_false(ok)
      assert.matches("log's argument must stay above 0", message)
    end
  end)

  it("takes exp and log to the ends of their ranges, and past them", function()
    local q = lunce.randn(60, 8, { seed = 9 })
    local rows = lunce.cat({ q, q, -q }, 1)
    -- A similarity may be off by a few roundings, and exp(t s) by t times that.
    local function same(y, expected, t)
      local allowed = 2e-5 + 4e-7 * math.min(t, 100)
      local close = (y - expected):abs():le(expected:abs() * allowed + 1e-6)
      local both = y:isnan():logical_and(expected:isnan()):logical_or(y:eq(expected))
      assert.is_true(close:logical_or(both):all():item())
    end
    local function compare(f, t)
      local S, parameters = similarity.cosine(rows), t and { lunce.tensor{ t } } or {}
      same(fused.sum(S, f, parameters), dense.sum(S, f, parameters), t or 1)
      same(fused.lse(S, f, parameters), dense.lse(S, f, parameters), t or 1)
    end
    for _, t in ipairs{ 1, 80, 85.9, 86.1, 87, 88.5, 95, 1e4, 1e30, 0 / 0 } do
      compare(function(s, x) return link.exp(x * s) end, t)
      compare(function(s, x) return link.sigmoid(x * s) + link.softplus(x * s) end, t)
      compare(function(s, x) return x * (s + 2) end, t)
    end
    for _, least in ipairs{ 0.5, 1e-3, 1e-6, 4e-7, 1e-7 } do
      if least >= 1e-6 then -- else rounding decides which of s and the limit is less
        compare(function(s) return link.log(1 - link.min(s, 1 - least)) end)
      end
      compare(function(s) return link.log(link.max(s, least)) end)
      compare(function(s) return link.log1p(link.max(s, 0) / least) end)
    end
  end)

  it("gives NaN for a NaN row or parameter, whatever the link bounds", function()
    local function count_nan(S, f, ...)
      return S:lse(f, ...):isnan():to("int64"):sum():item()
    end
    for _, bad in ipairs{ 0 / 0, 1 / 0 } do
      local z = lunce.randn(50, 8, { seed = 2 })
      z:select(1, 7):copy_(lunce.tensor{ bad }:expand(8))
      local S = similarity.cosine(z):without_self()
      assert.equal(50, count_nan(S, function(s) return link.log(1 - link.min(s, 0.9)) end))
      assert.equal(50, count_nan(S, function(s) return s / 0.5 end))
      assert.equal(50, count_nan(S, function(s) return link.max(s, 0) end))
    end
    local mix = lunce.rand(50, 1, { seed = 3 })
    mix:narrow(1, 4, 1):copy_(lunce.tensor{ { 0 / 0 } })
    local S = similarity.cosine(lunce.randn(50, 8, { seed = 4 }))
    assert.equal(1, count_nan(S, function(s, m) return m * link.log(2 - s) + s end, mix))
  end)

  it("runs a running maximum where no fixed shift serves", function()
    local z = leaf(64, 8, 9):detach():to("float64"):requires_grad_()
    local S = similarity.cosine(z)
    local f = function(s) return s / 0.001 end
    local y, expected = fused.lse(S, f, {}), dense.lse(S, f, {})
    assert.is_true((y - expected):abs():max():item() <= 1e-9 * 1000)
  end)
end)

-- Rows enough for lists that the tiles fill, of kinds that fill them too little or too much.
describe("the tail of many rows", function()
  local N = SLOW and 150 or 2200
  local function rows(kind, dtype)
    local z = lunce.randn(N, 16, { seed = 5, dtype = dtype })
    local few = lunce.randn(11, 16, { seed = 7, dtype = dtype })
    local class = lunce.randint(1, 11, { N }, { seed = 8 })
    if kind == "sorted" then class = class:sort(1) end
    if kind == "clustered" or kind == "sorted" then return 0.2 * z + few:index_select(1, class) end
    if kind == "repeated" then return few:index_select(1, class) end
    if kind == "collapsed" then return 1e-4 * z + few[1] end
    if kind == "broken" then z[{ 17, 3 }] = 0 / 0 end
    return z
  end
  -- The largest difference of a field; NaN equals NaN.
  local function difference(a, b)
    local nan = a:isnan()
    assert.is_true(nan:eq(b:isnan()):all():item())
    return ((a - b):abs() / (b:abs() + 1)):masked_fill(nan, 0):max():item()
  end

  for _, kind in ipairs{ "random", "clustered", "sorted", "repeated", "collapsed", "broken" } do
    it("is the same by lists, by whole rows and dense: " .. kind, function()
      -- In float32 the similarities of near rows differ in their last bits, and dAIC, n times the
      -- logarithm of a ratio of residuals, magnifies that.
      for dtype, tolerance in pairs{ float64 = 1e-9, float32 = 2e-5 } do
        local z = rows(kind, dtype)
        local plain = similarity.cosine(z):without_self()
        local sparse = plain:different(lunce.randint(1, 2, { N }, { seed = 9 }))
        for _, S in ipairs{ plain, sparse } do
          local tail, expected = fused.tail(S, 100), dense.tail(S, 100)
          for _, field in ipairs{ "rho", "beta_hat", "r2", "delta_aic" } do
            local off = difference(tail[field], expected[field])
            local magnified = dtype == "float32" and field == "delta_aic" and 250 or 1
            assert.is_true(off <= magnified * tolerance,
              ("%s %s %s: %g"):format(kind, dtype, field, off))
          end
        end
      end
    end)
  end
end)

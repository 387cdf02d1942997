-- Tiles that a matrix keeps between its passes: the bits are those of tiles computed again,
-- whatever part is kept; they go with the tape; what they were computed from is as it was.
local lunce = require "lunce"
local loss, similarity = lunce.loss, lunce.similarity

local DEFAULT = similarity.tile_memory()

local function leaf(rows, d, seed, dtype)
  return lunce.randn(rows, d, { seed = seed, dtype = dtype }):requires_grad_()
end

local function same(a, b)
  return a:eq(b):logical_or(a:isnan():logical_and(b:isnan())):all():item()
end

-- fn's results with so many bytes for tiles, and the peak of live memory above what was there.
local function with(bytes, fn)
  similarity.tile_memory(bytes)
  collectgarbage()
  collectgarbage()
  local before = lunce.memory().live_bytes
  lunce.reset_peak_memory()
  local ok, results = pcall(fn)
  similarity.tile_memory(DEFAULT)
  assert(ok, results)
  return results, lunce.memory().peak_bytes - before
end

local LOSSES = {
  nt_xent = function(a, b) return loss.nt_xent(a, b, { tau = 0.5 }) end,
  ["nt_xent, running maximum"] = function(a, b) return loss.nt_xent(a, b, { tau = 0.02 }) end,
  weince = function(a, b) return (loss.weince(a, b, { tau = 0.5 })) end,
  hcl = function(a, b) return loss.hcl(a, b) end,
  clip = function(a, b) return loss.clip(a, b) end,
  siglip = function(a, b) return loss.siglip(a, b) end,
  uniformity = function(a, b) return loss.uniformity(lunce.cat({ a, b }, 1)) end,
}

describe("kept tiles give the bits of computed ones:", function()
  for name, fn in pairs(LOSSES) do
    for _, case in ipairs{ { 3, 5, "float64" }, { 150, 33, "float32" }, { 530, 16, "float64" },
      { 1100, 20, "float32" } } do
      local rows, d, dtype = unpack(case)
      it(("%s of 2 x %d rows of %d, %s"):format(name, rows, d, dtype), function()
        local function step()
          local a, b = leaf(rows, d, 1, dtype), leaf(rows, d, 2, dtype)
          local y = fn(a, b)
          y:backward()
          return { y:detach(), a.grad, b.grad }
        end
        local whole = rows * rows * 2 * (dtype == "float64" and 8 or 4)
        local expected = with(0, step)
        for _, part in ipairs{ 0.6, 1.2, 1.7, 3 } do
          local results = with(math.floor(whole * part), step)
          for i = 1, 3 do assert.is_true(same(expected[i], results[i])) end
        end
      end)
    end
  end
end)

-- Rows that are read out of tiles: of one set, where half lie transposed, and of two; sizes that
-- end amid tiles and blocks.
describe("kept tiles give the rows of the matrix:", function()
  for _, case in ipairs{ { 7, 5 }, { 97, 385 }, { 300, 130 }, { 700, 650 }, { 1201, 401 } } do
    for _, dtype in ipairs{ "float32", "float64" } do
      local N, M = unpack(case)
      it(("%d with %d and with themselves, %s"):format(N, M, dtype), function()
        local q, k = leaf(N, 9, 1, dtype), lunce.randn(M, 9, { seed = 2, dtype = dtype })
        local labels = lunce.randint(1, 4, { N }, { seed = 3 })
        local function largest(S)
          local values, columns = S:topk(math.min(5, S.M))
          local tail = S:tail{ k = math.min(4, S:count():min():item()) }
          return { values, columns, tail.rho, tail.delta_aic, S:lse(), S:max() }
        end
        for _, S in ipairs{ function() return similarity.cosine(q, k) end,
          function() return similarity.cosine(q):without_self() end,
          function() return similarity.dot(q):different(labels) end } do
          local expected = with(0, function() return largest(S()) end)
          local results = with(DEFAULT, function() return largest(S()) end)
          for i = 1, #expected do assert.is_true(same(expected[i], results[i]), i) end
        end
      end)
    end
  end
end)

describe("kept tiles", function()
  local N, d = 1500, 16
  local whole = N * N / 2 * 4

  local function step(x)
    local y = similarity.cosine(x):without_self():lse(function(s) return s / 0.5 end):mean()
    y:backward()
    return y:detach()
  end

  it("take memory where a gradient is wanted, and no more than is given", function()
    local x = leaf(N, d, 3)
    step(x) -- the gradient stays
    local _, none = with(0, function() return step(x) end)
    local _, all = with(DEFAULT, function() return step(x) end)
    local _, part = with(whole / 2, function() return step(x) end)
    local _, free = with(DEFAULT, function()
      return lunce.no_grad(function() return similarity.cosine(x):without_self():lse():sum() end)
    end)
    assert.is_true(all - none >= whole and all - none < 1.5 * whole, all - none)
    local rounded = whole / 2 * 1.13 -- blocks are eighths of a power of two
    assert.is_true(part - none <= rounded, part - none)
    assert.is_true(free < whole / 2, free)
    local _, too_little = with(whole / 8, function() return step(x) end)
    assert.equal(none, too_little)
  end)

  it("are freed with the tape, of several nodes and in an inner scope too", function()
    local x = leaf(N, d, 4)
    step(x)
    collectgarbage()
    collectgarbage()
    local before = lunce.memory().live_bytes
    for _ = 1, 3 do
      lunce.scope(function()
        local S = similarity.cosine(x):without_self()
        local y = S:lse(function(s) return s / 0.5 end) + S:sum(function(s) return s * s end)
          + S:same(lunce.arange(N):to("int64")):lse():clamp(-1, 1)
        lunce.scope(function() S:tail{ k = 20 } end)
        y:mean():backward()
      end)
      assert.equal(before, lunce.memory().live_bytes)
    end
  end)

  it("serve a backward pass again with retain_graph", function()
    local x = leaf(N, d, 5)
    local y = similarity.cosine(x):without_self():lse(function(s) return s / 0.3 end):sum()
    y:backward{ retain_graph = true }
    local first = x.grad:clone()
    x.grad = nil
    y:backward()
    assert.is_true(same(first, x.grad))
  end)

  -- A pass over the matrix alone keeps its weights instead of the similarities; what comes after
  -- it, in any order and from the second time on, sees to it that the similarities are kept.
  it("of one reduction serve others that follow", function()
    local halves = leaf(N, d, 12)
    local function half(S) return S:lse(function(s) return s / 0.5 end) end
    local function quarter(S) return S:lse(function(s) return s / 0.25 end) end
    local function largest(S) return (S:topk(3)) end
    local function squares(S) return S:sum(function(s) return s * s end) end
    local function shortfall(S)
      S:tail{ k = 20 }
      return half(S)
    end
    local function learned(S)
      local tau = lunce.tensor({ 0.5 }):requires_grad_()
      return S:lse(function(s, t) return s / t end, tau)
    end
    local function free(S) return lunce.no_grad(quarter, S) + half(S) end
    for n, order in ipairs{ { half, largest }, { largest, half }, { half, quarter, shortfall },
      { half, squares, half }, { half, shortfall, largest }, { half, learned }, { half, free } } do
      local function run()
        halves.grad = nil
        local S, y = similarity.cosine(halves:slice(1, 1, N - n)):without_self(), 0
        for _, fn in ipairs(order) do y = y + fn(S):sum() end
        y:backward()
        return { y:detach(), halves.grad }
      end
      local expected = with(0, run)
      for _ = 1, 3 do
        local results = with(DEFAULT, run)
        for i = 1, 2 do assert.is_true(same(expected[i], results[i])) end
      end
    end
  end)

  it("of weights are not read by the gradient of another reduction", function()
    local x = leaf(N - 20, d, 13) -- of which nothing followed a reduction before
    local function run(bytes)
      x.grad = nil
      local S = similarity.cosine(x):without_self()
      local first = with(0, function() return S:lse(function(s) return s / 0.25 end) end)
      local second = with(bytes, function() return S:lse(function(s) return s / 0.5 end) end)
      second:sum():backward{ retain_graph = true }
      first:sum():backward()
      second:sum():backward()
      return x.grad
    end
    assert.is_true(same(run(0), run(DEFAULT)))
  end)

  it("are not read when q or k has changed since", function()
    local q, k = leaf(300, d, 6), lunce.randn(200, d, { seed = 7 })
    for _, x in ipairs{ q, k } do
      local S = similarity.cosine(q, k)
      local old = S:lse()
      lunce.no_grad(function() x:copy_(lunce.randn(x.shape, { seed = 8 })) end)
      local new = S:lse()
      assert.is_false(same(old, new))
      assert.is_true(same(similarity.cosine(q, k):lse(), new))
    end
  end)

  it("are none after a pass that failed", function()
    local S = similarity.cosine(leaf(300, d, 9))
    assert.is_false(pcall(S.lse, S, function(s) return lunce.link.log(s) end))
    assert.is_true(same(similarity.cosine(leaf(300, d, 9)):lse(), S:lse()))
  end)

  it("are refused an amount that is none", function()
    for _, bytes in ipairs{ -1, 0.5, "much" } do
      local ok, message = pcall(similarity.tile_memory, bytes)
      assert.is_false(ok)
      assert.matches("similarity.tile_memory: .*whole number of bytes", message)
    end
    assert.equal(DEFAULT, similarity.tile_memory())
  end)
end)

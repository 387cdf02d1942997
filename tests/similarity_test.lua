-- The similarity algebra against loops over plain numbers: masks, reductions, gradients by central
-- differences in float64, rows without candidates, and bad input. Whatever the engine, these hold.
local lunce = require "lunce"
local link = require "lunce.link"

local similarity = lunce.similarity
local NEAR = 1e-12 -- float64; a few dozen roundings

local F64 = { dtype = "float64" }
local q = lunce.randn(5, 4, { seed = 1, dtype = "float64" })
local k = lunce.randn(7, 4, { seed = 2, dtype = "float64" })
local index = lunce.tensor({ 2, 7, -1, 1, 4 }, { dtype = "int64" })
local rows = lunce.tensor({ 1, 2, 1, 3, 2 }, { dtype = "int64" })
local columns = lunce.tensor({ 1, 1, 2, 2, 1, 3, 1 }, { dtype = "int64" })

-- The matrix as nested tables of numbers.
local function entries(kind, a, b)
  local A, B, s = a:tolist(), b:tolist(), {}
  local function dot(x, y)
    local sum = 0
    for d = 1, #x do sum = sum + x[d] * y[d] end
    return sum
  end
  for i, x in ipairs(A) do
    s[i] = {}
    for j, y in ipairs(B) do
      local scale = kind == "dot" and 1
        or math.max(math.sqrt(dot(x, x)), 1e-8) * math.max(math.sqrt(dot(y, y)), 1e-8)
      s[i][j] = dot(x, y) / scale
    end
  end
  return s
end

local function near(expected, tensor)
  local values = tensor:tolist()
  assert.equal(#expected, #values)
  for i = 1, #expected do
    assert(expected[i] == values[i] or math.abs(expected[i] - values[i]) <= NEAR,
      ("element %d: %.17g, expected %.17g"):format(i, values[i], expected[i]))
  end
end

local function f(s) return 1.5 * s - 0.3 * s * s end
local function f_link(s) return 1.5 * s - 0.3 * link.square(s) end

-- Checks every reduction of S against the candidates that keep(i, j) names.
local function check(S, s, keep)
  local lse, sum, count, sorted = {}, {}, {}, {}
  for i = 1, S.N do
    local total, exps, n, list = 0, 0, 0, {}
    for j = 1, S.M do
      if keep(i, j) then
        n, total, exps = n + 1, total + f(s[i][j]), exps + math.exp(f(s[i][j]))
        list[#list + 1] = { s[i][j], j }
      end
    end
    table.sort(list, function(a, b) return a[1] > b[1] end)
    lse[i], sum[i], count[i], sorted[i] = math.log(exps), total, n, list
  end
  near(lse, S:lse(f_link))
  near(sum, S:sum(f_link))
  near(count, S:count())
  local values, places = S:topk(S.M)
  local top, at = S:max()
  for i, list in ipairs(sorted) do
    for r, pair in ipairs(list) do
      assert.near(pair[1], values[{ i, r }]:item(), NEAR)
      assert.equal(pair[2], places[{ i, r }]:item())
    end
    for r = #list + 1, S.M do assert.equal(-math.huge, values[{ i, r }]:item()) end
    if #list > 0 then
      assert.near(list[1][1], top[i]:item(), NEAR)
      assert.equal(list[1][2], at[i]:item())
    end
  end
  local dense = S:dense():tolist()
  for i = 1, S.N do
    for j = 1, S.M do
      assert.near(keep(i, j) and s[i][j] or 0, keep(i, j) and dense[i][j] or 0, NEAR)
      if not keep(i, j) then assert.equal(-math.huge, dense[i][j]) end
    end
  end
end

describe("masks:", function()
  for _, kind in ipairs{ "cosine", "dot" } do
    local s = entries(kind, q, k)
    local S = similarity[kind](q, k)
    local square, own = similarity[kind](q), entries(kind, q, q)
    local R, L, I = rows:tolist(), columns:tolist(), { 2, 7, 7, 1, 4 }

    it(kind .. " without masks", function() check(S, s, function() return true end) end)
    it(kind .. " without_self", function()
      check(square:without_self(), own, function(i, j) return i ~= j end)
    end)
    it(kind .. " without an index, -1 being the last", function()
      check(S:without(index), s, function(i, j) return j ~= I[i] end)
    end)
    it(kind .. " same and different labels", function()
      check(S:same(rows, columns), s, function(i, j) return R[i] == L[j] end)
      check(S:different(rows, columns), s, function(i, j) return R[i] ~= L[j] end)
      check(square:same(rows), own, function(i, j) return R[i] == R[j] end)
    end)
    it(kind .. " triangle", function()
      check(square:triangle(), own, function(i, j) return j > i end)
    end)
    it(kind .. " masks compose and leave the matrix as it was", function()
      local both = square:without_self():different(rows)
      check(both, own, function(i, j) return i ~= j and R[i] ~= R[j] end)
      check(square:same(rows):without_self(), own,
        function(i, j) return i ~= j and R[i] == R[j] end)
      local after = lunce.tensor({ 2, 3, 4, 5, 1 }, { dtype = "int64" })
      check(square:without_self():without(after), own,
        function(i, j) return i ~= j and j ~= i % 5 + 1 end)
      check(square, own, function() return true end)
    end)
    it(kind .. " at takes any column", function()
      local expected = {}
      for i = 1, 5 do expected[i] = s[i][I[i]] end
      near(expected, S:at(index))
      near(expected, S:without(index):at(index))
    end)
  end
end)

-- The gradient of y(x) weighted by a fixed cotangent, against central differences.
local function check_gradient(x, y)
  local leaf = x:clone():requires_grad_()
  local value = y(leaf)
  local weights = lunce.rand(value.shape, { seed = 9, dtype = "float64" })
  local function total(t) return (y(t) * weights):sum():item() end
  value:backward(weights)
  local flat, gradient, h = x:reshape(-1):tolist(), leaf.grad:reshape(-1):tolist(), 1e-6
  for i = 1, #flat do
    local up, down = { unpack(flat) }, { unpack(flat) }
    up[i], down[i] = flat[i] + h, flat[i] - h
    local slope = (total(lunce.tensor(up, F64):reshape(x.shape))
      - total(lunce.tensor(down, F64):reshape(x.shape))) / (2 * h)
    assert(math.abs(slope - gradient[i]) <= 1e-5 + 1e-3 * math.abs(slope),
      ("element %d: gradient %.10g, central difference %.10g"):format(i, gradient[i], slope))
  end
end

describe("gradients:", function()
  local lambda = lunce.tensor({ 0.1, 0.9, 0.4, 0.6, 0.2 }, F64)
  local offset = lunce.linspace(-1, 1, 7, F64)
  local tau = lunce.tensor({ 0.4 }, F64)
  local function mixed(s, l, o, t)
    return (1 - l) * s / t - 2 * l * link.log(1 - link.min(s, 1 - 1e-6)) + o * s
  end

  for _, reduction in ipairs{ "lse", "sum" } do
    local function reduce(a, b, l, o, t)
      local S = b and similarity.cosine(a, b):without(index) or similarity.cosine(a):without_self()
      return S[reduction](S, mixed, l, o, t)
    end
    it(reduction .. " to q", function()
      check_gradient(q, function(x) return reduce(x, k, lambda, offset, tau) end)
    end)
    it(reduction .. " to k", function()
      check_gradient(k, function(x) return reduce(q, x, lambda, offset, tau) end)
    end)
    it(reduction .. " to z on both sides", function()
      check_gradient(q, function(x) return reduce(x, nil, lambda, 0.5, tau) end)
    end)
    it(reduction .. " to a parameter per row", function()
      check_gradient(lambda, function(x) return reduce(q, k, x, offset, tau) end)
    end)
    it(reduction .. " to a parameter per column", function()
      check_gradient(offset, function(x) return reduce(q, k, lambda, x, tau) end)
    end)
    it(reduction .. " to a scalar", function()
      check_gradient(tau, function(x) return reduce(q, k, lambda, offset, x) end)
    end)
    it(reduction .. " to captured tensors", function()
      check_gradient(tau, function(x)
        local S = similarity.cosine(q, k)
        return S[reduction](S, function(s) return s / x end)
      end)
    end)
  end
  it("topk, max and at", function()
    check_gradient(q, function(x) return (similarity.cosine(x, k):topk(3)) end)
    check_gradient(q, function(x) return (similarity.dot(x):without_self():max()) end)
    check_gradient(k, function(x) return similarity.cosine(q, x):at(index) end)
    check_gradient(q, function(x) return similarity.cosine(x):at(rows) end)
  end)
end)

describe("what is read again backward", function()
  local function ones() return lunce.ones(5, { dtype = "int64" }) end
  -- By what is changed: a reduction that reads it.
  local READERS = {
    parameter = { lunce.full({ 1 }, 0.5, F64), function(x, t)
      return similarity.cosine(x, k):lse(function(s, tau) return s / tau end, t)
    end },
    captured = { lunce.full({ 1 }, 0.5, F64), function(x, t)
      return similarity.cosine(x, k):sum(function(s) return link.exp(s / t) end)
    end },
    index = { ones(), function(x, i) return similarity.cosine(x, k):without(i):lse() end },
    same = { ones(), function(x, i) return similarity.cosine(x):same(i, ones()):sum(f_link) end },
    different = { ones(), function(x, i) return similarity.cosine(x):different(i):lse() end },
    ["k of at"] = { k, function(x, y) return similarity.cosine(x, y):at(ones()) end },
  }
  for name, reader in pairs(READERS) do
    it("may not change in between, or is not read: " .. name, function()
      local expected
      for _, changes in ipairs{ false, true } do
        local x, read = q:clone():requires_grad_(), reader[1]:clone()
        local y = reader[2](x, read):sum()
        if changes then read:mul_(2) end
        local ok, message = pcall(function() y:backward() end)
        if ok then
          expected = expected or x.grad
          assert.is_true(x.grad:eq(expected):all():item())
        else
          assert.is_true(changes)
          assert(message:find "changed in place afterwards", message)
        end
      end
    end)
  end
end)

describe("rows without candidates:", function()
  it("give -inf, 0, and no gradient, whatever the link", function()
    local one = lunce.ones(5, { dtype = "int64" })
    local two = lunce.tensor({ 1, 2, 1, 2, 2 }, { dtype = "int64" })
    -- rows 2, 4, 5 have no column of their label
    for _, fn in ipairs{ function(s) return s end,
      function(s) return link.log(link.max(s, 1e-6)) end,
      function(s) return link.sqrt(link.max(s, 1e-6)) end,
      function(s) return link.log(1 - link.min(s, 1 - 1e-6)) end } do
      local z = (q:abs() + 0.1):requires_grad_()
      local S = similarity.cosine(z):same(two, one):without_self()
      local lse, sum = S:lse(fn), S:sum(fn)
      for _, i in ipairs{ 2, 4, 5 } do
        assert.equal(-math.huge, lse[i]:item())
        assert.equal(0, sum[i]:item())
      end
      (lse:softplus():sum() + sum:sum()):backward()
      assert.is_true(z.grad:isfinite():all():item())
    end
  end)

  it("all of them", function()
    local z = q:clone():requires_grad_()
    local S = similarity.cosine(z):different(lunce.ones(5, { dtype = "int64" }))
    assert.equal(-math.huge, S:lse():max():item())
    S:lse():softplus():sum():backward()
    assert.equal(0, z.grad:abs():sum():item())
    assert.equal(0, S:count():sum():item())
  end)
end)

describe("numerics:", function()
  it("a row of zeros has cosine 0 with all, and a finite gradient", function()
    local z = lunce.zeros(3, 2):requires_grad_()
    local value = similarity.cosine(z, lunce.ones(2, 2)):lse()
    assert.near(math.log(2), value[1]:item(), 1e-6)
    value:sum():backward()
    assert.is_true(z.grad:isfinite():all():item())
  end)

  it("rows without features are 0 apart", function()
    for _, n in ipairs{ 3, 200 } do
      for _, width in ipairs{ n, 5 } do
        local z = lunce.zeros(n, 0, F64):requires_grad_()
        local other = width ~= n and lunce.zeros(5, 0, F64) or nil
        local S = similarity.cosine(z, other)
        local lse, sum = similarity.together(function() return S:lse(f_link), S:sum(f_link) end)
        local top, places = S:topk(2)
        local at = S:at(lunce.ones(n, { dtype = "int64" }))
        near(lunce.full({ n }, math.log(width), F64):tolist(), lse)
        for _, x in ipairs{ sum, at, top:select(2, 2) } do near(lunce.zeros(n):tolist(), x) end
        near(lunce.full({ n }, 2):tolist(), places:select(2, 2))
        near(lunce.ones(n):tolist(), S:tail{}.rho);
        (lse:sum() + sum:sum() + top:sum() + at:sum()):backward()
        assert.same({ n, 0 }, z.grad.shape)
      end
    end
  end)
  it("logits of hundreds do not overflow", function()
    local S = similarity.cosine(q:to("float32"), k:to("float32"))
    assert.is_true(S:lse(function(s, tau) return s / tau end, 0.001):isfinite():all():item())
  end)

  it("a captured number can change between calls", function()
    local S, tau = similarity.cosine(q, k), 1
    local function cold(s) return s / tau end
    local warm = S:lse(cold):sum():item()
    tau = 0.1
    assert.is_true(S:lse(cold):sum():item() > warm)
  end)

  it("the dense engine is there by name", function()
    local S = similarity.cosine(q, k):without(index)
    near(S:lse(f_link):tolist(), similarity.dense.lse(S, f_link, {}))
  end)
end)

describe("the tail:", function()
  it("takes 10 % of the candidates, at least 32 and at most all", function()
    local z = lunce.randn(400, 8, { seed = 3 })
    assert.equal(40, similarity.cosine(z):without_self():tail().k)
    assert.equal(32, similarity.cosine(z:narrow(1, 1, 100)):without_self():tail().k)
    assert.equal(9, similarity.cosine(z:narrow(1, 1, 10)):without_self():tail().k)
    assert.equal(5, similarity.cosine(z):tail{ k = 5 }.k)
  end)

  it("rho is the least shortfall", function()
    local S = similarity.cosine(q):without_self()
    near((1 - S:max()):tolist(), S:tail().rho)
    assert.equal(1e-6, similarity.cosine(q):tail().rho:max():item()) -- every row finds itself
  end)

  it("carries no gradient", function()
    local tail = similarity.cosine(q:clone():requires_grad_()):tail()
    assert.is_false(tail.rho.requires_grad)
    assert.is_false(tail.beta_hat.requires_grad)
  end)

  it("takes as many candidates as are counted, whatever tells their number", function()
    local z, other = lunce.randn(30, 4, { seed = 1 }), lunce.randn(34, 4, { seed = 2 })
    local S, at = similarity.cosine(z), lunce.randint(1, 30, { 30 }, { seed = 3 }):long()
    local alike = lunce.ones(30, { dtype = "int64" })
    local half = alike:cumsum(1):gt(9):long()
    at[1] = -1
    for name, matrix in pairs { none = S, two = similarity.cosine(z, other),
      turned = similarity.cosine(z, other):t(), self = S:without_self(), without = S:without(at),
      triangle = S:triangle(), both = S:without_self():without(at), same = S:same(half),
      different = S:different(half),
      ["no rows"] = similarity.cosine(z:narrow(1, 1, 0), other) } do
      local count = matrix:count()
      local fewest = matrix.N > 0 and count:min():item() or 0
      assert.equal(math.min(fewest, 32), matrix:tail().k, name)
      local pooled = matrix:tail { pooled = true }
      assert.equal(count:sum():item(), pooled and pooled.k or 0, name)
    end
    -- The same, where the candidates are counted.
    for _, masked in ipairs { function(x) return x:without_self() end,
      function(x) return x:without(at) end, function(x) return x:triangle() end } do
      local known, counted = masked(S):tail { pooled = true },
        masked(S):same(alike):tail { pooled = true }
      assert.same(counted, known)
    end
  end)

  it("refuses an index out of range, whether it counts or not", function()
    local S = similarity.cosine(lunce.randn(30, 4, { seed = 1 }))
    local far = lunce.full({ 30 }, 31, { dtype = "int64" })
    for _, pooled in ipairs { false, true } do
      assert.has_error(function()
        local tail = S:without(far):tail { pooled = pooled }
        return not pooled and tail.rho:sum():item()
      end)
    end
  end)

  it("is not fitted where fewer than ten candidates are pooled", function()
    assert.is_nil(similarity.cosine(q:narrow(1, 1, 3)):without_self():tail{ pooled = true })
  end)
end)

describe("bad input:", function()
  local function refused(pattern, fn)
    local ok, message = pcall(fn)
    assert.is_false(ok)
    assert(message:match(pattern), message)
    assert(message:find("similarity_test.lua", 1, true), message)
  end
  local S = similarity.cosine(q, k)

  it("rows", function()
    refused("similarity.cosine: rows are a tensor %(N,D%), or a list of such; got %(5%)", function()
      similarity.cosine(rows)
    end)
    refused("got nil", function() similarity.dot(nil) end)
    refused("differ in width or dtype", function() similarity.cosine(q, k:narrow(2, 1, 3)) end)
    refused("differ in width or dtype", function() similarity.cosine(q, k:to("float32")) end)
    refused("float32 or float64; got int64", function() similarity.dot(q:to("int64")) end)
  end)
  it("masks", function()
    refused("without_self: takes a square matrix; this one is %(5,7%)", function()
      S:without_self()
    end)
    refused("triangle: takes a square", function() S:triangle() end)
    refused("same: takes a square", function() S:same(rows) end)
    refused("without: takes a tensor %(5%); got %(7%)", function() S:without(columns) end)
    refused("without: columns are int64; got float64", function() S:without(q:select(2, 1)) end)
    refused("index 8 at position 2 is outside 1..7", function()
      S:without(index + 1):count():tolist()
    end)
    refused("different: takes a tensor %(7%)", function() S:different(rows, rows) end)
    refused("at: takes a tensor %(5%)", function() S:at(3) end)
  end)
  it("reductions", function()
    refused("lse: a link function is taken; got 3", function() S:lse(3) end)
    refused("sum: parameters without a link", function() S:sum(nil, 3) end)
    refused("parameter 1 is nil", function() S:lse(function(s) return s end, nil) end)
    refused("parameter 2 has shape %(3%)", function()
      S:lse(function(s) return s end, 1, lunce.ones(3, F64))
    end)
    refused("a symbol has no \"sum\"", function() S:lse(function(s) return s:sum(2) end) end)
    refused("topk: k is 8; an integer from 0 to 7", function() S:topk(8) end)
    refused("tail: k is 7; an integer from 0 to 6", function() S:without(index):tail{ k = 7 } end)
    for given, text in pairs{ [9] = "9", [-1] = "%-1", [1.5] = "1%.5", x = '"x"' } do
      for _, pooled in ipairs{ true, false } do
        refused("tail: candidates are " .. text .. "; an integer from 0 to 7", function()
          S:tail{ candidates = given, pooled = pooled }
        end)
      end
    end
    refused("unknown option pool", function() S:tail{ pool = true } end)
    refused("together: argument 1 is 3; a function", function() similarity.together(3) end)
  end)
end)

describe("the vocabulary of links:", function()
  it("means the same for numbers and tensors", function()
    local x = lunce.tensor({ 0.1, 0.5, 0.9 }, F64)
    for _, word in ipairs{ "exp", "log", "sqrt", "abs", "tanh", "sin", "cos", "sigmoid",
      "softplus", "log1p", "expm1", "square", "relu" } do
      local expected = {}
      for i, v in ipairs(x:tolist()) do expected[i] = link[word](v) end
      near(expected, link[word](x))
    end
    for _, word in ipairs{ "min", "max" } do
      local expected = {}
      for i, v in ipairs(x:tolist()) do expected[i] = link[word](v, 0.4) end
      near(expected, link[word](x, 0.4))
      near(expected, link[word](0.4, x))
      near(expected, link[word](x, lunce.full({ 3 }, 0.4, F64)))
    end
    for _, word in ipairs{ "lt", "le", "gt", "ge" } do
      for i, v in ipairs(x:tolist()) do
        assert.equal(link[word](v, 0.5), link[word](x, 0.5)[i]:item())
        assert.equal(link[word](0.5, v), link[word](0.5, x)[i]:item())
      end
    end
    near({ 1, 1, 2 }, link.where(link.gt(x, 0.6), x * 0 + 2, x * 0 + 1))
    assert.equal(2, link.where(link.gt(0.7, 0.6), 2, 1))
    near({ 0.2, 0.5, 0.6 }, link.clamp(x, 0.2, 0.6))
  end)
  it("a clamp passes no gradient outside its bounds", function()
    local x = lunce.tensor({ 0.2, 0.9 }, F64):requires_grad_()
    link.min(x, 0.5):sum():backward()
    near({ 1, 0 }, x.grad)
  end)
end)

-- More rows than a warp looks through at once. Columns that are named once are not looked for.
describe("entries of columns that are named", function()
  local N = 70
  local NAMED = {
    once = function(i) return N + 1 - i end,
    ["from the end"] = function(i) return i == 1 and -1 or i - 1 end,
    often = function(i) return i % 3 + 1 end,
    ["once or twice"] = function(i) return i % 5 == 0 and i - 1 or i end,
    ["always, the same"] = function() return 7 end,
  }
  local function named(of)
    local list = {}
    for i = 1, N do list[i] = of(i) end
    return lunce.tensor(list, { dtype = "int64" })
  end

  for name, of in pairs(NAMED) do
    it(name .. " give dense gradients", function()
      local chosen, gradients = named(of), {}
      for _, engine in ipairs{ "dense", "fused" } do
        similarity.engine(engine)
        local x = lunce.randn(N, 9, { seed = 1, dtype = "float64" }):requires_grad_()
        local y = lunce.randn(N + 20, 9, { seed = 2, dtype = "float64" }):requires_grad_()
        local own, other = similarity.cosine(x):at(chosen), similarity.dot(x, y):at(chosen);
        (own * own + other * other * other):sum():backward()
        gradients[engine] = { x.grad, y.grad }
      end
      for i = 1, 2 do
        local off = (gradients.dense[i] - gradients.fused[i]):abs():max():item()
        assert.is_true(off < 1e-10, ("%d: %.1e"):format(i, off))
      end
    end)
  end

  it("by an index that is kept, and changes between steps", function()
    local x = lunce.randn(N, 9, { seed = 1 })
    local chosen = named(NAMED["from the end"]):keep()
    local S = similarity.cosine(x)
    local first, again = S:at(chosen), S:at(chosen)
    chosen:copy_(named(NAMED.once))
    local other = similarity.cosine(x):at(chosen)
    assert.is_true(first:eq(again):all():item())
    assert.is_true(first:eq(S:at(named(NAMED["from the end"]))):all():item())
    assert.is_true(other:eq(S:at(named(NAMED.once))):all():item())
    local wide = similarity.cosine(x, lunce.randn(N + 5, 9, { seed = 3 }))
    chosen:copy_(named(NAMED["from the end"]))
    S:at(chosen)
    assert.is_true(wide:at(chosen):eq(wide:at(named(NAMED["from the end"]))):all():item())
  end)
end)

-- Automatic mixed precision: the dtypes that operators give inside a region, gradients beside
-- those of float32, how regions nest and end, when the cast of a weight is used again.
local lunce = require "lunce"
local nn, optim, similarity = lunce.nn, lunce.optim, lunce.similarity

-- Half a unit in the last place of a number around 1.
local ROUNDING = { float16 = 2 ^ -11, bfloat16 = 2 ^ -8 }

local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local _, raises = dofile(here .. "refusals.lua")("autocast_test.lua")

local function leaf(...) return lunce.randn(...):requires_grad_() end

-- |a - b| / |b|
local function distance(a, b)
  return ((a:detach():double() - b:detach():double()):norm() / b:detach():double():norm()):item()
end

-- Small whole numbers, whose products and sums float16 holds exactly.
local function integers(seed, ...)
  return lunce.randint(-2, 3, { ... }, { seed = seed }):to("float32")
end

local function live_bytes()
  collectgarbage()
  collectgarbage()
  return lunce.memory().live_bytes
end

-- How many storages fn makes.
local function allocations(fn)
  local before = lunce.memory().allocations
  fn()
  return lunce.memory().allocations - before
end

local labels = lunce.tensor({ 2, 1, 3 }, { dtype = "int64" })

local PRODUCTS = {
  matmul = function(x, y) return x:matmul(y) end,
  ["matmul of vectors"] = function(x, y) return x[1]:matmul(y[1]) end,
  ["batched matmul"] = function(x, y) return x:reshape(1, 3, 3):matmul(y) end,
  mm = function(x, y) return x:mm(y) end,
  linear = function(x, w) return lunce.linear(x, w) end,
  ["linear with a bias"] = function(x, w) return lunce.linear(x, w, w[1]) end,
  conv2d = function(x, w)
    return lunce.conv2d(x:reshape(1, 1, 3, 3), w:reshape(1, 1, 3, 3), w[1][1]:reshape(1))
  end,
}

local WIDE = {
  exp = lunce.exp, expm1 = lunce.expm1, log = lunce.log, log1p = lunce.log1p,
  softplus = lunce.softplus, square = lunce.square, rsqrt = lunce.rsqrt,
  reciprocal = lunce.reciprocal,
  ["x ^ 2"] = function(x) return x ^ 2 end,
  ["2 ^ x"] = function(x) return 2 ^ x end,
  ["x ^ y"] = function(x) return x ^ x end,
  ["1 / x"] = function(x) return 1 / x end,
  sum = lunce.sum, mean = lunce.mean, prod = lunce.prod, var = lunce.var, std = lunce.std,
  cumsum = function(x) return x:cumsum(1) end,
  logsumexp = function(x) return x:logsumexp(1) end,
  norm = lunce.norm,
  ["norm 3"] = function(x) return x:norm(3) end,
  softmax = lunce.softmax, log_softmax = lunce.log_softmax,
  cross_entropy = function(x) return lunce.cross_entropy(x, labels) end,
  ["cross_entropy of probabilities"] = function(x) return lunce.cross_entropy(x, x:softmax(2)) end,
  layer_norm = function(x) return lunce.layer_norm(x, 3, x[1], x[2]) end,
  ["similarity.cosine"] = function(x) return similarity.cosine(x):lse() end,
  ["similarity.dot"] = function(x)
    return similarity.dot(x, x * 2):sum(function(s) return s / 2 end)
  end,
  topk = function(x) return (similarity.cosine(x):topk(2)) end,
  nt_xent = function(x) return lunce.loss.nt_xent(x, x * 2) end,
  vicreg = function(x) return lunce.loss.vicreg(x, x * 2) end,
  soft_target_infonce = function(x) return lunce.loss.soft_target_infonce(x, x) end,
  sup_con = function(x) return lunce.loss.sup_con(x, labels) end,
}

local ANY = {
  ["x + y"] = function(x) return x + x end,
  ["x * y"] = function(x) return x * x end,
  ["x / y"] = function(x) return x / x end,
  ["x / 2"] = function(x) return x / 2 end,
  ["x - 1"] = function(x) return x - 1 end,
  neg = lunce.neg, abs = lunce.abs, sqrt = lunce.sqrt, relu = lunce.relu, gelu = lunce.gelu,
  tanh = lunce.tanh, sigmoid = lunce.sigmoid,
  maximum = function(x) return x:maximum(1) end,
  max = function(x) return (x:max(1)) end,
  ["max of all"] = function(x) return x:max() end,
  sort = function(x) return (x:sort(1)) end,
  dropout = lunce.dropout,
  max_pool2d = function(x) return lunce.max_pool2d(x:reshape(1, 1, 3, 3), 2) end,
  avg_pool2d = function(x) return lunce.avg_pool2d(x:reshape(1, 1, 3, 3), 2) end,
  cat = function(x) return lunce.cat { x, x } end,
  ["batch_norm with float32 parameters"] = function(x)
    return lunce.batch_norm(x, nil, nil, lunce.ones(3), lunce.zeros(3), { training = true })
  end,
}

describe("autocast of a module", function()
  it("calls it", function()
    local net, x = lunce.nn.Linear(3, 2), lunce.randn(4, 3)
    assert.equal("bfloat16", lunce.autocast("bfloat16", net, x).dtype)
    assert.equal("float32", lunce.no_grad(net, x).dtype)
  end)
end)

describe("inside a region", function()
  for low in pairs(ROUNDING) do
    for name, f in pairs(PRODUCTS) do
      it(("%s computes in %s"):format(name, low), function()
        local x, y = lunce.rand(3, 3), lunce.rand(3, 3)
        assert.equal(low, lunce.autocast(low, f, x, y).dtype)
        assert.equal(low, lunce.autocast(low, f, x:to(low), y).dtype)
        assert.equal(low, lunce.autocast(low, f, x, y:bfloat16()).dtype)
        assert.equal("float32", f(x, y).dtype)
      end)
    end

    for name, f in pairs(WIDE) do
      it(("%s takes %s as float32"):format(name, low), function()
        local x = (lunce.rand(3, 3) + 0.5):to(low)
        local y = lunce.autocast(low, f, x)
        assert.equal("float32", y.dtype)
        assert.is_true(y:eq(f(x:float())):all():item())
        local of_x = lunce.grad(lunce.autocast(low, f, x:requires_grad_()):sum(), x)[1]
        assert.equal(low, of_x.dtype)
      end)
    end

    for name, f in pairs(ANY) do
      it(("%s keeps %s and float32"):format(name, low), function()
        local x = lunce.rand(3, 3) + 0.5
        assert.equal(low, lunce.autocast(low, f, x:to(low)).dtype)
        assert.equal("float32", lunce.autocast(low, f, x).dtype)
      end)
    end
  end

  it("two dtypes are joined in the wider, elementwise and by cat, stack and scatter_add", function()
    local x, y = lunce.rand(3, 3), lunce.rand(3, 3):half()
    local z = y:bfloat16()
    lunce.autocast("float16", function()
      assert.equal("float32", (x + y).dtype)
      assert.equal("float32", (y * z).dtype)
      assert.equal("float32", lunce.cat({ y, x }).dtype)
      assert.equal("float32", lunce.cat({ y, z, y }).dtype)
      assert.equal("float32", lunce.stack({ x, y }).dtype)
      assert.equal("float32", x:scatter_add(1, labels:reshape(1, 3), y).dtype)
      assert.equal("float32", y:scatter_add(1, labels:reshape(1, 3), x).dtype)
    end)
    raises("cat: tensor 2", lunce.cat, { y, x })
  end)

  it("float64 and integers are left alone", function()
    local d, i = lunce.rand(3, 3, { dtype = "float64" }), lunce.ones(3, 3, { dtype = "int64" })
    lunce.autocast("float16", function()
      assert.equal("float64", d:matmul(d).dtype)
      assert.equal("float64", d:softmax().dtype)
      assert.equal("float64", d:sum().dtype)
      assert.equal("int64", i:matmul(i).dtype)
      assert.equal("int64", i:sum().dtype)
      raises("(3,3) float64, (3,3) float32", lunce.matmul, d, d:float())
      raises("cat: tensor 2", lunce.cat, { d, d:float() })
    end)
  end)

  it("the dense engine multiplies in float32, and modules are made as outside", function()
    local x = lunce.randn(8, 4)
    local function dense() return similarity.dense.lse(similarity.cosine(x), nil, {}) end
    assert.is_true(lunce.autocast("float16", dense):eq(dense()):all():item())
    local w = lunce.autocast("float16", nn.init.orthogonal_, lunce.zeros(3, 5))
    assert.is_true(distance(w:matmul(w:t()), lunce.eye(3)) < 1e-6)
  end)

  it("a queue takes keys in halves", function()
    local queue = lunce.loss.queue(4, 3)
    lunce.autocast("float16", function() queue:push(lunce.ones(2, 3):half()) end)
    assert.equal("float32", queue.keys.dtype)
    assert.equal(6, queue.keys:narrow(1, 1, 2):sum():item())
    raises("float16", queue.push, queue, lunce.ones(2, 3):half())
  end)
end)

-- Two layers and a loss; the gradients of the leaves.
local function two_layers(x, w1, b1, w2)
  local h = lunce.linear(x, w1, b1):tanh()
  return lunce.linear(h, w2):square():mean()
end

local function image_loss(x, w, v)
  local y = lunce.conv2d(x, w, lunce.zeros(4), { padding = 1 })
  y = lunce.batch_norm(y, nil, nil, lunce.ones(4), lunce.zeros(4), { training = true })
  return lunce.layer_norm(y:tanh():flatten(2):matmul(v), 6):logsumexp(2):mean()
end

local function gradients(dtype, f, ...)
  local leaves = { ... }
  local result = lunce.grad(lunce.autocast(dtype, f, ...), leaves)
  for i, g in ipairs(result) do
    assert.equal("float32", g.dtype)
    assert.same(leaves[i].shape, g.shape)
  end
  return result
end

describe("gradients of float32 leaves", function()
  for low, rounding in pairs(ROUNDING) do
    -- Each of some ten operators, forward and backward, adds a rounding; they partly cancel.
    local tolerance = 8 * rounding

    it("of products are those of float32 within the rounding of " .. low, function()
      local leaves = { leaf(16, 12, { seed = 1 }), leaf(9, 12, { seed = 2 }),
        leaf(9, { seed = 3 }), leaf(5, 9, { seed = 4 }) }
      local plain = gradients(false, two_layers, unpack(leaves))
      for i, g in ipairs(gradients(low, two_layers, unpack(leaves))) do
        assert.is_true(distance(g, plain[i]) < tolerance, ("leaf %d: %g"):format(i,
          distance(g, plain[i])))
        assert.is_true(distance(g, plain[i]) > 0)
      end
    end)

    it("of a convolution and norms are those of float32 within the rounding of " .. low, function()
      local leaves = { leaf(3, 2, 4, 4, { seed = 1 }), leaf(4, 2, 3, 3, { seed = 2 }),
        leaf(64, 6, { seed = 3 }) }
      local plain = gradients(false, image_loss, unpack(leaves))
      for i, g in ipairs(gradients(low, image_loss, unpack(leaves))) do
        assert.is_true(distance(g, plain[i]) < tolerance, ("leaf %d: %g"):format(i,
          distance(g, plain[i])))
      end
    end)

    it("are exact in " .. low .. " on small whole numbers", function()
      local x, w = integers(1, 4, 6):requires_grad_(), integers(2, 3, 6):requires_grad_()
      local b = integers(3, 3):requires_grad_()
      local function f() return (lunce.linear(x, w, b) * 2):sum() end
      local plain = gradients(false, f, x, w, b)
      for i, g in ipairs(gradients(low, f, x, w, b)) do
        assert.same(plain[i]:tolist(), g:tolist())
      end
    end)
  end

  it("backward inside a region does as outside", function()
    local x, w, b = lunce.randn(40, 6), leaf(3, 6), leaf(3)
    local function loss() return lunce.linear(x, w, b):exp():mean():square() end
    lunce.autocast("float16", loss):backward()
    local of_w, of_b = w.grad, b.grad
    w.grad, b.grad = nil, nil
    lunce.autocast("float16", function()
      loss():backward()
      assert.is_true(lunce.is_autocast_enabled())
    end)
    assert.same(of_w:tolist(), w.grad:tolist())
    assert.same(of_b:tolist(), b.grad:tolist()) -- its sum is rounded to float16 in both
  end)
end)

describe("a region", function()
  it("passes arguments and results through and nests", function()
    local x = lunce.ones(2, 2)
    local function dtype() return x:matmul(x).dtype end
    assert.same({ 1, nil, "c", n = 3 }, (function(...) return { n = select("#", ...), ... } end)(
      lunce.autocast("float16", function(...) return ... end, 1, nil, "c")))
    assert.is_false(lunce.is_autocast_enabled())
    lunce.autocast("float16", function()
      assert.equal("float16", dtype())
      assert.equal("bfloat16", lunce.autocast("bfloat16", dtype))
      assert.equal("float32", lunce.autocast(false, dtype))
      assert.is_false(lunce.autocast(false, lunce.is_autocast_enabled))
      assert.equal("float16", dtype())
    end)
    assert.equal("float32", dtype())
    assert.equal("float16", lunce.autocast(false, lunce.autocast, "float16", dtype))
    assert.equal("float16", lunce.scope(lunce.no_grad, lunce.autocast, "float16", dtype))
  end)

  it("is left by an error as it was entered", function()
    lunce.autocast("bfloat16", function()
      local ok, message = pcall(lunce.autocast, "float16", error, "mine", 0)
      assert.is_false(ok)
      assert.equal("mine", message)
      assert.equal("bfloat16", lunce.ones(2, 2):matmul(lunce.ones(2, 2)).dtype)
    end)
    assert.is_false(lunce.is_autocast_enabled())
  end)

  it("goes on after a backward that fails in it", function()
    lunce.autocast("float16", function()
      local y = lunce.ones(2):requires_grad_():exp()
      lunce.no_grad(y.mul_, y, 2)
      raises("changed in place", y.backward, y, lunce.ones(2))
      assert.is_true(lunce.is_autocast_enabled())
    end)
  end)

  it("names what it was given and what it takes", function()
    raises('autocast: dtype "float32"; "float16", "bfloat16" or false is taken', lunce.autocast,
      "float32", print)
    raises("autocast: dtype nil", lunce.autocast, nil, print)
    raises("autocast: dtype a function", lunce.autocast, print)
    raises("autocast: argument 2 is nil; a function is taken", lunce.autocast, "float16")
    raises("autocast: argument 2 is nil", lunce.autocast, false)
    lunce.autocast("float16", function()
      raises("softmax: argument 1 is 3; a tensor is taken", lunce.softmax, 3)
      raises("exp: argument 1 is 3; a tensor is taken", lunce.exp, 3)
      raises("sum: argument 1 is nil", lunce.sum, nil)
      raises("matmul: argument 2 is 3", lunce.matmul, lunce.ones(2, 2), 3)
      raises("linear: argument 3 is 3", lunce.linear, lunce.ones(2, 2), lunce.ones(2, 2), 3)
      raises("do not fit", lunce.matmul, lunce.ones(2, 3), lunce.ones(2, 3))
    end)
    assert.is_false(lunce.is_autocast_enabled())
  end)

  it("overflow of a cast is named by detect_anomaly", function()
    local w = lunce.full({ 2, 2 }, 1e5):requires_grad_()
    lunce.detect_anomaly(true)
    local ok, message = pcall(lunce.autocast, "float16", lunce.matmul, w, w)
    lunce.detect_anomaly(false)
    assert.is_false(ok)
    assert.truthy(message:find("to gave an infinity", 1, true), message)
  end)
end)

describe("the cast of a weight", function()
  local x, w = lunce.randn(4, 8), nil
  local function product() return lunce.linear(x, w) end

  before_each(function() w = leaf(6, 8) end)

  it("is made once in a region, and again in the next", function()
    local first, second
    local function twice()
      first, second = allocations(product), allocations(product)
    end
    lunce.autocast("float16", twice)
    assert.equal(1, first - second)
    lunce.autocast("float16", twice)
    assert.equal(1, first - second)
  end)

  it("is used by a region within, not by one of another dtype", function()
    lunce.autocast("float16", function()
      local first = allocations(product)
      assert.equal(1, first - allocations(function() lunce.autocast("float16", product) end))
      assert.equal("bfloat16", lunce.autocast("bfloat16", product).dtype)
      assert.equal("float16", product().dtype)
    end)
  end)

  it("is made anew when the weight has changed", function()
    x, w = integers(5, 4, 8), integers(6, 6, 8):requires_grad_()
    lunce.autocast("float16", function()
      product():sum():backward()
      local before = product()
      optim.SGD({ w }, { lr = 1 }):step()
      local after = product()
      assert.is_false(before:eq(after):all():item())
      assert.same(lunce.autocast(false, product):tolist(), after:tolist())
    end)
  end)

  it("serves several losses, each with its backward", function()
    local first, second = lunce.autocast("float16", function()
      return product():sum(), product():square():sum()
    end)
    first:backward()
    second:backward()
    local both = w.grad
    w.grad = nil
    lunce.autocast("float16", function() return product():sum() + product():square():sum() end)
      :backward()
    assert.is_true(distance(both, w.grad) < 8 * ROUNDING.float16)
  end)

  it("made without recording is not used where a gradient is wanted", function()
    local y = lunce.autocast("float16", function()
      lunce.no_grad(product)
      return product()
    end)
    assert.is_true(y.requires_grad)
    y:sum():backward()
    assert.same({ 6, 8 }, w.grad.shape)
  end)

  it("of a scope ends with it", function()
    local y = lunce.autocast("float16", function()
      local inner = lunce.scope(function() return product():sum():item() end)
      local outer = product()
      assert.equal(inner, outer:sum():item())
      return outer
    end)
    y:sum():backward()
    assert.same({ 6, 8 }, w.grad.shape)
  end)

  it("leaves nothing when regions and tapes are gone, also after errors", function()
    product():sum():backward()
    local before = live_bytes()
    for _ = 1, 3 do
      w.grad:zero_()
      lunce.autocast("float16", product):sum():backward()
      pcall(lunce.autocast, "bfloat16", function() error(product()) end)
      lunce.autocast("bfloat16", lunce.no_grad, product)
    end
    assert.equal(before, live_bytes())
  end)

  it("goes with the step's scope", function()
    product():sum():backward()
    local before = live_bytes()
    lunce.autocast("float16", function()
      for _ = 1, 5 do
        lunce.scope(function() product():sum():backward() end)
        assert.equal(before, lunce.memory().live_bytes)
      end
    end)
  end)
end)

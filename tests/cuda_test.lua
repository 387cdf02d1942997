-- CUDA devices: asking for one, moving between them, their memory, results beside the CPU's, and
-- what happens when one is lost. Runs on a GPU, or on the host where LUNCE_CUDA names the shim of
-- cuda-host/, which can also be told to fail. Needs no GPU to say why there is none.
local lunce = require "lunce"

local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local program = os.getenv "LUNCE_PROGRAM" or here .. "../lunce"
local shim = (os.getenv "LUNCE_CUDA" or ""):match "^(.*/tests/)liblunce_cuda%.so$"
local available, reason = lunce.cuda.is_available()
local CPU, GPU = { device = "cpu" }, { device = "cuda" }

-- Runs Lua code in a process of its own; returns its status and what it prints.
local function run(environment, code)
  local child = io.popen(("%s %s -e '%s' 2>&1; echo $?"):format(environment, program, code))
  local text, status = child:read "*a":match "^(.-)(%d+)\n$"
  child:close()
  return tonumber(status), text
end

describe("asking for a cuda device", function()
  local ask = 'require "lunce".zeros(2, { device = "cuda" })'

  it("says in one line why there is none, and never falls back", function()
    local cases = { ["LUNCE_CUDA=/nowhere/liblunce_cuda.so"] = "was built without CUDA" }
    if shim then
      cases["LUNCE_CUDA_HOST_DEVICES=-1"] = "there is no NVIDIA driver"
      cases["LUNCE_CUDA_HOST_DEVICES=0"] = "finds no device"
    end
    for environment, message in pairs(cases) do
      local status, text = run(environment, ask)
      assert.equal(1, status)
      assert.matches("^lunce: [^\n]*empty: no cuda device: [^\n]*" .. message, text)
    end
  end)

  it("tells beforehand", function()
    assert.equal(available, lunce.cuda.device_count() > 0)
    if not available then assert.matches("^cuda: no cuda device: .", reason) end
  end)

  it("has a name, and TF32 only by option", function()
    if not available then return pending(reason) end
    assert.is_true(#lunce.cuda.get_device_name() > 0)
    assert.is_false(lunce.cuda.tf32())
    assert.is_true(lunce.cuda.tf32(true))
    assert.is_false(lunce.cuda.tf32(false))
  end)

  it("refuses a number that is too high", function()
    if not available then return pending(reason) end
    local ok, message = pcall(lunce.zeros, 2, { device = "cuda:40" })
    assert.is_false(ok)
    assert.matches("there is no cuda:40", message)
  end)
end)

if not available then
  it("cuda", function() pending(reason) end)
  return
end

local function same(a, b)
  assert.equal(a.dtype, b.dtype)
  assert.same(a.shape, b.shape)
  a, b = a:to("cpu"), b:to("cpu")
  assert.is_true(a:eq(b):logical_or(a:isnan():logical_and(b:isnan())):all():item())
end

describe("between devices", function()
  it("every dtype and layout arrives as it was", function()
    local x = lunce.randn(5, 7, { seed = 1, device = "cpu" }) * 50
    for _, dtype in ipairs { "float32", "float64", "bfloat16", "float16", "int64", "int32", "uint8",
      "bool" } do
      local a = x:to(dtype)
      for _, layout in ipairs { a, a:t(), a:slice(2, 2, 7, 2), a:unsqueeze(1):expand(3, -1, -1),
        a:narrow(1, 1, 0), a:select(1, 2) } do
        local b = layout:cuda()
        assert.equal("cuda:0", b.device)
        same(layout, b)
        same(layout, b:cpu())
      end
    end
  end)

  it("copy_ casts, broadcasts and writes into views", function()
    local x = lunce.arange(4, { device = "cpu" })
    local y = lunce.zeros(3, 8, { dtype = "int64", device = "cuda" })
    y:slice(2, 1, 8, 2):copy_(x)
    local expected = lunce.zeros(3, 8, { dtype = "int64", device = "cpu" })
    expected:slice(2, 1, 8, 2):copy_(x)
    same(expected, y)
    x:copy_(y:select(1, 1):narrow(1, 1, 4))
    assert.same({ 1, 0, 2, 0 }, x:tolist())
  end)

  it("gradients go back to where they belong", function()
    local x = lunce.ones(3, { requires_grad = true, device = "cpu" });
    (x:cuda() * 2):sum():cpu():backward()
    assert.equal("cpu", x.grad.device)
    assert.same({ 2, 2, 2 }, x.grad:tolist())
  end)

  it("operators do not mix", function()
    local ok, message = pcall(function() return lunce.ones(3, CPU) + lunce.ones(3, GPU) end)
    assert.is_false(ok)
    assert.matches("cuda_test.lua:%d+: add: tensors 1 and 2 are on different devices", message)
  end)

  it("a second one is another", function()
    if lunce.cuda.device_count() < 2 then return pending "one device" end
    local x = lunce.ones(3, GPU)
    local y = x:to("cuda:1") * 2
    assert.equal("cuda:1", y.device)
    assert.same({ 2, 2, 2 }, y:tolist())
    assert.is_false(pcall(function() return x + y end))
  end)
end)

describe("pinned memory", function()
  it("holds the same values, counts as the CPU's, and goes back", function()
    collectgarbage()
    local x = lunce.rand(30, 40, CPU)
    local before = lunce.memory("cpu").live_bytes
    for _ = 1, 3 do
      local pinned = x:t():pin_memory()
      assert.is_true(pinned:is_pinned())
      assert.is_false(x:is_pinned())
      assert.equal("cpu", pinned.device)
      assert.is_true(lunce.memory("cpu").live_bytes >= before + 4800)
      same(x:t(), pinned)
      same(x:t(), pinned:cuda())
      same(x, pinned:cuda():pin_memory():t())
      pinned:free()
    end
    collectgarbage()
    lunce.cuda.empty_cache()
    assert.equal(before, lunce.memory("cpu").live_bytes)
  end)
end)

describe("memory of a device", function()
  it("is counted apart, and given back", function()
    collectgarbage()
    local cpu, before = lunce.memory("cpu").live_bytes, lunce.memory("cuda").live_bytes
    local x = lunce.zeros(1000, GPU)
    assert.equal(before + 4096, lunce.memory("cuda").live_bytes)
    assert.is_true(lunce.memory("cpu").live_bytes - cpu < 4096)
    x:free()
    assert.equal(before, lunce.memory("cuda").live_bytes)
    lunce.cuda.empty_cache()
    lunce.cuda.synchronize()
  end)

  it("has a hard limit; past it the device is named and tensors stay whole", function()
    local hard, x = lunce.memory("cuda").hard_bytes, lunce.ones(100, GPU)
    lunce.memory_limit { device = "cuda", hard = lunce.memory("cuda").live_bytes + 2 ^ 20 }
    local ok, message = pcall(lunce.zeros, 2 ^ 20, GPU)
    lunce.memory_limit { device = "cuda", hard = hard }
    assert.is_false(ok)
    assert.matches("out of memory: 4194304 bytes on cuda:0.*cuda:0: live %d+ bytes", message)
    assert.equal(100, x:sum():item())
  end)

  it("may run out before the limit", function()
    if not shim then return pending "takes a device that is small" end
    local status, text = run("LUNCE_CUDA_HOST_BYTES=1000000", [[
      local lunce = require "lunce"
      lunce.memory_limit { device = "cuda", hard = 2 ^ 40 }
      local x = lunce.ones(1000, { device = "cuda" })
      print(pcall(lunce.zeros, 2 ^ 20, { device = "cuda" }))
      print(x:sum():item())]])
    assert.equal(0, status)
    assert.matches("^false%s.*out of memory: 4194304 bytes on cuda:0.*\n1000\n$", text)
  end)
end)

-- A step of a small network with what has scratch memory, a failure at a time let pass.
local STEP = [[
  local lunce = require "lunce"
  local GPU = { device = "cuda", seed = 1 }
  local failures = 0
  local function try(f)
    local ok, message = pcall(f)
    if not ok then
      assert(message:find "out of memory", message)
      failures = failures + 1
    end
  end
  try(function()
    local x, w = lunce.randn(4, 6, 9, 9, GPU):requires_grad_(), lunce.randn(6, 3, 3, 3, GPU)
    local rows = lunce.randint(1, 4, { 7 }, GPU)
    local function S() return lunce.similarity.cosine(x:flatten(2)):without_self() end
    w:requires_grad_()
    for _, f in ipairs {
      function() return lunce.conv2d(x, w, nil, { groups = 2 }) end,
      function() return x:sort(1) end,
      function() return x:index_select(1, rows) end,
      function() return x:flatten(2):t():softmax(1) end,
      function() return lunce.layer_norm(x, { 9, 9 }) end,
      function() return lunce.max_pool2d(x, 3, { stride = 2 }) end,
      function() return x:flatten(2):matmul(x:flatten(2):t()) end,
      function() return x:var() end,
      function() return S():lse(function(s) return s / 0.001 end) end,
      function() return (S():topk(2)) end,
    } do
      try(function() f():sum():backward() end)
    end
    try(function() return S():tail { pooled = true } end)
    try(function()
      local images = lunce.zeros(9, 3, 9, 9, { dtype = "uint8", device = "cuda" })
      return lunce.augment.simclr({ size = 8 }):views(images, { 1, 9 }, { views = 2 })
    end)
    try(function() return lunce.rand(50000, GPU):sum():item() end)
  end)
  print(failures)]]

it("memory that runs out in the middle of an operator leaves nothing behind", function()
  if not shim then return pending "takes a device that is small" end
  local failed, passed = 0, 0
  for step = 0, 40 do
    local status, text = run(("LUNCE_CUDA_HOST_LEAKS=1 LUNCE_CUDA_HOST_BYTES=%d"):format(
      4000 * 1.15 ^ step), STEP)
    assert.equal(0, status, text)
    assert.matches("^%d+\n$", text)
    failed, passed = failed + (text ~= "0\n" and 1 or 0), passed + (text == "0\n" and 1 or 0)
  end
  assert.is_true(failed > 10 and passed > 0)
end)

describe("random numbers", function()
  it("have the CPU's bits", function()
    for _, dtype in ipairs { "float32", "float64", "bfloat16", "float16" } do
      for _, n in ipairs { 1, 2, 999 } do
        for _, name in ipairs { "rand", "randn" } do
          local at = { dtype = dtype, seed = 7, stream = 3 }
          local a, b = {}, {}
          for key, value in pairs(at) do a[key], b[key] = value, value end
          a.device, b.device = "cpu", "cuda"
          same(lunce[name](n, a), lunce[name](n, b))
        end
      end
    end
    for _, device in ipairs { "cpu", "cuda" } do
      local options = { seed = 5, device = device }
      same(lunce.randint(-9, 9, { 50 }, { seed = 5, device = "cpu" }),
        lunce.randint(-9, 9, { 50 }, options))
      same(lunce.randperm(77, { seed = 5, device = "cpu" }), lunce.randperm(77, options))
      same(lunce.bernoulli(0.3, { 50 }, { seed = 5, device = "cpu" }),
        lunce.bernoulli(0.3, { 50 }, options))
    end
  end)
end)

-- |a - b| <= tolerance (1 + |a|), or both NaN, or equal.
local function close(a, b, tolerance, what)
  assert.same(a.shape, b.shape)
  assert.equal(a.dtype, b.dtype)
  a, b = a:to("cpu"):double(), b:to("cpu"):double()
  local good = a:eq(b):logical_or(a:isnan():logical_and(b:isnan()))
    :logical_or((a - b):abs():le(tolerance + tolerance * a:abs()))
  assert.is_true(good:all():item(), what)
end

-- f on the CPU and on the device: every result close.
local function compare(what, x, tolerance, f)
  local a, b = { f(x) }, { f(x:cuda()) }
  for i = 1, #a do close(a[i], b[i], tolerance, ("%s, result %d"):format(what, i)) end
end

describe("as on the CPU:", function()
  -- Sums in other orders: float32 keeps 1e-6 of the largest terms; halves round once at the end.
  local TOLERANCE = { float32 = 1e-5, float64 = 1e-12, float16 = 2e-3, bfloat16 = 2e-2,
    int64 = 1e-6, uint8 = 1e-6 }

  local SHAPES = { { 3, 4 }, { 1, 1 }, { 33, 70 }, { 5, 5000 }, { 3000, 5 }, { 2, 3, 4, 5 },
    { 20000 }, { 7, 1, 9 }, { 0, 3 }, { 1100, 3 } }

  for dtype, tolerance in pairs(TOLERANCE) do
    it("reductions of " .. dtype, function()
      for _, shape in ipairs(SHAPES) do
        local x = (lunce.randn(shape, { seed = 4, device = "cpu" }) * 5):to(dtype)
        for dim = 1, #shape do
          local name = table.concat(shape, "x") .. " dim " .. dim
          compare(name, x, tolerance, function(t)
            return t:sum(dim), t:mean(dim), t:logsumexp(dim)
          end)
          compare("exact " .. name, x, 0, function(t)
            return t:any(dim), t:all(dim), t:to("int64"):sum(dim), t:sign():prod(dim)
          end)
          compare("var " .. name, x, math.max(tolerance, 1e-6), function(t) return t:var(dim) end)
          compare("cumsum " .. name, x, 20 * tolerance, function(t) return t:cumsum(dim) end)
          if x:numel() > 0 then
            compare("extremes " .. name, x, 0, function(t)
              local a, b = t:max(dim)
              local c, d = t:min(dim)
              return a, b, c, d
            end)
          end
        end
        compare("all", x, tolerance * 10, function(t) return t:sum() end)
      end
    end)
  end

  it("values that are not finite", function()
    local x = lunce.tensor({ { 1, 0 / 0, 3 }, { -1 / 0, -1 / 0, -1 / 0 }, { 1 / 0, 2, 3 },
      { -1 / 0, 2, 1 / 0 } }, CPU)
    compare("rows", x, 1e-6, function(t)
      return t:sum(2), t:logsumexp(2), (t:max(2)), t:argmax(2), (t:min(2)), t:softmax(2),
        (t:sort(2)), t:isnan(), t:norm(math.huge, 2)
    end)
  end)

  it("sorting, choosing, scattering", function()
    local x = lunce.randint(-40, 40, { 70, 900 }, { seed = 1, device = "cpu" })
    local rows = lunce.randint(1, 70, { 200 }, { seed = 3, device = "cpu" })
    local places = lunce.randint(1, 900, { 70, 33 }, { seed = 3, device = "cpu" })
    for _, dtype in ipairs { "int64", "float32", "float16", "uint8" } do
      local exact = dtype == "float16" and 1e-2 or 0 -- sums are rounded once, not at each term
      compare(dtype, x:to(dtype), exact, function(t)
        local v1, i1 = t:sort(2)
        local v2, i2 = t:sort(1, { descending = true })
        local v3, i3 = t:topk(5, 2)
        local v4, i4 = t:t():topk(7, 1, { largest = false })
        local r, p = rows:to(t.device), places:to(t.device)
        return v1, i1, v2, i2, v3, i3, v4, i4, t:index_select(1, r), t:gather(2, p),
          t:scatter_add(2, p, t:narrow(2, 1, 33)), t:masked_fill(t:gt(3), 1)
      end)
    end
  end)

  it("networks' operators, forwards and backwards, in float32", function()
    local images = lunce.randn(7, 10, 15, 13, { seed = 2, device = "cpu" })
    local w = lunce.randn(20, 5, 3, 3, { seed = 3, device = "cpu" })
    local gain = lunce.rand(10, { seed = 4, device = "cpu" })
    local function gradients(f, ...)
      local leaves = { ... }
      for i, leaf in ipairs(leaves) do leaves[i] = leaf:clone():requires_grad_() end
      local y = f(unpack(leaves));
      (y * y):sum():backward()
      for i, leaf in ipairs(leaves) do leaves[i] = leaf.grad end
      return y, unpack(leaves)
    end
    for name, f in pairs {
      conv2d = function(x) return gradients(function(a, b, c)
        return lunce.conv2d(a, b, c, { stride = 2, padding = 1, groups = 2 })
      end, x, w:to(x.device), w:to(x.device):flatten(1):narrow(1, 1, 20)) end,
      max_pool2d = function(x) return gradients(function(a)
        return lunce.max_pool2d(a, 3, { stride = 2, padding = 1 })
      end, x) end,
      avg_pool2d = function(x) return gradients(function(a)
        return lunce.avg_pool2d(a, 3, { stride = 2, padding = 1 })
      end, x) end,
      adaptive_avg_pool2d = function(x) return gradients(function(a)
        return lunce.adaptive_avg_pool2d(a, { 7, 4 })
      end, x) end,
      layer_norm = function(x) return gradients(function(a, b)
        return lunce.layer_norm(a:transpose(2, 4), { 10 }, b, b)
      end, x, gain:to(x.device)) end,
      softmax = function(x) return gradients(function(a) return a:softmax(2) end, x) end,
      matmul = function(x) return gradients(function(a)
        return a:flatten(2):matmul(a:flatten(2):t())
      end, x) end,
    } do
      compare(name, images, 2e-4, f) -- sums of up to a thousand products of size 1
    end
  end)

  -- Both round results to the half's last place, of inputs that are equal; sums in between are kept
  -- in float32 or wider.
  for dtype, tolerance in pairs { float16 = 2e-3, bfloat16 = 1.6e-2 } do
    it("operators in " .. dtype, function()
      local images = (lunce.randn(3, 4, 9, 7, { seed = 2, device = "cpu" }) / 2):to(dtype)
      local w = (lunce.randn(6, 4, 3, 3, { seed = 3, device = "cpu" }) / 6):to(dtype)
      local gain = lunce.rand(7, { seed = 4, device = "cpu" })
      compare(dtype, images, tolerance, function(x)
        local rows, g = x:flatten(2), gain:to(x.device)
        return x * 3 + 1, x:exp(), x:gelu(), x:relu(), x:gt(0), x:long(), rows:matmul(rows:t()),
          lunce.conv2d(x, w:to(x.device), nil, { stride = 2, padding = 1 }), x:softmax(2),
          lunce.layer_norm(x, { 7 }, g, g), lunce.adaptive_avg_pool2d(x, 2),
          (lunce.max_pool2d(x, 2)), x:to(dtype == "float16" and "bfloat16" or "float16")
      end)
    end)
  end

  it("cold places: one element, none, and many dimensions", function()
    for _, shape in ipairs { {}, { 0 }, { 1 }, { 2, 0, 3 }, { 1, 2, 1, 2, 1, 2, 1, 2 } } do
      compare("shape", lunce.rand(shape, { seed = 1, device = "cpu" }), 1e-6, function(t)
        return t + 1, t:exp(), t:sum(), t:clone(), t:gt(0.5), (t * 2):long()
      end)
    end
  end)
end)

describe("an index out of range on the device", function()
  local function tells(fn, text)
    local y = fn()
    local ok, message = pcall(lunce.cuda.synchronize)
    assert.is_false(ok)
    assert(message:find(text, 1, true), message)
    lunce.cuda.synchronize()
    return y
  end

  it("is named at the next wait, and harms nothing", function()
    local x = lunce.arange(6, GPU):reshape(2, 3)
    local bad = lunce.tensor({ { 1, 2 }, { 3, 4 } }, { dtype = "int64", device = "cuda" })
    local y = tells(function() return x:gather(2, bad) end,
      "gather: index 4 at position (2,2) is outside 1..3")
    assert.same({ { 1, 2 }, { 6, 0 } }, y:tolist())
    y = tells(function() return x:scatter_add(2, bad, x) end, "scatter_add: index 4 at position")
    assert.same({ { 2, 4, 3 }, { 4, 5, 10 } }, y:tolist())
    local list = lunce.tensor({ 3, 0, 1 }, { dtype = "int64", device = "cuda" })
    y = tells(function() return x:index_select(2, list) end, "index_select: index 0 at position 2")
    assert.same({ { 3, 0, 1 }, { 6, 0, 4 } }, y:tolist())
    local rows = list:narrow(1, 1, 2)
    tells(function() return lunce.similarity.cosine(x):at(rows + 1):sum() end,
      "similarity: index 4 at position (1,1) is outside 1..2")
    assert.equal(21, x:sum():item())
  end)

  it("is the first of the first operator's", function()
    local x = lunce.arange(4, GPU)
    local function at(...) return lunce.tensor({ ... }, { dtype = "int64", device = "cuda" }) end
    local first, second = at(1, 9, 7), at(5)
    tells(function()
      x:gather(1, first)
      return x:index_select(1, second)
    end, "gather: index 9 at position 2 is outside 1..4")
    local ok, message = pcall(function() return x:gather(1, second + 1):tolist() end)
    assert.is_false(ok)
    assert.matches("cuda_test.lua:%d+: gather: index 6 at position 1", message)
  end)

  it("is the loss's where the loss takes labels", function()
    local x = lunce.zeros(2, 3, GPU)
    local bad = lunce.tensor({ 3, -1 }, { dtype = "int64", device = "cuda" })
    tells(function() return lunce.cross_entropy(x, bad) end,
      "cross_entropy: index -1 at position 2 is outside 1..3")
    tells(function() return lunce.one_hot(bad, 3) end, "one_hot: index -1 at position 2")
  end)
end)

it("the vote of nearest neighbours is the CPU's", function()
  local x, q = lunce.randn(60, 8, { seed = 1 }), lunce.randn(20, 8, { seed = 2 })
  local y = lunce.randint(1, 4, { 60 }, { seed = 3, device = "cpu" })
  local labels = lunce.randint(1, 4, { 20 }, { seed = 4, device = "cpu" })
  local function vote(device)
    return lunce.eval.knn(x:to(device), y:to(device), q:to(device), labels:to(device),
      { k = 5, recall = { 1, 3 }, chunk = 7 })
  end
  local near, far = vote "cpu", vote "cuda"
  assert.equal("cuda:0", far.predicted.device)
  same(near.predicted, far.predicted:cpu())
  assert.equal(near.accuracy, far.accuracy)
  assert.same(near.recall, far.recall)
end)

it("the same bits ten times", function()
  local x = lunce.randn(300, 1001, { seed = 5, device = "cuda" })
  local rows = lunce.randint(1, 9, { 300 }, { seed = 6, device = "cuda" })
  local first
  for _ = 1, 10 do
    local sums = lunce.zeros(9, 1001, GPU):scatter_add(1, rows:unsqueeze(2):expand(-1, 1001), x)
    local z = x:narrow(1, 1, 40):clone():requires_grad_()
    local S = lunce.similarity.cosine(z):without_self()
    local lse = S:lse(function(s) return s / 0.1 end);
    (lse + S:at(rows:narrow(1, 1, 40))):sum():backward()
    local all = lunce.cat({ x:sum(1), x:var(2), x:logsumexp(2), sums:flatten(),
      x:matmul(x:t()):flatten(), lse:detach(), z.grad:flatten() }, 1)
    first = first or all
    same(first, all)
  end
end)

describe("the similarity engine", function()
  local similarity = lunce.similarity

  it("is the same beside the CPU's: reductions, gradients, order", function()
    local link = require "lunce.link"
    local q = lunce.randn(75, 20, { seed = 1, device = "cpu" })
    local k = lunce.randn(110, 20, { seed = 2, device = "cpu" })
    local labels = lunce.randint(1, 3, { 110 }, { seed = 3, device = "cpu" })
    local function everything(x, y)
      local a, b = x:clone():requires_grad_(), y:clone():requires_grad_()
      local l = labels:to(x.device)
      local beta = lunce.rand(75, { seed = 4, device = "cpu" }):to(x.device):requires_grad_()
      local tau = lunce.tensor({ 0.2 }, { device = x.device }):requires_grad_()
      local S = similarity.cosine(a, b):different(l:narrow(1, 1, 75), l)
      local function f(s, p, t) return s / t - p * link.log(1.1 - s) end
      local lse, sum = similarity.together(function()
        return S:lse(f, beta, tau), similarity.cosine(a, b):t():sum(function(s) return s * s end)
      end)
      local values, columns = S:topk(7)
      local tail = S:tail { k = 50 };
      (lse:square():sum() + sum:square():sum() + values:sum()):backward()
      return lse, sum, values, columns, S:count(), tail.rho, tail.beta_hat, a.grad, b.grad,
        beta.grad, tau.grad
    end
    local expected, got = { everything(q, k) }, { everything(q:cuda(), k:cuda()) }
    for i, x in ipairs(expected) do
      assert.equal("cuda:0", got[i].device)
      local off = (got[i]:cpu():double() - x:double()):norm():item()
      assert.is_true(off <= 2e-5 * x:double():norm():item(), i .. ": " .. off) -- float32
    end
  end)

  -- In a process of its own, where nothing but an option creates tensors on the device.
  it("serves every loss of two views, which stays on its inputs' device", function()
    local status, text = run("DEVICE=", [[
      local lunce = require "lunce"
      local z_i, z_j = lunce.randn(20, 6, { seed = 1 }), lunce.randn(20, 6, { seed = 2 })
      for _, name in ipairs(lunce.loss.names()) do
        if table.concat(lunce.loss[name].takes, " "):match "^z_i %S+ z_j %S+$" then
          local x, y = z_i:clone():requires_grad_(), z_i:cuda():requires_grad_()
          local expected, value = lunce.loss[name](x, z_j), lunce.loss[name](y, z_j:cuda())
          expected:backward()
          value:backward()
          local off = (y.grad:cpu() - x.grad):norm():item() / x.grad:norm():item()
          local close = math.abs(value:item() / expected:item() - 1) < 1e-5 and off < 1e-4
          print(name, value.device == "cuda:0" and close)
        end
      end]])
    assert.equal(0, status, text)
    local _, count = text:gsub("\ttrue\n", "")
    assert.is_true(count >= 15, text)
    assert.is_nil(text:find "false", text)
  end)
end)

describe("a device that is lost", function()
  it("fails every later call, and the program ends with status 3", function()
    if not shim then return pending "takes a device that fails when told" end
    local status, text = run("LUNCE_CUDA_HOST_FAULT=2", [[
      local lunce = require "lunce"
      local x = lunce.zeros(3, { device = "cuda" })
      for _ = 1, 3 do print(pcall(function() return (x + 1):sum():item() end)) end
      print(lunce.ones(2):sum():item())
      x:sum():item()]])
    assert.equal(3, status)
    assert.matches("^false%s.-the cuda device is lost: a simulated illegal address", text)
    assert.matches("\nfalse%s.-lost before: a simulated illegal address", text)
    assert.matches("\n2\nlunce: ", text)
  end)

  it("the shim reports what kernels do wrong", function()
    if not shim then return pending "is of the shim" end
    for _, fault in ipairs { "", "beyond", "divergent", "lonely", "shared", "brim" } do
      assert.equal(0, os.execute(shim .. "cuda-host-check " .. fault), fault)
    end
  end)
end)

-- Captured steps: lunce.graph. A replay has the bits of the function it was made of; what cannot be
-- captured is refused at the caller's line and leaves the session as it was. On the shim of
-- cuda-host/ recorded work is not done before its launch, and what CUDA refuses spoils a capture.
local lunce = require "lunce"
local C = require("lunce.ffi").C
local nn, optim, random = lunce.nn, lunce.optim, lunce.random

local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local refuses = dofile(here .. "refusals.lua")("graph_test.lua")

describe("lunce.graph refuses", function()
  it("what is no function, an option that it lacks, and the cpu", function()
    refuses(function() lunce.graph(3) end, "graph: argument 1 is 3")
    refuses(function() lunce.graph(print, { warmup = 0 }) end, "warmup is 0")
    refuses(function() lunce.graph(print, { device = "cpu" }) end, "the cpu captures nothing")
    refuses(function() lunce.graph(print, { warm = 1 }) end, "unknown option")
  end)

  it("a device that is not there, before the function runs", function()
    refuses(function() lunce.graph(print, { device = "cuda:40" }) end, "cuda")
    local available, reason = lunce.cuda.is_available()
    if available then return end
    refuses(function() lunce.graph(print) end, reason:match "no cuda device.*")
  end)
end)

if not lunce.cuda.is_available() then return end

local CPU, GPU = { device = "cpu" }, { device = "cuda" }
local function on_gpu(seed) return { device = "cuda", seed = seed } end

local function same(a, b)
  assert.equal(a.dtype, b.dtype)
  assert.same(a.shape, b.shape)
  assert.is_true(a:eq(b):all():item())
end

local function collected()
  collectgarbage()
  collectgarbage()
  return lunce.memory("cuda").live_bytes
end

-- A step that is captured at its second call.
local function captured(fn) return lunce.graph(fn, { warmup = 1 }) end

-- ---- Training --------------------------------------------------------------------------------

local RULES = {
  SGD = { lr = 0.1, momentum = 0.9, weight_decay = 1e-3, nesterov = true },
  Adam = { lr = 0.01 }, AdamW = { lr = 0.01 },
  LARS = { lr = 0.3, weight_decay = 1e-3 },
}

-- A small encoder with all that a step has state in, and its step.
local function training(rule, loss, dtype)
  lunce.manual_seed(3)
  local net = nn.Sequential(nn.Conv2d(3, 4, 3, { padding = 1 }), nn.BatchNorm2d(4), nn.ReLU(),
    nn.MaxPool2d(2), nn.GlobalAvgPool(), nn.Dropout(0.2), nn.Linear(4, 8)):to "cuda"
  local optimiser = optim[rule](net:parameters(), RULES[rule])
  local function forward(x, y)
    local z = net(lunce.cat({ x, y }, 1))
    local n = x:size(1)
    return loss(z:narrow(1, 1, n), z:narrow(1, n + 1, n))
  end
  local function step(x, y)
    optimiser:zero_grad()
    local value = dtype and lunce.autocast(dtype, forward, x, y) or forward(x, y)
    value:backward()
    optimiser:step()
    return value
  end
  return net, optimiser, step
end

local function nt_xent(a, b) return lunce.loss.nt_xent(a, b, { tau = 0.5 }) end

-- Ten steps on new batches; the losses, and all that is left of the training.
local function train(rule, graphed, loss, dtype)
  local net, optimiser, step = training(rule, loss or nt_xent, dtype)
  if graphed then step = lunce.graph(step) end
  lunce.manual_seed(11)
  local cosine = optim.schedule.cosine { steps = 12 }
  local losses, left = {}, {}
  for i = 1, 10 do
    optimiser:schedule(cosine(i - 1))
    local x = lunce.randn(4, 3, 4, 4, on_gpu(i))
    losses[i] = lunce.scope(step, x, x + lunce.randn(4, 3, 4, 4, on_gpu(100 + i)))
  end
  if graphed then assert.is_true(step.captured) end
  for name, t in pairs(net:state_dict()) do left[name] = t end
  for name, t in pairs(optimiser:state_dict()) do left[name] = t end
  for name, p in net:named_parameters() do left["grad of " .. name] = p.grad end
  return losses, left, random.state()
end

local function trains_alike(...)
  local losses, left, drawn = train(...)
  local other_losses, other_left, other_drawn = train((...), true, select(3, ...))
  for i, loss in ipairs(losses) do same(loss, other_losses[i]) end
  for name, t in pairs(left) do same(t, assert(other_left[name], name)) end
  for name in pairs(other_left) do assert(left[name], name) end
  assert.same(drawn, other_drawn)
end

describe("a captured training step has the bits of the step", function()
  for rule in pairs(RULES) do
    it("with " .. rule .. ", a schedule, dropout and batch statistics", function()
      trains_alike(rule, false)
    end)
  end

  it("under autocast", function() trains_alike("SGD", false, nil, "bfloat16") end)

  it("with another loss", function()
    local labels = lunce.tensor({ 1, 2, 1, 2 }, { dtype = "int64", device = "cuda" })
    trains_alike("Adam", false, function(a, b)
      return lunce.cross_entropy(a, labels) + lunce.loss.dcl(a, b)
    end)
  end)
end)

it("a link's parameters that are tensors take running maxima", function()
  local x, t = lunce.randn(9, 5, on_gpu(1)), lunce.full({ 1 }, 0.3, GPU)
  local function lse(z, tau)
    return lunce.similarity.cosine(z):without_self():lse(function(s, u) return s / u end, tau)
  end
  local step = captured(lse)
  local first = step(x, t)
  assert.is_true((step(x, t) - first):abs():max():item() < 1e-5)
  local other = lunce.full({ 1 }, 0.02, GPU)
  assert.is_true((step(x, other) - lse(x, other)):abs():max():item() < 1e-4)
end)

describe("a link's tensors in tiles of halves, captured", function()
  local similarity = lunce.similarity

  -- Columns whose similarities rise to row 1 and fall to row 2; to the others they have a peak.
  local function rising()
    local angles = lunce.arange(200, GPU) / 201 * math.pi
    local k = lunce.stack({ angles:cos() * -1, angles:sin(), angles * 0 }, 2)
    local q = lunce.randn(70, 3, on_gpu(7))
    q:narrow(1, 1, 2):copy_(lunce.stack({ k[200], k[1] }, 1))
    return q, k
  end

  -- With a fixed shift, unless captured: the rounding of sums of 200 float32.
  for name, make in pairs {
    ["two sets"] = function(q, k) return similarity.cosine(q, k) end,
    ["two sets, transposed"] = function(q, k) return similarity.cosine(k, q):t() end,
    ["rows whose candidates come late, and one without"] = function(q, k)
      local rows = lunce.arange(70, GPU):le(40):long() + lunce.arange(70, GPU):eq(70):long() * 2
      return similarity.cosine(q, k):same(rows, lunce.arange(200, GPU):gt(140):long())
    end,
    ["one set"] = function(_, k) return similarity.cosine(k):without_self() end,
    ["one set, a triangle"] = function(_, k) return similarity.cosine(k):triangle() end,
  } do
    it("have the sums of a fixed shift: " .. name, function()
      local q, k = rising()
      local t = lunce.full({ 1 }, 0.1, GPU)
      local function lse(temperature)
        return make(q, k):lse(function(s, u) return s / u end, temperature)
      end
      similarity.tile_dtype "float16"
      local ok, fault = pcall(function()
        local step = captured(lse)
        local fixed = step(t)
        local running = step(t)
        local few = fixed:eq(-math.huge)
        same(few, running:eq(-math.huge))
        assert.is_true((fixed - running):masked_fill(few, 0):abs():max():item() < 2e-6)
        assert.is_true(fixed:masked_fill(few, 0):std():item() > 0.1)
      end)
      similarity.tile_dtype "float32"
      assert(ok, fault)
    end)
  end
end)

it("gradients are clipped on the device, to the same bits", function()
  for _, most in ipairs{ 0.3, 1, 1e9 } do
    local w, v = lunce.ones(7, GPU):requires_grad_(), lunce.ones(2, 3, GPU):requires_grad_()
    local function clip(x, y)
      w.grad, v.grad = nil, nil;
      ((w * x):sum() + (v * y):square():sum()):backward()
      return optim.clip_grad_norm({ w, v }, most)
    end
    local step = captured(clip)
    for i = 1, 4 do
      local x, y = lunce.randn(7, on_gpu(i)), lunce.randn(2, 3, on_gpu(9 + i))
      local norm = step(x, y):item()
      local first, second = w.grad:clone(), v.grad:clone()
      assert.equal(clip(x, y), norm)
      same(w.grad, first)
      same(v.grad, second)
    end
  end
end)

it("weince is captured with its statistics", function()
  local w = lunce.randn(6, 8, on_gpu(4)):requires_grad_()
  local start = w:detach():clone()
  local function losses(wrap)
    lunce.no_grad(function() w:copy_(start) end)
    local sgd = optim.SGD({ w }, { lr = 0.1, momentum = 0.9 })
    local step = wrap(function(a, b)
      sgd:zero_grad()
      local value, tail = lunce.loss.weince(a:matmul(w), b:matmul(w), { beta = "anchor" })
      value:backward()
      sgd:step()
      return value, tail.lambda
    end)
    local all = {}
    for i = 1, 5 do
      local a = lunce.randn(16, 6, on_gpu(i))
      local value, lambda = step(a, a + lunce.randn(16, 6, on_gpu(50 + i)))
      all[i] = lunce.cat({ value:double():reshape(1), lambda }, 1)
    end
    return lunce.cat(all, 1)
  end
  local plain = losses(function(fn) return fn end)
  assert.is_true((plain - losses(captured)):abs():max():item() < 1e-4)
  assert.is_true(plain:std():item() > 0.1)
end)

-- ---- What a step is --------------------------------------------------------------------------

describe("a captured step", function()
  it("is made once at each call, and not by its capture", function()
    local total = lunce.zeros(3, GPU)
    local step = lunce.graph(function(x)
      lunce.no_grad(function() total:add_(x) end)
      return total * 2
    end)
    for i = 1, 5 do
      local y = step(lunce.full({ 3 }, i, GPU))
      assert.equal(i > 2, step.captured)
      assert.same({ i * (i + 1), i * (i + 1), i * (i + 1) }, y:tolist())
    end
  end)

  it("gives new tensors, off the tape, and does not run its function again", function()
    local calls, w = 0, lunce.ones(2, GPU):requires_grad_()
    local step = captured(function(x)
      calls = calls + 1
      return x * w, x:sum()
    end)
    local x = lunce.ones(2, GPU)
    local results = {}
    for i = 1, 4 do
      local y, sum = step(x * i)
      assert.is_false(y.requires_grad)
      results[i] = sum
    end
    assert.equal(2, calls)
    for i = 1, 4 do assert.equal(2 * i, results[i]:item()) end
  end)

  it("adds to gradients that it does not drop, and gives back those that were dropped", function()
    local w = lunce.ones(2, GPU):requires_grad_()
    local add = captured(function(x) (w * x):sum():backward() end)
    for _ = 1, 4 do add(lunce.full({ 2 }, 3, GPU)) end
    assert.same({ 12, 12 }, w.grad:tolist())
    local v = lunce.ones(2, GPU):requires_grad_()
    local set = captured(function(x)
      if v.grad then v.grad:free() end
      v.grad = nil
      ;(v * x):sum():backward()
    end)
    for i = 1, 4 do
      set(lunce.full({ 2 }, i, GPU))
      assert.same({ i, i }, v.grad:tolist())
      v.grad:free()
      v.grad = nil
    end
  end)

  it("draws what the function would draw, from the global generator", function()
    local function draw() return lunce.rand(5, GPU), lunce.randn(3, GPU) end
    local step = captured(draw)
    lunce.manual_seed(5)
    local seen = {}
    for i = 1, 4 do
      seen[i] = { step() }
      lunce.rand(1, CPU)
    end
    lunce.manual_seed(5)
    for i = 1, 4 do
      local a, b = draw()
      same(a, seen[i][1])
      same(b, seen[i][2])
      lunce.rand(1, CPU)
    end
    lunce.manual_seed(6)
    same((step()), (function() lunce.manual_seed(6) return (draw()) end)())
  end)

  it("casts weights anew, inside of a region that has cast them", function()
    local w, x = lunce.full({ 2, 2 }, 3, GPU):requires_grad_(), lunce.ones(1, 2, GPU)
    lunce.autocast("bfloat16", function()
      x:matmul(w)
      local step = captured(function(z) return z:matmul(w) end)
      step(x)
      assert.same({ { 6, 6 } }, step(x):tolist())
      lunce.no_grad(function() w:fill_(5) end)
      assert.same({ { 10, 10 } }, step(x):tolist())
      assert.same({ { 10, 10 } }, x:matmul(w):tolist())
    end)
  end)

  it("counts as a write of what it writes", function()
    local w, x = lunce.ones(2, GPU), lunce.ones(2, GPU):requires_grad_()
    local step = captured(function() w:add_(1) end)
    step()
    step()
    local y = (x * w):sum()
    step()
    refuses(function() y:backward() end, "changed in place")
  end)

  it("is captured anew after a reset", function()
    local scale = 2
    local step = captured(function(x) return x * scale end)
    local x = lunce.ones(1, GPU)
    step(x)
    step(x)
    scale = 5
    assert.equal(2, step(x):item())
    step:reset()
    assert.is_false(step.captured)
    step(x)
    assert.equal(5, step(x):item())
  end)

  it("tells of an index out of range at the next wait", function()
    local x = lunce.arange(4, GPU)
    local step = captured(function(index) return x:gather(1, index) end)
    local good = lunce.tensor({ 1, 4 }, { dtype = "int64", device = "cuda" })
    step(good)
    assert.same({ 1, 4 }, step(good):tolist())
    local y = step(good + 1)
    refuses(function() y:tolist() end, "gather: index 5 at position 2 is outside 1..4")
    assert.same({ 1, 4 }, step(good):tolist())
  end)

  it("holds what it uses, and its memory until it is collected", function()
    local before = collected()
    local held, x = lunce.full({ 1000 }, 7, GPU), lunce.ones(1000, GPU)
    local step = captured(function(z) return held + z end)
    step(x)
    local y = step(x)
    held:free()
    lunce.full({ 1000 }, 3, GPU):sum():item()
    assert.equal(8 * 1000, step(x):sum():item())
    assert.is_true(collected() >= before + 8000)
    step, x = nil, nil
    assert.equal(8000, y:sum():item())
    y = nil
    assert.equal(before, collected())
    assert.is_nil(step or x or y)
  end)

  it("leaves gradients that outlive it", function()
    local before, w = collected(), lunce.ones(3, GPU):requires_grad_()
    local step = captured(function(x) (w * x):sum():backward() end)
    local x = lunce.ones(3, GPU)
    step(x)
    w.grad = nil
    step(x)
    step = nil
    collected()
    assert.same({ 1, 1, 1 }, w.grad:tolist())
    w, x = nil, nil
    assert.equal(before, collected())
    assert.is_nil(step or w or x)
  end)
end)

-- ---- What is refused -------------------------------------------------------------------------

describe("a captured step refuses", function()
  local x = lunce.arange(6, GPU):reshape(2, 3)
  local w = lunce.ones(3, GPU):requires_grad_()
  local sgd = optim.SGD({ w }, { lr = 0.1, momentum = 0.9 })
  local scaler = optim.GradScaler()
  local host = lunce.ones(3, CPU)
  local index = lunce.tensor({ 1, 2 }, { dtype = "int64", device = "cuda" })

  local CASES = {
    item = { function(z) z:sum():item() end, "item: cannot be a part of a captured step" },
    tolist = { function(z) z:tolist() end, "tolist: cannot", "look at its values after the step" },
    tostring = { function(z) tostring(z) end, "cannot be a part of a captured step" },
    ["a copy to the cpu"] = { function(z) z:cpu() end, "copy: cannot", "as an argument" },
    ["a copy from the cpu"] = { function() host:to "cuda" end, "copy: cannot" },
    ["Lua's values"] = { function() lunce.tensor({ 1 }, GPU) end, "write: cannot" },
    ["a copy that does not wait"] = {
      function() host:to("cuda", { non_blocking = true }) end, "upload: cannot" },
    ["pinned memory"] = { function() host:pin_memory() end, "pin: cannot" },
    ["views of images"] = { function()
      local images = lunce.zeros(2, 3, 4, 4, { dtype = "uint8", device = "cuda" })
      lunce.augment.chain({}):views(images, { 1, 2 }, { seed = 1 })
    end, "augment: cannot be a part of a captured step", "before the step" },
    ["a wait"] = { function() lunce.cuda.synchronize() end, "synchronize: cannot" },
    ["another device"] = { function() lunce.zeros(3, { device = "cuda:1" }) end, "on cuda:1" },
    ["numbers drawn on the cpu"] = { function() lunce.rand(3, CPU) end, "drawn on the cpu" },
    ["a permutation"] = { function() lunce.randperm(3, GPU) end, "randperm: cannot" },
    schedule = { function() sgd:schedule(0.5) end, "schedule: cannot", "before the step" },
    ["a tail of candidates that masks count"] = { function(z)
      lunce.similarity.cosine(z):without_self():without(index):tail()
    end, "tail: cannot", "give it candidates" },
    ["a pooled tail of labels"] = { function(z)
      lunce.similarity.cosine(z):same(index):tail{ pooled = true }
    end, "tail: cannot" },
    ["an update of a scaler that saw nothing there"] = { function()
      scaler:update()
    end, "update: no optimiser", "has its update there" },
    ["another captured step"] = { function(z) lunce.graph(function() end)(z) end, "inside of" },
    ["a first step"] = { function(z)
      local v = lunce.ones(3, GPU):requires_grad_();
      (v * z):sum():backward()
      optim.Adam({ v }):step()
    end, "Adam: a parameter's first step cannot" },
    ["numbers as results"] = { function() return 1 end, "result 1 of the step is" },
    ["results on the cpu"] = { function() return host end, "result 1 of the step is", "on cpu" },
    ["an error of the function's"] = { function(z) return z:matmul(z) end, "matmul" },
  }

  for name, case in pairs(CASES) do
    it(name, function()
      if name == "another device" and lunce.cuda.device_count() < 2 then
        return pending "takes two devices"
      end
      local before, first, drawn = collected(), true, random.state()
      local step = captured(function(z)
        if first then
          first = false
          return
        end
        lunce.zeros(5, GPU):add_(1)
        return case[1](z)
      end)
      step(x)
      refuses(function() step(x) end, unpack(case, 2))
      refuses(function() step(x) end, unpack(case, 2))
      assert.is_false(step.captured)
      assert.same(drawn, random.state())
      assert.equal(21, x:sum():item())
      w.grad, step = nil, nil
      assert.is_true(collected() <= before)
      assert.is_nil(step)
    end)
  end

  it("gradients of a capture that failed", function()
    local v, calls = lunce.ones(3, GPU):requires_grad_(), 0
    local step = captured(function(z)
      calls = calls + 1
      ;(v * z):sum():backward()
      if calls == 2 then z:sum():item() end
    end)
    step(x)
    refuses(function() step(x) end, "item")
    assert.is_nil(v.grad)
    step(x)
    assert.same({ 5, 7, 9 }, v.grad:tolist())
  end)

  it("other arguments than it was captured with", function()
    local step = captured(function(z) return z:sum() end)
    refuses(function() step(3) end, "argument 1 of the step is 3")
    refuses(function() step(host) end, "(3) float32 on cpu", "on cuda:0 are taken")
    refuses(function() step(w) end, "requires a gradient")
    step(x)
    step(x)
    refuses(function() step(x, x) end, "2 arguments; the step was captured with 1")
    refuses(function() step(x:narrow(1, 1, 1)) end, "(1,3) float32", "(2,3) float32", "drop_last")
    refuses(function() step(x:double()) end, "float64")
    assert.equal(21, step(x:t():contiguous():t()):item())
  end)

  it("options of an optimiser that were changed, and states that were loaded", function()
    local v = lunce.ones(3, GPU):requires_grad_()
    local adam = optim.Adam({ v })
    local step = captured(function(z)
      adam:zero_grad();
      (v * z):sum():backward()
      adam:step()
    end)
    step(x)
    step(x)
    adam.groups[1].lr = 0.5
    step(x)
    adam.groups[1].eps = 1e-3
    refuses(function() step(x) end, "Adam: option eps was changed", "step:reset()")
    adam.groups[1].eps = 1e-8
    step(x)
    adam:load_state_dict(adam:state_dict())
    refuses(function() step(x) end, "Adam: its state was loaded", "step:reset()")
    step:reset()
    step(x)
    step(x)
  end)
end)

describe("memory of a graph", function()
  it("is refused past the limit, and the capture with it", function()
    local step = captured(function(z) return z:expand(4000, 2, 3):contiguous():sum() end)
    local x = lunce.ones(2, 3, GPU)
    step(x)
    local limit = lunce.memory("cuda").hard_bytes
    lunce.memory_limit { device = "cuda", hard = collected() + 50000 }
    local ok, message = pcall(step, x)
    lunce.memory_limit { device = "cuda", hard = limit }
    assert.is_false(ok)
    assert.matches("out of memory", message)
    assert.equal(24000, step(x):item())
  end)

  it("serves again within a step", function()
    local step = captured(function(z)
      for _ = 1, 50 do
        local y = z + 1
        z = lunce.no_grad(function() return y * 1 end)
        y:free()
      end
      return z:sum()
    end)
    local x = lunce.zeros(300000, GPU)
    step(x)
    local before = collected()
    assert.equal(300000 * 50, step(x):item())
    assert.is_true(collected() - before < 80 * 2 ^ 20)
  end)
end)

it("what is not under way cannot be ended or launched", function()
  local box = require("ffi").new "ln_graph *[1]"
  assert.equal(C.LN_BAD_ARGUMENT, tonumber(C.ln_graph_end(box)))
  assert.equal(C.LN_BAD_ARGUMENT, tonumber(C.ln_graph_launch(nil)))
  assert.equal(C.LN_BAD_ARGUMENT, tonumber(C.ln_graph_begin(C.LN_CPU)))
  C.ln_graph_abandon()
  C.ln_graph_release(nil)
end)

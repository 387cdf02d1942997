-- Copies from a CUDA device that do not make the host wait: x:to("cpu", { non_blocking = true }).
-- On the shim of cuda-host/ such a copy is made at the last moment, so that a wait that is missing
-- gives wrong values, and memory freed too early loses the device.
local lunce = require "lunce"
local C = require("lunce.ffi").C

local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local program = os.getenv "LUNCE_PROGRAM" or here .. "../lunce"
local shim = (os.getenv "LUNCE_CUDA" or ""):match "^(.*/tests/)liblunce_cuda%.so$"
local refuses = dofile(here .. "refusals.lua")("download_test.lua")
local transfers = dofile(here .. "transfers.lua")
local same, baseline = transfers.same, transfers.baseline

if not lunce.cuda.is_available() then return end

local CPU, GPU, AWAY = { device = "cpu" }, { device = "cuda" }, { non_blocking = true }
local function on_gpu(seed) return { device = "cuda", seed = seed } end
local function down(x) return x:to("cpu", AWAY) end

describe("a download", function()
  it("of every dtype and layout arrives as it was, in pinned memory", function()
    local x = lunce.randn(5, 7, on_gpu(1)) * 50
    for _, dtype in ipairs { "float32", "float64", "bfloat16", "float16", "int64", "int32", "uint8",
      "bool" } do
      local a = x:to(dtype)
      for _, layout in ipairs { a, a:t(), a:slice(2, 2, 7, 2), a:narrow(1, 3, 2), a:select(1, 2),
        a:narrow(1, 1, 0), a:unsqueeze(1):expand(3, -1, -1), a:select(1, 2):select(1, 3) } do
        local y = down(layout)
        assert.equal("cpu", y.device)
        assert.equal(layout:numel() > 0, y:is_pinned())
        same(layout, y)
        same(layout, layout:to { device = "cpu", non_blocking = true })
      end
    end
    same(x:double(), x:to { dtype = "float64", device = "cpu", non_blocking = true })
    local images = lunce.randn(2, 3, 4, 5, on_gpu(2)):contiguous { memory_format = "channels_last" }
    local y = down(images)
    assert.is_true(y:is_contiguous { memory_format = "channels_last" })
    same(images, y)
  end)

  it("has ended for whoever looks at it, or writes it, first", function()
    local x = lunce.rand(6, 6, on_gpu(1))
    local expected = x:cpu()
    local rows = lunce.randint(1, 6, { 6 }, on_gpu(2))
    local path = os.tmpname()
    for name, f in pairs {
      item = function(y) return y:select(1, 2):select(1, 3):item() end,
      tolist = function(y) return y:tolist() end,
      text = function(y) return tostring(y) end,
      unary = function(y) return y:exp() end,
      view = function(y) return y:t():narrow(1, 2, 3):clone() end,
      ["in place"] = function(y) return y:add_(1) end,
      ["filled in part"] = function(y)
        y:narrow(1, 1, 2):fill_(3)
        return y
      end,
      ["written over"] = function(y) return y:copy_(lunce.ones(6, 6, CPU)) end,
      ["written over by a device"] = function(y) return y:copy_(lunce.ones(6, 6, GPU)) end,
      product = function(y) return y:matmul(y:t()) end,
      ["taken back"] = function(y) return y:cuda():cpu() end,
      ["taken back beside"] = function(y) return y:to("cuda", AWAY):cpu() end,
      ["pinned again"] = function(y) return y:pin_memory() end,
      ["copied to a device"] = function(y) return lunce.zeros(6, 6, GPU):copy_(y):cpu() end,
      index = function(_, at) return lunce.arange(6, CPU):index_select(1, at) end,
      saved = function(y)
        lunce.io.safetensors.save(path, { y = y })
        local list = assert(lunce.io.safetensors.load(path)).y:tolist()
        return list
      end,
    } do
      local got = f(down(x), down(rows))
      local wanted = f(expected:clone(), rows:cpu())
      if lunce.is_tensor(got) then
        assert(got:eq(wanted):all():item(), name)
      else
        assert.same(wanted, got, name)
      end
    end
    os.remove(path)
  end)

  it("serves as a data set", function()
    local set = lunce.data.digits { split = "test" }
    local images = set.images:narrow(1, 1, 20):cuda()
    local labels = set.labels:narrow(1, 1, 20)
    local loader = lunce.data.loader(lunce.data.set(down(images), labels), { batch = 20,
      shuffle = false, threads = 1, device = "cpu" })
    for batch in loader:epoch(0) do
      same(images:float() / 255, batch.x[1])
      same(labels, batch.y)
    end
    local chain = lunce.augment.chain {}
    local image = images:select(1, 3)
    same(chain:apply(image:cpu(), { seed = 1 }), chain:apply(down(image), { seed = 1 }))
  end)

  it("has read its source before the device writes that", function()
    for _, write in ipairs {
      function(x) x:fill_(0) end,
      function(x) x:add_(1) end,
      function(x) x:narrow(1, 5, 20):copy_(lunce.zeros(20, CPU)) end,
      function(x) x:copy_(lunce.zeros(1000, GPU)) end,
      function(x) C.ln_tensor_write(x.h, require("ffi").new("double[1000]"), 1000) end,
      function(x)
        local sgd = lunce.optim.SGD({ x:requires_grad_() }, { lr = 1 })
        x.grad = lunce.ones(1000, GPU)
        sgd:step()
      end,
    } do
      local x = lunce.randn(1000, on_gpu(1))
      local expected = x:cpu()
      local whole, part = down(x:detach()), down(x:detach():narrow(1, 5, 9))
      write(x)
      assert.is_false(x:detach():cpu():eq(expected):all():item())
      same(expected, whole)
      same(expected:narrow(1, 5, 9), part)
    end
  end)

  it("has read its source before a captured step writes that", function()
    local total, w = lunce.zeros(500, GPU), lunce.ones(500, GPU):requires_grad_()
    local step = lunce.graph(function(x)
      lunce.no_grad(function() total:add_(x) end)
      w.grad = nil;
      (w * x):sum():backward()
      return total * 2
    end, { warmup = 1 })
    local seen, gradients, sums = {}, {}, {}
    for i = 1, 6 do
      local y = step(lunce.full({ 500 }, i, GPU))
      sums[i], seen[i], gradients[i] = down(y), down(total), down(w.grad)
    end
    for i = 1, 6 do
      assert.equal(i * (i + 1), sums[i]:max():item())
      assert.equal(i * (i + 1) / 2, seen[i]:min():item())
      assert.equal(i, gradients[i]:min():item())
    end
  end)

  it("has read its source before that is freed or collected, and frees all", function()
    local cpu, gpu = baseline()
    local got = {}
    for i = 1, 100 do
      local x = lunce.randn(3000 + i % 3, on_gpu(i))
      got[i] = down(x)
      x:free()
      lunce.randn(3000 + i % 3, on_gpu(1000 + i)):free()
      if i % 3 == 0 then down(got[i]:cuda()):free() end
      if i % 30 == 0 then collectgarbage() end
      if i % 40 == 0 then lunce.cuda.empty_cache() end
    end
    for i, y in ipairs(got) do same(lunce.randn(3000 + i % 3, on_gpu(i)), y) end
    got = nil
    local cpu_after, gpu_after = baseline()
    assert.same({ cpu, gpu }, { cpu_after, gpu_after })
    assert.is_nil(got)
  end)

  it("outlives the captured step in whose memory its source lay", function()
    local _, gpu = baseline()
    local w = lunce.ones(300, GPU):requires_grad_()
    local step = lunce.graph(function(x) (w * x):sum():backward() end, { warmup = 1 })
    local x = lunce.full({ 300 }, 2, GPU)
    step(x)
    w.grad = nil
    step(x)
    local y = down(w.grad)
    step, w, x = nil, nil, nil
    local _, after = baseline()
    assert.equal(gpu, after)
    assert.equal(2, y:min():item())
    assert.is_nil(step or w or x)
  end)

  it("leads gradients back", function()
    local x = lunce.ones(3, GPU):requires_grad_();
    (down(x) * lunce.arange(3, CPU)):sum():backward()
    assert.equal("cuda:0", x.grad.device)
    assert.same({ 1, 2, 3 }, x.grad:tolist())
  end)

  it("is read steps later, as losses are", function()
    local w = lunce.ones(4, GPU):requires_grad_()
    local sgd = lunce.optim.SGD({ w }, { lr = 0.1 })
    local step = lunce.graph(function(x)
      sgd:zero_grad()
      local loss = (w * x):square():sum()
      loss:backward()
      sgd:step()
      return loss
    end)
    local losses, late = {}, nil
    for i = 1, 8 do
      local loss = lunce.scope(function()
        return step(lunce.full({ 4 }, 1 + i % 2, GPU)):to("cpu", AWAY)
      end)
      if late then losses[i - 1] = late:item() end
      late = loss
    end
    losses[8] = late:item()
    local v = 1
    for i = 1, 8 do
      local x = 1 + i % 2
      assert.near(4 * (v * x) ^ 2, losses[i], 1e-5)
      v = v - 0.1 * 2 * v * x * x
    end
  end)

  it("is no part of a captured step, and needs memory of the cpu", function()
    local x = lunce.ones(100000, GPU)
    local calls = 0
    local step = lunce.graph(function(z)
      calls = calls + 1
      if calls > 1 then down(z) end
    end, { warmup = 1 })
    step(x)
    refuses(function() step(x) end, "download: cannot be a part of a captured step",
      "after the step")
    local hard = lunce.memory("cpu").hard_bytes
    lunce.memory_limit { device = "cpu", hard = lunce.memory("cpu").live_bytes + 1000 }
    local ok, message = pcall(down, x)
    lunce.memory_limit { device = "cpu", hard = hard }
    assert.is_false(ok)
    assert.matches("download: out of memory", message)
    same(x, down(x))
  end)
end)

describe("a process", function()
  local function run(...) return transfers.run(program, ...) end

  it("leaves with downloads under way, and gives every block back", function()
    if not shim then return pending "is counted by the shim" end
    local code = [[
      local lunce = require "lunce"
      local kept = {}
      for i = 1, 40 do
        kept[i] = lunce.full({ 100 }, i, { device = "cuda" }):to("cpu", { non_blocking = true })
      end ]]
    for how, expected in pairs { ["os.exit(7)"] = 7, ['error "on purpose"'] = 1, [""] = 0 } do
      local status, text = run(how == "" and "LUNCE_CUDA_HOST_LEAKS=1" or "", code .. how)
      assert.equal(expected, status, text)
      if how == "" then assert.equal("", text) end
    end
  end)

  it("whose device is lost gives no values that never arrived", function()
    if not shim then return pending "takes a device that fails when told" end
    local status, text = run("LUNCE_CUDA_HOST_FAULT=3", [[
      local lunce = require "lunce"
      local x = lunce.full({ 2 }, 5, { device = "cuda" })
      local seen, never = x:to("cpu", { non_blocking = true }), nil
      print(seen:max():item())
      never = x:to("cpu", { non_blocking = true })
      local host = lunce.ones(2):pin_memory()
      host:to("cuda", { non_blocking = true })
      for _ = 1, 3 do pcall(function() return (x + 1):sum():item() end) end
      print(seen:max():item(), host:max():item())
      print(pcall(never.max, never))
      print(pcall(never.tolist, never))
      x, never = nil, nil
      collectgarbage() ]])
    assert.equal(0, status, text)
    assert.matches("^5\n5%s1\n", text)
    assert.matches("\nfalse%s[^\n]*tensor 1 was on its way from a cuda device that was lost", text)
    assert.matches("read: tensor 1 was on its way", text)
  end)
end)

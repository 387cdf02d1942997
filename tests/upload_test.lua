-- Copies that go on beside other work: x:to("cuda", { non_blocking = true }) and loaders that give
-- batches on a device. On the shim of cuda-host/ such a copy is made at the last moment, so that a
-- wait that is missing gives wrong values, and memory freed too early loses the device.
local lunce = require "lunce"
local C = require("lunce.ffi").C
local data, augment = lunce.data, lunce.augment

local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local program = os.getenv "LUNCE_PROGRAM" or here .. "../lunce"
local shim = (os.getenv "LUNCE_CUDA" or ""):match "^(.*/tests/)liblunce_cuda%.so$"
local available = lunce.cuda.is_available()
local CPU, AWAY = { device = "cpu" }, { non_blocking = true }

local refuses = dofile(here .. "refusals.lua")("upload_test.lua")
local transfers = dofile(here .. "transfers.lua")
local same, baseline = transfers.same, transfers.baseline

describe("to with non_blocking", function()
  it("is to, where there is nothing to copy aside", function()
    local x = lunce.rand(3, 4, CPU)
    assert.equal(x, x:to("cpu", AWAY))
    same(x:double(), x:to("float64", AWAY))
    same(x:double(), x:to { dtype = "float64", device = "cpu", non_blocking = true })
  end)

  it("refuses other options", function()
    local x = lunce.rand(3, CPU)
    refuses(function() x:to("cpu", { blocking = true }) end, "unknown option blocking")
    refuses(function() x:to("cpu", true) end, "options are a table")
    refuses(function() x:to({ device = "cpu" }, AWAY) end, "options are given twice")
    refuses(function() x:to("tpu", AWAY) end, "tpu")
  end)
end)

local function colours(n)
  local images = lunce.randint(0, 255, { n, 3, 12, 10 }, { seed = 1, dtype = "uint8",
    device = "cpu" })
  return data.set(images, lunce.randint(1, 3, { n }, { seed = 2, dtype = "int64", device = "cpu" }))
end

local function options(more)
  local set = { batch = 16, views = 2, seed = 7, threads = 0, augment = augment.simclr { size = 8 },
    device = "cpu" }
  for name, value in pairs(more or {}) do set[name] = value end
  return set
end

local set = colours(103)

describe("a loader's device", function()
  it("may be the cpu", function()
    for batch in data.loader(set, options()):epoch(0) do
      assert.equal("cpu", batch.x[2].device)
      assert.is_false(batch.x[1]:is_pinned())
    end
  end)

  it("must be there", function()
    refuses(function() data.loader(set, options { device = "tpu" }) end, "data.loader", "tpu")
    refuses(function() data.loader(set, options { device = 3 }) end, "data.loader: device 3")
    refuses(function() data.loader(set, options { device = "cuda:40" }) end, "loader: ", "cuda")
  end)
end)

if not available then return end

local function pinned(n, seed)
  return lunce.randn(n, { seed = seed or 1, device = "cpu" }):pin_memory()
end

describe("an upload", function()
  it("of every dtype and layout arrives as it was", function()
    local x = lunce.randn(5, 7, { seed = 1, device = "cpu" }) * 50
    for _, dtype in ipairs { "float32", "float64", "bfloat16", "float16", "int64", "int32", "uint8",
      "bool" } do
      local a = x:to(dtype):pin_memory()
      for _, layout in ipairs { a, a:t(), a:slice(2, 2, 7, 2), a:narrow(1, 3, 2),
        a:narrow(1, 1, 0), a:select(1, 2), a:unsqueeze(1):expand(3, -1, -1), x:to(dtype) } do
        local b = layout:to("cuda", AWAY)
        assert.equal("cuda:0", b.device)
        same(layout, b)
        same(layout, layout:to { device = "cuda", non_blocking = true })
      end
    end
    same(x:double(), x:pin_memory():to { dtype = "float64", device = "cuda", non_blocking = true })
  end)

  it("comes before whatever uses it first", function()
    local host = lunce.rand(6, 6, { seed = 1, device = "cpu" })
    local rows = lunce.randint(1, 6, { 6 }, { seed = 2, device = "cpu" })
    local function fresh(device, t)
      return device == "cpu" and t:clone() or t:pin_memory():to(device, AWAY)
    end
    local S = lunce.similarity
    for name, f in pairs {
      unary = function(x) return x:exp() end,
      view = function(x) return x:t():narrow(1, 2, 3):clone() end,
      detach = function(x) return x:detach() + 0 end,
      ["in place"] = function(x) return x:add_(1) end,
      filled = function(x) return x:narrow(1, 1, 2):fill_(3) end,
      ["written over"] = function(x) return x:copy_(lunce.ones(6, 6, { device = x.device })) end,
      ["written over from another device"] = function(x) return x:copy_(lunce.ones(6, 6, CPU)) end,
      item = function(x) return lunce.tensor({ x:select(1, 2):select(1, 3):item() }, CPU) end,
      down = function(x) return x:cpu() end,
      ["copied down"] = function(x) return lunce.zeros(6, 6, CPU):copy_(x) end,
      pinned = function(x) return x:pin_memory() end,
      reduced = function(x) return x:sum(1) end,
      product = function(x) return x:matmul(x:t()) end,
      indices = function(x, at) return x:index_select(1, at()) end,
      gather = function(x, at) return x:gather(1, at():unsqueeze(1)) end,
      concatenated = function(x) return lunce.cat({ x, x }, 1) end,
      norm = function(x, _, part) return lunce.layer_norm(x, { 6 }, part(), part()) end,
      labels = function(x, at)
        return S.cosine(x):different(at(), at()):lse(function(s) return s / 0.1 end)
      end,
      without = function(x, at) return S.dot(x):without(at()):sum(function(s) return s end) end,
      parameters = function(x, _, part)
        return S.dot(x):lse(function(s, p) return s * p end, part())
      end,
      entries = function(x, at) return S.dot(x):at(at()) end,
    } do
      local expected, got
      for _, device in ipairs { "cpu", "cuda" } do
        got = f(fresh(device, host), function() return fresh(device, rows) end,
          function() return fresh(device, host:select(1, 4)) end):cpu()
        expected = expected or got
      end
      assert.is_true((expected - got):abs():max():item() < 1e-4, name)
    end
  end)

  it("leads gradients back", function()
    local x = lunce.ones(3, CPU):pin_memory():requires_grad_();
    (x:to("cuda", AWAY) * 2):sum():cpu():backward()
    assert.equal("cpu", x.grad.device)
    assert.same({ 2, 2, 2 }, x.grad:tolist())
  end)

  it("has read its source before anyone writes that", function()
    local ones = lunce.tensor({ 1, 2 }, { dtype = "int64", device = "cpu" })
    for _, write in ipairs {
      function(x) x:fill_(0) end,
      function(x) x:add_(1) end,
      function(x) x:narrow(1, 5, 20):copy_(lunce.zeros(20, CPU)) end,
      function(x) x:copy_(lunce.zeros(1000, { device = "cuda" })) end,
      function(x) x:copy_(lunce.zeros(1000, { dtype = "float64", device = "cuda" })) end,
      function(x) assert.equal(0, C.ln_index_add(x.h, 0, ones.h, lunce.ones(2, CPU).h)) end,
      function(x) x:index_copy_(1, ones, lunce.ones(2, CPU)) end,
      function(x)
        require("lunce.io").with_opened(here .. "upload_test.lua", "test", function(file)
          assert.equal(0, C.ln_file_read_tensor(x.h, file, 0))
        end)
      end,
      function(x) C.ln_tensor_write(x.h, require("ffi").new("double[1000]"), 1000) end,
      function(x)
        local adam = lunce.optim.SGD({ x:requires_grad_() }, { lr = 1 })
        x.grad = lunce.ones(1000, CPU)
        adam:step()
      end,
    } do
      local x = pinned(1000)
      local expected = x:detach():clone()
      local whole, part = x:detach():to("cuda", AWAY), x:detach():narrow(1, 5, 9):to("cuda", AWAY)
      write(x)
      assert.is_false(x:detach():eq(expected):all():item())
      same(expected, whole)
      same(expected:narrow(1, 5, 9), part)
    end
  end)

  it("has read its source before that is used again, freed early or collected", function()
    local cpu, gpu = baseline()
    local got = {}
    for i = 1, 100 do
      local x = pinned(3000 + i % 3, i)
      got[i] = x:to("cuda", AWAY)
      if i % 2 == 0 then x:free() end
      if i % 30 == 0 then collectgarbage() end
      if i % 40 == 0 then lunce.cuda.empty_cache() end
    end
    for i, y in ipairs(got) do same(lunce.randn(3000 + i % 3, { seed = i, device = "cpu" }), y) end
    got = nil
    local cpu_after, gpu_after = baseline()
    assert.same({ cpu, gpu }, { cpu_after, gpu_after })
    assert.is_nil(got)
  end)

  it("that nobody uses is freed after it has ended", function()
    local x = pinned(5000)
    for _ = 1, 20 do x:to("cuda", AWAY):free() end
    lunce.cuda.synchronize()
    same(x, x:to("cuda", AWAY))
  end)

  it("goes to several devices from one source", function()
    if lunce.cuda.device_count() < 2 then return pending "one device" end
    local x = pinned(500)
    local expected = x:clone()
    local a, b, c = x:to("cuda", AWAY), x:to("cuda:1", AWAY), x:to("cuda", AWAY)
    x:fill_(0)
    assert.equal("cuda:1", b.device)
    for _, y in ipairs { c, b, a } do same(expected, y) end
    same(expected, pinned(500):to("cuda:1", AWAY):to "cuda")
  end)

  it("that finds no memory says so, and changes nothing", function()
    local x, hard = pinned(100000), lunce.memory("cuda").hard_bytes
    lunce.memory_limit { device = "cuda", hard = lunce.memory("cuda").live_bytes + 1000 }
    local ok, message = pcall(x.to, x, "cuda", AWAY)
    lunce.memory_limit { device = "cuda", hard = hard }
    assert.is_false(ok)
    assert.matches("upload: out of memory: 400000 bytes on cuda:0", message)
    same(x, x:to("cuda", AWAY))
  end)
end)

it("a set on a device gives its batches there only", function()
  local there = set:to "cuda"
  refuses(function() data.loader(there, options()) end, 'device "cpu"', "a set on cuda:0")
  for batch in data.loader(there, options { device = "cuda" }):epoch(0) do
    assert.equal("cuda:0", batch.x[1].device)
    assert.equal("cuda:0", batch.y.device)
  end
end)

it("views that the cpu makes when they are asked for go there too", function()
  local a = data.loader(set, options { on_device = true }):epoch(1)
  for batch in data.loader(set, options { on_device = true, device = "cuda" }):epoch(1) do
    local expected = a()
    assert.equal("cuda:0", batch.x[2].device)
    for v = 1, 2 do same(expected.x[v], batch.x[v]) end
    same(expected.y, batch.y)
  end
end)

-- An epoch as it was given out, on the CPU: a list of batches.
local function collect(loader, epoch, given)
  local all = {}
  for batch in loader:epoch(epoch, given) do
    local one = { batch.y, batch.index, unpack(batch.x) }
    for i, t in ipairs(one) do one[i] = t:cpu() end
    all[#all + 1] = one
  end
  return all
end

local function same_batches(expected, got)
  assert.equal(#expected, #got)
  for i, batch in ipairs(expected) do
    assert.equal(#batch, #got[i])
    for j, t in ipairs(batch) do same(t, got[i][j]) end
  end
end

local function away(more)
  local set_options = options(more)
  set_options.device = "cuda"
  return set_options
end

-- On a device: two views and labels.
local BATCH_BYTES = 2 * 16 * 3 * 8 * 8 * 4 + 512

describe("a loader for a device", function()
  local expected = {}
  for epoch = 1, 3 do expected[epoch] = collect(data.loader(set, options()), epoch) end

  for _, threads in ipairs { 0, 2 } do
    local function loader(more)
      more = more or {}
      more.threads = threads
      return data.loader(set, away(more))
    end
    local function named(text) return ("%s, %d threads"):format(text, threads) end

    it(named "gives the same values in the same order there", function()
      for _, queue in ipairs { 0, 1 } do
        local l = loader { queue = queue }
        for batch in l:epoch(1) do
          assert.same({ "cuda:0", "cuda:0", "cuda:0", "cpu" }, { batch.x[1].device,
            batch.x[2].device, batch.y.device, batch.index.device })
        end
        for epoch = 3, 1, -1 do same_batches(expected[epoch], collect(l, epoch)) end
        same_batches({ unpack(expected[2], 4) }, collect(l, 2, { start = 4 }))
        assert.equal(103 * 4 + 55, l:stats().samples)
        assert.equal(7 * 4 + 4, l:stats().batches)
      end
    end)

    it(named "keeps batches that are looked at later", function()
      local kept = {}
      for batch in loader():epoch(1) do kept[#kept + 1] = batch end
      for i = #kept, 1, -1 do
        same(expected[1][i][1], kept[i].y)
        same(expected[1][i][3], kept[i].x[1])
        same(expected[1][i][4], kept[i].x[2])
      end
    end)

    it(named "has the next one on its way, and no more", function()
      local _, before = baseline()
      local l = loader()
      local nxt = l:epoch(1)
      nxt()
      while l:stats().queued < 2 * threads do end -- all that the queue holds: the next two too
      local batch = nxt()
      collectgarbage()
      lunce.zeros(1, CPU):free()
      assert.equal(before + 2 * BATCH_BYTES, lunce.memory("cuda").live_bytes)
      same(expected[1][2][3], batch.x[1])
      l:close()
    end)

    it(named "without labels, with one batch or a short last one", function()
      local bare = data.set(set.images)
      for batch in data.loader(bare, away { threads = threads, batch = 103, views = 1,
        shuffle = false, augment = augment.chain {} }):epoch(0) do
        assert.is_nil(batch.y)
        assert.equal(0, (batch.x[1]:cpu() - set.images:to "float32" / 255):abs():max():item())
      end
      assert.equal(6, #collect(loader { drop_last = true }, 1))
    end)

    it(named "may be left early, closed or collected, and leaves nothing behind", function()
      collect(loader(), 1)
      local cpu, gpu = baseline()
      for how = 1, 4 do
        local l = loader()
        local nxt = l:epoch(1)
        for _ = 1, how do nxt() end
        if how == 1 then l:close() end
        if how == 2 then l:epoch(2) end
        if how == 3 then
          refuses(function() for _ in l:epoch(3) do l:epoch(0) end end, "another epoch was begun")
        end
        if how > 1 then same_batches(expected[1], collect(l, 1)) end
        nxt, l = nil, nil
        local cpu_after, gpu_after = baseline()
        assert.same({ cpu, gpu }, { cpu_after, gpu_after })
        assert.is_nil(nxt or l)
      end
    end)

    it(named "goes on after an error in the loop's body", function()
      local l = loader()
      local ok, message = pcall(function()
        for _ in l:epoch(2) do error("on purpose", 0) end
      end)
      assert.is_false(ok)
      assert.equal("on purpose", message)
      same_batches(expected[2], collect(l, 2))
    end)

    it(named "goes on after an interrupt", function()
      local nxt = loader():epoch(1)
      same(expected[1][1][3], nxt().x[1])
      C.ln_interrupt()
      local ok, message = pcall(nxt)
      C.ln_interrupt_clear()
      assert.is_false(ok)
      assert.matches("interrupted", message)
      for i = 2, 7 do same(expected[1][i][3], nxt().x[1]) end
      assert.is_nil(nxt())
      assert.is_nil(nxt())
    end)

    it(named "goes on where memory ran out on either side", function()
      for _, device in ipairs { "cpu", "cuda" } do
        local l = loader()
        collectgarbage()
        local hard = lunce.memory(device).hard_bytes
        lunce.memory_limit { device = device, hard = lunce.memory(device).live_bytes + 1000 }
        local nxt = l:epoch(1)
        local ok, message = pcall(nxt)
        lunce.memory_limit { device = device, hard = hard }
        assert.is_false(ok)
        assert.matches("out of memory: .*" .. device, message)
        for i = 1, 7 do same(expected[1][i][4], nxt().x[2]) end
        assert.is_nil(nxt())
      end
    end)

    it(named "does not show an allocation that fails once", function()
      local l = loader()
      for n = 1, 60 do
        C.ln_memory_fail_after(n)
        local nxt, all = l:epoch(1), {}
        for i = 1, 7 do
          local batch = nxt()
          all[i] = { batch.y, batch.index, unpack(batch.x) }
        end
        C.ln_memory_fail_after(0)
        same_batches(expected[1], all)
      end
    end)

    it(named "keeps nothing in lunce.scope", function()
      local nxt, live = loader():epoch(1)
      for step = 1, 5 do
        lunce.scope(function() nxt() end)
        if step == 2 then live = lunce.memory("cuda").live_bytes end
      end
      assert.is_true(lunce.memory("cuda").live_bytes <= live + BATCH_BYTES) -- the one held
    end)
  end
end)

describe("a process", function()
  local function run(...) return transfers.run(program, ...) end

  local LOADER = [[
    local lunce = require "lunce"
    local loader = lunce.data.loader(lunce.data.digits(), { batch = 100, threads = 2, views = 2,
      device = "cuda" })
    local nxt = loader:epoch(0)
    for _ = 1, 5 do nxt() end ]]

  it("leaves with uploads under way, however it leaves", function()
    for how, expected in pairs { ["os.exit(7)"] = 7, ['error "on purpose"'] = 1, [""] = 0 } do
      local status, text = run("", LOADER .. how)
      assert.equal(expected, status, text)
    end
  end)

  it("gives every block of a device back", function()
    if not shim then return pending "is counted by the shim" end
    for _, how in ipairs { "loader:close()", "", "for _ in loader:epoch(1) do end" } do
      local status, text = run("LUNCE_CUDA_HOST_LEAKS=1", LOADER .. how)
      assert.equal(0, status, text)
      assert.equal("", text)
    end
  end)

  it("whose device is lost says so when nothing is held any more", function()
    if not shim then return pending "takes a device that fails when told" end
    local status, text = run("LUNCE_CUDA_HOST_FAULT=1", LOADER
      .. "print(pcall(function() return lunce.ones(2, { device = \"cuda\" }):sum():item() end)) "
      .. "print(pcall(function() for _ = 1, 2 do nxt() end end)) loader:close()")
    assert.equal(0, status, text)
    assert.matches("\nfalse%s[^\n]*the cuda device was lost before", text)
  end)

  it("the shim puts copies off, and reports what they meet", function()
    if not shim then return pending "is of the shim" end
    for _, fault in ipairs { "", "source", "destination" } do
      assert.equal(0, os.execute(shim .. "cuda-host-check " .. fault), fault)
    end
  end)
end)

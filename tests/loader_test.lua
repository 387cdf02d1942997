-- The loader: every sample once, in an order and with views that depend on the seed and nothing
-- else; resuming, sharding, failing and closing.
local lunce = require "lunce"
local C = require("lunce.ffi").C
local data, augment = lunce.data, lunce.augment

local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local forge = dofile(here .. "forge.lua")

local refuses = dofile(here .. "refusals.lua")("loader_test.lua")

-- 103 random colour images of 3 classes.
local function colours(n)
  n = n or 103
  local images = lunce.randint(0, 255, { n, 3, 12, 10 }, { seed = 1, dtype = "uint8" })
  return data.set(images, lunce.randint(1, 3, { n }, { seed = 2, dtype = "int64" }))
end

local chain = augment.simclr { size = 8 }

-- An epoch as lists of numbers: its indices, its labels, and every value of every view.
local function collect(loader, epoch, given)
  local index, labels, values, sizes = {}, {}, {}, {}
  for batch in loader:epoch(epoch, given) do
    sizes[#sizes + 1] = batch.x[1].shape[1]
    for _, i in ipairs(batch.index:tolist()) do index[#index + 1] = i end
    for _, y in ipairs(batch.y:tolist()) do labels[#labels + 1] = y end
    for v = 1, #batch.x do values[#values + 1] = batch.x[v] end
  end
  return { index = index, labels = labels, values = values, sizes = sizes }
end

local function options(more)
  local set = { batch = 16, views = 2, seed = 7, threads = 0, augment = chain }
  for name, value in pairs(more or {}) do set[name] = value end
  return set
end

local function same(a, b)
  assert.same(a.index, b.index)
  assert.same(a.labels, b.labels)
  assert.equal(#a.values, #b.values)
  for i, x in ipairs(a.values) do assert(x:eq(b.values[i]):all():item(), "batch " .. i) end
end

describe("an epoch", function()
  local set = colours()

  it("has every sample once, with its label, in batches of the size asked for", function()
    local got = collect(data.loader(set, options()), 0)
    assert.same({ 16, 16, 16, 16, 16, 16, 7 }, got.sizes)
    local labels, seen = set.labels:tolist(), {}
    for i, index in ipairs(got.index) do
      assert.equal(labels[index], got.labels[i])
      assert.is_nil(seen[index])
      seen[index] = true
    end
    assert.equal(103, #got.index)
  end)

  it("drop_last leaves the short batch out, shuffle = false the order as it is", function()
    local loader = data.loader(set, options { drop_last = true, shuffle = false })
    local got = collect(loader, 3)
    assert.same({ 16, 16, 16, 16, 16, 16 }, got.sizes)
    for i, index in ipairs(got.index) do assert.equal(i, index) end
    assert.equal(6, loader:batches())
  end)

  it("limit takes the first samples only", function()
    local got = collect(data.loader(set, options { limit = 10 }), 0)
    table.sort(got.index)
    assert.same({ 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 }, got.index)
    assert.equal(103, #collect(data.loader(set, options { limit = 1000 }), 0).index)
  end)

  it("orders differ between epochs and seeds", function()
    local loader = data.loader(set, options())
    local first = collect(loader, 0)
    assert.are_not.same(first.index, collect(loader, 1).index)
    assert.are_not.same(first.index, collect(data.loader(set, options { seed = 8 }), 0).index)
    same(first, collect(loader, 0))
  end)

  it("without augmentation and labels gives the bytes over 255", function()
    local bare = data.set(set.images)
    for batch in data.loader(bare, { batch = 103, shuffle = false }):epoch(0) do
      assert.is_nil(batch.y)
      assert.equal(1, #batch.x)
      assert.equal(0, (batch.x[1] - set.images:to "float32" / 255):abs():max():item())
    end
  end)

  it("gives the views that the chain gives at their address", function()
    for batch in data.loader(set, options { threads = 2 }):epoch(5) do
      for row, sample in ipairs(batch.index:tolist()) do
        for v = 1, 2 do
          local view = chain:apply(set.images[sample], { seed = 7, epoch = 5, sample = sample,
            view = v })
          assert(batch.x[v][row]:eq(view):all():item())
        end
      end
    end
  end)

  it("one sample, one view, one batch", function()
    local got = collect(data.loader(colours(1), options { views = 1 }), 0)
    assert.same({ 1 }, got.index)
    assert.same({ 1, 3, 8, 8 }, got.values[1].shape)
  end)
end)

describe("values", function()
  local set = colours()
  local expected = collect(data.loader(set, options()), 2)

  for _, threads in ipairs { 0, 1, 2, 5 } do
    it(("with %d threads are the same, and again"):format(threads), function()
      local loader = data.loader(set, options { threads = threads })
      same(expected, collect(loader, 2))
      collect(loader, 3)
      same(expected, collect(loader, 2))
      same(expected, collect(data.loader(set, options { threads = threads, queue = 1 }), 2))
    end)

    it(("with %d threads go on from the middle of an epoch"):format(threads), function()
      local rest = collect(data.loader(set, options { threads = threads }), 2, { start = 4 })
      local n = 3 * 16
      assert.same({ unpack(expected.index, n + 1) }, rest.index)
      for i, x in ipairs(rest.values) do
        assert(x:eq(expected.values[2 * 3 + i]):all():item())
      end
    end)
  end

  it("do not depend on the batch's size", function()
    local other = collect(data.loader(set, options { batch = 103, threads = 2 }), 2)
    assert.same(expected.index, other.index)
    assert(lunce.cat({ expected.values[1], expected.values[3] }, 1)
      :eq(other.values[1][{ { 1, 32 } }]):all():item())
  end)
end)

describe("ranks", function()
  local set = colours()

  it("share an epoch's order, all equally many", function()
    local whole = collect(data.loader(set, options()), 1).index
    for _, drop_last in ipairs { false, true } do
      for rank = 1, 4 do
        local got = collect(data.loader(set, options { rank = rank, world = 4, batch = 1,
          drop_last = drop_last }), 1).index
        assert.equal(drop_last and 25 or 26, #got)
        for i, index in ipairs(got) do
          assert.equal(whole[((i - 1) * 4 + rank - 1) % 103 + 1], index)
        end
      end
    end
  end)
end)

describe("an iteration", function()
  local set = colours()

  for _, threads in ipairs { 0, 3 } do
    it(("that is left early can be begun again, %d threads"):format(threads), function()
      local loader = data.loader(set, options { threads = threads })
      local expected = collect(loader, 1)
      for _ = 1, 20 do loader:epoch(4)() end
      same(expected, collect(loader, 1))
    end)
  end

  it("that another ended says so", function()
    local loader = data.loader(set, options())
    local first = loader:epoch(0)
    first()
    loader:epoch(1)
    refuses(function() first() end, "another epoch was begun")
  end)

  it("that is over stays over", function()
    local nxt = data.loader(set, options { batch = 103 }):epoch(0)
    assert(nxt())
    assert.is_nil(nxt())
    assert.is_nil(nxt())
  end)

  it("inside lunce.scope keeps nothing", function()
    local loader = data.loader(set, options())
    local next_batch = loader:epoch(0)
    local live
    for step = 1, 5 do
      lunce.scope(function() next_batch() end)
      if step == 2 then live = lunce.memory().live_bytes end
    end
    assert.equal(live, lunce.memory().live_bytes)
  end)
end)

describe("failures:", function()
  local set = colours()

  it("an interrupt stops the pull, and the next one goes on", function()
    for _, threads in ipairs { 0, 2 } do
      local loader = data.loader(set, options { threads = threads })
      local expected = collect(loader, 0)
      local nxt = loader:epoch(0)
      local first = nxt()
      C.ln_interrupt()
      local ok, message = pcall(nxt)
      C.ln_interrupt_clear()
      assert.is_false(ok)
      assert(message:find "interrupted", message)
      assert(first.x[1]:eq(expected.values[1]):all():item())
      for i = 2, 7 do assert(nxt().x[2]:eq(expected.values[2 * i]):all():item()) end
      assert.is_nil(nxt())
    end
  end)

  it("out of memory is raised, and the next pull makes the batch", function()
    for _, threads in ipairs { 0, 2 } do
      local loader = data.loader(set, options { threads = threads })
      local expected = collect(loader, 0)
      collectgarbage()
      local hard = lunce.memory().hard_bytes
      lunce.memory_limit { hard = lunce.memory().live_bytes + 1000 }
      local nxt = loader:epoch(0)
      local ok, message = pcall(nxt)
      lunce.memory_limit { hard = hard }
      assert.is_false(ok)
      assert(message:find "out of memory", message)
      for i = 1, 7 do assert(nxt().x[1]:eq(expected.values[2 * i - 1]):all():item()) end
    end
  end)

  it("an allocation that fails once on a thread is not seen", function()
    local loader = data.loader(set, options { threads = 2 })
    local expected = collect(loader, 0)
    for n = 1, 30 do
      C.ln_memory_fail_after(n)
      local ok, got = pcall(collect, loader, 0)
      C.ln_memory_fail_after(0)
      assert(ok, got)
      same(expected, got)
    end
  end)

  it("misuse is refused at the caller's line", function()
    local function with(more) return function() data.loader(set, options(more)) end end
    refuses(function() data.loader(set, {}) end, "batch")
    refuses(function() data.loader({}, options()) end, "a data set is taken")
    refuses(with { batch = 0 }, "batch 0")
    refuses(with { batch = 1.5 }, "batch is 1.5")
    refuses(with { views = 0 }, "views 0")
    refuses(with { views = 17 }, "views 17")
    refuses(with { threads = -1 }, "threads -1")
    refuses(with { threads = 257 }, "threads 257")
    refuses(with { rank = 3, world = 2 }, "world 2")
    refuses(with { rank = 0 }, "rank")
    refuses(with { batch = 104, drop_last = true }, "leaves nothing of 103 samples")
    refuses(with { limit = 0 }, "0 samples")
    refuses(with { augment = 3 }, "a chain is taken")
    refuses(with { speed = 3 }, "unknown option speed")
    refuses(with { augment = augment.chain { augment.center_crop { size = 11 } } },
      "center_crop", "12 x 10")
    local loader = data.loader(set, options())
    refuses(function() loader:epoch(-1) end, "epoch -1")
    refuses(function() loader:epoch(1.5) end, "epoch is 1.5")
    refuses(function() loader:epoch(0, { start = 9 }) end, "batch 9 of 7")
    refuses(function() loader:epoch(0, { start = 0 }) end, "batch 0 of 7")
    loader:close()
    refuses(function() loader:epoch(0) end, "the loader is closed")
    refuses(function() loader:stats() end, "the loader is closed")
  end)
end)

describe("a loader", function()
  local set = colours()

  it("counts what it gave, and what was waited for", function()
    local loader = data.loader(set, options { threads = 2, queue = 3 })
    collect(loader, 0)
    local stats = loader:stats()
    assert.equal(7, stats.batches)
    assert.equal(103, stats.samples)
    assert(stats.queued == 0 and stats.starved <= 7 and stats.wait_seconds <= stats.seconds)
    assert(stats.work_seconds > 0 and stats.throughput > 0)
    local nxt = loader:epoch(1)
    nxt()
    local until_full = os.time() + 20
    while loader:stats().queued < 3 and os.time() < until_full do end
    assert.equal(3, loader:stats().queued)
  end)

  it("gives all memory back, closed or collected, also in the middle of an epoch", function()
    for _ = 1, 2 do collectgarbage() end
    local before = lunce.memory()
    for _, close in ipairs { true, false } do
      local loader = data.loader(set, options { threads = 2 })
      loader:epoch(0)()
      if close then loader:close() end
      loader = nil
      for _ = 1, 3 do collectgarbage() end
      lunce.zeros(1):free() -- what died is swept at the next creation
      local after = lunce.memory()
      assert.equal(before.live_bytes, after.live_bytes)
      assert.equal(before.tensors, after.tensors)
      assert.is_nil(loader)
    end
  end)

  it("keeps its set alive", function()
    local loader = data.loader(colours(20), options { threads = 1 })
    for _ = 1, 3 do collectgarbage() end
    lunce.zeros(1000)
    assert.equal(20, #collect(loader, 0).index)
  end)

  it("hundreds come and go", function()
    for i = 1, 300 do
      local loader = data.loader(set, options { threads = i % 4 })
      local nxt = loader:epoch(0)
      if i % 3 > 0 then nxt() end
      if i % 2 == 0 then loader:close() end
    end
    collectgarbage()
  end)

  it("does not keep a process from leaving, however it leaves", function()
    local exe = forge.interpreter()
    local script = forge.file(([[
      package.path, package.cpath = %q, %q
      local lunce = require "lunce"
      local set = lunce.data.digits()
      local loader = lunce.data.loader(set, { batch = 100, threads = 3, views = 2,
        augment = lunce.augment.simclr { size = 32 } })
      loader:epoch(0)()
      if arg[1] == "exit" then os.exit(7) end
      if arg[1] == "error" then error "on purpose" end]]):format(package.path, package.cpath))
    for how, expected in pairs { ["exit"] = 7, ["error"] = 1, ["return"] = 0 } do
      for _ = 1, 3 do
        local result = os.execute(("timeout 60 %s %s %s 2>/dev/null"):format(exe, script, how))
        assert.equal(expected, result / 256)
      end
    end
    os.remove(script)
  end)

  it("has threads that no signal reaches", function()
    -- By thread, whether it blocks the first four signals, SIGINT among them: its mask ends in f.
    local function threads()
      local list = io.popen "grep SigBlk /proc/$PPID/task/*/status"
      local blocks = {}
      for line in list:lines() do blocks[line:match "task/(%d+)"] = line:find "f$" ~= nil end
      list:close()
      return blocks
    end
    local before = threads()
    local loader = data.loader(set, options { threads = 3 })
    local new = 0
    for id, blocked in pairs(threads()) do
      if before[id] == nil then
        new = new + 1
        assert.is_true(blocked)
      end
    end
    assert.equal(3, new)
    loader:close()
  end)
end)

-- Memory as a whole: that nothing piles up, whatever order things end in, and what happens when
-- there is no more. The campaigns of stress/ in short forms; `make stress` runs them in full.
local lunce = require "lunce"

local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local program = os.getenv "LUNCE_PROGRAM" or here .. "../lunce"
local memory = dofile(here .. "stress/memory.lua")

local MB = 2 ^ 20

-- Runs a campaign here, silently; it raises where it fails.
local function campaign(name, ...)
  local chunk = assert(loadfile(here .. "stress/" .. name .. ".lua"))
  setfenv(chunk, setmetatable({ print = function() end }, { __index = _G }))
  chunk(...)
end

describe("memory:", function()
  it("20,000 tensors of 1 MB that are dropped peak below 512 MB", function()
    campaign("drop", "--tensors=20000")
  end)

  it("live bytes and tensors are flat over training steps, in scopes and without", function()
    campaign("steps", "--steps=200")
  end)

  it("random orders of creating, viewing, freeing and dropping leave nothing", function()
    for seed = 1, 3 do campaign("orders", "--orders=2000", "--seed=" .. seed) end
  end)

  it("the state closes at any point", function()
    local options = jit.status() and "" or "-e 'jit.off()'"
    for seed = 1, 8 do
      local status = os.execute(("%s %s %sstress/orders.lua --close --seed=%d --orders=%d"):format(
        program, options, here, seed, 7 * seed))
      assert.equal(0, status)
    end
  end)

  it("an allocation that fails in a training step is an error or changes nothing", function()
    campaign("exhaust", "--limits=20")
  end)
end)

describe("the cache:", function()
  -- The cache after blocks of these MB were made and freed one after the other.
  local function cached(list)
    memory.settled()
    lunce.reset_peak_memory()
    for _, size in ipairs(list) do lunce.zeros(size * MB / 4, { device = "cpu" }):free() end
    return lunce.memory().cached_bytes / MB
  end

  it("keeps a few MB of blocks that are never in use together", function()
    assert.is_true(cached{ 3, 5, 7 } >= 15)
  end)

  it("holds no more than was in use at once, where that is much", function()
    local size = cached{ 40, 50, 60 }
    assert.is_true(size >= 60 and size <= 64, size)
  end)
end)

describe("the hard limit:", function()
  local hard = lunce.memory().hard_bytes

  -- Leaves room for so many bytes.
  local function leave(bytes)
    lunce.memory_limit{ hard = memory.settled().live_bytes + bytes }
  end

  after_each(function() lunce.memory_limit{ hard = hard } end)

  it("refuses at the caller's line with what was asked, what is live and the limit", function()
    local kept = lunce.ones(1000)
    leave(MB)
    local now = lunce.memory()
    local ok, message = pcall(function() return lunce.zeros(2 ^ 20) end)
    assert.is_false(ok)
    assert.matches("memory_test%.lua:%d+: empty: out of memory: 4194304 bytes on the cpu", message)
    assert.matches(("live %d bytes in %d tensors"):format(now.live_bytes, now.tensors), message)
    assert.matches(("hard limit %d bytes"):format(now.hard_bytes), message)
    assert.equal(1000, kept:sum():item())
  end)

  it("names the operator", function()
    local x = lunce.ones(512, 512)
    leave(1000)
    for name, operator in pairs{ add = function() return x + x end,
      matmul = function() return x:mm(x) end, exp = function() return x:exp() end,
      cumsum = function() return x:cumsum(1) end } do
      local ok, message = pcall(operator)
      assert.is_false(ok)
      assert.matches(": " .. name .. ": out of memory", message)
    end
    assert.equal(512 * 512, x:sum():item())
  end)

  it("is kept where it is not reached, and lifted by a higher one", function()
    leave(3 * MB)
    local t = lunce.ones(2 ^ 19)
    assert.has_error(function() return lunce.zeros(2 ^ 19) end)
    lunce.memory_limit{ hard = hard }
    assert.equal(2 ^ 20, (t + lunce.ones(2 ^ 19)):sum():item())
  end)

  it("makes room of what is dead before it refuses", function()
    leave(3 * MB)
    for i = 1, 20 do assert.equal(i, lunce.full({ 2 ^ 19 }, i)[7]:item()) end
  end)

  it("is reached by no size that overflows", function()
    for _, shape in ipairs{ { 2 ^ 40, 2 ^ 40 }, { 2 ^ 52 }, { 2 ^ 31, 2 ^ 31 } } do
      assert.has_error(function() return lunce.zeros(shape) end)
    end
  end)

  it("cannot be put below what is live", function()
    local kept = lunce.ones(2 ^ 18)
    local ok, message = pcall(lunce.memory_limit, { hard = 1000 })
    assert.is_false(ok)
    assert.matches("memory_limit: hard limit 1000 is below the %d+ bytes that are live", message)
    assert.equal(hard, lunce.memory().hard_bytes)
    assert.equal(2 ^ 18, kept:sum():item())
  end)
end)

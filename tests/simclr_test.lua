-- The training script as a user runs it, shortened: repeatable to the bit whatever the threads,
-- resumable to the bit, and stopped by a loss that is not finite with the operator's name.
local lunce = require "lunce"

local safetensors = lunce.io.safetensors
local script = (debug.getinfo(1, "S").source:match "^@(.*/)" or "./") .. "../scripts/simclr.lua"
local root = os.tmpname()

-- Runs the script with these options, silently, into a directory of its own.
local function simclr(name, ...)
  local quiet = { write = function() end, flush = function() end }
  local chunk = assert(loadfile(script))
  setfenv(chunk, setmetatable({ print = function() end, io = { stderr = quiet } },
    { __index = _G }))
  return chunk("--out=" .. root .. "/" .. name, ...)
end

local function same_tensors(a, b)
  local first, second = safetensors.load(a), safetensors.load(b)
  local count = 0
  for name, tensor in pairs(first) do
    count = count + 1
    assert(tensor:eq(second[name]):all():item(), name .. " differs")
  end
  assert.is_true(count > 20)
  for name in pairs(second) do assert.is_truthy(first[name]) end
end

describe("simclr:", function()
  setup(function()
    os.remove(root)
    assert(os.execute("mkdir " .. root))
  end)
  teardown(function() os.execute("rm -r " .. root) end)

  it("the same seed gives the same losses and weights for every number of threads", function()
    local one
    for _, threads in ipairs{ 0, 1, 2, 5, 1 } do
      local result = simclr("threads", "--size=8", "--epochs=2", "--threads=" .. threads)
      if one then
        assert.same(one.losses, result.losses)
        same_tensors(one.checkpoint, result.checkpoint)
      end
      one = one or simclr("reference", "--size=8", "--epochs=2", "--threads=" .. threads)
    end
  end)

  it("views made where the set lies, and another number of threads, change nothing", function()
    local one = simclr("threads_views", "--size=8", "--epochs=1")
    local two = simclr("device_views", "--size=8", "--epochs=1", "--augment=device", "--threads=3")
    assert.same(one.losses, two.losses)
    same_tensors(one.checkpoint, two.checkpoint)
    local ok, message = pcall(simclr, "x", "--augment=gpu")
    assert.is_false(ok)
    assert(message:match "%-%-augment is loader or device", message)
  end)

  it("another seed gives other losses", function()
    local one, two = simclr("a", "--size=8", "--epochs=1"),
      simclr("b", "--size=8", "--epochs=1", "--seed=8")
    assert.are_not.equal(one.losses[1], two.losses[1])
  end)

  it("a resumed run ends in the bits of an uninterrupted one", function()
    local o = { "--loss=weince", "--beta=batch", "--size=8" }
    local half = simclr("half", "--epochs=2", unpack(o))
    local resumed = simclr("resumed", "--epochs=4", "--resume=" .. half.checkpoint, unpack(o))
    local whole = simclr("whole", "--epochs=4", unpack(o))
    assert.equal(whole.losses[4], resumed.losses[4])
    same_tensors(whole.checkpoint, resumed.checkpoint)
  end)

  it("training lowers the loss, and the encoder learns", function()
    local result = simclr("learns", "--epochs=6")
    assert.is_true(result.losses[6] < result.losses[1])
    assert.is_true(result.knn > 0.85)
    assert.is_true(result.linear > 0.8)
  end)

  it("a loss that is not finite stops the run and names the first operator", function()
    local ok, message = pcall(simclr, "nan", "--epochs=3", "--lr=1e30")
    lunce.detect_anomaly(false)
    assert.is_false(ok)
    assert(message:match "conv2d", message)
  end)

  it("an unknown loss is an error", function()
    local ok, message = pcall(simclr, "x", "--loss=nothing")
    assert.is_false(ok)
    assert(message:match 'no loss "nothing"', message)
  end)
end)

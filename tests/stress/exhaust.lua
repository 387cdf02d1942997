-- A training step that runs out of memory: once at each of its allocations, and for good under each
-- of many limits. Every time it must end in the right numbers or in a Lua error that says so; then
-- every parameter is whole, the same network trains on, and nothing is left behind.
--
--   ./lunce tests/stress/exhaust.lua --limits=200
local lunce = require "lunce"
local C = require("lunce.ffi").C

local here = debug.getinfo(1, "S").source:match "^@(.*/)"
local memory, network = dofile(here .. "memory.lua"), dofile(here .. "network.lua")

local args = lunce.args({ limits = 200 }, { ... })

-- ---- What is right ---------------------------------------------------------------------------

local function snapshot(net)
  local values = {}
  for i, p in ipairs(net:parameters()) do values[i] = p:flatten():tolist() end
  return values
end

local function same(a, b)
  for i = 1, #a do
    if a[i] ~= b[i] then return false end
  end
  return #a == #b
end

-- The first step of a network that nothing disturbs: its loss, its parameters before and after, the
-- allocations it makes and the live bytes it needs.
local function undisturbed()
  local trial = network()
  local right = { start = snapshot(trial.net) }
  local before = memory.settled()
  lunce.reset_peak_memory()
  local allocations = lunce.memory().allocations
  right.loss = lunce.scope(trial.step)
  local after = lunce.memory()
  right.allocations = after.allocations - allocations
  right.bytes = after.peak_bytes - before.live_bytes
  right.finish = snapshot(trial.net)
  return right
end

-- ---- One trial -------------------------------------------------------------------------------

-- Each parameter is whole as it was or as it becomes. Returns whether none has moved.
local function check_whole(net, right)
  local still = true
  for i, values in ipairs(snapshot(net)) do
    local unmoved = same(values, right.start[i])
    still = still and unmoved
    assert(unmoved or same(values, right.finish[i]), "a parameter was written in part")
  end
  return still
end

local function check_finished(loss, net, right)
  assert(loss == right.loss, "another loss")
  for i, values in ipairs(snapshot(net)) do
    assert(same(values, right.finish[i]), "other parameters")
  end
end

-- The first step of a new network between disturb() and calm(); gives whether it raised.
local function trial(right, disturb, calm)
  local t = network()
  memory.settled()
  disturb()
  local ok, result = pcall(lunce.scope, t.step)
  calm()
  if ok then
    check_finished(result, t.net, right)
    return false
  end
  assert(result:find("out of memory", 1, true) and result:find("live", 1, true), result)
  local still = check_whole(t.net, right)
  lunce.manual_seed(1) -- not the network's draws again, but a step that trains
  result = lunce.scope(t.step)
  assert(result == result and (not still or #snapshot(t.net) > 0))
  return true
end

-- ---- The campaign ----------------------------------------------------------------------------

local function once_at_each_allocation(right)
  local raised = 0
  for n = 1, right.allocations do
    if trial(right, function() C.ln_memory_fail_after(n) end,
      function() C.ln_memory_fail_after(0) end) then raised = raised + 1 end
  end
  return raised
end

local function under_limits(right)
  local raised, hard = 0, lunce.memory().hard_bytes
  for i = 1, args.limits do
    local spare = right.bytes * i / args.limits
    if trial(right, function()
      lunce.memory_limit{ hard = math.floor(lunce.memory().live_bytes + spare) }
    end, function() lunce.memory_limit{ hard = hard } end) then raised = raised + 1 end
  end
  return raised
end

local before = memory.settled()
local right = undisturbed()
memory.same_as(before, "a step")
local once = once_at_each_allocation(right)
memory.same_as(before, "failing allocations")
local limited = under_limits(right)
memory.same_as(before, "limits")
assert(limited > 0 and limited < args.limits, "the limits were too wide or too narrow to tell")
print(("exhaust: %d allocations failed once: %d errors; %d limits: %d errors; the rest right")
  :format(right.allocations, once, args.limits, limited))

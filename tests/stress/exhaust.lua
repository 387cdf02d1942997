-- A training step that runs out of memory: at each of its allocations, where a collection helps and
-- where it does not, and under each of many limits. Every time it must end in the right numbers or
-- in a Lua error that says so; then every parameter is whole, the same network trains on, and
-- nothing is left behind.
--
--   ./lunce tests/stress/exhaust.lua --limits=200
local lunce = require "lunce"
local C = require("lunce.ffi").C
local handles = require "lunce.handles"

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

-- The first step of a new network between disturb() and calm(), and again after an error; gives
-- whether there was one.
local function trial(right, disturb, calm)
  local t = network()
  local draws = lunce.random.state()
  collectgarbage()
  disturb()
  local ok, result = pcall(lunce.scope, t.step)
  calm()
  if ok then
    check_finished(result, t.net, right)
    return false
  end
  assert(result:find("out of memory", 1, true) and result:find("hard limit", 1, true), result)
  local still = check_whole(t.net, right)
  lunce.random.set_state(draws)
  result = lunce.scope(t.step)
  if still then check_finished(result, t.net, right) end
  return true
end

-- ---- The campaign ----------------------------------------------------------------------------

-- How many of the step's allocations raised an error when they failed: each fails once, or also
-- when it is tried again after the collector has run.
local function failing_allocations(right, again)
  local raised, collect = 0, handles.collect
  for n = 1, right.allocations do
    local failed = trial(right, function()
      C.ln_memory_fail_after(n)
      if again then
        handles.collect = function(...)
          collect(...)
          C.ln_memory_fail_after(1)
        end
      end
    end, function()
      C.ln_memory_fail_after(0)
      handles.collect = collect
    end)
    if failed then raised = raised + 1 end
  end
  return raised
end

-- How many raised of limits up to a quarter above what the step needs.
local function limits(right)
  local raised, hard = 0, lunce.memory().hard_bytes
  for i = 1, args.limits do
    local spare = 1.25 * right.bytes * i / args.limits
    local failed = trial(right, function()
      lunce.memory_limit{ hard = math.floor(lunce.memory().live_bytes + spare) }
    end, function() lunce.memory_limit{ hard = hard } end)
    if failed then raised = raised + 1 end
  end
  return raised
end

lunce.scope(network().step) -- what losses remember of a size, the indices of its positives, stays
local before = memory.settled()
local right = undisturbed()
memory.same_as(before, "a step")
local once = failing_allocations(right, false)
memory.same_as(before, "allocations that fail once")
local twice = failing_allocations(right, true)
memory.same_as(before, "allocations that fail")
local limited = limits(right)
memory.same_as(before, "limits")
assert(once == 0, "a collection did not help")
assert(twice == right.allocations, "an allocation that failed went unseen")
assert(limited > args.limits / 2 and limited < args.limits, "the limits tell nothing")
print(("exhaust: %d allocations: failing once, no error; failing again, %d; %d limits: %d errors")
  :format(right.allocations, twice, args.limits, limited))

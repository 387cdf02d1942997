-- Training steps of a small network: live bytes and tensors are the same after each step in a
-- scope, and after a collection without; between collections they stay under the soft limit.
--
--   ./lunce tests/stress/steps.lua --steps=10000
local lunce = require "lunce"

local here = debug.getinfo(1, "S").source:match "^@(.*/)"
local memory, network = dofile(here .. "memory.lua"), dofile(here .. "network.lua")

local args = lunce.args({ steps = 10000 }, { ... })

local MB = 2 ^ 20
local WARM = 5 -- steps until all that a step keeps is there: gradients, the optimiser's state

local function in_scopes(step)
  local first
  for i = 1, args.steps do
    lunce.scope(step)
    local now = lunce.memory()
    if i == WARM then first = now end
    if first and (now.live_bytes ~= first.live_bytes or now.tensors ~= first.tensors) then
      error(("step %d in a scope: %d tensors of %d bytes became %d of %d"):format(i,
        first.tensors, first.live_bytes, now.tensors, now.live_bytes), 0)
    end
  end
end

-- Lua's own heap is held to a bound too: what Lua remembers of tensors must not grow.
local function without(step)
  local soft, every = 4 * MB, math.max(math.floor(args.steps / 10), WARM)
  local limits, first, lua_heap = lunce.memory(), nil, nil
  lunce.memory_limit{ soft = soft }
  for i = 1, args.steps do
    step()
    if i == WARM then
      first, lua_heap = memory.settled(), collectgarbage "count"
      lunce.reset_peak_memory()
    elseif i % every == 0 then
      memory.same_as(first, "step " .. i)
    end
  end
  local peak = lunce.memory().peak_bytes
  lunce.memory_limit{ soft = limits.soft_bytes }
  assert(peak <= first.live_bytes + soft + MB, ("%d bytes were live"):format(peak))
  memory.settled()
  assert(collectgarbage "count" <= lua_heap + 1024, "Lua's heap grew by more than 1 MB")
end

lunce.scope(network().step) -- what losses remember of a size, the indices of its positives, stays
local before = memory.settled()
for _, loop in ipairs{ in_scopes, without } do
  loop(network().step)
  memory.same_as(before, "steps")
end
print(("steps: %d in scopes and %d without: live bytes and tensors flat"):format(args.steps,
  args.steps))

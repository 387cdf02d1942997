-- Tensors of 1 MB dropped without free: Lua's collector sees none of their bytes, and yet they must
-- not pile up past 512 MB, live or resident.
--
--   ./lunce tests/stress/drop.lua --tensors=20000
local lunce = require "lunce"
local memory = dofile(debug.getinfo(1, "S").source:match "^@(.*/)" .. "memory.lua")

local args = lunce.args({ tensors = 20000 }, { ... })

local MB = 2 ^ 20
local MOST = 512 * MB

local before, threads = memory.settled(), lunce.threads()
lunce.threads(1) -- a team only fills faster
lunce.reset_peak_memory()
for i = 1, args.tensors do
  local t = lunce.full({ MB / 4 }, i) -- written, so that the pages are there
  assert(i % 1000 > 0 or t:mean():item() == i)
end
lunce.threads(threads)
local peak, resident = lunce.memory().peak_bytes, memory.process "VmHWM"
assert(peak <= MOST, ("%d tensors of 1 MB: %.0f MB were live"):format(args.tensors, peak / MB))
if not memory.instrumented() then
  assert(resident <= MOST, ("%d tensors of 1 MB: %.0f MB were resident"):format(args.tensors,
    resident / MB))
end
memory.same_as(before, "drop")
print(("drop: %d tensors of 1 MB: at most %.0f MB live, %.0f MB resident"):format(args.tensors,
  peak / MB, resident / MB))

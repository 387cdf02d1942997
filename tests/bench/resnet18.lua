-- Times a training step of ResNet-18 (3x3 stem, batch 64 of 3x32x32, forward and backward), on the
-- team of threads that the program has. Run: ./lunce --threads=2 tests/bench/resnet18.lua [steps]
-- Prints one line, "resnet18_step_ms <median>"; resnet18.py is its peer.
local lunce = require "lunce"
local clock = require("lunce.ffi").C.ln_clock

local steps = tonumber(arg[1] or 9)
lunce.manual_seed(1)
local model = lunce.models.resnet18()
local x = lunce.randn(64, 3, 32, 32)

local function step()
  model:zero_grad()
  local loss = model(x):square():mean()
  loss:backward()
  return loss:item()
end

for _ = 1, 2 do lunce.scope(step) end
local times = {}
for i = 1, steps do
  local start = clock()
  lunce.scope(step)
  times[i] = (clock() - start) * 1e3
end
table.sort(times)
print(("resnet18_step_ms %.1f"):format(times[math.ceil(steps / 2)]))

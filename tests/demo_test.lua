-- The demo as a user runs it, shortened, on the tests' device: training with two losses, the vote,
-- the probe and the figures. A device reaches the accuracies of the CPU.
local lunce = require "lunce"

local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local program = os.getenv "LUNCE_PROGRAM" or here .. "../lunce"
local device = lunce.zeros(1).device

-- What the last line of the script says, by name, and what the script has written.
local function demo(on)
  local out = os.tmpname()
  os.remove(out)
  local child = io.popen(("%s %s../scripts/demo.lua --epochs=1 --size=8 --device=%s --out=%s 2>&1")
    :format(program, here, on, out))
  local text, figures, files = child:read "*a", {}, {}
  child:close()
  local last = text:match "\ndemo: %a+ ([^\n]+)\n$"
  assert(last, text)
  for name, value in last:gmatch "([%w_]+)=(%S+)" do figures[name] = tonumber(value) end
  for _, name in ipairs{ "loss.svg", "negative-cosines.png", "weince/checkpoint.safetensors" } do
    local file = io.open(out .. "/" .. name)
    files[#files + 1] = file and name
    if file then file:close() end
  end
  os.execute("rm -r " .. out)
  return figures, files
end

local NAMES = { "untrained_knn", "nt_xent_linear", "nt_xent_knn", "weince_linear", "weince_knn" }

it("the demo on " .. device .. " has the figures of the CPU", function()
  local expected, files = demo "cpu"
  assert.equal(3, #files)
  for _, name in ipairs(NAMES) do assert.is_true(expected[name] > 0.85, name) end
  if device == "cpu" then return end
  local figures
  figures, files = demo(device)
  assert.equal(3, #files)
  for _, name in ipairs(NAMES) do assert.near(expected[name], figures[name], 0.02, name) end
end)

-- Runs tests of operators on another device: with the environment's DEVICE, whatever a test creates
-- without naming a device is created there. Holds no test. Invariant: the library itself is as it
-- is; only what its options default to differs.
local device = os.getenv "DEVICE"

local M = { name = (device or "") == "" and "cpu" or device == "cuda" and "cuda:0" or device }

-- Constructors declare the option device with the default "cpu", tensor() without a default. The
-- tail call keeps this function off the stack, on which errors look for the caller's line.
local function redirect_options()
  local option = require "lunce.options"
  local options = option.options
  function option.options(given, defaults, what)
    local creates = defaults.device == "cpu" or what == "tensor"
    if not creates or (given ~= nil and (type(given) ~= "table" or given.device)) then
      return options(given, defaults, what)
    end
    local moved = { device = M.name }
    for name, value in pairs(given or {}) do moved[name] = value end
    return options(moved, defaults, what)
  end
end

-- What is read from files goes there too, and memory is that device's.
local function redirect_functions()
  local lunce = require "lunce"
  local safetensors = lunce.io.safetensors
  local load = safetensors.load
  function safetensors.load(path)
    local tensors, metadata = load(path)
    for name, t in pairs(tensors or {}) do tensors[name] = t:to(M.name) end
    return tensors, metadata
  end
  for _, name in ipairs { "memory", "reset_peak_memory" } do
    local f = lunce[name]
    lunce[name] = function(asked) return f(asked or M.name) end
  end
end

if M.name ~= "cpu" then
  redirect_options()
  redirect_functions()
end

return M

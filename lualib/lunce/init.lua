-- What require "lunce" returns: operators and constructors by PyTorch's names, the settings of the
-- runtime, and the submodules, loaded when first named. Holds no operator.
local ffi = require "ffi"
local lib = require "lunce.ffi"
local handles = require "lunce.handles"
local tensor = require "lunce.tensor"
local ops = require "lunce.ops"
local autocast = require "lunce.autocast"
local autograd = require "lunce.autograd"
local random = require "lunce.random"
local option = require "lunce.options"

local C, raise, call = lib.C, lib.raise, lib.call

local M = {
  scope = require "lunce.scope",
  no_grad = autograd.no_grad,
  enable_grad = autograd.enable_grad,
  is_grad_enabled = autograd.is_grad_enabled,
  grad = autograd.grad,
  autocast = autocast.autocast,
  is_autocast_enabled = autocast.is_autocast_enabled,
  detect_anomaly = autograd.detect_anomaly,
  manual_seed = random.manual_seed,
  is_tensor = tensor.is_tensor,
}
for name, operator in pairs(ops) do M[name] = operator end
M.cuda = nil -- t:cuda() moves a tensor; lunce.cuda is the submodule

-- ---- Settings --------------------------------------------------------------------------------

--- Bytes and tensors of a device: live_bytes, peak_bytes, cached_bytes, soft_bytes, hard_bytes,
--- tensors, storages, allocations.
---@param device string|nil "cpu"
---@return table<string, number>
function M.memory(device)
  local box, result = ffi.new "ln_memory", {}
  handles.sweep()
  call(C.ln_memory_info, box, tensor.device(device or "cpu", "memory"))
  for _, name in ipairs { "live_bytes", "peak_bytes", "cached_bytes", "soft_bytes", "hard_bytes",
    "tensors", "storages", "allocations" } do
    result[name] = tonumber(box[name])
  end
  return result
end

--- soft: bytes of growth after which Lua's collector runs; hard: bytes that are never exceeded.
---@param given { soft: number, hard: number, device: string }
function M.memory_limit(given)
  local set = option.options(given, { soft = 0, hard = 0, device = "cpu" }, "memory_limit")
  call(C.ln_memory_limit, tensor.device(set.device, "memory_limit"), set.soft, set.hard)
end

--- Starts the measure of peak_bytes anew.
function M.reset_peak_memory(device)
  C.ln_memory_reset_peak(tensor.device(device or "cpu", "reset_peak_memory"))
end

--- The size of the team that carries CPU kernels, after setting it where n is given.
---@param n integer|nil
---@return integer
function M.threads(n)
  if n ~= nil then call(C.ln_threads_set, tensor.need_integer(n, "threads", "the team size")) end
  return C.ln_threads()
end

--- The instruction set of the CPU kernels, after setting it where a name is given: "baseline",
--- "avx2" or "avx512".
---@param name string|nil
---@return string
function M.isa(name)
  if name ~= nil then
    if type(name) ~= "string" then raise("isa: %s; a name is taken", option.describe(name)) end
    call(C.ln_isa_set, name)
  end
  return ffi.string(C.ln_isa())
end

-- ---- Submodules ------------------------------------------------------------------------------

local submodules = { nn = true, models = true, optim = true, loss = true, similarity = true,
  evt = true, data = true, augment = true, eval = true, io = true, args = true, random = true,
  link = true, plot = true, progress = true, cuda = true, graph = true }

return setmetatable(M, {
  __index = function(t, name)
    if not submodules[name] then raise("lunce has no %s", option.describe(name)) end
    local module = require("lunce." .. name)
    rawset(t, name, module)
    return module
  end,
})

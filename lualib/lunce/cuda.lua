-- CUDA devices, by PyTorch's names. Holds no operator: tensors move with t:to("cuda"). Invariant:
-- whether there is a device is asked of the driver once, at the first call, and never guessed.
local ffi = require "ffi"
local lib = require "lunce.ffi"
local tensor = require "lunce.tensor"

local C, call = lib.C, lib.call

local M = {}

local count = ffi.new "int[1]"

--- Whether there is a CUDA device; where there is none, also why.
---@return boolean
---@return string|nil
function M.is_available()
  if C.ln_cuda_devices(count) == C.LN_OK then return true end
  return false, ffi.string(C.ln_error())
end

--- The number of CUDA devices, 0 where there is none.
---@return integer
function M.device_count()
  return M.is_available() and count[0] or 0
end

local name = ffi.new "const char *[1]"

--- The model of a device.
---@param device string|nil "cuda"
---@return string
function M.get_device_name(device)
  call(C.ln_cuda_name, name, tensor.device(device or "cuda", "get_device_name"))
  return ffi.string(name[0])
end

--- Whether float32 products may be computed in TF32, after setting it where `allowed` is given:
--- faster, and good to three digits. Initially not.
---@param allowed boolean|nil
---@return boolean
function M.tf32(allowed)
  if allowed ~= nil then
    C.ln_cuda_tf32_set(tensor.need_boolean(allowed, "cuda.tf32", "argument 1"))
  end
  return C.ln_cuda_tf32()
end

local version, why = ffi.new "int[1]", ffi.new "const char *[1]"

--- The version of the cuDNN that convolves on CUDA devices, "9.1.0", after setting whether one may
--- where `allowed` is given (initially yes). Where none does, false and why: convolutions are then
--- matrix products by cuBLASLt, as they always are in float64.
---@param allowed boolean|nil
---@return string|false
---@return string|nil
function M.cudnn(allowed)
  if allowed ~= nil then
    C.ln_cuda_cudnn_set(tensor.need_boolean(allowed, "cuda.cudnn", "argument 1"))
  end
  call(C.ln_cuda_cudnn, version, why)
  local v = version[0]
  if v == 0 then return false, ffi.string(why[0]) end
  return ("%d.%d.%d"):format(math.floor(v / 10000), math.floor(v / 100) % 100, v % 100)
end

--- Waits until the device has done all it was asked to.
---@param device string|nil "cuda"
function M.synchronize(device)
  call(C.ln_synchronize, tensor.device(device or "cuda", "synchronize"))
end

--- Gives memory that is cached for reuse back to the device.
---@param device string|nil "cuda"
function M.empty_cache(device)
  call(C.ln_memory_flush, tensor.device(device or "cuda", "empty_cache"))
end

return M

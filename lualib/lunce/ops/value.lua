-- Casts, copies, Lua values of tensors, and the marks of autograd: what a tensor does with itself
-- as a whole. Holds no arithmetic.
local ffi = require "ffi"
local lib = require "lunce.ffi"
local tensor = require "lunce.tensor"
local autograd = require "lunce.autograd"
local option = require "lunce.options"

local C, raise, call = lib.C, lib.raise, lib.call
local out, take, need = tensor.out, tensor.take, tensor.need
local tape, record, rule = autograd.tape, autograd.record, autograd.rule

local M = {}

-- ---- Size ------------------------------------------------------------------------------------

--- The shape, or the extent of dimension dim.
---@param dim integer|nil
---@return integer[]|integer
function M.size(x, dim)
  local shape = need(x, "size", 1).shape
  if dim == nil then return { unpack(shape) } end
  return shape[tensor.dim_index(dim, #shape, "size") + 1]
end

---@return integer
function M.dim(x)
  return tensor.ndim(need(x, "dim", 1))
end

---@return integer
function M.numel(x)
  return tonumber(tensor.info(need(x, "numel", 1)).numel)
end

--- The distance in memory, in elements, between neighbours along dimension dim, or a list of all.
---@param dim integer|nil
---@return integer[]|integer
function M.stride(x, dim)
  local about, list = tensor.info(need(x, "stride", 1)), {}
  for i = 1, about.ndim do list[i] = tonumber(about.stride[i - 1]) end
  if dim == nil then return list end
  return list[tensor.dim_index(dim, #list, "stride") + 1]
end

local FORMATS = { contiguous = true, channels_last = true }

-- Whether the format asked for is channels-last, and x can be.
local function wants_channels_last(x, format, what)
  if not FORMATS[format] then
    raise('%s: memory_format %s; "contiguous" or "channels_last" is taken', what,
      option.describe(format))
  end
  if format == "channels_last" and tensor.ndim(x) ~= 4 then
    raise("%s: a tensor of %d dimensions; channels_last takes (N,C,H,W)", what, tensor.ndim(x))
  end
  return format == "channels_last"
end

local format_options = { memory_format = "contiguous" }

--- Whether x is row-major without gaps; with { memory_format = "channels_last" }, whether it is an
--- (N,C,H,W) in the memory order of a row-major (N,H,W,C).
---@param given { memory_format: "contiguous"|"channels_last" }|nil
---@return boolean
function M.is_contiguous(x, given)
  local about = tensor.info(need(x, "is_contiguous", 1))
  local format = option.options(given, format_options, "is_contiguous").memory_format
  if not wants_channels_last(x, format, "is_contiguous") then return about.contiguous end
  local one_order = about.shape[1] == 1 or about.shape[2] * about.shape[3] == 1
  return about.channels_last or (one_order and about.contiguous)
end

-- ---- Lua values ------------------------------------------------------------------------------

-- A captured step cannot bring values home.
local function check_home(about, what)
  if about.device ~= C.LN_CPU then
    tensor.no_capture(what, "return the tensor, and look at its values after the step")
  end
end

local one = ffi.new "double[1]"

--- The only element of x: a number, or a boolean of a bool tensor.
---@return number|boolean
function M.item(x)
  local about = tensor.info(need(x, "item", 1))
  local is_bool = about.dtype == C.LN_BOOL
  if about.numel ~= 1 then
    raise("item: a tensor of %d elements; exactly one is taken", tonumber(about.numel))
  end
  check_home(about, "item")
  call(C.ln_tensor_read, one, x.h, 1)
  if is_bool then return one[0] ~= 0 end
  return one[0]
end

local function nested(values, at, shape, depth, is_bool)
  if depth > #shape then
    if is_bool then return values[at] ~= 0, at + 1 end
    return values[at], at + 1
  end
  local list = {}
  for i = 1, shape[depth] do list[i], at = nested(values, at, shape, depth + 1, is_bool) end
  return list, at
end

--- The elements as nested tables; of a tensor without dimensions, the element itself.
function M.tolist(x)
  local n = M.numel(need(x, "tolist", 1))
  check_home(tensor.info(x), "tolist")
  local values = ffi.new("double[?]", math.max(n, 1))
  call(C.ln_tensor_read, values, x.h, n)
  return (nested(values, 0, x.shape, 1, x.dtype == "bool"))
end

-- ---- Casts and copies ------------------------------------------------------------------------

local cast_rule = rule("to", function(node, dy) return dy:to(node.dtype) end)
local device_rule = rule("to", function(node, dy) return dy:to(node.device) end)

local function cast(x, dtype)
  if x.dtype == dtype then return x end
  call(C.ln_cast, out(), x.h, tensor.dtype(dtype, "to"))
  local y = take()
  if tape.on and x.requires_grad and dtype:find "float" then
    record(y, cast_rule, x).dtype = x.dtype
  end
  return y
end

local function move(x, device, non_blocking)
  local number = tensor.device(device, "to")
  if tensor.info(x).device == number then return x end
  call(non_blocking and C.ln_upload or C.ln_to_device, out(), x.h, number)
  local y = take()
  if tape.on and x.requires_grad then record(y, device_rule, x).device = x.device end
  return y
end

local copy_rule = rule("clone", function(_, dy) return dy end)

local function copied(x, channels_last)
  call(channels_last and C.ln_channels_last or C.ln_contiguous, out(), x.h)
  local y = take()
  if tape.on and x.requires_grad then record(y, copy_rule, x) end
  return y
end

--- A copy of its own: channels-last where x is, else row-major.
function M.clone(x)
  return copied(x, tensor.info(need(x, "clone", 1)).channels_last)
end

-- x itself where it is in the format, else a copy that is.
local function formatted(x, channels_last)
  local about = tensor.info(x)
  if about.channels_last == channels_last and (channels_last or about.contiguous) then return x end
  return copied(x, channels_last)
end

--- x itself where it is row-major without gaps, else such a copy. { memory_format =
--- "channels_last" }: the same for an (N,C,H,W) in the memory order of a row-major (N,H,W,C), in
--- which CUDA devices convolve fastest. Operators on such a tensor give such tensors: elementwise
--- ones, conv2d (where input or weight is), batch_norm, pools, casts and copies.
---@param given { memory_format: "contiguous"|"channels_last" }|nil
function M.contiguous(x, given)
  need(x, "contiguous", 1)
  local format = option.options(given, format_options, "contiguous").memory_format
  return formatted(x, wants_channels_last(x, format, "contiguous"))
end

local to_options = { dtype = false, device = false, non_blocking = false, memory_format = false }
local later, copy_flags = { non_blocking = false }, { non_blocking = true }

--- x in another dtype, on another device, in another memory format: to("float64"), to("cuda:1"),
--- to{ dtype =, device =, memory_format = }. x itself where nothing changes. non_blocking: a copy
--- from pinned memory to a CUDA device, or from a device to the CPU, into pinned memory, may go on
--- after the call, beside the device's other work; the result is used, and x changed or freed, as
--- if it had ended, for what needs it waits: on the CPU, who looks at the result's values first.
---@param target string|{ dtype: string, device: string, non_blocking: boolean,
---  memory_format: "contiguous"|"channels_last" }
---@param given { non_blocking: boolean }|nil
---@return lunce.Tensor
function M.to(x, target, given)
  need(x, "to", 1)
  if type(target) == "table" then
    if given ~= nil then raise("to: options are given twice; one table is taken") end
    local set = option.options(target, to_options, "to", copy_flags)
    local y = set.dtype and cast(x, set.dtype) or x
    if set.device then y = move(y, set.device, set.non_blocking) end
    local format = set.memory_format
    return format and formatted(y, wants_channels_last(y, format, "to")) or y
  end
  local set = option.options(given, later, "to", copy_flags)
  if type(target) == "string" and (target == "cpu" or target:find "^cuda") then
    return move(x, target, set.non_blocking)
  end
  tensor.dtype(target, "to")
  return cast(x, target)
end

for name, dtype in pairs { float = "float32", double = "float64", half = "float16",
  bfloat16 = "bfloat16", long = "int64", int = "int32", byte = "uint8", bool = "bool" } do
  M[name] = function(x) return cast(need(x, name, 1), dtype) end
end

function M.cpu(x) return move(need(x, "cpu", 1), "cpu") end

function M.cuda(x) return move(need(x, "cuda", 1), "cuda") end

--- A copy on the CPU in pinned memory, from and to which devices copy fastest; off the tape.
---@return lunce.Tensor
function M.pin_memory(x)
  call(C.ln_pin, out(), need(x, "pin_memory", 1).h)
  return take()
end

---@return boolean
function M.is_pinned(x) return C.ln_is_pinned(need(x, "is_pinned", 1).h) end



-- ---- Marks -----------------------------------------------------------------------------------

--- The same elements, off the tape.
function M.detach(x)
  call(C.ln_tensor_alias, out(), need(x, "detach", 1).h)
  return take()
end

--- Marks a leaf as one to which backward brings gradients. Returns x.
---@param wanted boolean|nil true
function M.requires_grad_(x, wanted)
  need(x, "requires_grad_", 1)
  if wanted == nil then wanted = true end
  tensor.need_boolean(wanted, "requires_grad_", "the mark")
  if x.node and not wanted then
    raise("requires_grad_: the tensor is a result of recorded operators; detach it")
  end
  if wanted and not x.dtype:find "float" then
    raise("requires_grad_: dtype %s; only floating-point tensors have gradients", x.dtype)
  end
  x.requires_grad = wanted
  return x
end

--- Makes backward leave the gradient of x, which is not a leaf, in x.grad. Returns x.
function M.retain_grad(x)
  if not need(x, "retain_grad", 1).requires_grad then
    raise("retain_grad: the tensor requires no gradient")
  end
  if x.node then x.node.holder = x end
  return x
end

M.backward = autograd.backward

return M

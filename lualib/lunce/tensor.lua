-- The tensor as Lua holds it: one handle and what autograd knows of it. Holds handles, fields,
-- and the stack of scopes; no operator. Invariants: `h` owns exactly one C handle until it is
-- freed; a freed tensor has no `h`, so every use of it raises; extents and dtype never change.
local bit = require "bit"
local ffi = require "ffi"
local lib = require "lunce.ffi"
local handles = require "lunce.handles"
local describe = require("lunce.options").describe

local C, raise, call = lib.C, lib.raise, lib.call
local own, relieve = handles.own, handles.relieve

---@class lunce.Tensor
---@field shape integer[]
---@field dtype string
---@field device string
---@field ndim integer
---@field requires_grad boolean
---@field grad lunce.Tensor|nil
---@field node table|false what autograd recorded for it
local Tensor = { __name = "tensor" }

local M = {
  Tensor = Tensor,
  methods = {}, -- what t:name() finds; ops/ fills it
}

-- scope: the innermost open one, an array of tensors with their count in n, or false (scope.lua);
-- step: the captured step whose function runs, or false; graph: its capture, or false where it only
-- warms up (graph.lua).
local state = { scope = false, step = false, graph = false }
M.state = state

--- Refuses what a captured step cannot do again; `instead` says what to do.
function M.no_capture(what, instead)
  if state.graph then
    raise("%s: cannot be a part of a captured step (lunce.graph): %s", what, instead)
  end
end

-- ORDER DTYPE
M.dtype_names = { [0] = "float32", "float64", "bfloat16", "float16", "int64", "int32", "uint8",
  "bool" }
local dtype_numbers = {}
for number = 0, #M.dtype_names do dtype_numbers[M.dtype_names[number]] = number end

--- The number of a dtype's name.
function M.dtype(name, what)
  local number = dtype_numbers[name]
  if not number then
    raise("%s: dtype %s; one of float32, float64, bfloat16, float16, int64, int32, uint8, bool is"
      .. " taken", what, describe(name))
  end
  return number
end

--- The number of a device's name: "cpu", "cuda" or "cuda:1".
function M.device(name, what)
  if name == "cpu" then return C.LN_CPU end
  local index = type(name) == "string" and (name == "cuda" and 0 or name:match "^cuda:(%d+)$")
  if not index then
    raise('%s: device %s; "cpu", "cuda" or "cuda:<number>" is taken', what, describe(name))
  end
  return C.LN_CUDA + tonumber(index)
end

-- ---- Results of C functions ------------------------------------------------------------------

local box, box2 = ffi.new "ln_tensor *[1]", ffi.new "ln_tensor *[1]"
local box3, box4 = ffi.new "ln_tensor *[1]", ffi.new "ln_tensor *[1]"

--- An empty out-box for a C function's result, which take() then wraps. out2, take2 to out4, take4
--- are the boxes of a second to fourth result.
function M.out()
  box[0] = nil
  return box
end

function M.out2()
  box2[0] = nil
  return box2
end

function M.out3()
  box3[0] = nil
  return box3
end

function M.out4()
  box4[0] = nil
  return box4
end

--- Hands t to the innermost open scope.
local function adopt(t)
  local scope = state.scope
  if scope then
    local n = scope.n + 1
    scope.n = n
    scope[n] = t
  end
end
M.adopt = adopt

--- A tensor that owns the handle.
local function wrap(handle)
  local t = setmetatable({ h = handle, slot = 0, node = false, requires_grad = false }, Tensor)
  own(t)
  adopt(t)
  relieve()
  return t
end
M.wrap = wrap

--- A tensor whose handle comes later, by settle; until then its use raises. With `make`, its first
--- use calls that, and the tensor that it returns is this one from then on; it belongs to the scope
--- in which it was deferred.
function M.defer(make)
  return setmetatable({ slot = 0, node = false, requires_grad = false, deferred = make or true,
    birth = make and state.scope }, Tensor)
end

--- Makes a deferred tensor the owner of its handle.
function M.settle(t, handle)
  rawset(t, "h", handle)
  rawset(t, "deferred", nil)
  own(t)
  adopt(t)
  relieve()
end

local function taken(from)
  local handle = from[0]
  if handle == nil then return nil end
  from[0] = nil
  return wrap(handle)
end

--- The tensor that the last call left in out(); nil where the C function gave none.
function M.take() return taken(box) end

function M.take2() return taken(box2) end

function M.take3() return taken(box3) end

function M.take4() return taken(box4) end

--- An out-box that makes the C function write into t.
function M.into(t)
  box[0] = t.h
  return box
end

function M.into2(t)
  box2[0] = t.h
  return box2
end

-- ---- Descriptions ----------------------------------------------------------------------------

local info = ffi.new "ln_tensor_info"

--- What C says of t, in a struct that the next call of info overwrites.
local function describe_tensor(t)
  call(C.ln_tensor_describe, info, t.h)
  return info
end
M.info = describe_tensor

---@return boolean
function M.is_tensor(x)
  return getmetatable(x) == Tensor
end

--- x, which must be a tensor: argument `position` of `what`.
function M.need(x, what, position)
  if getmetatable(x) ~= Tensor then
    raise("%s: argument %d is %s; a tensor is taken", what, position, describe(x))
  end
  return x
end

--- value, which must be a whole number; `name` is what the message calls it.
function M.need_integer(value, what, name)
  if type(value) ~= "number" or value % 1 ~= 0 then
    raise("%s: %s is %s; a whole number is taken", what, name, describe(value))
  end
  return value
end

function M.need_count(value, what, name)
  if type(value) ~= "number" or value % 1 ~= 0 or value < 0 then
    raise("%s: %s is %s; a whole number of at least 0 is taken", what, name, describe(value))
  end
  return value
end

function M.need_number(value, what, name)
  if type(value) ~= "number" then
    raise("%s: %s is %s; a number is taken", what, name, describe(value))
  end
  return value
end

function M.need_boolean(value, what, name)
  if type(value) ~= "boolean" then
    raise("%s: %s is %s; a boolean is taken", what, name, describe(value))
  end
  return value
end

--- value, which must be a function or callable as a module is: argument `position` of `what`, the
--- first where not given.
function M.need_function(value, what, position)
  local meta = type(value) == "table" and getmetatable(value)
  if type(value) ~= "function" and not (meta and meta.__call) then
    raise("%s: argument %d is %s; a function is taken", what, position or 1, describe(value))
  end
  return value
end

--- The place in C (from 0) of dimension d of ndim (from 1, or -1 for the last).
local function dim_index(d, ndim, what)
  if type(d) ~= "number" or d % 1 ~= 0 or d == 0 or d > ndim or d < -ndim then
    raise("%s: dimension %s; the tensor has %s", what, describe(d),
      ndim == 0 and "none" or ("1 to %d, or -1 to -%d"):format(ndim, ndim))
  end
  return d > 0 and d - 1 or ndim + d
end
M.dim_index = dim_index

function M.ndim(t)
  return describe_tensor(t).ndim
end

--- The bit set of a dimension or a list of them; nil is all of them, which C writes as 0.
function M.dim_set(dims, ndim, what)
  if dims == nil then return 0 end
  if type(dims) == "number" then
    if ndim == 0 and (dims == 1 or dims == -1) then return 0 end
    return bit.lshift(1, dim_index(dims, ndim, what))
  end
  if type(dims) ~= "table" or getmetatable(dims) then
    raise("%s: dimensions are %s; a number or a list of numbers is taken", what, describe(dims))
  end
  if #dims == 0 and next(dims) ~= nil then
    raise("%s: dimensions are a table with names; a number or a list of numbers is taken", what)
  end
  local set = 0
  for i = 1, #dims do
    local one = bit.lshift(1, dim_index(dims[i], ndim, what))
    if bit.band(set, one) ~= 0 then raise("%s: dimension %d is given twice", what, dims[i]) end
    set = bit.bor(set, one)
  end
  return set
end

local extents = ffi.new "int64_t[8]"

--- A shape for C: the number of dimensions and an array that the next call overwrites. Takes a
--- list, or numbers one by one; `lowest` is the least extent allowed.
function M.extents(what, lowest, first, ...)
  local list, ndim = first, nil
  if type(first) ~= "table" or getmetatable(first) then
    list, ndim = { first, ... }, first ~= nil and 1 + select("#", ...)
  end
  ndim = ndim or #list
  if ndim > C.LN_MAX_DIMS then
    raise("%s: %d dimensions; 0 to %d are taken", what, ndim, C.LN_MAX_DIMS)
  end
  for i = 1, ndim do
    local n = list[i]
    if type(n) ~= "number" or n % 1 ~= 0 or n < lowest then
      raise("%s: extent %d is %s; a whole number of at least %d is taken", what, i, describe(n),
        lowest)
    end
    extents[i - 1] = n
  end
  return ndim, extents
end

-- ---- Fields ----------------------------------------------------------------------------------

local fields = {}

-- The handle of a deferred tensor from what its `make` gives, whatever is in the boxes.
local function make_handle(t, make)
  local first, second, third, fourth, inner = box[0], box2[0], box3[0], box4[0], state.scope
  local made = make()
  call(C.ln_tensor_alias, M.out(), made.h)
  state.scope = rawget(t, "birth")
  M.settle(t, box[0])
  state.scope = inner
  made:free()
  box[0], box2[0], box3[0], box4[0] = first, second, third, fourth
  return rawget(t, "h")
end

function fields.h(t)
  local make = rawget(t, "deferred")
  if make and make ~= true then return make_handle(t, make) end
  if make then
    raise("the tensor is computed when similarity.together returns; use it after that")
  end
  raise("the tensor was freed (by lunce.scope or t:free()); return it from the scope or mark it"
    .. " with t:keep() to use it later")
end

function fields.grad() return nil end

function fields.kept() return false end

-- Shape and dtype are remembered under names of their own, so that assigning to them raises.
function fields.shape(t)
  local shape = rawget(t, "known_shape")
  if shape then return shape end
  local about = describe_tensor(t)
  shape = {}
  for i = 1, about.ndim do shape[i] = tonumber(about.shape[i - 1]) end
  rawset(t, "known_shape", shape)
  return shape
end

function fields.dtype(t)
  local name = rawget(t, "known_dtype")
  if name then return name end
  name = M.dtype_names[describe_tensor(t).dtype]
  rawset(t, "known_dtype", name)
  return name
end

function fields.device(t)
  local number = describe_tensor(t).device
  if number == C.LN_CPU then return "cpu" end
  return "cuda:" .. number - C.LN_CUDA
end

fields.ndim = M.ndim

function fields.is_leaf(t) return not t.node end

function Tensor.__index(t, key)
  local method = M.methods[key]
  if method then return method end
  local field = fields[key]
  if field then return field(t) end
  if type(key) == "string" then raise("a tensor has no method or field %q", key) end
  return M.methods.at(t, key)
end

function Tensor.__newindex(t, key, value)
  if type(key) == "string" then
    if key ~= "grad" or (value ~= nil and not M.is_tensor(value)) then
      raise("a tensor's field %q cannot be set to %s", key, describe(value))
    end
    rawset(t, key, value)
  else
    M.methods.set_at(t, key, value)
  end
end

-- ---- Lifetime --------------------------------------------------------------------------------

--- Gives the elements back now. Any later use of t raises. Views of t stay whole.
function M.methods.free(t)
  if rawget(t, "h") then handles.release(t) end
end

--- Lets t outlive every lunce.scope it was created in. Returns t.
function M.methods.keep(t)
  rawset(t, "kept", true)
  return t
end

return M

-- Automatic mixed precision: inside lunce.autocast operators cast their inputs to the dtype that
-- suits them. Holds the casts; which operator makes which stands beside the operator. Invariants:
-- a cast is recorded, so that a gradient returns in its leaf's dtype; backward rules run with
-- autocasting off; outside of every region no cast is remembered.
--
-- tape.low is the region's dtype, false where autocasting is off. Operators test it, which costs
-- nothing, before they call:
--   if tape.low then x, w = autocast.low(x, w) end    -- a product
--   if tape.low then x = autocast.wide(x) end         -- what needs range or precision
local lib = require "lunce.ffi"
local tensor = require "lunce.tensor"
local autograd = require "lunce.autograd"
local describe = require("lunce.options").describe
local to = require("lunce.ops.value").to

local C, raise, Tensor, tape = lib.C, lib.raise, tensor.Tensor, autograd.tape

local M = {}

local HALVES = { float16 = true, bfloat16 = true }
local CASTS = { float32 = true, float16 = true, bfloat16 = true }

-- ---- Products --------------------------------------------------------------------------------

-- Casts of weights, by weight: { y =, version =, graph = } with the weight's version when y was
-- made, and the capture that made it: its casts are not made when it is recorded.
local casts, depth = {}, 0

-- Whether a scope has left y, and its weight and the tape are as they were.
local function serves(cast, x)
  local y = cast.y
  return rawget(y, "h") and y.dtype == tape.low and cast.version == C.ln_tensor_version(x.h)
    and (y.requires_grad or not tape.on) and cast.graph == tensor.state.graph
end

local function lowered(x)
  local is_weight = x.requires_grad and not x.node and x.dtype == "float32"
  if not is_weight then return to(x, tape.low) end
  local cast = casts[x]
  if cast and serves(cast, x) then return cast.y end
  local y = to(x, tape.low)
  if y.node then y.node.lasting = true end
  casts[x] = { y = y, version = C.ln_tensor_version(x.h), graph = tensor.state.graph }
  return y
end

--- The inputs of a product in the region's dtype; as they are where one is of another dtype than
--- float32, float16 and bfloat16. A weight (a float32 leaf that requires a gradient) is cast once,
--- until it changes, its cast is freed by a scope, or the outermost region ends.
---@param x lunce.Tensor
---@param y lunce.Tensor
---@param bias lunce.Tensor|nil
function M.low(x, y, bias)
  if not (CASTS[x.dtype] and CASTS[y.dtype] and (not bias or CASTS[bias.dtype])) then
    return x, y, bias
  end
  return lowered(x), lowered(y), bias and lowered(bias)
end

-- ---- The others ------------------------------------------------------------------------------

--- x as float32 where it is a float16 or bfloat16 tensor and autocasting is on, else x itself,
--- whatever it is.
function M.wide(x)
  if tape.low and getmetatable(x) == Tensor and HALVES[x.dtype] then return to(x, "float32") end
  return x
end

--- The tensors of the list, all as float32 where they are float32, float16 and bfloat16 mixed.
---@param list lunce.Tensor[]
---@return lunce.Tensor[]
function M.widest(list)
  local mixed, result = false, {}
  for i, x in ipairs(list) do
    if not CASTS[x.dtype] then return list end
    mixed = mixed or x.dtype ~= list[1].dtype
    result[i] = x
  end
  if not mixed then return list end
  for i, x in ipairs(result) do result[i] = M.wide(x) end
  return result
end

-- ---- Regions ---------------------------------------------------------------------------------

local function leave(was, ok, ...)
  tape.low, depth = was, depth - 1
  if depth == 0 then casts = {} end
  if not ok then error((...), 0) end
  return ...
end

--- Calls fn(...) with autocasting to dtype, or with false without it, and returns what it returns.
--- Regions nest. Model and loss belong inside; backward may run inside or after. float16 wants
--- lunce.optim.GradScaler beside it. Of inputs in float32 and in halves (float16, bfloat16),
---
---   matmul, mm, linear, conv2d             compute in dtype, summing in float32, and give dtype;
---   exp, expm1, log, log1p, softplus, square, ^, rsqrt, reciprocal, number / x,
---   sum, mean, prod, cumsum, var, std, logsumexp, norm,
---   softmax, log_softmax, cross_entropy, layer_norm, lunce.similarity, lunce.loss
---                                          take halves as float32 and give float32;
---   cat, stack, scatter_add                take different dtypes, as float32;
---   all others                             take what comes: elementwise ones promote, and
---                                          batch_norm gives its input's dtype, its statistics and
---                                          parameters being float32.
---
--- A float64 input is never cast, nor what it is multiplied with; in-place operators cast nothing.
--- Every operator takes halves on every device. The CPU computes them in float32: there a region
--- makes activations smaller and steps slower.
---@param dtype "float16"|"bfloat16"|false
---@param fn function
---@return any ... what fn returned
function M.autocast(dtype, fn, ...)
  if dtype ~= false and not HALVES[dtype] then
    raise('autocast: dtype %s; "float16", "bfloat16" or false is taken', describe(dtype))
  end
  tensor.need_function(fn, "autocast", 2)
  local was = tape.low
  tape.low, depth = dtype, depth + 1
  return leave(was, pcall(fn, ...))
end

---@return boolean
function M.is_autocast_enabled()
  return tape.low ~= false
end

return M

-- What networks are made of: convolution, pooling, normalisation, softmax, dropout and the
-- classification loss, with their backward rules. Holds no parameter and no state; nn/ does.
local ffi = require "ffi"
local lib = require "lunce.ffi"
local tensor = require "lunce.tensor"
local autocast = require "lunce.autocast"
local autograd = require "lunce.autograd"
local create = require "lunce.ops.create"
local random = require "lunce.random"
local option = require "lunce.options"

local C, raise, call = lib.C, lib.raise, lib.call
local out, out2, out3, out4 = tensor.out, tensor.out2, tensor.out3, tensor.out4
local take, take2, take3, take4 = tensor.take, tensor.take2, tensor.take3, tensor.take4
local need = tensor.need
local tape, record, save, own, rule = autograd.tape, autograd.record, autograd.save, autograd.own,
  autograd.rule
local record_list = autograd.record_list

local M = {}

local function wanted(x, w, b)
  return tape.on and ((x and x.requires_grad) or (w and w.requires_grad) or (b and b.requires_grad))
end

local function need_optional(x, what, position)
  return x ~= nil and need(x, what, position) or nil
end

-- Sets both entries of a C pair from n or { height, width }.
local function set_pair(pair, value, what, name, lowest)
  local list = type(value) == "table" and value or { value, value }
  for i = 1, 2 do
    if type(list[i]) ~= "number" or list[i] % 1 ~= 0 or list[i] < lowest or #list ~= 2 then
      raise("%s: %s is %s; a whole number of at least %d, or two in a list, is taken", what, name,
        option.describe(type(value) == "table" and list[i] or value), lowest)
    end
    pair[i - 1] = list[i]
  end
end

-- ---- Convolution -----------------------------------------------------------------------------

local conv_rule = rule("conv2d", function(node, dy)
  call(C.ln_conv2d_backward, node[1] and out() or nil, node[2] and out2() or nil,
    node[3] and out3() or nil, dy.h, node.x.h, node.y.h, node.params)
  return node[1] and take(), node[2] and take2(), node[3] and take3()
end)

local conv_options = { stride = false, padding = false, dilation = false, groups = 1 }

--- x (N,C,H,W), w (O,C/groups,h,w), bias (O) or nil -> (N,O,H',W'). Options: stride (1), padding
--- (0), dilation (1), each a number or { height, width }, and groups (1).
---@param x lunce.Tensor
---@param w lunce.Tensor
---@param bias lunce.Tensor|nil
---@param given table|nil
---@return lunce.Tensor
function M.conv2d(x, w, bias, given)
  need(x, "conv2d", 1)
  need(w, "conv2d", 2)
  need_optional(bias, "conv2d", 3)
  local set = option.options(given, conv_options, "conv2d")
  local params = ffi.new "ln_conv_params"
  set_pair(params.stride, set.stride or 1, "conv2d", "stride", 1)
  set_pair(params.padding, set.padding or 0, "conv2d", "padding", 0)
  set_pair(params.dilation, set.dilation or 1, "conv2d", "dilation", 1)
  params.groups = tensor.need_integer(set.groups, "conv2d", "groups")
  if tape.low then x, w, bias = autocast.low(x, w, bias) end
  call(C.ln_conv2d, out(), x.h, w.h, bias and bias.h, params)
  local y = take()
  if wanted(x, w, bias) then save(record(y, conv_rule, x, w, bias), x, w).params = params end
  return y
end

-- ---- Pooling ---------------------------------------------------------------------------------

-- The extents of x's last two dimensions.
local function plane(x)
  local shape = x.shape
  return shape[#shape - 1], shape[#shape]
end

local function pool_params(what, kernel, given)
  local set = option.options(given, { stride = false, padding = false }, what)
  local params = ffi.new "ln_pool_params"
  set_pair(params.kernel, kernel, what, "the kernel", 1)
  set_pair(params.stride, set.stride or kernel, what, "stride", 1)
  set_pair(params.padding, set.padding or 0, what, "padding", 0)
  return params
end

local max_pool_rule = rule("max_pool2d", function(node, dy)
  call(C.ln_max_pool2d_backward, out(), dy.h, node.private[1].h, node.height, node.width)
  return take()
end)

--- The largest of each window: x (N,C,H,W). Options: stride (the kernel), padding (0).
---@param kernel integer|integer[]
---@return lunce.Tensor
function M.max_pool2d(x, kernel, given)
  need(x, "max_pool2d", 1)
  call(C.ln_max_pool2d, out(), out2(), x.h, pool_params("max_pool2d", kernel, given))
  local y, indices = take(), take2()
  if not wanted(x) then
    indices:free()
    return y
  end
  local node = own(record(y, max_pool_rule, x), indices)
  node.height, node.width = plane(x)
  return y
end

local avg_pool_rule = rule("avg_pool2d", function(node, dy)
  call(C.ln_avg_pool2d_backward, out(), dy.h, node.height, node.width, node.params,
    node.channels_last)
  return take()
end)

--- The mean of each window, in which padding counts as zeros. Options as for max_pool2d.
---@param kernel integer|integer[]
---@return lunce.Tensor
function M.avg_pool2d(x, kernel, given)
  need(x, "avg_pool2d", 1)
  local params = pool_params("avg_pool2d", kernel, given)
  call(C.ln_avg_pool2d, out(), x.h, params)
  local y = take()
  if wanted(x) then
    local node = record(y, avg_pool_rule, x)
    node.params, node.height, node.width = params, plane(x)
    node.channels_last = tensor.info(x).channels_last
  end
  return y
end

local adaptive_rule = rule("adaptive_avg_pool2d", function(node, dy)
  call(C.ln_adaptive_avg_pool2d_backward, out(), dy.h, node.height, node.width,
    node.channels_last)
  return take()
end)

local size_pair = ffi.new "int64_t[2]"

--- Means of windows such that the result has the given size, a number or { height, width }.
---@param size integer|integer[]
---@return lunce.Tensor
function M.adaptive_avg_pool2d(x, size)
  need(x, "adaptive_avg_pool2d", 1)
  set_pair(size_pair, size, "adaptive_avg_pool2d", "the size", 1)
  call(C.ln_adaptive_avg_pool2d, out(), x.h, size_pair[0], size_pair[1])
  local y = take()
  if wanted(x) then
    local node = record(y, adaptive_rule, x)
    node.height, node.width = plane(x)
    node.channels_last = tensor.info(x).channels_last
  end
  return y
end

-- ---- Normalisation ---------------------------------------------------------------------------

local function check_eps(eps, what)
  if eps < 0 then raise("%s: option eps is %g; a number of at least 0 is taken", what, eps) end
end

-- Inputs: x, weight, bias, residual. node.z: the output, with relu.
local batch_norm_rule = rule("batch_norm", function(node, dy)
  local relu = node.z ~= nil
  call(C.ln_batch_norm_backward, out(), node[2] and out2() or nil, node[3] and out3() or nil,
    relu and node[4] and out4() or nil, dy.h, node.x.h, relu and node.z.h or nil,
    node.y and node.y.h, node.private[1].h, node.private[2].h, node.training)
  return { take(), node[2] and take2(), node[3] and take3(),
    node[4] and (relu and take4() or dy) }
end)

local batch_norm_flags = { training = true, relu = true }
local batch_norm_options = { training = false, momentum = 0.1, eps = 1e-5, residual = false,
  relu = false }

--- torch.nn.functional.batch_norm: x (N,C,...); the rest (C) or nil. In training it normalises by
--- the batch and moves the running statistics by momentum, otherwise it normalises by them. Options
--- besides: residual, a tensor like x that is added to the result, and relu, which is applied last;
--- with them one pass over memory does what three operators would.
---@return lunce.Tensor
function M.batch_norm(x, running_mean, running_var, weight, bias, given)
  need(x, "batch_norm", 1)
  need_optional(running_mean, "batch_norm", 2)
  need_optional(running_var, "batch_norm", 3)
  need_optional(weight, "batch_norm", 4)
  need_optional(bias, "batch_norm", 5)
  local set = option.options(given, batch_norm_options, "batch_norm", batch_norm_flags)
  local residual, relu = set.residual, set.relu
  check_eps(set.eps, "batch_norm")
  if residual and not tensor.is_tensor(residual) then
    raise("batch_norm: option residual is %s; a tensor is taken", option.describe(residual))
  end
  if residual and residual.dtype ~= x.dtype then -- under autocast: what it is added to is promoted
    set.residual, set.relu = false, false
    local y = M.batch_norm(x, running_mean, running_var, weight, bias, set) + residual
    return relu and y:relu() or y
  end
  call(C.ln_batch_norm, out(), out2(), out3(), x.h, weight and weight.h, bias and bias.h,
    residual and residual.h or nil, running_mean and running_mean.h,
    running_var and running_var.h, set.training, relu, set.momentum, set.eps)
  local y, mean, rstd = take(), take2(), take3()
  if wanted(x, weight, bias) or wanted(residual) then
    local inputs = { x, weight or false, bias or false, residual }
    local node = save(record_list(y, batch_norm_rule, inputs), x, weight, relu and y)
    own(node, mean, rstd).training = set.training
  else
    mean:free()
    rstd:free()
  end
  return y
end

local layer_norm_rule = rule("layer_norm", function(node, dy)
  call(C.ln_layer_norm_backward, out(), node[2] and out2() or nil, node[3] and out3() or nil, dy.h,
    node.x.h, node.y and node.y.h, node.private[1].h, node.private[2].h, node.ndim)
  return take(), node[2] and take2(), node[3] and take3()
end)

--- torch.nn.functional.layer_norm over the last dimensions, whose extents are `shape`; weight and
--- bias have that shape, or are nil. Options: eps (1e-5).
---@param shape integer|integer[]
---@return lunce.Tensor
function M.layer_norm(x, shape, weight, bias, given)
  local of_x = need(x, "layer_norm", 1).shape
  need_optional(weight, "layer_norm", 3)
  need_optional(bias, "layer_norm", 4)
  local set = option.options(given, { eps = 1e-5 }, "layer_norm")
  local list = type(shape) == "number" and { shape } or shape
  local fits = type(list) == "table" and not getmetatable(list) and #list >= 1 and #list <= #of_x
  for i = 1, fits and #list or 0 do fits = fits and list[i] == of_x[#of_x - #list + i] end
  if not fits then
    raise("layer_norm: shape %s is not the end of the input's, (%s)", option.describe_list(list),
      table.concat(of_x, ","))
  end
  check_eps(set.eps, "layer_norm")
  if tape.low then
    x, weight, bias = autocast.wide(x), autocast.wide(weight), autocast.wide(bias)
  end
  call(C.ln_layer_norm, out(), out2(), out3(), x.h, weight and weight.h, bias and bias.h, #list,
    set.eps)
  local y, mean, rstd = take(), take2(), take3()
  if wanted(x, weight, bias) then
    local node = save(record(y, layer_norm_rule, x, weight, bias), x, weight)
    own(node, mean, rstd).ndim = #list
  else
    mean:free()
    rstd:free()
  end
  return y
end

-- ---- Softmax and loss ------------------------------------------------------------------------

local function define_softmax(name, logarithm)
  local back = rule(name, function(node, dy)
    call(C.ln_softmax_backward, out(), dy.h, node.x.h, node.dim, logarithm)
    return take()
  end)

  M[name] = function(x, dim)
    local d = tensor.dim_index(dim or -1, tensor.ndim(need(x, name, 1)), name)
    if tape.low then x = autocast.wide(x) end
    call(C.ln_softmax, out(), x.h, d, logarithm)
    local y = take()
    if tape.on and x.requires_grad then save(record(y, back, x), y).dim = d end
    return y
  end
end

--- softmax(x, dim) and log_softmax(x, dim); dim: the last where not given.
define_softmax("softmax", false)
define_softmax("log_softmax", true)

-- Labels outside 1..C are an error that names the loss, not the gather under it.
local function check_labels(target, classes)
  if target.dtype == "bool" then raise "cross_entropy: labels are bool; integers are taken" end
  if target:numel() == 0 then return end
  if target.device ~= "cpu" then
    return call(C.ln_index_check, target.h, classes, "cross_entropy")
  end
  local low, high = target:min():item(), target:max():item()
  if low < 1 or high > classes then
    raise("cross_entropy: labels from %g to %g; 1 to %d are taken", low, high, classes)
  end
end

local cross_entropy_options = { label_smoothing = 0, reduction = "mean" }

--- -sum(target log softmax(logits)) of each sample; logits (N,C,...) or (C). target: class labels
--- from 1 without the class dimension, or probabilities of the logits' shape. Options:
--- label_smoothing (0), reduction: "mean" (default), "sum" or "none".
---@param logits lunce.Tensor
---@param target lunce.Tensor
---@return lunce.Tensor
function M.cross_entropy(logits, target, given)
  local shape = need(logits, "cross_entropy", 1).shape
  local soft = need(target, "cross_entropy", 2).dtype:find "float" ~= nil
  local set = option.options(given, cross_entropy_options, "cross_entropy")
  local smoothing, reduction = set.label_smoothing, set.reduction
  if smoothing < 0 or smoothing > 1 then
    raise("cross_entropy: label_smoothing %g; 0 to 1 is taken", smoothing)
  end
  if reduction ~= "mean" and reduction ~= "sum" and reduction ~= "none" then
    raise('cross_entropy: reduction %q; "mean", "sum" or "none" is taken', reduction)
  end
  if #shape == 0 or #target.shape ~= (soft and #shape or #shape - 1) then
    raise("cross_entropy: logits (%s) with %s (%s); (N,C,...) and (N,...) or, as probabilities,"
      .. " (N,C,...) are taken", table.concat(shape, ","), soft and "probabilities" or "labels",
      table.concat(target.shape, ","))
  end
  local classes = #shape == 1 and 1 or 2
  local logp = logits:log_softmax(classes)
  local likelihood
  if soft then
    likelihood = (target * logp):sum(classes)
  else
    check_labels(target, shape[classes])
    likelihood = logp:gather(classes, target:unsqueeze(classes)):squeeze(classes)
  end
  if smoothing > 0 then
    likelihood = likelihood * (1 - smoothing) + logp:mean(classes) * smoothing
  end
  if reduction == "none" then return -likelihood end
  return -likelihood[reduction](likelihood)
end

-- ---- Dropout ---------------------------------------------------------------------------------

local dropout_rule = rule("dropout", function(node, dy)
  return dy * node.private[1]
end)

local dropout_options = { training = true, seed = false, stream = false }

--- In training, zeros each element with probability p and scales the rest by 1 / (1 - p);
--- otherwise x itself. Options: training (true), seed and stream.
---@param x lunce.Tensor
---@param p number|nil 0.5
---@return lunce.Tensor
function M.dropout(x, p, given)
  p = tensor.need_number(p or 0.5, "dropout", "the probability")
  local set = option.options(given, dropout_options, "dropout")
  if p < 0 or p > 1 then raise("dropout: probability %g; 0 to 1 is taken", p) end
  if not set.training or p == 0 then return need(x, "dropout", 1) end
  local mask = create.zeros_like(need(x, "dropout", 1))
  local seed, stream, address = random.address(set, mask)
  call(C.ln_random, mask.h, C.LN_BERNOULLI, 1 - p, 0, seed, stream, 0, address)
  if p < 1 then mask:mul_(1 / (1 - p)) end
  call(C.ln_binary, out(), C.LN_MUL, x.h, mask.h)
  local y = take()
  if wanted(x) then
    own(record(y, dropout_rule, x), mask)
  else
    mask:free()
  end
  return y
end

return M

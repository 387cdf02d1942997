-- Layers without running state: products, activations, pooling, reshaping, dropout. Their weights
-- start as PyTorch's do. Invariant: a layer holds its settings and parameters; the arithmetic is
-- the function of the same name on `lunce`.
local init = require "lunce.nn.initialise"
local lunce = require "lunce"
local module = require("lunce.nn.module").module
local need_integer = require("lunce.tensor").need_integer
local options = require("lunce.options").options
local size = require "lunce.nn.size"

local M = {}

local function new_bias(n, fan_in)
  local bound = 1 / math.sqrt(fan_in)
  return init.uniform_(lunce.zeros(n), -bound, bound):requires_grad_()
end

local linear_options = { bias = true }

--- x (..., in_features) -> x W^T + b (..., out_features). weight (out, in), bias (out).
---@overload fun(in_features: integer, out_features: integer, opts?: { bias: boolean })
M.Linear = module("Linear", {
  init = function(self, in_features, out_features, opts)
    opts = options(opts, linear_options, "Linear")
    self.in_features = size.positive(in_features, "Linear", "in_features")
    self.out_features = size.positive(out_features, "Linear", "out_features")
    local weight = lunce.zeros(out_features, in_features)
    self.weight = init.kaiming_uniform_(weight, { a = math.sqrt(5) }):requires_grad_()
    if opts.bias then self.bias = new_bias(out_features, in_features) end
  end,
  forward = function(self, x) return lunce.linear(x, self.weight, self.bias) end,
  describe = function(self)
    return ("%d, %d%s"):format(self.in_features, self.out_features, self.bias and "" or ", no bias")
  end,
})

local conv_options = { stride = false, padding = false, dilation = false, groups = 1, bias = true }

--- x (N, in_channels, H, W) -> (N, out_channels, H', W'). weight (out, in / groups, kh, kw). Sizes
--- are a number or { height, width }.
---@overload fun(in_channels: integer, out_channels: integer, kernel_size: integer|integer[],
---  opts?: { stride: any, padding: any, dilation: any, groups: integer, bias: boolean })
M.Conv2d = module("Conv2d", {
  init = function(self, in_channels, out_channels, kernel_size, opts)
    opts = options(opts, conv_options, "Conv2d")
    self.in_channels = size.positive(in_channels, "Conv2d", "in_channels")
    self.out_channels = size.positive(out_channels, "Conv2d", "out_channels")
    self.kernel_size = size.pair(kernel_size, "Conv2d", "kernel_size", 1)
    self.settings = {
      stride = size.pair(opts.stride or 1, "Conv2d", "stride", 1),
      padding = size.pair(opts.padding or 0, "Conv2d", "padding", 0),
      dilation = size.pair(opts.dilation or 1, "Conv2d", "dilation", 1),
      groups = size.divisor(opts.groups, "Conv2d", "groups", in_channels, out_channels),
    }
    local fan = in_channels / opts.groups
    local weight = lunce.zeros(out_channels, fan, self.kernel_size[1], self.kernel_size[2])
    self.weight = init.kaiming_uniform_(weight, { a = math.sqrt(5) }):requires_grad_()
    if opts.bias then
      self.bias = new_bias(out_channels, fan * self.kernel_size[1] * self.kernel_size[2])
    end
  end,
  forward = function(self, x) return lunce.conv2d(x, self.weight, self.bias, self.settings) end,
  describe = function(self)
    local set = self.settings
    return ("%d, %d, %s, stride %s, padding %s%s%s%s"):format(self.in_channels, self.out_channels,
      size.text(self.kernel_size), size.text(set.stride), size.text(set.padding),
      size.text(set.dilation) == "1" and "" or ", dilation " .. size.text(set.dilation),
      set.groups == 1 and "" or ", groups " .. set.groups, self.bias and "" or ", no bias")
  end,
})

M.ReLU = module("ReLU", { forward = function(_, x) return lunce.relu(x) end })

--- x times the normal distribution function of x, by erf.
M.GELU = module("GELU", { forward = function(_, x) return lunce.gelu(x) end })

local pool_options = { stride = false, padding = false }

local function pool(name, apply)
  return module(name, {
    init = function(self, kernel_size, opts)
      opts = options(opts, pool_options, name)
      self.kernel_size = size.pair(kernel_size, name, "kernel_size", 1)
      self.settings = {
        stride = size.pair(opts.stride or self.kernel_size, name, "stride", 1),
        padding = size.pair(opts.padding or 0, name, "padding", 0),
      }
    end,
    forward = function(self, x) return apply(x, self.kernel_size, self.settings) end,
    describe = function(self)
      return ("%s, stride %s, padding %s"):format(size.text(self.kernel_size),
        size.text(self.settings.stride), size.text(self.settings.padding))
    end,
  })
end

--- The largest of each window; the stride is the window's size unless given.
---@overload fun(kernel_size: integer|integer[], opts?: { stride: any, padding: any })
M.MaxPool2d = pool("MaxPool2d", function(...) return lunce.max_pool2d(...) end)

--- The mean of each window; padding counts as zeros.
---@overload fun(kernel_size: integer|integer[], opts?: { stride: any, padding: any })
M.AvgPool2d = pool("AvgPool2d", function(...) return lunce.avg_pool2d(...) end)

--- (N, C, H, W) -> (N, C): the mean of each plane.
M.GlobalAvgPool = module("GlobalAvgPool", {
  forward = function(_, x) return lunce.adaptive_avg_pool2d(x, 1):flatten(2) end,
})

--- Joins the dimensions from `first` (2: all but the batch) to `last` (-1) into one.
---@overload fun(first?: integer, last?: integer)
M.Flatten = module("Flatten", {
  init = function(self, first, last)
    self.first = need_integer(first or 2, "Flatten", "the first dimension")
    self.last = need_integer(last or -1, "Flatten", "the last dimension")
  end,
  forward = function(self, x) return lunce.flatten(x, self.first, self.last) end,
  describe = function(self) return self.first .. ", " .. self.last end,
})

--- In training, zeroes each element with probability p (0.5) and scales the others by 1 / (1 - p).
---@overload fun(p?: number)
M.Dropout = module("Dropout", {
  init = function(self, p) self.p = size.probability(p or 0.5, "Dropout", "p") end,
  forward = function(self, x) return lunce.dropout(x, self.p, { training = self.training }) end,
  describe = function(self) return tostring(self.p) end,
})

return M

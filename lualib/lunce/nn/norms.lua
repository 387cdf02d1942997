-- Normalisation layers. Weights start at one and biases at zero. Invariant: running statistics move
-- only in training mode, and only they are used out of it.
local lunce = require "lunce"
local module = require("lunce.nn.module").module
local need = require("lunce.tensor").need
local options = require("lunce.options").options
local raise = require("lunce.ffi").raise
local size = require "lunce.nn.size"

local M = {}

local batch_options = { eps = 1e-5, momentum = 0.1, affine = true, track_running_stats = true }

local fused_options, fused_flags = { residual = false, relu = false }, { relu = true }

local function batch_norm(name, least, most)
  return module(name, {
    init = function(self, features, opts)
      opts = options(opts, batch_options, name)
      self.features = size.positive(features, name, "features")
      size.probability(opts.momentum, name, "momentum")
      self.settings = { training = true, momentum = opts.momentum, eps = opts.eps }
      if opts.affine then
        self.weight = lunce.ones(features):requires_grad_()
        self.bias = lunce.zeros(features):requires_grad_()
      end
      if opts.track_running_stats then
        self:register_buffer("running_mean", lunce.zeros(features))
        self:register_buffer("running_var", lunce.ones(features))
        self:register_buffer("num_batches_tracked", lunce.zeros({}, { dtype = "int64" }))
      end
    end,
    forward = function(self, x, more)
      more = options(more, fused_options, name, fused_flags)
      local ndim = need(x, name, 1).ndim
      if ndim < least or ndim > most then
        raise("%s: the input is (%s); %d%s dimensions are taken", name, table.concat(x.shape, ","),
          least, most > least and " or " .. most or "")
      end
      if self.training and self.running_mean then self.num_batches_tracked:add_(1) end
      local set = self.settings
      set.training = self.training or not self.running_mean
      return lunce.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias,
        { training = set.training, momentum = set.momentum, eps = set.eps,
          residual = more.residual, relu = more.relu })
    end,
    describe = function(self) return tostring(self.features) end,
  })
end

---@class lunce.BatchNormOptions
---@field eps? number 1e-5
---@field momentum? number 0.1
---@field affine? boolean true
---@field track_running_stats? boolean true

--- x (N, C) or (N, C, L): each of the C features to mean 0 and variance 1 over the batch, then
--- times weight plus bias, both (C). Running statistics move by `momentum`. Called as bn(x, {
--- residual = r, relu = true }), either may be left out, it gives relu(bn(x) + r) in one pass.
---@overload fun(features: integer, opts?: lunce.BatchNormOptions)
M.BatchNorm1d = batch_norm("BatchNorm1d", 2, 3)

--- The same for x (N, C, H, W), over the batch and the planes.
---@overload fun(features: integer, opts?: lunce.BatchNormOptions)
M.BatchNorm2d = batch_norm("BatchNorm2d", 4, 4)

local layer_options = { eps = 1e-5, affine = true }

--- x (..., shape): each sample to mean 0 and variance 1 over its last dimensions, which must be
--- `shape` (a number or a list), then times weight plus bias, both of that shape.
---@overload fun(shape: integer|integer[], opts?: { eps: number, affine: boolean })
M.LayerNorm = module("LayerNorm", {
  init = function(self, shape, opts)
    opts = options(opts, layer_options, "LayerNorm")
    self.shape = type(shape) == "table" and shape or { shape }
    self.settings = { eps = opts.eps }
    for i = 1, math.max(#self.shape, 1) do
      size.positive(self.shape[i], "LayerNorm", "extent " .. i)
    end
    if opts.affine then
      self.weight = lunce.ones(self.shape):requires_grad_()
      self.bias = lunce.zeros(self.shape):requires_grad_()
    end
  end,
  forward = function(self, x)
    return lunce.layer_norm(x, self.shape, self.weight, self.bias, self.settings)
  end,
  describe = function(self) return table.concat(self.shape, ", ") end,
})

return M

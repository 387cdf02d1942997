-- Residual networks (He et al., arXiv 1512.03385) with torchvision's parameter names, so that a
-- checkpoint passes either way by load_state_dict. Holds the architecture and no weights.
local nn = require "lunce.nn"
local options = require("lunce.options").options
local describe = require("lunce.options").describe
local raise = require("lunce.ffi").raise

local M = {}

local function conv(from, to, kernel_size, stride)
  return nn.Conv2d(from, to, kernel_size,
    { stride = stride, padding = (kernel_size - 1) / 2, bias = false })
end

-- The shortcut of a block that changes the image's size or its channels.
local function downsample(from, to, stride)
  if stride == 1 and from == to then return nil end
  return nn.Sequential(conv(from, to, 1, stride), nn.BatchNorm2d(to))
end

local with_relu = { relu = true }

-- Both blocks: (N, from, H, W) -> (N, width * expansion, H / stride, W / stride).
local Basic = nn.module("BasicBlock", {
  init = function(self, from, width, stride)
    self.conv1 = conv(from, width, 3, stride)
    self.bn1 = nn.BatchNorm2d(width)
    self.conv2 = conv(width, width, 3, 1)
    self.bn2 = nn.BatchNorm2d(width)
    self.downsample = downsample(from, width, stride)
  end,
  forward = function(self, x)
    local y = self.bn1(self.conv1(x), with_relu)
    local shortcut = self.downsample and self.downsample(x) or x
    return self.bn2(self.conv2(y), { residual = shortcut, relu = true })
  end,
})

local Bottleneck = nn.module("Bottleneck", {
  init = function(self, from, width, stride)
    self.conv1 = conv(from, width, 1, 1)
    self.bn1 = nn.BatchNorm2d(width)
    self.conv2 = conv(width, width, 3, stride)
    self.bn2 = nn.BatchNorm2d(width)
    self.conv3 = conv(width, 4 * width, 1, 1)
    self.bn3 = nn.BatchNorm2d(4 * width)
    self.downsample = downsample(from, 4 * width, stride)
  end,
  forward = function(self, x)
    local y = self.bn1(self.conv1(x), with_relu)
    y = self.bn2(self.conv2(y), with_relu)
    local shortcut = self.downsample and self.downsample(x) or x
    return self.bn3(self.conv3(y), { residual = shortcut, relu = true })
  end,
})

local function stage(block, expansion, from, width, stride, depth)
  local blocks = {}
  for i = 1, depth do
    blocks[i] = block(i == 1 and from or width * expansion, width, i == 1 and stride or 1)
  end
  return nn.Sequential(unpack(blocks))
end

local stems = { ["3x3"] = true, ["7x7"] = true }

local ResNet = nn.module("ResNet", {
  init = function(self, block, expansion, depths, opts)
    local small = opts.stem == "3x3"
    self.conv1 = small and conv(opts.in_channels, 64, 3, 1) or conv(opts.in_channels, 64, 7, 2)
    self.bn1 = nn.BatchNorm2d(64)
    if not small then self.maxpool = nn.MaxPool2d(3, { stride = 2, padding = 1 }) end
    local from = 64
    for i, depth in ipairs(depths) do
      local width = 64 * 2 ^ (i - 1)
      self["layer" .. i] = stage(block, expansion, from, width, i == 1 and 1 or 2, depth)
      from = width * expansion
    end
    self.pool = nn.GlobalAvgPool()
    self.out_features = from
    if opts.num_classes then self.fc = nn.Linear(from, opts.num_classes) end
    for _, module in self:named_modules() do
      local weight = module.weight
      if weight and #weight.shape == 4 then
        nn.init.kaiming_normal_(weight, { mode = "fan_out", nonlinearity = "relu" })
      end
    end
  end,
  forward = function(self, x)
    x = self.bn1(self.conv1(x), with_relu)
    if self.maxpool then x = self.maxpool(x) end
    x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
    x = self.pool(x)
    return self.fc and self.fc(x) or x
  end,
})

local defaults = { stem = "3x3", in_channels = 3, num_classes = false }

local function network(name, block, expansion, depths)
  return function(opts)
    opts = options(opts, defaults, name)
    if not stems[opts.stem] then
      raise('%s: stem %s; "3x3" or "7x7" is taken', name, describe(opts.stem))
    end
    return ResNet(block, expansion, depths, opts)
  end
end

-- (N, in_channels, H, W) -> features (N, out_features), or logits (N, num_classes) where
-- num_classes is given: only then is there a layer `fc`. The stem "3x3" keeps the size of small
-- images (no max-pool); "7x7" is ImageNet's, and torchvision's.

---@class lunce.ResNetOptions
---@field stem? "3x3"|"7x7"
---@field in_channels? integer 3
---@field num_classes? integer

---@type fun(opts?: lunce.ResNetOptions): lunce.Module
M.resnet18 = network("resnet18", Basic, 1, { 2, 2, 2, 2 })

---@type fun(opts?: lunce.ResNetOptions): lunce.Module
M.resnet34 = network("resnet34", Basic, 1, { 3, 4, 6, 3 })

---@type fun(opts?: lunce.ResNetOptions): lunce.Module
M.resnet50 = network("resnet50", Bottleneck, 4, { 3, 4, 6, 3 })

return M

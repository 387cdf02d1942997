-- A small encoder for small images. Holds one constructor and no weights.
local nn = require "lunce.nn"
local options = require("lunce.options").options
local size = require "lunce.nn.size"

local defaults = { channels = { 32, 64, 128 }, in_channels = 1 }

--- (N, in_channels, H, W) -> (N, out_features): a 3x3 convolution, batch normalisation and ReLU for
--- each entry of channels, halving the image by maxima between them, then the mean of each plane.
---@param opts? { channels: integer[], in_channels: integer }
---@return lunce.Module encoder its field out_features is the last entry of channels
return function(opts)
  opts = options(opts, defaults, "convnet")
  local from, layers = opts.in_channels, {}
  for i, to in ipairs(opts.channels) do
    if i > 1 then layers[#layers + 1] = nn.MaxPool2d(2) end
    size.positive(to, "convnet", "channels[" .. i .. "]")
    layers[#layers + 1] = nn.Conv2d(from, to, 3, { padding = 1, bias = false })
    layers[#layers + 1] = nn.BatchNorm2d(to)
    layers[#layers + 1] = nn.ReLU()
    from = to
  end
  layers[#layers + 1] = nn.GlobalAvgPool()
  local encoder = nn.Sequential(unpack(layers))
  encoder.out_features = from
  return encoder
end

-- The head between an encoder and a contrastive loss. Holds one constructor and no weights.
local nn = require "lunce.nn"
local options = require("lunce.options").options

local defaults, flags = { hidden_features = false, batch_norm = false }, { batch_norm = true }

--- SimCLR's projector: (N, in_features) -> Linear, ReLU, Linear -> (N, out_features), without
--- biases. The hidden width is in_features unless given; batch_norm normalises before the ReLU.
---@param in_features integer
---@param out_features integer
---@param opts? { hidden_features: integer, batch_norm: boolean }
---@return lunce.Module
return function(in_features, out_features, opts)
  opts = options(opts, defaults, "projector", flags)
  local hidden = opts.hidden_features or in_features
  local layers = { nn.Linear(in_features, hidden, { bias = false }) }
  if opts.batch_norm then layers[2] = nn.BatchNorm1d(hidden) end
  layers[#layers + 1] = nn.ReLU()
  layers[#layers + 1] = nn.Linear(hidden, out_features, { bias = false })
  return nn.Sequential(unpack(layers))
end

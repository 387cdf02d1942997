-- A small network with every kind of layer that the models use, and a training step of it; the
-- same numbers each time. Holds no check.
local lunce = require "lunce"
local nn = lunce.nn

local PAIRS = 4

--- A network with its optimiser, both new: step() makes one update and gives the loss.
---@return { net: table, optimiser: table, step: function }
return function()
  lunce.manual_seed(1)
  local encoder = lunce.models.convnet{ channels = { 4, 8 } }
  local net = nn.Sequential(encoder, lunce.models.projector(encoder.out_features, 8))
  local optimiser = lunce.optim.Adam(net:parameters(), { lr = 1e-3 })
  local function step()
    optimiser:zero_grad()
    local z = net(lunce.randn(2 * PAIRS, 1, 8, 8))
    local value = lunce.loss.weince(z:narrow(1, 1, PAIRS), z:narrow(1, PAIRS + 1, PAIRS))
    value:backward()
    optimiser:step()
    return value:item()
  end
  return { net = net, optimiser = optimiser, step = step }
end

-- Networks: what `lunce.models` is. Holds none of them itself.
local M = {
  convnet = require "lunce.models.convnet",
  projector = require "lunce.models.projector",
}

for name, constructor in pairs(require "lunce.models.resnet") do M[name] = constructor end

return M

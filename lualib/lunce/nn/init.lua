-- Layers, containers and initialisers: what `lunce.nn` is. Holds none of them itself.
local M = {
  init = require "lunce.nn.initialise",
  module = require("lunce.nn.module").module,
  is_module = require("lunce.nn.module").is_module,
}

for _, part in ipairs { "layers", "norms", "containers" } do
  for name, constructor in pairs(require("lunce.nn." .. part)) do M[name] = constructor end
end

return M

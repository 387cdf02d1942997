-- with_tiles(name, fn, ...): calls fn(...) with tiles of that dtype, and gives what it gives.
-- Holds no test.
local similarity = require("lunce").similarity

local function restore(...)
  similarity.tile_dtype "float32"
  return ...
end

return function(name, fn, ...)
  similarity.tile_dtype(name)
  return restore(fn(...))
end

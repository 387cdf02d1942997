-- What losses check of their arguments. Holds no loss. Invariant: an error names the loss, the
-- argument, what came and what is taken, at the user's line.
local lunce = require "lunce"
local describe = require("lunce.options").describe
local raise = require("lunce.ffi").raise

local M = {}

--- x in words: a tensor's shape, else as options.describe.
function M.describe(x)
  return lunce.is_tensor(x) and ("(%s)"):format(table.concat(x.shape, ",")) or describe(x)
end

--- x, which must be a tensor of two dimensions of float32 or float64.
function M.rows(x, name, what)
  if not lunce.is_tensor(x) or #x.shape ~= 2 then
    raise("%s: %s is a tensor of two dimensions; got %s", what, name, M.describe(x))
  end
  if x.dtype ~= "float32" and x.dtype ~= "float64" then
    raise("%s: %s is float32 or float64; got %s", what, name, x.dtype)
  end
  return x
end

--- Refuses two sets of rows that differ in shape or dtype, or have no rows.
function M.pair(x, y, x_name, y_name, what)
  local a, b = M.rows(x, x_name, what).shape, M.rows(y, y_name, what).shape
  if a[1] ~= b[1] or a[2] ~= b[2] or x.dtype ~= y.dtype then
    raise("%s: the views differ: %s (%d,%d) %s, %s (%d,%d) %s", what, x_name, a[1], a[2], x.dtype,
      y_name, b[1], b[2], y.dtype)
  end
  if a[1] == 0 then raise("%s: the views have no rows", what) end
end

--- A number, or a tensor of one element, as the number or the tensor (1).
function M.scalar(value, name, what)
  if lunce.is_tensor(value) and value:numel() == 1 then return value:reshape(1) end
  if type(value) ~= "number" or not (math.abs(value) < math.huge) then
    raise("%s: %s is %s; a number or a tensor of one element is taken", what, name,
      M.describe(value))
  end
  return value
end

--- A number above zero, or a tensor of one element (a learnable one is the caller's to keep above
--- zero), as the number or the tensor (1).
function M.positive(value, name, what)
  if lunce.is_tensor(value) and value:numel() == 1 then return value:reshape(1) end
  if type(value) ~= "number" or not (value > 0 and value < math.huge) then
    raise("%s: %s is %s; a number above 0 or a tensor of one element is taken", what, name,
      M.describe(value))
  end
  return value
end

return M

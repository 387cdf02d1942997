-- A tensor as text: a line with shape, dtype and device, then the values in aligned columns, the
-- middle of long dimensions left out. Invariant: it reads only the elements it shows, and leaves
-- tape and memory as they were.
local autograd = require "lunce.autograd"
local ops = require "lunce.ops"
local scope = require "lunce.scope"

local THRESHOLD = 1000 -- elements shown in full
local EDGE = 3         -- elements kept at each end of a dimension that is not
local LINE = 80

-- t without the middle of its long dimensions.
local function edges(t)
  for d, n in ipairs(t.shape) do
    if n > 2 * EDGE then
      t = ops.cat({ t:narrow(d, 1, EDGE), t:narrow(d, n - EDGE + 1, EDGE) }, d)
    end
  end
  return t
end

local function flat(values, list)
  if type(values) ~= "table" then
    list[#list + 1] = values
  else
    for _, value in ipairs(values) do flat(value, list) end
  end
  return list
end

local function is_finite(x)
  return x == x and x ~= math.huge and x ~= -math.huge
end

-- The format that suits all numbers: whole ones without decimals, a wide range in powers of ten.
local function number_format(list, is_float)
  local whole, low, high = true, math.huge, 0
  for _, x in ipairs(list) do
    if is_finite(x) then
      local size = math.abs(x)
      whole = whole and x % 1 == 0
      if size > 0 then low = math.min(low, size) end
      high = math.max(high, size)
    end
  end
  if not is_float then return "%d" end
  if whole then return high < 1e8 and "%.0f." or "%.4e" end
  if high >= 1e8 or low < 1e-4 or high / low > 1e5 then return "%.4e" end
  return "%.4f"
end

local function formatter(list, dtype)
  local format = dtype ~= "bool" and number_format(list, dtype:find "float" ~= nil)
  local function text(x)
    if dtype == "bool" then return tostring(x) end
    if x ~= x then return "nan" end
    if not is_finite(x) then return x > 0 and "inf" or "-inf" end
    return format:format(x)
  end
  local width = 0
  for _, x in ipairs(list) do width = math.max(width, #text(x)) end
  return function(x) return ("%" .. width .. "s"):format(text(x)) end, width
end

-- The elements of a row, broken into lines that align under the first.
local function row(values, elided, text, width, indent)
  local per_line = math.max(1, math.floor((LINE - indent) / (width + 2)))
  local parts, lines = {}, {}
  local function add(part)
    if #parts == per_line then
      lines[#lines + 1] = table.concat(parts, ", ")
      parts = {}
    end
    parts[#parts + 1] = part
  end
  for i, x in ipairs(values) do
    if elided and i == EDGE + 1 then add "..." end
    add(text(x))
  end
  lines[#lines + 1] = table.concat(parts, ", ")
  return "[" .. table.concat(lines, ",\n" .. (" "):rep(indent)) .. "]"
end

local function block(values, shape, depth, elide, text, width)
  local elided = elide and shape[depth] > 2 * EDGE
  if depth == #shape then return row(values, elided, text, width, depth) end
  local parts = {}
  for i, inner in ipairs(values) do
    if elided and i == EDGE + 1 then parts[#parts + 1] = "..." end
    parts[#parts + 1] = block(inner, shape, depth + 1, elide, text, width)
  end
  local gap = "," .. ("\n"):rep(#shape - depth) .. (" "):rep(depth)
  return "[" .. table.concat(parts, gap) .. "]"
end

local function body(t)
  local shape, dtype = t.shape, t.dtype
  if t:numel() == 0 then return "[]" end -- however many rows without elements
  local elide = t:numel() > THRESHOLD
  local values = (elide and edges(t) or t):tolist()
  local text, width = formatter(flat(values, {}), dtype)
  if #shape == 0 then return (text(values)) end
  return block(values, shape, 1, elide, text, width)
end

---@param t lunce.Tensor
---@return string
return function(t)
  if not rawget(t, "h") then return "tensor (freed)" end
  local head = ("tensor (%s) %s %s%s"):format(table.concat(t.shape, ","), t.dtype, t.device,
    t.requires_grad and " requires_grad" or "")
  return head .. "\n" .. scope(autograd.no_grad, body, t)
end

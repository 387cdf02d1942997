-- A value in words, as the prompt prints it: what has __tostring by that, plain tables by their
-- content on one line, elided. Changes nothing and never recurses past DEPTH.
local DEPTH, ENTRIES = 3, 20

local write

local function key_less(a, b)
  if type(a) == type(b) and (type(a) == "number" or type(a) == "string") then return a < b end
  return tostring(a) < tostring(b)
end

local function write_table(t, depth)
  if depth == 0 then return "{...}" end
  local parts, keys = {}, {}
  for i = 1, math.min(#t, ENTRIES) do parts[i] = write(t[i], depth - 1) end
  for key in pairs(t) do
    local in_list = type(key) == "number" and key >= 1 and key <= #t and key % 1 == 0
    if not in_list then keys[#keys + 1] = key end
  end
  table.sort(keys, key_less)
  for i = 1, math.min(#keys, ENTRIES) do
    local key = keys[i]
    local name = type(key) == "string" and key or "[" .. tostring(key) .. "]"
    parts[#parts + 1] = name .. " = " .. write(t[key], depth - 1)
  end
  if #t > ENTRIES or #keys > ENTRIES then parts[#parts + 1] = "..." end
  return "{ " .. table.concat(parts, ", ") .. " }"
end

function write(value, depth)
  local meta = debug.getmetatable(value)
  if type(value) == "table" and not (meta and meta.__tostring) then
    return next(value) == nil and "{}" or write_table(value, depth)
  end
  local text = tostring(value)
  if depth == DEPTH then return text end
  if type(value) == "string" then return ("%q"):format(value) end
  return (text:gsub("\n.*", " ..."))
end

---@param value any
---@return string
return function(value) return write(value, DEPTH) end

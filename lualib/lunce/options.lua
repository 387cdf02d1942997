-- Options tables: the last argument of a function, one key an option. Holds no option of its own.
-- Invariant: a key that the function does not declare, a value of another type than its default, an
-- object where that is a table, or a NaN is an error at the user's line.
local raise = require("lunce.ffi").raise

local M = {}

local function known(defaults)
  local names = {}
  for name in pairs(defaults) do names[#names + 1] = tostring(name) end
  table.sort(names)
  return table.concat(names, ", ")
end

--- The given options completed by the defaults. The result may be `defaults` itself: read it only.
---@param given table|nil
---@param defaults table a default of false declares an option of any type that may stay absent
---@param what string the function's name, for messages
---@param flags table<string, true>|nil which of the defaults of false are booleans
---@return table
function M.options(given, defaults, what, flags)
  if given == nil then return defaults end
  if type(given) ~= "table" or getmetatable(given) then
    raise("%s: options are a table { name = value }; got %s", what, M.describe(given))
  end
  local result = {}
  for name, value in pairs(given) do
    local default = defaults[name]
    if default == nil then
      raise("%s: unknown option %s; it takes %s", what, tostring(name), known(defaults))
    end
    local typed = default ~= false or (flags and flags[name])
    if typed and (type(value) ~= type(default) or type(default) == "table" and getmetatable(value))
    then
      raise("%s: option %s is %s; a %s is taken", what, name, M.describe(value), type(default))
    end
    if type(value) == "number" and value ~= value then
      raise("%s: option %s is nan; a number is taken", what, name)
    end
    result[name] = value
  end
  for name, value in pairs(defaults) do
    if result[name] == nil then result[name] = value end
  end
  return result
end

--- A value in a few words, for messages: `nil`, `"text"`, `a tensor`, `a table`, `3`.
---@param value any
---@return string
function M.describe(value)
  local kind = type(value)
  if kind == "string" then
    return ("%q"):format(#value > 40 and value:sub(1, 37) .. "..." or value)
  end
  if kind == "number" or kind == "nil" or kind == "boolean" then return tostring(value) end
  local metatable = getmetatable(value)
  local name = type(metatable) == "table" and metatable.__name or kind
  return (name:find "^[AEIOUaeiou]" and "an " or "a ") .. name
end

--- A list likewise, holes too: `(2,nil,a tensor)`; what is no list as `describe` has it.
---@param value any
---@return string
function M.describe_list(value)
  if type(value) ~= "table" or getmetatable(value) then return M.describe(value) end
  local words = {}
  for i = 1, table.maxn(value) do words[i] = M.describe(value[i]) end
  return "(" .. table.concat(words, ",") .. ")"
end

return M

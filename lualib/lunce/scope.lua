-- lunce.scope: frees a step's temporaries at once. Holds no tensor. Invariant: after the call,
-- every tensor created inside is free, but those returned (in tables too), the gradients of
-- leaves, and those marked t:keep(); what is returned belongs to the scope outside.
local tensor = require "lunce.tensor"

local Tensor, state = tensor.Tensor, tensor.state

-- Marks the tensors in value, and in the tables it holds.
local function mark(value, found)
  if type(value) ~= "table" or found[value] then return end
  found[value] = true
  if getmetatable(value) == Tensor then return end
  for _, inner in next, value do mark(inner, found) end
end

local function leave(outer, inner, ok, ...)
  state.scope = outer
  local found = {}
  for i = 1, ok and select("#", ...) or 0 do mark((select(i, ...)), found) end
  for i = 1, inner.n do
    local t = inner[i]
    if found[t] then
      tensor.adopt(t)
    elseif not rawget(t, "kept") then
      t:free()
    end
  end
  if not ok then error((...), 0) end
  return ...
end

--- Calls fn(...) and frees the tensors created inside it, also where it fails, but those that it
--- returns. Use of a freed tensor raises.
---@param fn function
---@return any ... what fn returned
local function scope(fn, ...)
  tensor.need_function(fn, "scope")
  local outer, inner = state.scope, { n = 0 }
  state.scope = inner
  return leave(outer, inner, pcall(fn, ...))
end

return scope

-- Strict globals: in a guarded chunk (a script, a chunk of the command line, an entry of the
-- prompt) reading a global that does not exist, or making one, is an error that names it. Other
-- chunks, such as packaged modules that probe for globals, keep Lua's rules. Invariant: a global
-- that exists costs nothing extra; only a miss comes here.
local M = {}

local guarded = {} -- chunk name -> "script" | "console"

--- Holds a chunk to declared globals. A console may also make globals in its main chunk, and finds
--- `lunce` loaded at its first use.
---@param chunk_name string as given to load: "@path" or "=name"
---@param kind "script"|"console"
function M.guard(chunk_name, kind)
  guarded[chunk_name] = kind
end

local function read_missing(_, name)
  local kind = guarded[debug.getinfo(2, "S").source]
  if kind == "console" and name == "lunce" then
    local lunce = require "lunce"
    rawset(_G, "lunce", lunce)
    return lunce
  elseif kind then
    error(("undeclared global '%s'"):format(tostring(name)), 2)
  end
end

local function write_missing(_, name, value)
  local info = debug.getinfo(2, "S")
  local kind = guarded[info.source]
  if kind == "script" or kind == "console" and info.what ~= "main" then
    error(("assignment to undeclared global '%s'; declare it: local %s"):format(
      tostring(name), tostring(name)), 2)
  end
  rawset(_G, name, value)
end

setmetatable(_G, { __index = read_missing, __newindex = write_missing })

return M

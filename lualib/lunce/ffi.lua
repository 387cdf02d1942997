-- The boundary with C: the only file that declares, loads or names the library. Holds no tensor
-- and no operator. Invariant: a status other than LN_OK never passes unseen, and every error is
-- raised at the first stack frame outside lualib/lunce, which is the user's line.
local ffi = require "ffi"

local M = {}

local library_dir = debug.getinfo(1, "S").source:match("^@(.*)ffi%.lua$")
local root = library_dir .. "../../"

local function readable(path)
  local file = io.open(path, "r")
  if file then file:close() end
  return file ~= nil
end

-- A checkout has the headers in runtime/ and build/; an installation and a distribution have them
-- beside lualib, and the library in lib/ (of the prefix, two levels up, or of the folder itself).
local function find(what, candidates)
  for _, path in ipairs(candidates) do
    if readable(path) then return path end
  end
  error("lunce: " .. what .. " was not found; looked at " .. table.concat(candidates, ", "), 0)
end

local INCLUDE = '\n#include "'

-- A header of ours, in which those that it includes stand in their places. Only the first of two
-- that include each other does. Every program's start waits for this: it finds before it replaces.
local function header(name, outer)
  local file = assert(io.open(find(name, { root .. "runtime/" .. name, root .. name })))
  local text = file:read "*a"
  file:close()
  if text:find("\r", 1, true) then text = text:gsub("\r", "") end
  local parts, start = {}, 1
  while true do
    local from = text:find(INCLUDE, start, true)
    if not from then break end
    local inner = text:match('^([%w_]+%.h)"', from + #INCLUDE)
    parts[#parts + 1] = text:sub(start, from)
    if inner ~= outer then parts[#parts + 1] = header(inner, name) end
    start = text:find("\n", from + 1, true)
  end
  parts[#parts + 1] = text:sub(start)
  return table.concat(parts)
end

local function declarations()
  local text = ("\n" .. header "ln.h"):gsub("\n#[^\n]*", "\n")
  -- LuaJIT boxes an enum that a function returns; as int it is a plain number.
  return (text:gsub("ln_status (ln_[%w_]+%()", "int %1"))
end

ffi.cdef(declarations())

-- Between two kernels the team spins before it sleeps. OpenMP's default, milliseconds, takes the
-- cores from whoever else needs them: on a busy machine a training step then takes several times
-- as long. Some tens of microseconds outlast the gap between two kernels; more won nothing on an
-- idle machine, and on a busy one a step took three times as long. Read once, on loading.
ffi.cdef "int setenv(const char *name, const char *value, int overwrite);"
ffi.C.setenv("GOMP_SPINCOUNT", "1000", 0)

local C = ffi.load(os.getenv "LUNCE_LIBRARY" or find("liblunce.so", {
  root .. "build/liblunce.so", root .. "lib/liblunce.so", root .. "../../lib/liblunce.so",
}))
if C.ln_abi_version() ~= C.LN_ABI_VERSION then
  error(("lunce: the library has ABI %d and ln.h has ABI %d; rebuild with make"):format(
    C.ln_abi_version(), C.LN_ABI_VERSION), 0)
end

M.C = C

local own_source = "@" .. library_dir

--- Raises an error at the user's line: the first frame outside lualib/lunce.
---@param format string as for string.format
function M.raise(format, ...)
  local message = select("#", ...) > 0 and format:format(...) or format
  local level = 2
  local frame = debug.getinfo(level, "S")
  while frame and (frame.what == "C" or frame.source:sub(1, #own_source) == own_source) do
    level = level + 1
    frame = debug.getinfo(level, "S")
  end
  error(message, frame and level or 0)
end

--- Raises the library's message unless status is LN_OK.
---@param status integer
function M.check(status)
  if status ~= C.LN_OK then M.raise("%s", ffi.string(C.ln_error())) end
end

local memory = ffi.new "ln_memory"

-- The message, and a line for each device that is in use.
local function out_of_memory()
  local lines = { ffi.string(C.ln_error()) }
  for device = 0, C.ln_devices() - 1 do
    if C.ln_memory_info(memory, device) == C.LN_OK then
      local name = device > 0 and ("cuda:%d: "):format(device - 1) or ""
      lines[#lines + 1] = ("  %slive %d bytes in %d tensors, peak %d, cached %d, hard limit %d"
        .. " bytes"):format(name, tonumber(memory.live_bytes), tonumber(memory.tensors),
        tonumber(memory.peak_bytes), tonumber(memory.cached_bytes), tonumber(memory.hard_bytes))
    end
  end
  M.raise("%s", table.concat(lines, "\n"))
end

-- The cold half of call: out of memory is tried once more after all that is dead was given back.
local function failed(status, fn, ...)
  if status ~= C.LN_OUT_OF_MEMORY then return M.check(status) end
  require("lunce.handles").collect(...)
  for device = 0, C.ln_devices() - 1 do C.ln_memory_flush(device) end
  status = fn(...)
  if status == C.LN_OUT_OF_MEMORY then out_of_memory() end
  M.check(status)
end

--- Calls a C function that returns a status, and raises where it fails.
function M.call(fn, ...)
  local status = fn(...)
  if status ~= 0 then failed(status, fn, ...) end
end

return M

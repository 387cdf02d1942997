-- Whole files: reading, and writing that happens at once or not at all. The formats are files
-- beside this, loaded when first named: io.safetensors. Invariant: a C file handle is closed before
-- the function that opened it returns or raises.
local ffi = require "ffi"
local lib = require "lunce.ffi"
local option = require "lunce.options"
local tensor = require "lunce.tensor"

local C, raise, check = lib.C, lib.raise, lib.check
local need_count, need_function = tensor.need_count, tensor.need_function

local M = {}

local function check_path(path, what)
  if type(path) ~= "string" or path == "" or path:find("%z") then
    raise("%s: the path is %s; a file's name is taken", what, option.describe(path))
  end
end

-- fn(file), and the file closed whatever happens.
local function with(file, fn)
  local ok, a, b = pcall(fn, file)
  C.ln_file_close(file)
  if not ok then error(a, 0) end
  return a, b
end

local box = ffi.new "ln_file *[1]"

--- fn(file) on an opened ln_file; nil and a message where there is no such file.
function M.with_opened(path, what, fn)
  check_path(path, what)
  need_function(fn, what, 3)
  local status = C.ln_file_open(box, path)
  if status == C.LN_NOT_FOUND then return nil, ffi.string(C.ln_error()) end
  check(status)
  return with(box[0], fn)
end

--- fn(file) on a new ln_file that takes the place of path when fn has returned. Where fn raises,
--- path stays as it is.
function M.with_created(path, what, fn)
  check_path(path, what)
  need_function(fn, what, 3)
  check(C.ln_file_create(box, path))
  with(box[0], function(file)
    fn(file)
    check(C.ln_file_commit(file))
  end)
end

local function copy(file, offset, n)
  local buffer = ffi.new("char[?]", n)
  check(C.ln_file_read(buffer, file, offset, n))
  return ffi.string(buffer, n)
end

local LARGE = 2 ^ 20

--- n bytes of an opened file from offset on, as a string.
function M.bytes(file, offset, n)
  if type(file) ~= "cdata" or not ffi.istype("ln_file *", file) or file == nil then
    raise("io.bytes: argument 1 is %s; a file of with_opened is taken", option.describe(file))
  end
  need_count(offset, "io.bytes", "the offset")
  need_count(n, "io.bytes", "the count")
  local text = copy(file, offset, n)
  if n > LARGE then collectgarbage() end -- the buffer goes before more is made of its copy
  return text
end

--- The bytes of a file; nil and a message where there is no such file.
---@param path string
---@return string|nil
---@return string|nil
function M.read(path)
  return M.with_opened(path, "io.read", function(file)
    return M.bytes(file, 0, tonumber(C.ln_file_size(file)))
  end)
end

--- Writes a file in one step: killed at any moment, path has its old content or the new.
---@param path string
---@param bytes string
function M.write(path, bytes)
  if type(bytes) ~= "string" then
    raise("io.write: the content is %s; a string is taken", option.describe(bytes))
  end
  M.with_created(path, "io.write", function(file)
    check(C.ln_file_write(file, bytes, #bytes))
  end)
end

return setmetatable(M, {
  __index = function(t, name)
    local module = "lunce.io." .. tostring(name)
    if not package.searchpath(module, package.path) then
      raise("lunce.io has no %s", option.describe(name))
    end
    local format = require(module)
    rawset(t, name, format)
    return format
  end,
})

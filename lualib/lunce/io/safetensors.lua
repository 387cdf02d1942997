-- Reading and writing tensors in the safetensors format: 8 bytes of length, a JSON header, and the
-- tensors' bytes. Loading executes nothing. Invariant: a file is refused, by its name and fault,
-- unless its tensors cover its data exactly: in range, without overlap, hole or remainder.
local ffi = require "ffi"
local lib = require "lunce.ffi"
local tensor = require "lunce.tensor"
local files = require "lunce.io"
local header = require "lunce.io.header"
local describe = require("lunce.options").describe

local shown = header.shown
local C, raise, call = lib.C, lib.raise, lib.call

local M = {}

local MAX_HEADER = 100000000
local LARGEST = 2 ^ 53

-- By the format's names: ours, and the bytes of an element.
local dtypes = {
  F64 = { "float64", 8 }, F32 = { "float32", 4 }, F16 = { "float16", 2 }, BF16 = { "bfloat16", 2 },
  I64 = { "int64", 8 }, I32 = { "int32", 4 }, U8 = { "uint8", 1 }, BOOL = { "bool", 1 },
}
local names = {}
for name, dtype in pairs(dtypes) do names[dtype[1]] = name end

-- ---- Loading ---------------------------------------------------------------------------------

-- The header's text, and where the data begins.
local function read_header(file, size, fail)
  if size < 8 then fail(("truncated: %d bytes, where its header's length takes 8"):format(size)) end
  local box = ffi.new "uint64_t[1]"
  call(C.ln_file_read, box, file, 0, 8)
  if box[0] > MAX_HEADER then
    fail(("its header's length is %s bytes; at most %d are taken"):format(
      tostring(box[0]):gsub("ULL$", ""), MAX_HEADER))
  end
  local length = tonumber(box[0])
  if length > size - 8 then
    fail(("truncated: its header of %d bytes ends after its %d"):format(length, size))
  end
  return files.bytes(file, 8, length), 8 + length
end

local function bytes_of(entry, fail)
  local dtype = dtypes[entry.dtype]
  if not dtype then
    fail(("tensor %s has dtype %s; F64, F32, F16, BF16, I64, I32, U8 and BOOL are taken"):format(
      shown(entry.name), shown(entry.dtype)))
  end
  local bytes, empty = dtype[2], false
  for _, extent in ipairs(entry.shape) do
    if extent == 0 then empty = true else bytes = bytes * extent end
    if bytes > LARGEST then fail(("the shape of tensor %s overflows"):format(shown(entry.name))) end
  end
  return empty and 0 or bytes
end

-- The tensors must lie one after the other from the first byte of data to the last.
local function check_layout(entries, data_size, fail)
  table.sort(entries, function(a, b)
    if a.offsets[1] ~= b.offsets[1] then return a.offsets[1] < b.offsets[1] end
    return a.offsets[2] < b.offsets[2]
  end)
  local reached = 0
  for _, entry in ipairs(entries) do
    local first, last = entry.offsets[1], entry.offsets[2]
    local function refuse(fault)
      fail(("tensor %s at data_offsets [%.0f,%.0f] %s"):format(shown(entry.name), first, last,
        fault))
    end
    if last < first then refuse "ends before it begins" end
    if last > data_size then refuse(("is out of range: %.0f bytes of data"):format(data_size)) end
    if first < reached then refuse "overlaps another" end
    if first > reached then refuse(("leaves a hole from %.0f on"):format(reached)) end
    local bytes = bytes_of(entry, fail)
    if bytes ~= last - first then
      refuse(("does not have the %.0f bytes of its shape and dtype"):format(bytes))
    end
    reached = last
  end
  if reached ~= data_size then
    fail(("trailing bytes: its tensors take %.0f of %.0f bytes of data"):format(reached, data_size))
  end
end

local function read_tensor(file, entry, data_start)
  local shape = ffi.new("int64_t[?]", #entry.shape + 1, entry.shape)
  call(C.ln_tensor_empty, tensor.out(), tensor.dtype(dtypes[entry.dtype][1], "safetensors.load"),
    C.LN_CPU, #entry.shape, shape)
  local t = tensor.take()
  call(C.ln_file_read_tensor, t.h, file, data_start + entry.offsets[1])
  return t
end

--- The tensors of a file by name, and its metadata; nil and a message where there is no such file.
---@param path string
---@return table<string, lunce.Tensor>|nil
---@return table<string, string>|string
function M.load(path)
  local function fail(fault) raise("safetensors.load: '%s': %s", path, fault) end
  return files.with_opened(path, "safetensors.load", function(file)
    local size = tonumber(C.ln_file_size(file))
    local text, data_start = read_header(file, size, fail)
    local entries, metadata = header.read(text, fail)
    check_layout(entries, size - data_start, fail)
    local tensors = {}
    for _, entry in ipairs(entries) do
      tensors[entry.name] = read_tensor(file, entry, data_start)
    end
    return tensors, metadata
  end)
end

-- ---- Saving ----------------------------------------------------------------------------------

local function check_text(text, what)
  if type(text) ~= "string" then
    raise("safetensors.save: %s is %s; a string is taken", what, describe(text))
  end
  if header.not_utf8(text) then
    raise("safetensors.save: %s %s is not UTF-8", what, shown(text))
  end
end

-- Entries by falling size of an element, so that each tensor is aligned in the file, then by name.
local function entries_of(tensors)
  local entries = {}
  for name, t in pairs(tensors) do
    check_text(name, "a tensor's name")
    if name == "__metadata__" then
      raise("safetensors.save: a tensor cannot be named __metadata__")
    end
    if not tensor.is_tensor(t) then
      raise("safetensors.save: %s is %s; a tensor is taken", shown(name), describe(t))
    end
    local dtype = names[t.dtype]
    entries[#entries + 1] = { name = name, dtype = dtype, shape = t.shape, tensor = t,
      size = dtypes[dtype][2] }
  end
  table.sort(entries, function(a, b)
    if a.size ~= b.size then return a.size > b.size end
    return a.name < b.name
  end)
  local offset = 0
  for _, entry in ipairs(entries) do
    local last = offset + entry.size * entry.tensor:numel()
    entry.offsets, offset = { offset, last }, last
  end
  return entries
end

local function write_tensor(file, t)
  if t.device ~= "cpu" then t = t:to { device = "cpu" } end
  call(C.ln_file_write_tensor, file, t:contiguous().h)
end

--- Writes tensors by name, and metadata. The file appears whole, in place of what path held, when
--- all of it is on the disk. The same tensors give the same bytes.
---@param path string
---@param tensors table<string, lunce.Tensor>
---@param metadata table<string, string>|nil
function M.save(path, tensors, metadata)
  if type(tensors) ~= "table" or getmetatable(tensors) then
    raise("safetensors.save: the tensors are %s; a table of name = tensor is taken",
      describe(tensors))
  end
  if metadata ~= nil and type(metadata) ~= "table" then
    raise("safetensors.save: the metadata is %s; a table of strings is taken", describe(metadata))
  end
  for key, value in pairs(metadata or {}) do
    check_text(key, "a name in the metadata")
    check_text(value, "metadata " .. shown(key))
  end
  local entries = entries_of(tensors)
  local text = header.write(entries, metadata or {})
  if #text > MAX_HEADER then raise("safetensors.save: the header takes %d bytes", #text) end
  files.with_created(path, "safetensors.save", function(file)
    local length = ffi.new("uint64_t[1]", #text)
    call(C.ln_file_write, file, length, 8)
    call(C.ln_file_write, file, text, #text)
    for _, entry in ipairs(entries) do write_tensor(file, entry.tensor) end
  end)
end

return M

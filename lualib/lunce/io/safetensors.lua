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
local LARGE = 2 ^ 20
local LARGEST = 2 ^ 53

-- By the format's names, of which messages say `forms`: ours, and the bytes of an element.
local dtypes = {
  F64 = { "float64", 8 }, F32 = { "float32", 4 }, F16 = { "float16", 2 }, BF16 = { "bfloat16", 2 },
  I64 = { "int64", 8 }, I32 = { "int32", 4 }, U8 = { "uint8", 1 }, BOOL = { "bool", 1 },
}
local forms = { "F64", "F32", "F16", "BF16", "I64", "I32", "U8", "BOOL" }
local names = {}
for name, dtype in pairs(dtypes) do names[dtype[1]] = name end

-- ---- Loading ---------------------------------------------------------------------------------

-- The header, and where the data begins.
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
  if length > LARGE then collectgarbage() end -- what an earlier one left goes first
  local bytes = ffi.new("uint8_t[?]", length + 1)
  call(C.ln_file_read, bytes, file, 8, length)
  return header.new(bytes, length, fail), 8 + length
end

local function bytes_of(head, entry)
  local form = head:pick(entry.dtype, forms)
  if not form then
    head.fail(("tensor %s has dtype %s; one of %s is taken"):format(head:shown(entry.name),
      head:shown(entry.dtype), table.concat(forms, ", ")))
  end
  local shape, bytes, empty = entry.shape, dtypes[form][2], false
  for i = 1, shape.n do
    if shape[i] == 0 then empty = true else bytes = bytes * shape[i] end
    if bytes > LARGEST then
      head.fail(("the shape of tensor %s overflows"):format(head:shown(entry.name)))
    end
  end
  return empty and 0 or bytes
end

local function misplaced(head, name, first, last, format, ...)
  head.fail(("tensor %s at data_offsets [%.0f,%.0f] "):format(head:shown(name), first, last)
    .. format:format(...))
end

-- A tensor's bytes must be those of its shape and dtype, and in the data.
local function check_entry(head, entry, data_size)
  local name, first, last = entry.name, entry.data_offsets[1], entry.data_offsets[2]
  if last < first then misplaced(head, name, first, last, "ends before it begins") end
  if last > data_size then
    misplaced(head, name, first, last, "is out of range: %.0f bytes of data", data_size)
  end
  local bytes = bytes_of(head, entry)
  if bytes ~= last - first then
    misplaced(head, name, first, last, "does not have the %.0f bytes of its shape and dtype", bytes)
  end
end

-- Sorts the tensors by where they begin, then end: a heap sort, which no order makes slow.
local function sort(head)
  local first, last, place = head.first, head.last, head.place
  local function before(i, j)
    return first[i] < first[j] or (first[i] == first[j] and last[i] < last[j])
  end
  local function swap(i, j)
    first[i], first[j] = first[j], first[i]
    last[i], last[j] = last[j], last[i]
    place[i], place[j] = place[j], place[i]
  end
  local function sift(i, n) -- the later child goes up until i is later than both
    local child = 2 * i + 1
    while child < n do
      if child + 1 < n and before(child, child + 1) then child = child + 1 end
      if not before(i, child) then return end
      swap(i, child)
      i, child = child, 2 * child + 1
    end
  end
  for i = math.floor(head.tensors / 2) - 1, 0, -1 do sift(i, head.tensors) end
  for n = head.tensors - 1, 1, -1 do
    swap(0, n)
    sift(0, n)
  end
end

-- The tensors, which scan left sorted or not, must lie one after the other from the first byte of
-- data to the last.
local function check_layout(head, sorted, data_size)
  if not sorted then sort(head) end
  local reached = 0
  for i = 0, head.tensors - 1 do
    local name, first, last = head.place[i], head.first[i], head.last[i]
    if first < reached then misplaced(head, name, first, last, "overlaps another") end
    if first > reached then
      misplaced(head, name, first, last, "leaves a hole from %.0f on", reached)
    end
    reached = last
  end
  if reached ~= data_size then
    head.fail(("trailing bytes: its tensors take %.0f of %.0f bytes of data"):format(reached,
      data_size))
  end
end

local chunk = ffi.new("uint8_t[?]", LARGE)

-- The bytes of one tensor, which are bools.
local function check_bools(head, file, first, last)
  for at = first, last - 1, LARGE do
    local n = math.min(LARGE, last - at)
    lib.check(C.ln_file_read(chunk, file, at, n))
    for i = 0, n - 1 do
      if chunk[i] > 1 then
        head.fail(("byte %.0f is %d where a bool is 0 or 1"):format(at + i, chunk[i]))
      end
    end
  end
end

-- All that can be known of a file before a tensor is made.
local function check(head, file, data_start, data_size)
  local sorted, reached, bools = true, 0, false
  local function is_bool(entry) return head:pick(entry.dtype, forms) == "BOOL" end
  head:scan(function(entry)
    check_entry(head, entry, data_size)
    sorted = sorted and entry.data_offsets[1] >= reached
    reached = entry.data_offsets[2]
    bools = bools or is_bool(entry)
  end)
  check_layout(head, sorted, data_size)
  for i = 0, bools and head.tensors - 1 or -1 do
    if is_bool(head:tensor(head.place[i])) then
      check_bools(head, file, data_start + head.first[i], data_start + head.last[i])
    end
  end
end

local extents = ffi.new("int64_t[?]", 8)

local function read_tensor(file, head, entry, data_start)
  local shape = entry.shape
  for i = 1, shape.n do extents[i - 1] = shape[i] end
  local dtype = tensor.dtype(dtypes[head:pick(entry.dtype, forms)][1], "safetensors.load")
  call(C.ln_tensor_empty, tensor.out(), dtype, C.LN_CPU, shape.n, extents)
  local t = tensor.take()
  call(C.ln_file_read_tensor, t.h, file, data_start + entry.data_offsets[1])
  return t
end

--- The tensors of a file by name, and its metadata; nil and a message where there is no such file.
--- Besides the format's limit of 100 MB of header, metadata is refused beyond 65536 names or 4 MiB.
---@param path string
---@return table<string, lunce.Tensor>|nil
---@return table<string, string>|string
function M.load(path)
  local function fail(fault) raise("safetensors.load: '%s': %s", path, fault) end
  return files.with_opened(path, "safetensors.load", function(file)
    local size = tonumber(C.ln_file_size(file))
    local head, data_start = read_header(file, size, fail)
    check(head, file, data_start, size - data_start)
    local tensors = {}
    for i = 0, head.tensors - 1 do
      local entry = head:tensor(head.place[i])
      local t = read_tensor(file, head, entry, data_start)
      tensors[head:text(entry.name)] = t
    end
    return tensors, head:metadata()
  end)
end

-- ---- Saving ----------------------------------------------------------------------------------

local function check_text(text, what)
  if type(text) ~= "string" then
    raise("safetensors.save: %s is %s; a string is taken", what, describe(text))
  end
  if not header.is_utf8(text) then
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
  local text = header.write(entries, metadata or {}, function(fault)
    raise("safetensors.save: %s", fault)
  end)
  if #text > MAX_HEADER then raise("safetensors.save: the header takes %d bytes", #text) end
  files.with_created(path, "safetensors.save", function(file)
    local length = ffi.new("uint64_t[1]", #text)
    call(C.ln_file_write, file, length, 8)
    call(C.ln_file_write, file, text, #text)
    for _, entry in ipairs(entries) do write_tensor(file, entry.tensor) end
  end)
end

return M

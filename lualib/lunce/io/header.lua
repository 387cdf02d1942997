-- The JSON header of a safetensors file, read by its own grammar out of the file's bytes: what the
-- format does not allow, JSON or not, is an error at the byte where it stands. A general JSON
-- reader would keep the last of duplicate keys, round large integers and build whatever a hostile
-- file nests. Holds no sizes or offsets' meaning. Invariant: a string becomes a Lua value only when
-- it is asked for; until then a tensor is three numbers, 20 bytes where its text takes at least 48.
local bit = require "bit"
local ffi = require "ffi"

local band, rshift, floor = bit.band, bit.rshift, math.floor

local M = {}

local MAX_DIMS = 8
local LARGEST = 2 ^ 53
-- Metadata becomes Lua strings, many times as large as a short one's text.
local MAX_PAIRS, MAX_METADATA = 65536, 2 ^ 22
-- The shortest texts of a tensor and of a pair of metadata say how many a header can have.
local LEAST_TENSOR = #'"":{"dtype":"","shape":[],"data_offsets":[0,0]},'
local LEAST_PAIR = #'"":"",'

local QUOTE, BACKSLASH, COMMA, COLON = ('"\\,:'):byte(1, 4)
local OBJECT, OBJECT_END, LIST, LIST_END = ("{}[]"):byte(1, 4)
local SPACE, TAB, NEWLINE, RETURN = (" \t\n\r"):byte(1, 4)
local ZERO, NINE, LETTER_U = ("09u"):byte(1, 3)

local function quote(text)
  return '"' .. text:gsub('[%z\1-\31"\\]', function(char)
    return ("\\u%04x"):format(char:byte())
  end) .. '"'
end

local SHOWN = 60

--- A file's own text as a message may show it: on one line, without control characters, not long.
---@param text string
---@return string
function M.shown(text)
  return quote(#text > SHOWN and text:sub(1, SHOWN - 3) .. "..." or text)
end

-- A header being read. `bytes` are `length` and a zero; counts and places are from 0.
--   fail     fail(message) raises
--   pos      the next byte
--   tensors  how many; place, first, last hold each one's name and its two data_offsets
--   pairs    how many of metadata; pair holds the place of each one's name, metadata where it began
--   entry    the tensor that was read last
-- A string is known by its place: its first byte after the quote.
---@class lunce.Header
local Header = {}
Header.__index = Header

--- Raises with a fault at a byte.
function Header:fault(pos, format, ...)
  self.fail(("byte %d of the header: "):format(pos + 1) .. format:format(...))
end

-- ---- Characters ------------------------------------------------------------------------------

local least = { 0x80, 0x800, 0x10000 }
local leads = { 0xc0, 0xe0, 0xf0 }

-- The character at pos of text in UTF-8 and where the next one begins; nil where there is none.
local function decode(bytes, pos)
  local lead = bytes[pos]
  if lead < 0x80 then return lead, pos + 1 end
  if lead < 0xc0 or lead > 0xf7 then return nil end
  local n = lead >= 0xf0 and 3 or lead >= 0xe0 and 2 or 1
  local code = band(lead, rshift(0x3f, n))
  for i = pos + 1, pos + n do
    if band(bytes[i], 0xc0) ~= 0x80 then return nil end
    code = code * 64 + band(bytes[i], 0x3f)
  end
  if code < least[n] or code > 0x10ffff or (code >= 0xd800 and code < 0xe000) then return nil end
  return code, pos + n + 1
end

-- Writes a character at pos; where the next one goes.
local function encode(bytes, pos, code)
  if code < 0x80 then
    bytes[pos] = code
    return pos + 1
  end
  local n = code < 0x800 and 1 or code < 0x10000 and 2 or 3
  for i = pos + n, pos + 1, -1 do
    bytes[i], code = 0x80 + code % 64, floor(code / 64)
  end
  bytes[pos] = leads[n] + code
  return pos + n + 1
end

--- Whether all of a text is UTF-8.
---@param text string
---@return boolean
function M.is_utf8(text)
  local bytes, pos = ffi.cast("const uint8_t *", text), 0
  while pos and pos < #text do
    local _, after = decode(bytes, pos)
    pos = after
  end
  return pos ~= nil
end

local escapes, digits = {}, {}
for letter, char in ('""\\\\//b\bf\fn\nr\rt\t'):gmatch "(.)(.)" do
  escapes[letter:byte()] = char:byte()
end
for i, digit in ipairs { ("0123456789abcdef"):byte(1, 16) } do digits[digit] = i - 1 end
for i, digit in ipairs { ("ABCDEF"):byte(1, 6) } do digits[digit] = i + 9 end

-- The number of four hexadecimal digits, or nil.
local function hexadecimal(bytes, pos)
  local code = 0
  for i = pos, pos + 3 do
    local digit = digits[bytes[i]]
    if not digit then return nil end
    code = code * 16 + digit
  end
  return code
end

-- The character of the escape at pos, which two of them make together if they are surrogates.
function Header:escape(pos)
  local bytes = self.bytes
  if bytes[pos + 1] ~= LETTER_U then
    local code = escapes[bytes[pos + 1]]
    if not code then self:fault(pos, "a bad escape") end
    return code, pos + 2
  end
  local code = hexadecimal(bytes, pos + 2)
  if not code or (code >= 0xdc00 and code < 0xe000) then self:fault(pos, "a bad \\u escape") end
  if code < 0xd800 or code >= 0xe000 then return code, pos + 6 end
  local low = bytes[pos + 6] == BACKSLASH and bytes[pos + 7] == LETTER_U
    and hexadecimal(bytes, pos + 8)
  if not low or low < 0xdc00 or low >= 0xe000 then self:fault(pos, "half of a surrogate pair") end
  return 0x10000 + (code - 0xd800) * 1024 + low - 0xdc00, pos + 12
end

-- The character at pos of a string and where the next one begins; nil at its end.
function Header:char(pos)
  local byte = self.bytes[pos]
  if byte == QUOTE then return nil, pos end
  if byte == BACKSLASH then return self:escape(pos) end
  if byte < SPACE then
    self:fault(pos, pos < self.length and "a control character in a string"
      or "a string without an end")
  end
  local code, after = decode(self.bytes, pos)
  if not code then self:fault(pos, "not UTF-8") end
  return code, after
end

-- ---- Tokens ----------------------------------------------------------------------------------

-- The next byte that is not white space, at pos.
function Header:peek()
  local bytes, pos = self.bytes, self.pos
  local byte = bytes[pos]
  while byte == SPACE or byte == NEWLINE or byte == RETURN or byte == TAB do
    pos = pos + 1
    byte = bytes[pos]
  end
  self.pos = pos
  return byte
end

function Header:expect(char)
  local byte = self:peek()
  if byte ~= char then
    local found = self.pos >= self.length and "the end"
      or byte < 0x80 and M.shown(string.char(byte)) or ("the byte %d"):format(byte)
    self:fault(self.pos, "%s where '%s' is expected", found, string.char(char))
  end
  self.pos = self.pos + 1
end

-- Whether the bracket that opens here holds anything.
function Header:opens(open, close)
  self:expect(open)
  if self:peek() ~= close then return true end
  self.pos = self.pos + 1
  return false
end

-- Whether the list goes on; otherwise its closing bracket was read.
function Header:more(close)
  if self:peek() ~= COMMA then
    self:expect(close)
    return false
  end
  self.pos = self.pos + 1
  return true
end

-- The place of the string that comes next.
function Header:string()
  self:expect(QUOTE)
  local place = self.pos
  local code, pos = self:char(place)
  while code do code, pos = self:char(pos) end
  self.pos = pos + 1
  return place
end

-- The place of the name of an object's member; its value comes next.
function Header:key()
  local place = self:string()
  self:expect(COLON)
  return place
end

-- What makes a number of JSON another than a whole one.
local fractional = {}
for _, char in ipairs { (".eE+-"):byte(1, 5) } do fractional[char] = true end

-- A whole number that a double holds exactly.
function Header:integer(name)
  local byte, start, value = self:peek(), self.pos, 0
  local pos = start
  while byte >= ZERO and byte <= NINE do
    value, pos = value * 10 + byte - ZERO, pos + 1
    byte = self.bytes[pos]
  end
  if pos == start or fractional[byte] or (self.bytes[start] == ZERO and pos > start + 1) then
    self:fault(start, "%s takes whole numbers of 0 and above", name)
  end
  if value >= LARGEST then self:fault(start, "%s overflows", name) end
  self.pos = pos
  return value
end

-- The list of numbers that comes next, n of them, in the place of what `list` held.
function Header:integers(name, list, most)
  list.n = 0
  if self:opens(LIST, LIST_END) then
    repeat
      if list.n == most then self:fault(self.pos, "%s has more than %d numbers", name, most) end
      list[list.n + 1] = self:integer(name)
      list.n = list.n + 1
    until not self:more(LIST_END)
  end
  return list
end

-- ---- Strings ---------------------------------------------------------------------------------

local function is(self, pos, word)
  for i = 1, #word do
    local code, after = self:char(pos)
    if code ~= word:byte(i) then return false end
    pos = after
  end
  return self.bytes[pos] == QUOTE
end

--- Which of some words of ASCII the string at a place is, or nil.
---@param place integer
---@param words string[]
---@return string|nil
function Header:pick(place, words)
  for i = 1, #words do
    if is(self, place, words[i]) then return words[i] end
  end
end

local function same(self, a, b)
  local left, right
  repeat
    left, a = self:char(a)
    right, b = self:char(b)
    if left ~= right then return false end
  until not left
  return true
end

-- A polynomial of the characters modulo a prime. Its base is an address, which whoever wrote the
-- file does not know, so names that collide cannot be made. Products stay below 2^52: exact.
local PRIME = 2 ^ 26 - 5

local function hash(self, place)
  local sum, base = 1, self.base
  local code, pos = self:char(place)
  while code do
    sum = (sum * base + code) % PRIME
    code, pos = self:char(pos)
  end
  return sum
end

-- Raises where two of the strings at `count` places are the same: a table with open addressing.
local function check_unique(self, places, count)
  local size = floor(1.5 * count) + 1
  local slots = ffi.new("int32_t[?]", size)
  for i = 0, count - 1 do
    local place = places[i]
    local slot = hash(self, place) % size
    while slots[slot] ~= 0 do
      if same(self, slots[slot], place) then
        self:fault(place - 1, "duplicate key %s", self:shown(place))
      end
      slot = (slot + 1) % size
    end
    slots[slot] = place
  end
end

-- Where a string's text begins and its length in bytes. The text is written over the string, whose
-- escapes are longer, so each is read this way once, when nothing else is to be read from it.
local function unpacked(self, place)
  local code, pos = self:char(place)
  local last = place
  while code do
    last = encode(self.bytes, last, code)
    code, pos = self:char(pos)
  end
  return self.bytes + place, last - place
end

--- The string at a place as a Lua string. Asked for once: the place no longer holds it afterwards.
---@param place integer
---@return string
function Header:text(place)
  return ffi.string(unpacked(self, place))
end

--- The string at a place as a message may show it, before a fault ends the reading.
---@param place integer
---@return string
function Header:shown(place)
  local text, n = unpacked(self, place)
  return M.shown(ffi.string(text, math.min(n, SHOWN + 1)))
end

-- ---- The header ------------------------------------------------------------------------------

local FIELDS = { "dtype", "shape", "data_offsets" }

-- The tensor of this name, whose fields come next.
local function read_entry(self, name)
  local entry = self.entry
  entry.name, entry.dtype, entry.shape, entry.data_offsets = name, false, false, false
  if self:opens(OBJECT, OBJECT_END) then
    repeat
      local key = self:key()
      local field = self:pick(key, FIELDS)
      if not field then
        self:fault(self.pos, "tensor %s has an unknown field %s", self:shown(name), self:shown(key))
      end
      if entry[field] then self:fault(self.pos, "duplicate key %s", M.shown(field)) end
      if field == "dtype" then
        entry.dtype = self:string()
      elseif field == "shape" then
        entry.shape = self:integers(field, self.extents, MAX_DIMS)
      else
        entry.data_offsets = self:integers(field, self.offsets, 2)
      end
    until not self:more(OBJECT_END)
  end
  if not (entry.dtype and entry.shape and entry.data_offsets and entry.data_offsets.n == 2) then
    self:fault(self.pos, "tensor %s needs dtype, shape and two data_offsets", self:shown(name))
  end
  return entry
end

local function check_metadata(names, size, fail)
  if names > MAX_PAIRS or size > MAX_METADATA then
    fail(("the metadata has %d names and %d bytes; at most %d and %d are taken"):format(names, size,
      MAX_PAIRS, MAX_METADATA))
  end
end

local function read_metadata(self, name)
  if self.metadata_at then self:fault(name - 1, "duplicate key %s", self:shown(name)) end
  self.metadata_at = self.pos
  if self:opens(OBJECT, OBJECT_END) then
    repeat
      local key = self:key()
      self:string()
      if self.pairs < MAX_PAIRS then self.pair[self.pairs] = key end
      self.pairs = self.pairs + 1
    until not self:more(OBJECT_END)
  end
  check_metadata(self.pairs, self.pos - self.metadata_at, self.fail)
end

--- A header to be read.
---@param bytes ffi.cdata* uint8_t[length + 1], the last zero; reading changes them
---@param length integer
---@param fail fun(message: string) raises
---@return lunce.Header
function M.new(bytes, length, fail)
  local tensors = floor(length / LEAST_TENSOR) + 1
  local address = tonumber(ffi.cast("uintptr_t", bytes))
  return setmetatable({
    bytes = bytes, length = length, fail = fail, pos = 0,
    base = floor(address / 16) % (PRIME - 1) + 1,
    tensors = 0, place = ffi.new("int32_t[?]", tensors), first = ffi.new("double[?]", tensors),
    last = ffi.new("double[?]", tensors),
    pairs = 0, pair = ffi.new("int32_t[?]", math.min(floor(length / LEAST_PAIR) + 1, MAX_PAIRS)),
    metadata_at = false, entry = {}, extents = {}, offsets = {},
  }, Header)
end

--- Reads all of the header, and shows each tensor to visit(entry): a table that the next one takes,
--- of the places of its name and dtype, and of the lists shape and data_offsets, n numbers each.
---@param visit fun(entry: table)
function Header:scan(visit)
  if self.bytes[0] ~= OBJECT then self:fault(0, "it does not begin with '{'") end
  if self:opens(OBJECT, OBJECT_END) then
    repeat
      local name = self:key()
      if is(self, name, "__metadata__") then
        read_metadata(self, name)
      else
        local entry, i = read_entry(self, name), self.tensors
        visit(entry)
        local offsets = entry.data_offsets
        self.place[i], self.first[i], self.last[i] = name, offsets[1], offsets[2]
        self.tensors = i + 1
      end
    until not self:more(OBJECT_END)
  end
  while self.bytes[self.pos] == SPACE do self.pos = self.pos + 1 end
  if self.pos < self.length then
    self:fault(self.pos, "bytes after its end that are not spaces")
  end
  check_unique(self, self.place, self.tensors)
  check_unique(self, self.pair, self.pairs)
end

--- The entry of the tensor whose name is at a place, of a header that was scanned.
---@param place integer
function Header:tensor(place)
  self.pos = place - 1
  return read_entry(self, self:key())
end

--- The metadata of a header that was scanned, made once.
---@return table<string, string>
function Header:metadata()
  local metadata = {}
  for i = 0, self.pairs - 1 do
    self.pos = self.pair[i] - 1
    local key = self:key()
    local value = self:string()
    metadata[self:text(key)] = self:text(value)
  end
  return metadata
end

-- ---- Writing ---------------------------------------------------------------------------------

--- Writes a header: metadata by name, entries in their order, spaces up to a multiple of 8 bytes.
---@param entries { name: string, dtype: string, shape: integer[], offsets: integer[] }[]
---@param metadata table<string, string>
---@param fail fun(message: string) raises
---@return string
function M.write(entries, metadata, fail)
  local parts, names = {}, {}
  for name in pairs(metadata) do names[#names + 1] = name end
  table.sort(names)
  for i, name in ipairs(names) do names[i] = quote(name) .. ":" .. quote(metadata[name]) end
  if #names > 0 then
    local object = "{" .. table.concat(names, ",") .. "}"
    check_metadata(#names, #object, fail)
    parts[1] = '"__metadata__":' .. object
  end
  for _, entry in ipairs(entries) do
    parts[#parts + 1] = ('%s:{"dtype":"%s","shape":[%s],"data_offsets":[%.0f,%.0f]}'):format(
      quote(entry.name), entry.dtype, table.concat(entry.shape, ","), entry.offsets[1],
      entry.offsets[2])
  end
  local text = "{" .. table.concat(parts, ",") .. "}"
  return text .. (" "):rep(-#text % 8)
end

return M

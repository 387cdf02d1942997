-- The JSON header of a safetensors file, read by its own grammar: what the format does not allow,
-- JSON or not, is an error at the byte where it stands. A general JSON reader would keep the last
-- of duplicate keys, round large integers and build whatever a hostile file nests. Holds no sizes
-- or offsets' meaning. Invariant: reading takes memory in proportion to the entries.
local M = {}

local MAX_DIMS = 8

local function quote(text)
  return '"' .. text:gsub('[%z\1-\31"\\]', function(char)
    return ("\\u%04x"):format(char:byte())
  end) .. '"'
end

--- A file's own text as a message may show it: on one line, without control characters, not long.
---@param text string
---@return string
function M.shown(text)
  return quote(#text > 60 and text:sub(1, 57) .. "..." or text)
end

-- A header being read: its text, the place of the next byte, and fail(message), which raises.
local Reader = {}
Reader.__index = Reader

function Reader:fault(format, ...)
  self.fail(("byte %d of the header: "):format(self.pos) .. format:format(...))
end

-- The next character that is not white space, at pos.
function Reader:peek()
  local pos = self.text:find("[^ \t\r\n]", self.pos) or #self.text + 1
  self.pos = pos
  return self.text:sub(pos, pos)
end

function Reader:expect(char)
  if self:peek() ~= char then
    local found = self.pos > #self.text and "the end" or M.shown(self:peek())
    self:fault("%s where '%s' is expected", found, char)
  end
  self.pos = self.pos + 1
end

-- Whether the list goes on; otherwise its closing bracket was read.
function Reader:more(close)
  if self:peek() == "," then
    self.pos = self.pos + 1
    return true
  end
  self:expect(close)
  return false
end

-- ---- Strings ---------------------------------------------------------------------------------

local escapes = { ['"'] = '"', ["\\"] = "\\", ["/"] = "/", b = "\b", f = "\f", n = "\n", r = "\r",
  t = "\t" }

local function utf8(code)
  local char, floor = string.char, math.floor
  if code < 0x80 then return char(code) end
  if code < 0x800 then return char(0xc0 + floor(code / 64), 0x80 + code % 64) end
  local last = char(0x80 + floor(code / 64) % 64, 0x80 + code % 64)
  if code < 0x10000 then return char(0xe0 + floor(code / 4096)) .. last end
  return char(0xf0 + floor(code / 262144), 0x80 + floor(code / 4096) % 64) .. last
end

-- The character of \uXXXX at pos, or of two of them that are surrogates.
function Reader:unicode()
  local hex = self.text:match("^\\u(%x%x%x%x)", self.pos)
  local code = hex and tonumber(hex, 16)
  if not code or (code >= 0xdc00 and code < 0xe000) then self:fault("a bad \\u escape") end
  self.pos = self.pos + 6
  if code < 0xd800 or code >= 0xe000 then return utf8(code) end
  local low = self.text:match("^\\u([dD][c-fC-F]%x%x)", self.pos)
  if not low then self:fault("half of a surrogate pair") end
  self.pos = self.pos + 6
  return utf8(0x10000 + (code - 0xd800) * 1024 + tonumber(low, 16) - 0xdc00)
end

function Reader:escape()
  local char = self.text:sub(self.pos + 1, self.pos + 1)
  if char == "u" then return self:unicode() end
  if not escapes[char] then self:fault("a bad escape") end
  self.pos = self.pos + 2
  return escapes[char]
end

function Reader:string()
  self:expect '"'
  local plain = self.text:match('^([^%z\1-\31"\\]*)"', self.pos)
  if plain then
    self.pos = self.pos + #plain + 1
    return plain
  end
  local pieces = {}
  while true do
    local stop = self.text:find('[%z\1-\31"\\]', self.pos)
    if not stop then self:fault("a string without an end") end
    pieces[#pieces + 1] = self.text:sub(self.pos, stop - 1)
    self.pos = stop
    local char = self.text:sub(stop, stop)
    if char == '"' then break end
    if char ~= "\\" then self:fault("a control character in a string") end
    pieces[#pieces + 1] = self:escape()
  end
  self.pos = self.pos + 1
  return table.concat(pieces)
end

-- ---- Values ----------------------------------------------------------------------------------

-- A whole number that a double holds exactly.
function Reader:integer(name)
  self:peek()
  local digits = self.text:match("^%d[%d.eE+-]*", self.pos)
  if not digits or not digits:find "^%d+$" or digits:find "^0%d" then
    self:fault("%s takes whole numbers of 0 and above", name)
  end
  if #digits > 16 or tonumber(digits) > 2 ^ 53 then self:fault("%s overflows", name) end
  self.pos = self.pos + #digits
  return tonumber(digits)
end

function Reader:integers(name, most)
  local list = {}
  self:expect "["
  if self:peek() == "]" then
    self.pos = self.pos + 1
    return list
  end
  repeat
    if #list == most then self:fault("%s has more than %d numbers", name, most) end
    list[#list + 1] = self:integer(name)
  until not self:more "]"
  return list
end

-- An object: member(key) reads each value. A key that comes twice is a fault.
function Reader:members(member)
  local seen = {}
  self:expect "{"
  if self:peek() == "}" then
    self.pos = self.pos + 1
    return
  end
  repeat
    local key = self:string()
    if seen[key] then self:fault("duplicate key %s", M.shown(key)) end
    seen[key] = true
    self:expect ":"
    member(key)
  until not self:more "}"
end

function Reader:entry(name)
  local entry = { name = name }
  self:members(function(key)
    if key == "dtype" then
      entry.dtype = self:string()
    elseif key == "shape" then
      entry.shape = self:integers("shape", MAX_DIMS)
    elseif key == "data_offsets" then
      entry.offsets = self:integers("data_offsets", 2)
    else
      self:fault("tensor %s has an unknown field %s", M.shown(name), M.shown(key))
    end
  end)
  if not entry.dtype or not entry.shape or #(entry.offsets or {}) ~= 2 then
    self:fault("tensor %s needs dtype, shape and two data_offsets", M.shown(name))
  end
  return entry
end

local sequences = { "^[\1-\127]+", "^[\194-\223][\128-\191]", "^\224[\160-\191][\128-\191]",
  "^[\225-\236\238\239][\128-\191][\128-\191]", "^\237[\128-\159][\128-\191]",
  "^\240[\144-\191][\128-\191][\128-\191]", "^[\241-\243][\128-\191][\128-\191][\128-\191]",
  "^\244[\128-\143][\128-\191][\128-\191]" }

--- Where the text stops being UTF-8, or nil.
---@param text string
---@return integer|nil
function M.not_utf8(text)
  local pos = text:find "[%z\128-\255]"
  while pos and pos <= #text do
    local stop
    for i = 1, #sequences do
      local _, last = text:find(sequences[i], pos)
      stop = stop or last
    end
    if not stop and text:byte(pos) ~= 0 then return pos end
    pos = (stop or pos) + 1
  end
end

--- Reads a header.
---@param text string
---@param fail fun(message: string) raises
---@return { name: string, dtype: string, shape: integer[], offsets: integer[] }[] entries
---@return table<string, string> metadata
function M.read(text, fail)
  local self = setmetatable({ text = text, pos = 1, fail = fail }, Reader)
  local entries, metadata = {}, {}
  if text:sub(1, 1) ~= "{" then self:fault("it does not begin with '{'") end
  self.pos = M.not_utf8(text) or 1
  if self.pos > 1 then self:fault("not UTF-8") end
  self:members(function(key)
    if key == "__metadata__" then
      self:members(function(name) metadata[name] = self:string() end)
    else
      entries[#entries + 1] = self:entry(key)
    end
  end)
  if text:find("[^ ]", self.pos) then self:fault("bytes after its end that are not spaces") end
  return entries, metadata
end

-- ---- Writing ---------------------------------------------------------------------------------

--- Writes a header: metadata by name, entries in their order, spaces up to a multiple of 8 bytes.
---@return string
function M.write(entries, metadata)
  local parts, names = {}, {}
  for name in pairs(metadata) do names[#names + 1] = name end
  table.sort(names)
  for i, name in ipairs(names) do names[i] = quote(name) .. ":" .. quote(metadata[name]) end
  if #names > 0 then parts[1] = '"__metadata__":{' .. table.concat(names, ",") .. "}" end
  for _, entry in ipairs(entries) do
    parts[#parts + 1] = ('%s:{"dtype":"%s","shape":[%s],"data_offsets":[%.0f,%.0f]}'):format(
      quote(entry.name), entry.dtype, table.concat(entry.shape, ","), entry.offsets[1],
      entry.offsets[2])
  end
  local text = "{" .. table.concat(parts, ",") .. "}"
  return text .. (" "):rep(-#text % 8)
end

return M

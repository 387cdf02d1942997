-- Makers of small files for the tests of readers: sound ones, and sound parts to forge others from.
-- Holds no test. Invariant: every byte is written here, by no library under test.
local bit = require "bit"

local M = {}

--- The path of a new scratch file with this content.
function M.file(content)
  local path = os.tmpname()
  M.write(path, content)
  return path
end

function M.write(path, content)
  local file = assert(io.open(path, "wb"))
  file:write(content)
  file:close()
end

function M.read(path)
  local file = assert(io.open(path, "rb"))
  local content = file:read "*a"
  file:close()
  return content
end

--- The program that runs this, to run a script in a process of its own.
function M.interpreter()
  local link = io.popen "readlink /proc/$PPID/exe"
  local path = link:read "*l"
  link:close()
  return path
end

--- n as an integer of `bytes` bytes, little-endian; big-endian from M.big.
function M.little(n, bytes)
  local text = {}
  for i = 1, bytes do
    text[i] = string.char(n % 256)
    n = math.floor(n / 256)
  end
  return table.concat(text)
end

function M.big(n, bytes)
  return M.little(n, bytes):reverse()
end

--- An IDX file of unsigned bytes.
function M.idx(shape, content)
  local text = "\0\0\8" .. string.char(#shape)
  for _, n in ipairs(shape) do text = text .. M.big(n, 4) end
  return text .. content
end

--- A safetensors file.
function M.safetensors(header, content)
  return M.little(#header, 8) .. header .. content
end

--- The entry of a safetensors header for a tensor of bytes.
function M.entry(name, first, last)
  return ('"%s":{"dtype":"U8","shape":[%d],"data_offsets":[%d,%d]}'):format(name, last - first,
    first, last)
end

--- A safetensors header of n tensors of a byte each, t1 to t<n>, in order (step 1) or in the order
--- of a walk whose step has no divisor in common with n; then these entries.
function M.entries(n, step, ...)
  local parts = {}
  for i = 1, n do
    local k = i * step % n
    parts[i] = M.entry("t" .. k + 1, k, k + 1)
  end
  return "{" .. table.concat(parts, ",") .. (","):rep(select("#", ...) > 0 and 1 or 0)
    .. table.concat({ ... }, ",") .. "}"
end

local function crc32(text)
  local crc = bit.tobit(0xffffffff)
  for i = 1, #text do
    crc = bit.bxor(crc, text:byte(i))
    for _ = 1, 8 do
      local low = bit.band(crc, 1)
      crc = bit.bxor(bit.rshift(crc, 1), bit.band(0xedb88320, -low))
    end
  end
  return bit.bnot(crc) % 2 ^ 32
end

local function adler32(text)
  local a, b = 1, 0
  for i = 1, #text do
    a = (a + text:byte(i)) % 65521
    b = (b + a) % 65521
  end
  return b * 65536 + a
end

function M.chunk(name, content)
  return M.big(#content, 4) .. name .. content .. M.big(crc32(name .. content), 4)
end

M.png_magic = "\137PNG\r\n\26\n"

--- An 8-bit PNG, its rows stored without compression. kind: 0 grey, 2 RGB, 6 RGBA.
function M.png(width, height, kind, pixels)
  local row, lines = #pixels / height, {}
  for y = 0, height - 1 do lines[y + 1] = "\0" .. pixels:sub(y * row + 1, (y + 1) * row) end
  local raw = table.concat(lines)
  local stored = "\1" .. M.little(#raw, 2) .. M.little(65535 - #raw, 2) .. raw
  return M.png_magic
    .. M.chunk("IHDR", M.big(width, 4) .. M.big(height, 4) .. "\8" .. string.char(kind) .. "\0\0\0")
    .. M.chunk("IDAT", "\120\1" .. stored .. M.big(adler32(raw), 4)) .. M.chunk("IEND", "")
end

--- A 24-bit BMP from rows of RGB bytes, top row first.
function M.bmp(width, height, pixels)
  local rows = {}
  for y = 0, height - 1 do
    local row = pixels:sub(y * width * 3 + 1, (y + 1) * width * 3):gsub("(.)(.)(.)", "%3%2%1")
    rows[height - y] = row .. ("\0"):rep(-#row % 4)
  end
  local body = table.concat(rows)
  return "BM" .. M.little(54 + #body, 4) .. M.little(0, 4) .. M.little(54, 4) .. M.little(40, 4)
    .. M.little(width, 4) .. M.little(height, 4) .. M.little(1, 2) .. M.little(24, 2)
    .. M.little(0, 4) .. M.little(#body, 4) .. ("\0"):rep(16) .. body
end

return M

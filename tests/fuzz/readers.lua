-- Damages sound files at random and hands them to the readers: each must give a value or raise an
-- error that names the file, and take no more memory than the file allows; a refusal leaves no more
-- than twice the file in Lua's heap. Crashes, hangs and
-- reads out of bounds are for the tool it runs under to see. Invariant: a seed gives the same
-- files again.
--
--   ./lunce tests/fuzz/readers.lua [rounds = 2000] [seed = 1]
--   valgrind --error-exitcode=9 luajit -joff tests/fuzz/readers.lua 300
local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
package.path = here .. "../../lualib/?.lua;" .. here .. "../../lualib/?/init.lua;" .. package.path
local lunce = require "lunce"
local forge = dofile(here .. "../forge.lua")

local rounds, seed = tonumber(arg[1] or 2000), tonumber(arg[2] or 1)
math.randomseed(seed)
local random = math.random

local function noise(n)
  local text = {}
  for i = 1, n do text[i] = string.char(random(0, 255)) end
  return table.concat(text)
end

-- ---- Sound files and their readers -----------------------------------------------------------

local path, labels = os.tmpname(), os.tmpname()
forge.write(labels, forge.idx({ 10 }, ("\1"):rep(10)))

local function gzip(content)
  forge.write(path, content)
  os.execute(("gzip -c %s > %s.gz"):format(path, path))
  local zipped = forge.read(path .. ".gz")
  os.remove(path .. ".gz")
  return zipped
end

local function saved()
  lunce.io.safetensors.save(path, { w = lunce.ones(3, 4), b = lunce.ones(4, { dtype = "float64" }),
    mask = lunce.tensor { true, false }, none = lunce.zeros(0) }, { epoch = "3", note = "a\"é" })
  return forge.read(path)
end

local function load_idx() return lunce.data.idx(path, labels) end
local function load_tensors() return lunce.io.safetensors.load(path) end
local function load_image() return lunce.data.image(path) end

-- Bytes of tensors that a file of n bytes may ask for: a plain one its size (labels beside it), a
-- deflated one what deflate can pack, an image its pixel budget, tensors of a byte a block each.
local function plain(n) return n end
local function blocks(n) return 8 * n end
local function deflated(n) return 1032 * n end
local function budget() return 3 * 64 * 2 ^ 20 end

local jpeg = forge.read(here .. "../reference/flower.jpg")
local subjects = {
  { "idx", forge.idx({ 10, 4, 4 }, noise(160)), load_idx, plain, head = 20 },
  { "idx.gz", gzip(forge.idx({ 10, 4, 4 }, noise(160))), load_idx, deflated, head = 20 },
  { "safetensors", saved(), load_tensors, plain, head = 400 },
  { "dense", forge.safetensors(forge.entries(1000, 7), ("\1"):rep(1000)), load_tensors, blocks,
    head = 60000, share = 0.05 },
  { "png", forge.png(16, 16, 2, noise(768)), load_image, budget, head = 60 },
  { "bmp", forge.bmp(16, 16, noise(768)), load_image, budget, head = 60 },
  { "jpeg", jpeg, load_image, budget, head = 700, share = 0.05 },
}

-- ---- Damage ----------------------------------------------------------------------------------

local function at(text, i, with) return text:sub(1, i - 1) .. with .. text:sub(i + #with) end

-- Mostly in the first `head` bytes, where sizes and lengths are.
local function place(text, head)
  return random(1, random() < 0.7 and math.min(head, #text) or #text)
end

local extremes = { "\0\0\0\0", "\255\255\255\255", "\127\255\255\255", "\255\255\255\127",
  "\128\0\0\0", "\0\0\0\128", "99999999", "\"", "{", "}", "[", "]", ",", "\\u0000", "-1", "1e9" }

local damages = {
  function(text) return text:sub(1, random(0, #text)) end,
  function(text, head)
    local i = place(text, head)
    return at(text, i, string.char(bit.bxor(text:byte(i), 2 ^ random(0, 7))))
  end,
  function(text, head) return at(text, place(text, head), noise(random(1, 8))) end,
  function(text, head) return at(text, place(text, head), extremes[random(#extremes)]) end,
  function(text) return text .. noise(random(1, 20)) end,
  function(text, head) -- a piece twice, or left out
    local i, j = place(text, head), place(text, head)
    return text:sub(1, i) .. text:sub(j)
  end,
}

-- A PNG's checksums are made right again half of the time, so that damage reaches its decoder.
local function mend_png(text)
  local parts, i = { text:sub(1, 8) }, 9
  while i + 11 <= #text do
    local a, b, c, d = text:byte(i, i + 3)
    local length = ((a * 256 + b) * 256 + c) * 256 + d
    if i + 11 + length > #text then break end
    parts[#parts + 1] = forge.chunk(text:sub(i + 4, i + 7), text:sub(i + 8, i + 7 + length))
    i = i + 12 + length
  end
  return table.concat(parts) .. text:sub(i)
end

-- ---- The rounds ------------------------------------------------------------------------------

for _, subject in ipairs(subjects) do
  local name, sound, load, allowed = unpack(subject)
  local counts = { taken = 0, refused = 0 }
  forge.write(path, sound)
  assert(load(), name .. ": the sound file is refused")
  for _ = 1, math.ceil(rounds * (subject.share or 1)) do
    local text = sound
    for _ = 1, random(1, 3) do
      if #text > 0 then text = damages[random(#damages)](text, subject.head) end
    end
    if name == "png" and random() < 0.5 then text = mend_png(text) end
    if name == "jpeg" and random() < 0.5 then text = text .. "\255\217" end
    forge.write(path, text)
    collectgarbage()
    lunce.reset_peak_memory()
    local before, heap = lunce.memory().live_bytes, collectgarbage "count"
    local ok, result = pcall(load)
    local message = ok and "" or tostring(result)
    assert(ok or message:find(path, 1, true) or message:find(labels, 1, true), message)
    assert(lunce.memory().peak_bytes - before <= allowed(#text) + 65536,
      name .. ": too much memory")
    assert(ok or (collectgarbage "count" - heap) * 1024 <= 2 * #text + 2 ^ 20, -- and traces
      name .. ": too much of Lua's heap")
    local kind = ok and "taken" or "refused"
    counts[kind] = counts[kind] + 1
  end
  print(("%-12s %6d taken, %6d refused"):format(name, counts.taken, counts.refused))
end
os.remove(path)
os.remove(labels)

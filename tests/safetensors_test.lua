-- The safetensors format: what is written comes back, every rule of its specification is checked on
-- a forged file, and a save is whole or has not happened.
local lunce = require "lunce"

local C = require("lunce.ffi").C
local safetensors = lunce.io.safetensors

local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local forge = dofile(here .. "forge.lua")

local refuses = dofile(here .. "refusals.lua")("safetensors_test.lua")

-- The names in a folder that begin as path does.
local function beside(path)
  local list = io.popen("ls -d " .. path .. "* 2>/dev/null")
  local text = list:read "*a"
  list:close()
  return text
end

describe("a round trip", function()
  local path = os.tmpname()
  teardown(function() os.remove(path) end)

  it("keeps every dtype, shape and value", function()
    local tensors = {
      half = lunce.tensor({ 1.5, -2, 65504 }, { dtype = "float16" }),
      brain = lunce.tensor({ { 1, -0.5 } }, { dtype = "bfloat16" }),
      single = lunce.tensor { { 0.1, 1 / 0 }, { -1 / 0, -0.0 } },
      double = lunce.tensor({ math.pi, 2 ^ -1074 }, { dtype = "float64" }),
      long = lunce.tensor({ -2 ^ 53, 7 }, { dtype = "int64" }),
      int = lunce.tensor({ -2147483648, 3 }, { dtype = "int32" }),
      byte = lunce.tensor({ 0, 255 }, { dtype = "uint8" }),
      bool = lunce.tensor { true, false, true },
      scalar = lunce.tensor(3),
      empty = lunce.zeros(2, 0, 3),
    }
    safetensors.save(path, tensors)
    local loaded, metadata = safetensors.load(path)
    assert.same({}, metadata)
    for name, t in pairs(tensors) do
      assert.same(t.shape, loaded[name].shape, name)
      assert.equal(t.dtype, loaded[name].dtype, name)
      assert.same(t:tolist(), loaded[name]:tolist(), name)
    end
    for name in pairs(loaded) do assert(tensors[name], name) end
  end)

  it("keeps names and metadata of any text", function()
    local odd = 'a"b\\c\n\t\1 é 漢 😀 /'
    safetensors.save(path, { [odd] = lunce.ones(2) }, { [odd] = odd, empty = "" })
    local loaded, metadata = safetensors.load(path)
    assert.same({ 1, 1 }, loaded[odd]:tolist())
    assert.same({ [odd] = odd, empty = "" }, metadata)
  end)

  it("writes a transposed tensor by its rows", function()
    local t = lunce.arange(1, 6):reshape(2, 3)
    safetensors.save(path, { t = t:t() })
    assert.same(t:t():tolist(), safetensors.load(path).t:tolist())
  end)

  it("gives the same bytes for the same tensors, and aligns each", function()
    local tensors = {}
    for i = 1, 20 do
      local dtype = ({ "uint8", "float64", "float16", "float32" })[i % 4 + 1]
      tensors["t" .. i] = lunce.ones(i, { dtype = dtype })
    end
    safetensors.save(path, tensors, { b = "1", a = "2" })
    local first = forge.read(path)
    local again = {}
    for i = 20, 1, -1 do again["t" .. i] = tensors["t" .. i] end
    safetensors.save(path, again, { a = "2", b = "1" })
    assert.equal(first, forge.read(path))
    for dtype, offset in first:gmatch '"dtype":"(%u%d+)","shape":%[%d+%],"data_offsets":%[(%d+),' do
      assert.equal(0, offset % (tonumber(dtype:match "%d+") / 8))
    end
    assert.equal(0, #first:match "^........(%b{} *)" % 8)
  end)

  it("reads another writer's file", function()
    local tensors, metadata = safetensors.load(here .. "reference/images.safetensors")
    assert.same({ 96, 128, 3 }, tensors.image.shape)
    assert.equal("uint8", tensors.image.dtype)
    assert(metadata.note:find "antialiased")
  end)

  it("takes an empty file of tensors", function()
    safetensors.save(path, {})
    assert.same({}, (safetensors.load(path)))
  end)

  it("gives all memory back", function()
    safetensors.save(path, { t = lunce.ones(1000) })
    collectgarbage()
    local live = lunce.memory().live_bytes
    for _ = 1, 10 do safetensors.load(path).t:free() end
    assert.equal(live, lunce.memory().live_bytes)
  end)
end)

describe("loading", function()
  local path = os.tmpname()
  teardown(function() os.remove(path) end)

  it("a missing file gives nil and says so", function()
    local tensors, message = safetensors.load "/nowhere/at all"
    assert.is_nil(tensors)
    assert(message:find("'/nowhere/at all': no such file", 1, true), message)
  end)

  it("a folder, and no name at all, are refused", function()
    refuses(function() safetensors.load "/tmp" end, "'/tmp': not a regular file")
    refuses(function() safetensors.load(nil) end, "the path is nil")
    refuses(function() safetensors.load "a\0b" end, "the path is")
  end)

  local one = '"a":{"dtype":"U8","shape":[2],"data_offsets":[0,2]}'
  local function entry(dtype, shape, first, last)
    return ('{"a":{"dtype":"%s","shape":%s,"data_offsets":[%s,%s]}}'):format(dtype, shape, first,
      last)
  end
  local function two(first, second)
    return ('{"a":{"dtype":"U8","shape":[2],"data_offsets":%s},'
      .. '"b":{"dtype":"U8","shape":[2],"data_offsets":%s}}'):format(first, second)
  end

  local function metadata(n)
    local names = {}
    for i = 1, n do names[i] = ('"%x":""'):format(i) end
    return '{"__metadata__":{' .. table.concat(names, ",") .. "}}"
  end

  -- What is forged, the file, and what the message must say.
  local forged = {
    { "no bytes", "", "truncated: 0 bytes" },
    { "seven bytes", ("\1"):rep(7), "truncated: 7 bytes" },
    { "a header past the end", forge.little(100, 8) .. "{}", "truncated: its header of 100 bytes" },
    { "a header over 100 MB", forge.little(100000001, 8) .. "{}", "length is 100000001 bytes" },
    { "a header of 2^64 - 1", ("\255"):rep(8) .. "{}", "length is 18446744073709551615 bytes" },
    { "no header", { "", "" }, "does not begin with '{'" },
    { "a header after a space", { " {}", "" }, "does not begin with '{'" },
    { "an array", { "[]", "" }, "does not begin with '{'" },
    { "a cut header", { "{" .. one, "ab" }, "the end where '}' is expected" },
    { "a comma too many", { "{" .. one .. ",}", "ab" }, "where '\"' is expected" },
    { "text after the header", { "{}x", "" }, "bytes after its end" },
    { "a newline after the header", { "{}\n", "" }, "bytes after its end" },
    { "NUL after the header", { "{}\0", "" }, "bytes after its end" },
    { "a name that is not UTF-8", { '{"\255":1}', "" }, "not UTF-8" },
    { "an overlong encoding", { '{"\192\175":1}', "" }, "not UTF-8" },
    { "an encoded surrogate", { '{"\237\160\128":1}', "" }, "not UTF-8" },
    { "a cut sequence", { '{"\226\130":1}', "" }, "not UTF-8" },
    { "a sequence above 10FFFF", { '{"\244\144\128\128":1}', "" }, "not UTF-8" },
    { "half a surrogate pair", { '{"\\ud800":1}', "" }, "surrogate" },
    { "a lone low surrogate", { '{"\\udc00":1}', "" }, "escape" },
    { "a bad escape", { '{"\\x":1}', "" }, "escape" },
    { "a raw newline in a name", { '{"a\nb":1}', "" }, "control character" },
    { "a duplicate name", { "{" .. one .. "," .. one .. "}", "ab" }, 'duplicate key "a"' },
    { "a duplicate by escape", { "{" .. one .. "," .. one:gsub("a", "\\u0061", 1) .. "}", "ab" },
      'duplicate key "a"' },
    { "a duplicate field", { '{"a":{"dtype":"U8","dtype":"U8"}}', "" }, 'duplicate key "dtype"' },
    { "duplicate metadata", { '{"__metadata__":{"k":"1","k":"2"}}', "" }, 'duplicate key "k"' },
    { "metadata twice", { '{"__metadata__":{},"__metadata__":{}}', "" }, "duplicate key" },
    { "metadata that is a number", { '{"__metadata__":{"k":1}}', "" }, "where '\"' is expected" },
    { "metadata that is a list", { '{"__metadata__":[]}', "" }, "where '{' is expected" },
    { "a tensor that is a list", { '{"a":[]}', "" }, "where '{' is expected" },
    { "an unknown field", { '{"a":{"order":"F"}}', "" }, 'unknown field "order"' },
    { "no dtype", { '{"a":{"shape":[0],"data_offsets":[0,0]}}', "" }, "needs dtype" },
    { "no shape", { '{"a":{"dtype":"U8","data_offsets":[0,0]}}', "" }, "needs dtype, shape" },
    { "no offsets", { '{"a":{"dtype":"U8","shape":[0]}}', "" }, "data_offsets" },
    { "one offset", { '{"a":{"dtype":"U8","shape":[0],"data_offsets":[0]}}', "" },
      "two data_offsets" },
    { "three offsets", { '{"a":{"data_offsets":[0,0,0]}}', "" }, "more than 2 numbers" },
    { "an unknown dtype", { entry("F8_E4M3", "[2]", 0, 2), "ab" }, 'dtype "F8_E4M3"' },
    { "an unsupported dtype", { entry("U16", "[1]", 0, 2), "ab" }, 'dtype "U16"' },
    { "a negative extent", { entry("U8", "[-2]", 0, 2), "ab" }, "whole numbers of 0 and above" },
    { "a fractional extent", { entry("U8", "[2.0]", 0, 2), "ab" }, "whole numbers of 0 and above" },
    { "an extent with an exponent", { entry("U8", "[2e0]", 0, 2), "ab" }, "whole numbers" },
    { "an extent with a leading zero", { entry("U8", "[02]", 0, 2), "ab" }, "whole numbers" },
    { "an extent that is text", { entry("U8", '["2"]', 0, 2), "ab" }, "whole numbers" },
    { "an extent of 2^64", { entry("U8", "[18446744073709551616]", 0, 2), "ab" }, "overflows" },
    { "a product of 2^64", { entry("U8", "[4294967296,4294967296]", 0, 0), "" }, "overflows" },
    { "a product that wraps", { entry("F64", "[2305843009213693952,1]", 0, 0), "" }, "overflows" },
    { "an overflow beside a zero", { entry("U8", "[0,4294967296,4294967296]", 0, 0), "" },
      "overflows" },
    { "nine dimensions", { entry("U8", "[1,1,1,1,1,1,1,1,1]", 0, 1), "a" }, "more than 8" },
    { "offsets past the end", { entry("U8", "[2]", 0, 2), "a" }, "out of range" },
    { "offsets of 2^62", { entry("U8", "[2]", 0, "4611686018427387904"), "ab" }, "overflows" },
    { "an end before its beginning", { entry("U8", "[0]", 2, 1), "ab" }, "ends before it begins" },
    { "an overlap", { two("[0,2]", "[1,3]"), "abc" }, "overlaps another" },
    { "the same bytes twice", { two("[0,2]", "[0,2]"), "ab" }, "overlaps another" },
    { "a hole", { two("[0,2]", "[3,5]"), "abcde" }, "leaves a hole from 2" },
    { "a hole at the beginning", { entry("U8", "[2]", 1, 3), "abc" }, "leaves a hole from 0" },
    { "trailing bytes", { "{" .. one .. "}", "abc" }, "trailing bytes: its tensors take 2 of 3" },
    { "data without tensors", { "{}", "abc" }, "trailing bytes" },
    { "fewer bytes than the shape", { entry("F32", "[2]", 0, 2), "ab" }, "the 8 bytes" },
    { "more bytes than the shape", { entry("U8", "[]", 0, 2), "ab" }, "the 1 bytes" },
    { "a bool of 2", { entry("BOOL", "[2]", 0, 2), "\1\2" }, "is 2 where a bool is 0 or 1" },
    { "a hole that the order hides", { forge.entries(9, 2, forge.entry("z", 10, 11)),
      ("a"):rep(11) }, 'tensor "z" at data_offsets [10,11] leaves a hole from 9' },
    { "an empty tensor inside another", { "{" .. one .. "," .. forge.entry("e", 1, 1) .. "}",
      "ab" }, 'tensor "e" at data_offsets [1,1] overlaps another' },
    { "too many names in the metadata", { metadata(65537), "" }, "has 65537 names" },
    { "too much metadata", { '{"__metadata__":{"k":"' .. ("x"):rep(2 ^ 22) .. '"}}', "" },
      "4194312 bytes" },
    { "deep nesting", { ("{\"a\":"):rep(100000), "" }, "unknown field" },
  }

  for _, case in ipairs(forged) do
    local name, content, message = case[1], case[2], case[3]
    it("refuses " .. name, function()
      if type(content) == "table" then content = forge.safetensors(content[1], content[2]) end
      forge.write(path, content)
      refuses(function() safetensors.load(path) end, "'" .. path .. "'", message)
    end)
  end

  -- Small tensors by the thousand, the fault after the last: what a general reader builds of them
  -- is many times the file.
  local many = 70001
  local dense = {
    { "an overlap", { 1, forge.entry("z", many - 2, many) }, "overlaps another" },
    { "an overlap out of order", { 30000, forge.entry("z", many - 2, many) }, "overlaps another" },
    { "a duplicate name", { 1, forge.entry("t7", 0, 0) }, 'duplicate key "t7"' },
    { "a duplicate by escape", { 1, forge.entry("\\u00747", 0, 0) }, 'duplicate key "t7"' },
    { "an entry cut short", { 1, forge.entry("z", 0, 0):sub(1, -2) }, "the end where '}' is" },
  }

  for _, case in ipairs(dense) do
    local name, entries, message = case[1], case[2], case[3]
    it("refuses " .. name .. " after 70001 tensors with memory below twice the file", function()
      local file = forge.safetensors(forge.entries(many, unpack(entries)), ("a"):rep(many))
      forge.write(path, file)
      collectgarbage()
      local heap, allocations = collectgarbage "count", lunce.memory().allocations
      refuses(function() safetensors.load(path) end, path, message)
      local grown = (collectgarbage "count" - heap) * 1024
      assert(grown < 2 * #file, ("%d bytes for a file of %d"):format(grown, #file))
      assert.equal(allocations, lunce.memory().allocations)
    end)
  end

  it("takes thousands of tensors in an order of their own", function()
    local bytes = {}
    for i = 1, 2000 do bytes[i] = string.char(i % 251) end
    forge.write(path, forge.safetensors(forge.entries(2000, 7), table.concat(bytes)))
    local t = safetensors.load(path)
    for i = 1, 2000 do assert.equal(i % 251, t["t" .. i]:item()) end
  end)

  it("takes as many names of metadata as it may hold", function()
    forge.write(path, forge.safetensors(metadata(65536), ""))
    local _, loaded = safetensors.load(path)
    assert.equal("", loaded["10000"])
  end)

  it("takes every whitespace and padding that JSON and the format allow", function()
    forge.write(path, forge.safetensors('{ "a" :\t{"shape": [ 2 ],\n"dtype":"U8", "data_offsets":'
      .. "[0 ,2]}\r}    ", "ab"))
    assert.same({ 97, 98 }, safetensors.load(path).a:tolist())
  end)

  it("takes tensors in any order of the header, and empty ones between", function()
    forge.write(path, forge.safetensors('{"b":{"dtype":"U8","shape":[1],"data_offsets":[1,2]},'
      .. '"e":{"dtype":"F32","shape":[0,5],"data_offsets":[1,1]},'
      .. '"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}', "xy"))
    local t = safetensors.load(path)
    assert.same({ 120, 121 }, { t.a:item(), t.b:item() })
    assert.same({ 0, 5 }, t.e.shape)
  end)

  it("a message never carries control characters of the file", function()
    forge.write(path, forge.safetensors('{"\\u001b[31m\\n":{"x":1}}', ""))
    local _, message = pcall(safetensors.load, path)
    assert.is_nil(message:find "%c")
  end)

  it("a refused file takes no tensor memory", function()
    forge.write(path, forge.safetensors(entry("U8", "[1000000000]", 0, 1000000000), "ab"))
    local before = lunce.memory().allocations
    pcall(safetensors.load, path)
    assert.equal(before, lunce.memory().allocations)
  end)

  it("out of memory leaves nothing behind", function()
    safetensors.save(path, { a = lunce.ones(100000), b = lunce.ones(100000) })
    collectgarbage()
    local live, hard = lunce.memory().live_bytes, lunce.memory().hard_bytes
    for _, room in ipairs { 300000, 600000 } do -- the first tensor fails, then the second
      lunce.memory_limit { hard = live + room }
      local ok, message = pcall(safetensors.load, path)
      lunce.memory_limit { hard = hard }
      assert.is_false(ok)
      assert(message:find "out of memory", message)
    end
    collectgarbage()
    assert.equal(live, lunce.memory().live_bytes)
    assert.equal(100000, safetensors.load(path).b:sum():item())
  end)
end)

describe("saving", function()
  local path = os.tmpname()
  teardown(function() os.remove(path) end)

  it("refuses what the format cannot hold", function()
    local t = lunce.ones(1)
    refuses(function() safetensors.save(path, 3) end, "the tensors are 3")
    refuses(function() safetensors.save(path, t) end, "the tensors are a tensor")
    refuses(function() safetensors.save(path, { t }) end, "name is 1")
    refuses(function() safetensors.save(path, { a = 5 }) end, '"a" is 5')
    refuses(function() safetensors.save(path, { ["\255"] = t }) end, "is not UTF-8")
    refuses(function() safetensors.save(path, { __metadata__ = t }) end, "cannot be named")
    refuses(function() safetensors.save(path, { a = t }, { k = 1 }) end, 'metadata "k" is 1')
    refuses(function() safetensors.save(path, { a = t }, { "x" }) end, "name in the metadata is 1")
    refuses(function() safetensors.save(path, {}, { k = ("x"):rep(2 ^ 22) }) end, "4194312 bytes")
  end)

  it("a failure leaves the old file and no other", function()
    safetensors.save(path, { a = lunce.ones(3) })
    local before, files, new = forge.read(path), beside(path), { a = lunce.zeros(3) }
    C.ln_interrupt()
    local ok, message = pcall(safetensors.save, path, new)
    C.ln_interrupt_clear()
    assert.is_false(ok)
    assert(message:find "interrupted", message)
    assert.equal(before, forge.read(path))
    assert.equal(files, beside(path))
  end)

  it("onto a folder, or into none, is refused and leaves nothing", function()
    local folder = os.tmpname()
    os.remove(folder)
    os.execute("mkdir " .. folder)
    refuses(function() safetensors.save(folder, { a = lunce.ones(1) }) end, folder, "rename")
    refuses(function() safetensors.save(folder .. "/no/file", { a = lunce.ones(1) }) end, "create")
    assert.equal("", beside(folder .. "."))
    os.execute("rmdir " .. folder)
  end)

  it("killed at any moment, leaves the old file or the new, whole", function()
    local exe = forge.interpreter()
    local script = forge.file(([[
      package.path, package.cpath = %q, %q
      local lunce = require "lunce"
      local old, new = lunce.ones(500000), lunce.ones(500000) * 2
      io.open(%q, "w"):close()
      while true do
        lunce.io.safetensors.save(%q, { t = old })
        lunce.io.safetensors.save(%q, { t = new })
      end]]):format(package.path, package.cpath, path .. ".begun", path, path))
    safetensors.save(path, { t = lunce.ones(500000) })
    for i = 1, 12 do
      os.remove(path .. ".begun")
      os.execute(([[%s %s & child=$!
        while [ ! -e %s.begun ] && kill -0 $child; do sleep 0.01; done
        sleep 0.0%d; kill -9 $child; wait $child 2>/dev/null]]):format(exe, script, path, i * 7))
      assert(io.open(path .. ".begun"), "the child did not start"):close()
      local t = safetensors.load(path).t
      assert(t:eq(t[1]):all():item(), "a torn file")
    end
    os.execute("rm -f " .. script .. " " .. path .. ".*")
  end)
end)

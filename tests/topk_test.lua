-- The k best of lines beside a sort in Lua: of every dtype, with ties, NaN and infinities, of lines
-- short and long, in any layout, for k from 0 to all. Runs on the CPU and on a device, where the
-- k best are selected in shared memory, selected and sorted outside of it, or found by sorting.
local lunce = require "lunce"

-- Whether the value at place i comes before that at j: a NaN is the largest, ties keep their order.
local function order(values, largest)
  local function above(a, b) return a ~= b and (a ~= a and b == b or a > b) end
  return function(i, j)
    local a, b = values[i], values[j]
    if a ~= a and b ~= b then return i < j end
    if above(a, b) then return largest end
    if above(b, a) then return not largest end
    return i < j
  end
end

-- false and true as 0 and 1.
local function numbers(t)
  local list = t:tolist()
  for i, v in ipairs(list) do list[i] = v == true and 1 or v or 0 end
  return list
end

local function sorted(values, largest)
  local places = {}
  for i = 1, #values do places[i] = i end
  table.sort(places, order(values, largest))
  return places
end

local function check(x, dim, ks)
  local other = 3 - dim
  local rows, lines = x:size(other), {}
  for row = 1, rows do
    local values = numbers(x:select(other, row))
    lines[row] = { values = values, sorted(values, true), sorted(values, false) }
  end
  for _, k in ipairs(ks) do
    for way = 1, 2 do
      local values, places = x:topk(k, dim, { largest = way == 1 })
      assert.same({ rows, k }, dim == 2 and values.shape or { values:size(2), values:size(1) })
      for row = 1, k > 0 and rows or 0 do
        local got, at = numbers(values:select(other, row)), places:select(other, row):tolist()
        local line = lines[row]
        for r = 1, k do
          local place = line[way][r]
          local value = line.values[place]
          assert(at[r] == place and (got[r] == value or (got[r] ~= got[r] and value ~= value)),
            ("row %d, k %d, way %d: rank %d is %s at %d, not %s at %d"):format(row, k, way, r,
              got[r], at[r], value, place))
        end
      end
    end
  end
end

-- 256 entries are what a block of the tests' build sorts in shared memory, 512 what its tile sorts.
local KS = { 0, 1, 33, 250, 256, 257, 512, 700, 1024, 1500 }

describe("topk", function()
  for _, dtype in ipairs{ "float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8",
    "bool" } do
    it("finds the k best of " .. dtype, function()
      local x = (lunce.randn(3, 1500, { seed = 1 }) * 40):abs()
      if dtype:find "^[fbi]" and dtype ~= "bool" then x = x - 30 end
      check((dtype == "bool" and x:gt(20) or x:to(dtype)), 2, KS)
    end)
  end

  it("is exact where keys differ in their last bits", function()
    local near = lunce.arange(1499, 0, -1, { dtype = "float64" }):reshape(1, 1500)
    check((1 + near * 2 ^ -52), 2, KS)
    check((1 + near * 2 ^ -23):to("float32"), 2, KS)
    check(near:to("int64") + 2 ^ 40, 2, KS)
  end)

  for name, fill in pairs{
    ["of which most are equal"] = function(x) return x:masked_fill(x:lt(1.5), -3) end,
    ["that are all equal"] = function(x) return x * 0 + 7 end,
    ["with zeros of both signs"] = function(x) return x:masked_fill(x:lt(0.5), 0) * -1 end,
    ["with NaN"] = function(x) return x:masked_fill(x:gt(0.3), 0 / 0) end,
    ["of NaN alone"] = function(x) return x * (0 / 0) end,
    ["with infinities"] = function(x)
      return x:masked_fill(x:gt(0.3), 1 / 0):masked_fill(x:lt(-1), -1 / 0)
    end,
    ["of -inf, but for a few"] = function(x) return x:masked_fill(x:lt(2), -1 / 0) end,
  } do
    it("takes lines " .. name, function()
      local x = fill(lunce.randn(2, 1300, { seed = 3 }))
      check(x, 2, { 1, 40, 256, 300, 650, 1300 })
      check(x:to("float64"), 2, { 1, 40, 256, 300 })
    end)
  end

  it("takes lines of any length", function()
    for _, n in ipairs{ 1, 2, 511, 512, 513, 1023, 1024, 1025, 2049 } do
      local x = lunce.randn(2, n, { seed = n })
      check(x, 2, { 1, math.ceil(n / 9), math.floor(n / 2), n })
    end
  end)

  it("takes a long line", function()
    local n = 70000
    local x = lunce.randint(1, 60000, { 1, n }, { seed = 5 })
    check(x:to("float32"), 2, { 1, 100, 3000, 9000 })
    check(x:le(40000), 2, { 5, 255, 256, 300 }) -- places of more than 12 bits decide,
    local clumps = {} -- far behind, and several of them at once
    for i = 1, n do clumps[i] = i % 1024 < 24 and 1 or 0 end
    check(lunce.tensor(clumps):reshape(1, n), 2, { 5, 255, 256, 300 })
  end)

  it("takes lines that are not contiguous", function()
    local x = lunce.randn(900, 5, { seed = 6 })
    check(x, 1, { 3, 256, 300, 800 })
    check(x:t(), 2, { 3, 256, 300, 800 })
    check(x:narrow(2, 2, 3), 1, { 20 })
    check(lunce.randn(1, 700, { seed = 7 }):expand(4, 700), 2, { 20, 256 })
    check(lunce.randn(3, 1, { seed = 8 }):expand(3, 700), 2, { 20, 256 })
  end)
end)

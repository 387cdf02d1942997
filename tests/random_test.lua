-- Random numbers: which bits are drawn where, that nothing but the address decides them, and that
-- they follow their distributions. Statistical bounds are at 5 standard deviations or a p-value of
-- 1e-6, with fixed seeds, so that a failure is a fault and not chance.
local ffi = require "ffi"
local lunce = require "lunce"
local C = require("lunce.ffi").C

local isas = {}
for _, name in ipairs { "baseline", "avx2", "avx512" } do
  if C.ln_isa_set(name) == C.LN_OK then isas[#isas + 1] = name end
end
lunce.isa(isas[#isas])

local kinds = {
  { name = "uniform", C.LN_UNIFORM, -1, 3 },
  { name = "normal", C.LN_NORMAL, 1, 2 },
  { name = "bernoulli", C.LN_BERNOULLI, 0.3, 0 },
  { name = "integers", C.LN_INTEGERS, -5, 1000 },
}

local function fill(t, kind, seed, stream, offset)
  local status = C.ln_random(t.h, kind[1], kind[2], kind[3], seed, stream, offset or 0, nil)
  assert.equal("", status == C.LN_OK and "" or ffi.string(C.ln_error()))
  return t
end

local function draw(n, kind, seed, stream, offset, dtype)
  return fill(lunce.zeros(n, { dtype = dtype or "float64" }), kind, seed, stream, offset)
end

local function philox(seed, stream, block)
  local words = ffi.new "uint32_t[4]"
  C.ln_philox(words, seed, stream, block)
  return words
end

-- The uniform double of an index, from Philox's words.
local function uniform(seed, stream, index)
  local words, half = philox(seed, stream, math.floor(index / 2)), index % 2 * 2
  return (words[half + 1] * 2 ^ 21 + math.floor(words[half] / 2 ^ 11)) * 2 ^ -53
end

describe("philox4x32-10:", function()
  -- The known answers that Random123 publishes: counter and key as words, low first.
  local function answers(counter, key, expected)
    local function pair(low, high) return ffi.cast("uint64_t", high) * 2 ^ 32 + low end
    local words = philox(pair(key[1], key[2]), pair(counter[3], counter[4]),
      pair(counter[1], counter[2]))
    for i = 1, 4 do assert.equal(expected[i], words[i - 1]) end
  end

  it("gives the published words for zeros", function()
    answers({ 0, 0, 0, 0 }, { 0, 0 }, { 0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8 })
  end)

  it("gives the published words for ones", function()
    local f = 0xffffffff
    answers({ f, f, f, f }, { f, f }, { 0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd })
  end)

  it("gives the published words for the digits of pi", function()
    answers({ 0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344 }, { 0xa4093822, 0x299f31d0 },
      { 0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1 })
  end)
end)

describe("the address:", function()
  it("an element is drawn from the bits of its index", function()
    local values = lunce.rand(7, { seed = 5, stream = 9, dtype = "float64" }):tolist()
    for i = 1, 7 do assert.equal(uniform(5, 9, i - 1), values[i]) end
  end)

  for _, kind in ipairs(kinds) do
    it(kind.name .. ": parts drawn at their offsets make up the whole", function()
      local whole = draw(5000, kind, 1, 2)
      for _, at in ipairs { 1, 2, 511, 1024, 2049, 4999 } do
        local rest = draw(5000 - at, kind, 1, 2, at)
        assert.is_true(rest:eq(whole:narrow(1, at + 1, 5000 - at)):all():item(), "at " .. at)
      end
    end)

    it(kind.name .. ": every team and instruction set draws the same bits", function()
      local before, expected = lunce.threads(), nil
      for _, isa in ipairs(isas) do
        lunce.isa(isa)
        for _, threads in ipairs { 1, 2, 3, 5 } do
          lunce.threads(threads)
          local t = draw(300007, kind, 11, 3)
          expected = expected or t
          assert.is_true(t:eq(expected):all():item(), isa .. " " .. threads)
        end
      end
      lunce.threads(before)
    end)

    it(kind.name .. ": float32 is float64 rounded", function()
      local single = draw(3000, kind, 4, 4, 0, "float32")
      local double = draw(3000, kind, 4, 4, 0, "float64")
      assert.is_true(single:eq(double:to "float32"):all():item())
    end)

    it(kind.name .. ": strides do not matter", function()
      local base = lunce.zeros(40, 2, 30, { dtype = "float64" })
      local view = base:select(2, 2):t()
      fill(view, kind, 6, 7)
      local expected = draw(1200, kind, 6, 7):view(30, 40)
      assert.is_true(view:eq(expected):all():item())
      assert.equal(0, base:select(2, 1):abs():sum():item())
    end)

    it(kind.name .. ": seeds and streams differ, and empty is empty", function()
      local t = draw(64, kind, 1, 1)
      assert.is_false(t:eq(draw(64, kind, 2, 1)):all():item())
      assert.is_false(t:eq(draw(64, kind, 1, 2)):all():item())
      assert.same({ 0 }, draw(0, kind, 1, 1).shape)
    end)
  end

  it("all 64 bits of seed, stream and offset count", function()
    local kind, seen = kinds[1], {}
    for _, address in ipairs { { 0, 0, 0 }, { 2ULL ^ 40, 0, 0 }, { 0, 2ULL ^ 40, 0 },
      { 0, 0, 2ULL ^ 40 } } do
      seen[draw(1, kind, address[1], address[2], address[3]):item()] = true
    end
    local count = 0
    for _ in pairs(seen) do count = count + 1 end
    assert.equal(4, count)
  end)
end)

describe("the global generator:", function()
  it("the same seed gives the same numbers, and later draws others", function()
    lunce.manual_seed(42)
    local a, b = lunce.randn(10), lunce.randn(10)
    lunce.manual_seed(42)
    assert.same(a:tolist(), lunce.randn(10):tolist())
    assert.same(b:tolist(), lunce.randn(10):tolist())
    assert.is_false(a:eq(b):all():item())
  end)

  it("a seed of one's own leaves it alone", function()
    lunce.manual_seed(42)
    local a = lunce.rand(3)
    lunce.manual_seed(42)
    lunce.rand(3, { seed = 1 })
    assert.same(a:tolist(), lunce.rand(3):tolist())
  end)
end)

-- The largest distance between the sorted values' empirical distribution and cdf, times sqrt(n):
-- above 2.7 with probability 1e-6 if they are the same.
local function kolmogorov(t, cdf)
  local n = t:numel()
  local expected = cdf((t:sort()))
  local steps = lunce.arange(1, n, 1, { dtype = "float64" }) / n
  return (steps - expected):abs():max():item() * math.sqrt(n)
end

describe("distributions:", function()
  local n = 200000

  it("uniform: passes Kolmogorov's test and stays in [0, 1)", function()
    local t = lunce.rand(n, { seed = 1, dtype = "float64" })
    assert.is_true(kolmogorov(t, function(x) return x end) < 2.7)
    assert.is_true(t:min():item() >= 0 and t:max():item() < 1)
  end)

  for _, dtype in ipairs { "float32", "float64", "bfloat16", "float16" } do
    it("uniform: rounding to " .. dtype .. " never reaches the upper end", function()
      for _, range in ipairs { { 0, 1 }, { -2, -1 }, { -1, 0 }, { 1, 1.5 }, { 0, 1000 } } do
        local t = draw(n, { C.LN_UNIFORM, range[1], range[2] }, 3, 3, 0, dtype):to "float64"
        assert.is_true(t:ge(range[1]):all():item())
        assert.is_true(t:lt(range[2]):all():item())
        local middle = (range[1] + range[2]) / 2
        local deviation = (range[2] - range[1]) / math.sqrt(12 * n)
        -- bfloat16 has steps of 2^-7: what is cut off at the end moves the mean by at most 2^-9
        local rounding = (range[2] - range[1]) * (dtype == "bfloat16" and 2 ^ -9 or 0)
        assert.is_true(math.abs(t:mean():item() - middle) < 5 * deviation + rounding)
      end
    end)
  end

  it("normal: passes Kolmogorov's test", function()
    local t = lunce.randn(n, { seed = 2, dtype = "float64" })
    assert.is_true(kolmogorov(t, function(x) return ((x * 0.5 ^ 0.5):erf() + 1) * 0.5 end) < 2.7)
  end)

  it("normal: moments and tails are right", function()
    local t = lunce.randn(1000000, { seed = 3, dtype = "float64" })
    local N = t:numel()
    local function near(value, expected, variance)
      assert.is_true(math.abs(value - expected) < 5 * math.sqrt(variance / N),
        value .. " is not " .. expected)
    end
    near(t:mean():item(), 0, 1)
    near((t ^ 2):mean():item(), 1, 2)
    near((t ^ 3):mean():item(), 0, 15)
    near((t ^ 4):mean():item(), 3, 96)
    local p = 6.334248366623993e-05 -- of |x| > 4
    near(t:abs():gt(4):to("float64"):mean():item(), p, p)
  end)

  it("normal: neighbours, which share a block, are independent", function()
    local t = lunce.randn(n, 2, { seed = 4, dtype = "float64" })
    local a, b = t:select(2, 1), t:select(2, 2)
    local bound = 5 / math.sqrt(n)
    assert.is_true(math.abs((a * b):mean():item()) < bound)
    assert.is_true(math.abs(((a ^ 2 - 1) * (b ^ 2 - 1) / 2):mean():item()) < bound)
  end)

  it("bernoulli: has its mean, is 0 or 1, and is certain at the ends", function()
    for _, p in ipairs { 0, 1e-3, 0.3, 0.9, 1 } do
      local t = lunce.bernoulli(p, n, { seed = 5, dtype = "float64" })
      assert.is_true((t * (1 - t)):eq(0):all():item())
      assert.is_true(math.abs(t:mean():item() - p) <= 5 * math.sqrt(p * (1 - p) / n))
    end
  end)

  it("integers: every value is as likely, ends included", function()
    local counts = lunce.randint(1, 10, n, { seed = 6 }):one_hot(10):sum(1):tolist()
    local chi2 = 0
    for _, count in ipairs(counts) do chi2 = chi2 + (count - n / 10) ^ 2 / (n / 10) end
    assert.is_true(#counts == 10 and chi2 < 45.1) -- 9 degrees of freedom at 1e-6
  end)

  it("integers: wide, negative and single ranges, in every dtype that holds them", function()
    local t = draw(n, { C.LN_INTEGERS, 0, 2 ^ 53 }, 7, 0)
    assert.is_true(kolmogorov(t / 2 ^ 53, function(x) return x end) < 2.7)
    local odd = (t - (t * 0.5):floor() * 2):mean():item() -- the lowest bit is random too
    assert.is_true(math.abs(odd - 0.5) < 5 * 0.5 / math.sqrt(n))
    local negative = lunce.randint(-3, -2, 1000, { seed = 8 })
    assert.same({ -3, -2 }, { negative:min():item(), negative:max():item() })
    assert.same({ 7, 7, 7 }, lunce.randint(7, 7, 3):tolist())
    local bytes = draw(100000, { C.LN_INTEGERS, 0, 256 }, 9, 0, 0, "uint8"):long()
    assert.same({ 0, 255 }, { bytes:min():item(), bytes:max():item() })
  end)

  it("randperm: is a permutation, the same one for the same address", function()
    for _, size in ipairs { 0, 1, 2, 1000 } do
      local p = lunce.randperm(size, { seed = 10 })
      assert.same({ size }, p.shape)
      assert.same(p:tolist(), lunce.randperm(size, { seed = 10 }):tolist())
      for i, value in ipairs((p:sort()):tolist()) do assert.equal(i, value) end
    end
  end)

  it("randperm: every order is as likely", function()
    local counts, draws = {}, 12000
    for stream = 1, draws do
      local key = table.concat(lunce.randperm(3, { seed = 11, stream = stream }):tolist(), " ")
      counts[key] = (counts[key] or 0) + 1
    end
    local chi2, orders = 0, 0
    for _, count in pairs(counts) do
      orders = orders + 1
      chi2 = chi2 + (count - draws / 6) ^ 2 / (draws / 6)
    end
    assert.is_true(orders == 6 and chi2 < 35.9) -- 5 degrees of freedom at 1e-6
  end)
end)

describe("misuse:", function()
  local function refused(t, distribution, a, b, text)
    assert.equal(C.LN_BAD_ARGUMENT, tonumber(C.ln_random(t.h, distribution, a, b, 0, 0, 0, nil)))
    local message = ffi.string(C.ln_error())
    assert.is_truthy(message:find(text, 1, true), message)
  end
  local floats, bytes = lunce.zeros(2), lunce.zeros(2, { dtype = "uint8" })

  it("empty, endless and unrepresentable ranges are refused by name", function()
    refused(floats, C.LN_UNIFORM, 1, 1, "uniform: [1, 1)")
    refused(floats, C.LN_UNIFORM, 0, 1 / 0, "uniform: [0, inf)")
    refused(bytes, C.LN_UNIFORM, 0, 1, "uint8")
    refused(floats, C.LN_NORMAL, 0, -1, "standard deviation -1")
    refused(floats, C.LN_BERNOULLI, 1.5, 0, "probability 1.5")
    refused(floats, C.LN_BERNOULLI, 0 / 0, 0, "probability")
    refused(floats, C.LN_INTEGERS, 0, 0.5, "integers: 0 <= x < 0.5")
    refused(bytes, C.LN_INTEGERS, 0, 257, "uint8")
    refused(floats, 9, 0, 1, "no distribution 9")
    assert.same({ 0, 0 }, floats:tolist())
  end)

  it("an expanded destination and a wrong permutation are refused", function()
    refused(lunce.zeros(1):expand(3), C.LN_UNIFORM, 0, 1, "expanded")
    assert.equal(C.LN_BAD_ARGUMENT, tonumber(C.ln_randperm(floats.h, 0, 0)))
  end)
end)

-- The tensor as a value: creation, indexing, casts, printing, lifetime, and the errors that misuse
-- raises at the caller's line. Operators' results and gradients are in ops_test.lua.
local lunce = require "lunce"
local device = require("tests.on_device").name

-- fn raises, at a line of this file, a message that has every given piece of plain text.
local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local refuses = dofile(here .. "refusals.lua")("tensor_test.lua")

local function tensors()
  collectgarbage()
  collectgarbage()
  return lunce.memory().tensors
end

describe("creation:", function()
  it("nested tables give shape and values", function()
    local t = lunce.tensor { { 1, 2, 3 }, { 4, 5, 6 } }
    assert.same({ 2, 3 }, t.shape)
    assert.equal("float32", t.dtype)
    assert.equal(device, t.device)
    assert.same({ { 1, 2, 3 }, { 4, 5, 6 } }, t:tolist())
  end)

  it("a number gives a tensor without dimensions, booleans a bool tensor", function()
    local t = lunce.tensor(2.5)
    assert.same({}, t.shape)
    assert.equal(2.5, t:item())
    local b = lunce.tensor { true, false }
    assert.equal("bool", b.dtype)
    assert.same({ true, false }, b:tolist())
    assert.equal(true, b[1]:item())
  end)

  it("every dtype keeps the values it can hold", function()
    for _, dtype in ipairs { "float32", "float64", "bfloat16", "float16", "int64", "int32" } do
      local t = lunce.tensor({ -3, 0, 7 }, { dtype = dtype })
      assert.equal(dtype, t.dtype)
      assert.same({ -3, 0, 7 }, t:tolist())
    end
    assert.same({ 0, 255 }, lunce.tensor({ 0, 255 }, { dtype = "uint8" }):tolist())
  end)

  it("a copy of a tensor is its own", function()
    local a = lunce.ones(2)
    local b = lunce.tensor(a)
    b:fill_(5)
    assert.same({ 1, 1 }, a:tolist())
  end)

  it("empty tensors have a zero extent", function()
    assert.same({ 0 }, lunce.tensor({}).shape)
    assert.same({ 2, 0 }, lunce.zeros(2, 0).shape)
    assert.same({ {}, {} }, lunce.zeros(2, 0):tolist())
  end)

  it("shapes are given as numbers or as a list, options last", function()
    assert.same({ 2, 3 }, lunce.zeros(2, 3).shape)
    assert.same({ 2, 3 }, lunce.zeros({ 2, 3 }).shape)
    assert.equal("float64", lunce.ones(2, { dtype = "float64" }).dtype)
    assert.equal("int64", lunce.ones({ 2 }, { dtype = "int64" }).dtype)
    assert.same({}, lunce.zeros().shape)
    assert.is_true(lunce.zeros(2, { requires_grad = true }).requires_grad)
  end)

  it("sequences include their end", function()
    assert.same({ 1, 2, 3 }, lunce.arange(3):tolist())
    assert.same({ 2, 4, 6 }, lunce.arange(2, 6, 2):tolist())
    assert.same({ 3, 2, 1 }, lunce.arange(3, 1, -1):tolist())
    assert.same({}, lunce.arange(3, 1):tolist())
    assert.equal(4, lunce.arange(0, 0.3, 0.1):numel())
    assert.same({ 0, 0.25, 0.5, 0.75, 1 }, lunce.linspace(0, 1, 5):tolist())
    assert.same({ { 1, 0, 0 }, { 0, 1, 0 } }, lunce.eye(2, 3):tolist())
    assert.same({ { 7, 7 } }, lunce.full({ 1, 2 }, 7):tolist())
  end)

  it("ragged and mixed tables are refused", function()
    refuses(function() lunce.tensor { { 1, 2 }, { 3 } } end, "tensor: ragged", "a table of 1")
    refuses(function() lunce.tensor { { 1, 2 }, 3 } end, "ragged", "3")
    refuses(function() lunce.tensor { 1, "two" } end, "element 2", '"two"')
    refuses(function() lunce.tensor { true, 1 } end, "element 2 is 1", "boolean")
    refuses(function() lunce.tensor { lunce.ones(2) } end, "a tensor", "stack")
    refuses(function() lunce.tensor "x" end, "tensor:", '"x"')
    refuses(function() lunce.tensor { 1, nil, 3 } end, "element 2 is nil")
    refuses(function() lunce.tensor { { 1, 2, 3 }, { 1, nil, 3 } } end, "element 5 is nil")
    refuses(function() lunce.tensor { 1, 2, dtype = "int64" } end, "tensor: options stand")
  end)

  it("bad shapes, dtypes, devices and options are refused", function()
    refuses(function() lunce.zeros(2, -1) end, "zeros: extent 2 is -1")
    refuses(function() lunce.zeros(1.5) end, "zeros: extent 1 is 1.5")
    refuses(function() lunce.zeros(1, 1, 1, 1, 1, 1, 1, 1, 1) end, "9 dimensions")
    refuses(function() lunce.zeros(2 ^ 40, 2 ^ 40) end, "empty:")
    refuses(function() lunce.ones(2, { dtype = "float" }) end, "ones: dtype \"float\"", "float32")
    refuses(function() lunce.ones(2, { device = "gpu" }) end, 'device "gpu"', "cuda")
    refuses(function() lunce.ones(2, { typ = "float32" }) end, "unknown option typ", "dtype")
    refuses(function() lunce.randn { 2, 3, dtype = "float64" } end, "randn: options stand")
    refuses(function() lunce.zeros { 2, requires_grad = false } end, "zeros: options stand")
    refuses(function() lunce.zeros(2, { dtype = "int64", requires_grad = true }) end, "int64")
    refuses(function() lunce.arange(1, 2, 0) end, "step is 0")
    refuses(function() lunce.randint(3, 2, 1) end, "randint")
    refuses(function() lunce.bernoulli(1.5, 2) end, "probability 1.5")
  end)

  it("a device that is not built in is an error", function()
    refuses(function() lunce.zeros(2, { device = "cuda:7" }) end, "cuda")
    refuses(function() return lunce.zeros(2):to "cuda:7" end, "cuda")
  end)
end)

describe("random numbers:", function()
  it("the same seed gives the same sequence", function()
    lunce.manual_seed(3)
    local a, b = lunce.rand(4):tolist(), lunce.randn(4):tolist()
    assert.are_not.same(a, b)
    lunce.manual_seed(3)
    assert.same(a, lunce.rand(4):tolist())
    assert.same(b, lunce.randn(4):tolist())
    lunce.manual_seed(4)
    assert.are_not.same(a, lunce.rand(4):tolist())
  end)

  it("a given address leaves the global generator alone", function()
    lunce.manual_seed(3)
    local a = lunce.rand(4):tolist()
    lunce.manual_seed(3)
    local own = lunce.rand(4, { seed = 9, stream = 2 }):tolist()
    assert.same(a, lunce.rand(4):tolist())
    assert.same(own, lunce.rand(4, { seed = 9, stream = 2 }):tolist())
  end)

  it("the generator's state can be kept and restored", function()
    lunce.manual_seed(5)
    lunce.rand(1)
    local state = lunce.random.state()
    local a = lunce.randperm(10):tolist()
    lunce.random.set_state(state)
    assert.same(a, lunce.randperm(10):tolist())
  end)

  it("whole numbers stay within bounds, both included", function()
    local t = lunce.randint(-1, 1, { 1000 }, { seed = 1 })
    assert.equal("int64", t.dtype)
    assert.equal(-1, t:min():item())
    assert.equal(1, t:max():item())
  end)
end)

describe("indexing:", function()
  local t = lunce.arange(12):reshape(3, 4)

  it("a number selects along the first dimension, from 1 or from the end", function()
    assert.same({ 5, 6, 7, 8 }, t[2]:tolist())
    assert.same({ 9, 10, 11, 12 }, t[-1]:tolist())
    assert.equal(7, t[2][3]:item())
  end)

  it("a table takes positions, ranges and whole dimensions", function()
    assert.same({ 3, 7 }, t[{ { 1, 2 }, 3 }]:tolist())
    assert.same({ { 5, 6, 7, 8 }, { 9, 10, 11, 12 } }, t[{ { 2, -1 } }]:tolist())
    assert.same({ 4, 8, 12 }, t[{ {}, -1 }]:tolist())
    assert.same({ { 1, 3 }, { 9, 11 } }, t[{ { 1, 3, 2 }, { 1, 4, 2 } }]:tolist())
    assert.same({ 1, 4 }, t[{ { 1 } }].shape)
    assert.equal(6, t[{ 2, 2 }]:item())
    assert.same(t:tolist(), t[{}]:tolist())
  end)

  it("a part shares its elements", function()
    local u = lunce.zeros(2, 3)
    u[2]:fill_(1)
    u[{ 1, { 2, 3 } }]:add_(5)
    assert.same({ { 0, 5, 5 }, { 1, 1, 1 } }, u:tolist())
  end)

  it("assignment writes numbers and broadcast tensors", function()
    local u = lunce.zeros(2, 3)
    u[1] = 2
    u[{ 2, { 1, 2 } }] = lunce.tensor { 7, 8 }
    assert.same({ { 2, 2, 2 }, { 7, 8, 0 } }, u:tolist())
    u[{ {}, 3 }] = lunce.tensor(9)
    assert.same({ { 2, 2, 9 }, { 7, 8, 9 } }, u:tolist())
  end)

  it("positions out of range are refused", function()
    refuses(function() return t[4] end, "position 4 is outside 1..3")
    refuses(function() return t[0] end, "position 0")
    refuses(function() return t[-4] end, "position -4")
    refuses(function() return t[1.5] end, "1.5")
    refuses(function() return t[{ 1, { 2, 9 } }] end, "position 9 is outside 1..4")
    refuses(function() return t[{ 1, 1, 1 }] end, "dimension 1", "none")
    refuses(function() return t[{ "a" }] end, '"a"')
    refuses(function() return t[lunce.ones(2)] end, "index_select")
    refuses(function() t[5] = 1 end, "position 5")
    refuses(function() t[{ 1 }] = "x" end, '"x"')
  end)
end)

describe("fields:", function()
  it("unknown names are refused, for reading and writing", function()
    local t = lunce.ones(1)
    refuses(function() return t.shpae end, "shpae")
    refuses(function() t.colour = 1 end, "colour")
    assert.same({ 1 }, t.shape)
    refuses(function() t.shape = { 2 } end, "shape")
    refuses(function() t.grad = 3 end, "grad", "3")
    refuses(function() return lunce.sofmax end, "sofmax")
  end)

  it("size, numel, ndim and dim agree", function()
    local t = lunce.zeros(2, 3, 4)
    assert.same({ 2, 3, 4 }, t:size())
    assert.equal(4, t:size(-1))
    assert.equal(24, t:numel())
    assert.equal(3, t.ndim)
    assert.equal(3, t:dim())
    refuses(function() return t:size(4) end, "size: dimension 4", "1 to 3")
  end)
end)

describe("operators of Lua:", function()
  it("arithmetic takes numbers on either side", function()
    local t = lunce.tensor { 1, 2 }
    assert.same({ 3, 4 }, (t + 2):tolist())
    assert.same({ 1, 0 }, (2 - t):tolist())
    assert.same({ 2, 1 }, (2 / t):tolist())
    assert.same({ 2, 4 }, (2 ^ t):tolist())
    assert.same({ -1, -2 }, (-t):tolist())
    assert.same({ 1, 4 }, (t ^ 2):tolist())
  end)

  it("< <= and .. say what to use instead", function()
    local t = lunce.ones(2)
    refuses(function() return t < t end, "t:lt(x)")
    refuses(function() return t <= t end, "t:lt(x)")
    refuses(function() return t .. "" end, "tostring")
  end)

  it("wrong arguments are named", function()
    local t = lunce.ones(2)
    refuses(function() return t + nil end, "add: argument 2 is nil; a tensor or a number is taken")
    refuses(function() return "1" * t end, 'mul: argument 1 is "1"')
    refuses(function() return lunce.exp(2) end, "exp: argument 1 is 2; a tensor is taken")
    refuses(function() return lunce.add(1, 2) end, "add: only numbers")
    refuses(function() return lunce.matmul(t) end, "matmul: argument 2 is nil")
    refuses(function() return lunce.cat { t, 3 } end, "cat: element 2 of the list is 3")
    refuses(function() return t:sum "x" end, "sum: dimensions")
    refuses(function() return t:sum(3) end, "sum: dimension 3", "1 to 1")
    refuses(function() return t:sum { 1, 1 } end, "given twice")
    refuses(function() return t:topk(1, 1, { larges = true }) end, "unknown option larges")
    refuses(function() return t + lunce.ones(3) end, "add", "(2)", "(3)")
    refuses(function() return t:to "float" end, "float32")
    refuses(function() lunce.scope(5) end, "scope: argument 1 is 5")
    refuses(function() lunce.no_grad() end, "no_grad: argument 1 is nil")
  end)
end)

describe("casts:", function()
  it("to changes dtype, and gives the tensor itself where nothing changes", function()
    local t = lunce.tensor { 1.75, -2.5, 0 }
    assert.equal(t, t:to "float32")
    assert.equal(t, t:to { dtype = "float32", device = device })
    assert.same({ 1, -2, 0 }, t:long():tolist())
    assert.same({ true, true, false }, t:bool():tolist())
    assert.equal("float64", t:double().dtype)
    assert.equal("float64", t:to({ dtype = "float64" }).dtype)
    refuses(function() return t:to { dtyp = "float64" } end, "dtyp")
  end)

  it("item takes exactly one element", function()
    refuses(function() return lunce.ones(2):item() end, "item: a tensor of 2 elements")
    assert.equal(1, lunce.ones(1, 1):item())
  end)
end)

describe("printing:", function()
  -- Where these tests run on another device, its name is all that differs.
  local function printed(t)
    return (tostring(t):gsub(device, "cpu", 1))
  end

  it("whole numbers have no decimals, columns are aligned", function()
    assert.equal("tensor (2,2) float32 cpu\n[[ 1.,  2.],\n [-3., 10.]]",
      printed(lunce.tensor { { 1, 2 }, { -3, 10 } }))
  end)

  it("fractions have four decimals, a wide range has exponents", function()
    assert.equal("tensor (2) float32 cpu\n[ 0.5000, -1.2500]",
      printed(lunce.tensor { 0.5, -1.25 }))
    assert.equal("tensor (2) float64 cpu\n[1.0000e-09, 5.0000e-01]",
      printed(lunce.tensor({ 1e-9, 0.5 }, { dtype = "float64" })))
  end)

  it("numbers that are not finite print as such", function()
    assert.equal("tensor (3) float32 cpu\n[ nan,  inf, -inf]",
      printed(lunce.tensor { 0 / 0, math.huge, -math.huge }))
  end)

  it("other dtypes, marks and dimensions", function()
    assert.equal("tensor (2) int64 cpu\n[ 1, -2]", printed(lunce.tensor({ 1, -2 },
      { dtype = "int64" })))
    assert.equal("tensor (2) bool cpu\n[ true, false]", printed(lunce.tensor { true, false }))
    assert.equal("tensor () float32 cpu requires_grad\n2.5000",
      printed(lunce.tensor(2.5, { requires_grad = true })))
    assert.equal("tensor (0) float32 cpu\n[]", printed(lunce.zeros(0)))
    assert.equal("tensor (1000000000000,0,2) float32 cpu\n[]", printed(lunce.zeros(1e12, 0, 2)))
    assert.equal("tensor (2,1,1) float32 cpu\n[[[1.]],\n\n [[1.]]]", printed(lunce.ones(2, 1, 1)))
  end)

  it("past a thousand elements the middle is left out", function()
    local text = printed(lunce.arange(2000):reshape(2, 1000))
    assert.equal("tensor (2,1000) float32 cpu\n"
      .. "[[   1.,    2.,    3., ...,  998.,  999., 1000.],\n"
      .. " [1001., 1002., 1003., ..., 1998., 1999., 2000.]]", text)
  end)

  it("long rows break below their first element", function()
    for line in printed(lunce.zeros(100)):gmatch "[^\n]+" do assert.is_true(#line <= 80) end
  end)

  it("leaves no tensor behind", function()
    local t = lunce.rand(50, 50)
    local before = lunce.memory().tensors
    printed(t)
    assert.equal(before, lunce.memory().tensors)
  end)
end)

describe("lifetime:", function()
  it("free gives the bytes back at once; later use is an error", function()
    local before = lunce.memory().live_bytes
    local t = lunce.zeros(1000)
    assert.is_true(lunce.memory().live_bytes >= before + 4000)
    t:free()
    assert.is_true(lunce.memory().live_bytes <= before)
    t:free()
    refuses(function() return t + 1 end, "was freed")
    refuses(function() return t.shape end, "was freed")
    assert.equal("tensor (freed)", tostring(t))
  end)

  it("a view outlives the tensor it was taken from", function()
    local t = lunce.ones(4)
    local v = t:narrow(1, 2, 2)
    t:free()
    assert.same({ 1, 1 }, v:tolist())
  end)

  it("dropped tensors are collected before their bytes pile up", function()
    local limits = lunce.memory()
    lunce.memory_limit { soft = 16 * 2 ^ 20 }
    collectgarbage()
    lunce.reset_peak_memory()
    local before = lunce.memory().live_bytes
    for _ = 1, 200 do lunce.zeros(2 ^ 18) end
    assert.is_true(lunce.memory().peak_bytes - before < 32 * 2 ^ 20)
    lunce.memory_limit { soft = limits.soft_bytes }
  end)

  it("scope frees what it does not return", function()
    local before, inner, kept = tensors(), nil, nil
    local a, list = lunce.scope(function(x)
      inner = lunce.ones(2)
      kept = lunce.ones(3):keep()
      return inner + x, { deep = { inner * 2 } }
    end, 5)
    assert.same({ 6, 6 }, a:tolist())
    assert.same({ 2, 2 }, list.deep[1]:tolist())
    assert.same({ 1, 1, 1 }, kept:tolist())
    refuses(function() return inner:sum() end, "freed", "lunce.scope")
    assert.equal(before + 3, lunce.memory().tensors)
  end)

  it("scope frees also where it fails, and passes the error on", function()
    local before = tensors()
    local ok, message = pcall(lunce.scope, function()
      lunce.ones(2)
      error("mine", 0)
    end)
    assert.is_false(ok)
    assert.equal("mine", message)
    assert.equal(before, lunce.memory().tensors)
  end)

  it("what an inner scope returns belongs to the outer one", function()
    local before, escaped = tensors(), nil
    lunce.scope(function()
      escaped = lunce.scope(function() return lunce.ones(2) end)
      assert.same({ 1, 1 }, escaped:tolist())
    end)
    assert.equal(before, lunce.memory().tensors)
    refuses(function() return escaped:sum() end, "freed")
  end)

  it("a leaf's gradient outlives the scope of the step", function()
    local w = lunce.ones(3, { requires_grad = true })
    local before = tensors()
    for _ = 1, 3 do
      lunce.scope(function() (w * w):sum():backward() end)
    end
    assert.same({ 6, 6, 6 }, w.grad:tolist())
    assert.equal(before + 1, lunce.memory().tensors)
  end)
end)

describe("out of memory:", function()
  local C = require("lunce.ffi").C

  it("is tried once more after a collection", function()
    C.ln_memory_fail_after(1)
    local t = lunce.ones(3)
    assert.same({ 1, 1, 1 }, t:tolist())
  end)

  it("at the hard limit it names operator, sizes and what is live, and leaves tensors whole",
    function()
      local limits = lunce.memory()
      local a, b = lunce.ones(1000, 1), lunce.ones(1, 1000)
      lunce.memory_limit { hard = lunce.memory().live_bytes + 2 ^ 20 }
      refuses(function() return a + b end, "add", "out of memory", "live", "tensors", "hard limit")
      assert.equal(1000, a:sum():item())
      assert.equal(1000, b:sum():item())
      lunce.memory_limit { hard = limits.hard_bytes }
      assert.equal(2e6, (a + b):sum():item())
    end)

  it("counts dead tensors as free", function()
    local limits = lunce.memory()
    collectgarbage()
    lunce.memory_limit { hard = lunce.memory().live_bytes + 10 * 2 ^ 20 }
    for _ = 1, 20 do lunce.zeros(2 ^ 20) end
    lunce.memory_limit { hard = limits.hard_bytes }
  end)

  it("a call that is repeated keeps its arguments, also those that nothing else refers to",
    function()
      local limits = lunce.memory()
      collectgarbage()
      lunce.memory_limit { hard = lunce.memory().live_bytes + 2.5 * 2 ^ 20 }
      for i = 1, 80 do
        local y = lunce.full({ 2 ^ 18 }, i) + 1
        assert.equal(i + 1, y[-1]:item())
      end
      lunce.memory_limit { hard = limits.hard_bytes }
    end)

  it("bad limits are refused", function()
    refuses(function() lunce.memory_limit { hard = -1 } end, "memory_limit")
    refuses(function() lunce.memory_limit { size = 1 } end, "unknown option size")
  end)
end)

describe("compiled code:", function()
  it("arithmetic, with and without the tape, compiles without a trace that aborts", function()
    if not jit.status() then return pending "the JIT is off" end
    local a, b = lunce.ones(1), lunce.ones(1, { requires_grad = true })
    local function add(x) for _ = 1, 2000 do local _ = x + a end end
    local done, aborted = 0, {}
    local function on_trace(what, _, _, _, reason)
      if what == "stop" then done = done + 1 end
      if what == "abort" then aborted[#aborted + 1] = reason end
    end
    collectgarbage "stop"
    jit.flush()
    jit.attach(on_trace, "trace")
    add(a)
    add(b)
    jit.attach(on_trace)
    collectgarbage "restart"
    assert.is_true(done >= 2)
    assert.same({}, aborted)
  end)

  it("dead tensors are found although loops are compiled", function()
    collectgarbage()
    local a, before = lunce.ones(1), lunce.memory().tensors
    for _ = 1, 100000 do local _ = a + 1 end
    -- Far fewer than the loop made: the collector ran, and what it found dead was released.
    assert.is_true(lunce.memory().tensors - before < 20000)
  end)
end)

describe("settings:", function()
  it("threads and isa tell and take values", function()
    local n = lunce.threads()
    assert.equal(2, lunce.threads(2))
    refuses(function() lunce.threads(0) end, "threads")
    lunce.threads(n)
    local isa = lunce.isa()
    assert.equal("baseline", lunce.isa "baseline")
    refuses(function() lunce.isa "sse9" end, "sse9")
    lunce.isa(isa)
    refuses(function() lunce.manual_seed(-1) end, "seed -1")
    refuses(function() lunce.rand(1, { seed = "x" }) end, 'seed "x"')
  end)
end)

describe("args:", function()
  local args = require "lunce.args"
  local declared = { tau = 0.5, loss = "nt_xent", plot = true, kappa_rho = 10 }

  it("values have their defaults' types", function()
    local a = args(declared, { "--tau=0.1", "--loss", "weince", "--no-plot", "--kappa-rho=-5" })
    assert.same({ tau = 0.1, loss = "weince", plot = false, kappa_rho = -5 }, a)
    assert.same(declared, args(declared, {}))
    assert.is_true(args({ fast = false }, { "--fast" }).fast)
    assert.is_false(args({ fast = true }, { "--fast=false" }).fast)
  end)

  it("unknown keys name the nearest known", function()
    refuses(function() args(declared, { "--tua=1" }) end, "--tua", "did you mean --tau?")
    refuses(function() args(declared, { "--no-tau" }) end, "--no_tau")
    refuses(function() args(declared, { "file" }) end, '"file"')
  end)

  it("bad values and missing ones are refused", function()
    refuses(function() args(declared, { "--tau=warm" }) end, "--tau=warm", "number", "0.5")
    refuses(function() args(declared, { "--plot=maybe" }) end, "boolean")
    refuses(function() args(declared, { "--loss" }) end, "--loss has no value")
    refuses(function() args({ x = {} }, {}) end, "default x")
  end)
end)

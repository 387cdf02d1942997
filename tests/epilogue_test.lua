-- Kernels that are compiled at run time with a link: when one is compiled, and for which devices.
-- Runs on a CUDA device, or on the host's stand-in for one, which alone keeps what it compiled, and
-- nothing where it interprets PTX.
local lunce = require "lunce"
local device = require("tests.on_device").name
local similarity, link = lunce.similarity, lunce.link

local shim = (os.getenv "LUNCE_CUDA" or ""):match "^(.*/tests/)liblunce_cuda%.so$"

local function output_of(command)
  local child = io.popen(command .. " 2>&1")
  local text = child:read "*a"
  child:close()
  return text
end

-- The sources of compiled kernels, the newest first.
local function kernels()
  local list = {}
  for path in output_of(("ls -t '%skernels/'*.cc"):format(shim)):gmatch "[^\n]+" do
    list[#list + 1] = path
  end
  return list
end

-- Compiles so many sources for devices.
local function compile_all(program, sources, wanted)
  for _, architecture in ipairs{ "sm_80", "sm_90" } do
    local text = output_of(("'%s' %s %s"):format(program, architecture, sources))
    local _, count = text:gsub("%d+\n", "")
    assert.equal(wanted, count, text)
  end
end

describe("the kernels of a link", function()
  it("takes a link with many values at once", function()
    local x = lunce.randn(4, 3, { seed = 1 })
    local function total(z)
      return similarity.cosine(z):sum(function(s)
        local values, sum = { link.gt(s, 0) }, 0
        for i = 2, 70 do values[i] = link.tanh(values[i - 1]) end
        for i = 70, 1, -1 do sum = sum + values[i] end
        return sum
      end)
    end
    local near, far = total(x:to "cpu"), total(x:to(device)):to "cpu"
    assert.is_true(((far - near):abs():max() / near:abs():max()):item() < 1e-5)
  end)

  -- The cosine of a row (s, t) of unit length and (1, 0) is s, which a half holds.
  it("has the functions of a link of halves, whose errors are below 1e-5", function()
    local list = {}
    for i = 1, 500 do list[i] = (math.floor((i - 250.5) / 249.5 * 2048) / 2048) end
    list[501], list[502] = 0, 2 ^ -12
    local s = lunce.tensor(list, { dtype = "float64", device = "cpu" })
    local x = lunce.stack({ s, (1 - s * s):clamp(0, 1):sqrt() }, 2):float():to(device)
    local one = lunce.tensor({ { 1, 0 } }, { device = device })
    local functions = {
      exp = function(v) return link.exp(30 * v) end,
      log = function(v) return link.log(v + 1.0625) end,
      log1p = function(v) return link.log1p(v / 1.0625) end,
      expm1 = function(v) return link.expm1(4 * v) end,
      sqrt = function(v) return link.sqrt(v + 1.0625) end,
      tanh = function(v) return link.tanh(3 * v) end,
      sigmoid = function(v) return link.sigmoid(40 * v) end,
      softplus = function(v) return link.softplus(40 * v - 10) end,
      quotient = function(v) return (v + 3) / (2 + v) end,
      cube = function(v) return v ^ 3 end,
      root = function(v) return (v + 1.0625) ^ 0.3 end,
      square = function(v) return link.square(v) + link.abs(v) end,
    }
    similarity.tile_dtype "float16"
    for name, f in pairs(functions) do
      local near = f(s):to "cpu"
      local far = similarity.cosine(x, one):sum(f):to("cpu"):double()
      local bound = name == "log" and near:abs():clamp(1, 1 / 0) or near:abs()
      local worst = ((far - near):abs() / bound:clamp(1e-30, 1 / 0)):max():item()
      assert.is_true(worst < 1e-5, ("%s: %.2g"):format(name, worst))
    end
    similarity.tile_dtype "float32"
  end)

  if not shim or os.getenv "LUNCE_CUDA_HOST_PTX" then return end -- nothing is kept

  it("compiles a link once for all its numbers, parameters and sizes", function()
    local function step(n, tau, bias)
      local x = lunce.randn(n, 5, { seed = 1, device = device }):requires_grad_()
      local t = lunce.full({ 1 }, bias, { device = device }):requires_grad_()
      similarity.cosine(x):lse(function(s, b) return s / tau + b * s * s end, t):sum():backward()
    end
    step(8, 0.3, 1) -- of a power of two, s / tau is a product
    local before = #kernels()
    assert.is_true(before > 0)
    step(8, 0.7, 1)
    step(90, 0.4, -3)
    assert.equal(before, #kernels())
  end)

  it("compile for devices", function()
    local program = shim .. "nvrtc"
    local file = io.open(program)
    if not file then return pending "NVRTC was not found" end
    file:close()
    local x = lunce.randn(5, 3, { seed = 1, device = device }):requires_grad_()
    local row = lunce.rand(5, 1, { seed = 2, device = device }):requires_grad_()
    local function every(s, r)
      local y = link.softplus(s) + link.sigmoid(s) + link.tanh(s) + link.sqrt(s + 2)
      y = y + link.expm1(s) + link.log1p(s / 2) + link.log(s + 3) + link.abs(s) + link.square(s)
      y = y + (s + 2) ^ r + link.max(s, 0.1) + link.min(s, r) - s / r
      return y + link.where(link.lt(s, 0), s, r) + link.le(s, r) + link.gt(s, r) + link.ge(s, r)
        + link.eq(s, r)
    end
    for _, z in ipairs{ x, x:double() } do
      local labels = lunce.tensor({ 1, 2, 1, 2, 3 }, { dtype = "int64", device = device })
      local S = similarity.cosine(z)
      local y = S:without_self():sum(every, row:to(z.dtype)):sum()
      y = y + S:same(labels):lse(function(s) return s / 0.01 end):clamp(-1, 1):sum()
      y:backward()
    end
    local list = kernels()
    assert.is_true(#list >= 8)
    local some = "'" .. table.concat(list, "' '", 1, 8) .. "'"
    compile_all(program, some, 8)
  end)

  it("compile for devices where they use tensor cores", function()
    local program = shim .. "nvrtc"
    local file = io.open(program)
    if not file then return pending "NVRTC was not found" end
    file:close()
    for width, dtype in pairs{ [64] = "float16", [250] = "bfloat16" } do
      similarity.tile_dtype(dtype)
      local x = lunce.randn(5, width, { seed = 1, device = device }):requires_grad_()
      local S = similarity.cosine(x):without_self();
      (S:lse(function(s) return s / 0.1 end) + S:lse(function(s) return s / 0.01 end)):sum()
        :backward()
    end
    similarity.tile_dtype "float32"
    local some, count = {}, 0
    for _, path in ipairs(kernels()) do
      local source = io.open(path)
      if source:read "*a":match "#define LN_WIDTH %d" and count < 8 then
        count = count + 1
        some[count] = "'" .. path .. "'"
      end
      source:close()
    end
    assert.is_true(count >= 8)
    compile_all(program, table.concat(some, " "), count)
  end)
end)

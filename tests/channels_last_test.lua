-- Channels-last tensors, and what convolves and normalises them: every operator that keeps the
-- memory format gives the values and gradients that it gives of row-major tensors; a network's step
-- stays in the format without a copy; cuDNN (on the host its stand-in) and matrix products
-- agree; batch_norm with a residual and relu is the three operators. On a CUDA device too.
local lunce = require "lunce"

local program = os.getenv "LUNCE_PROGRAM"
  or (debug.getinfo(1, "S").source:match "^@(.*/)" or "./") .. "../lunce"
local shim = (os.getenv "LUNCE_CUDA" or ""):find "tests/liblunce_cuda%.so$" ~= nil
local LAST = { memory_format = "channels_last" }
local away = lunce.zeros(1).device ~= "cpu"

local function is_last(x) return x:is_contiguous(LAST) end

-- Both are computed in the dtype's precision, sums in another order.
local TOLERANCE = { float64 = 1e-12, float32 = 2e-5, float16 = 2e-3, bfloat16 = 2e-2 }

local function close(a, b, what, tolerance)
  assert.same(a.shape, b.shape)
  assert.equal(a.dtype, b.dtype)
  local x, y = a:detach():double(), b:detach():double()
  local apart = ((x - y):abs() / (y:abs() + 1)):max():item()
  assert(apart <= (tolerance or TOLERANCE[a.dtype]), ("%s: %g apart"):format(what or "", apart))
end

local function refuses(fn, ...)
  local ok, message = pcall(fn)
  assert.is_false(ok, "nothing was raised")
  for _, text in ipairs { ... } do
    assert(message:find(text, 1, true), message .. "\n  lacks: " .. text)
  end
end

describe("channels_last", function()
  it("is the memory order of a row-major (N,H,W,C)", function()
    local x = lunce.randn(2, 3, 4, 5)
    local y = x:contiguous(LAST)
    assert.same({ 60, 1, 15, 3 }, y:stride())
    assert.equal(15, y:stride(3))
    assert.is_true(y:eq(x):all():item())
    assert.is_true(is_last(y))
    assert.is_false(y:is_contiguous())
    assert.is_false(is_last(x))
    assert.equal(y, y:contiguous(LAST))
    assert.equal(y, y:to(LAST))
    assert.same({ 60, 20, 5, 1 }, y:contiguous():stride())
    assert.same({ 60, 20, 5, 1 }, y:to({ memory_format = "contiguous" }):stride())
    assert.is_true(is_last(x:permute(1, 3, 4, 2):contiguous():permute(1, 4, 2, 3)))
  end)

  it("is told apart where one channel or one pixel leaves both orders alike", function()
    local one = lunce.randn(2, 1, 4, 5)
    assert.is_true(is_last(one))
    assert.is_true(one:is_contiguous())
    assert.same({ 20, 1, 5, 1 }, one:to(LAST):stride())
    assert.is_true(is_last(lunce.randn(6, 4, 1, 1)))
    assert.same({ 4, 1, 4, 4 }, lunce.randn(6, 4, 1, 1):to(LAST):stride())
    assert.same({ 0, 3, 4, 5 }, lunce.zeros(0, 3, 4, 5):to(LAST).shape)
  end)

  it("is refused where there are not four dimensions, and by other names", function()
    refuses(function() lunce.zeros(2, 3):contiguous(LAST) end, "2 dimensions", "(N,C,H,W)")
    refuses(function() lunce.zeros(2, 3, 1, 1):to { memory_format = "nhwc" } end, "nhwc",
      "channels_last")
  end)

  it("is kept by copies, casts, moves and elementwise operators", function()
    local x = lunce.randn(2, 3, 4, 5):to(LAST)
    local row = lunce.randn(2, 3, 4, 5)
    local bias = lunce.randn(3, 1, 1)
    for name, y in pairs { clone = x:clone(), double = x:double(), cpu = x:cpu(), exp = x:exp(),
      add = x + 1, mixed = row + x, mixed_too = x * row, bias = bias + x, relu = x:relu(),
      where = lunce.where(x:gt(0), x, row), clamp = x:clamp(-1, 1), gt = x:gt(0),
      zeros = lunce.zeros_like(x), back = x:half():cpu():to(x.device), } do
      assert(is_last(y), name)
    end
    assert.is_true((row + x):eq(row + x:contiguous()):all():item())
    assert.is_true(x:cpu():eq(x:contiguous():cpu()):all():item())
    assert.is_false(is_last(row + row))
    local into = lunce.zeros(2, 3, 4, 5)
    into:copy_(x)
    assert.is_true(into:eq(x):all():item())
    into:to(LAST):copy_(row)
  end)

  it("passes between devices whatever the format of either end", function()
    local x = lunce.randn(2, 3, 4, 5, { device = "cpu" })
    for _, from in ipairs { x, x:to(LAST) } do
      for _, to in ipairs { lunce.zeros(2, 3, 4, 5), lunce.zeros(2, 3, 4, 5):to(LAST) } do
        to:copy_(from)
        assert.is_true(to:cpu():eq(x):all():item())
        local back = from * 0
        back:copy_(to)
        assert.is_true(back:eq(x):all():item())
      end
    end
  end)

  it("is taken by modules' weights of four dimensions, and by their gradients", function()
    local layer = lunce.nn.Conv2d(3, 4, 3):to({ device = lunce.zeros(1).device }):to(LAST)
    assert.same({ 27, 1, 9, 3 }, layer.weight:stride())
    assert.same({ 1 }, layer.bias:stride())
    layer(lunce.randn(2, 3, 5, 5)):sum():backward()
    assert.same({ 27, 1, 9, 3 }, layer.weight.grad:stride())
  end)
end)

-- ---- Operators in both formats ---------------------------------------------------------------

-- fn of the tensors in both formats: the same values, the same gradients.
local function same_in_both(fn, inputs, what)
  local plain, last = {}, {}
  for i, x in ipairs(inputs) do
    plain[i] = x:detach():requires_grad_()
    last[i] = (x.ndim == 4 and x:to(LAST) or x):detach():requires_grad_()
  end
  local y, z = fn(unpack(plain)), fn(unpack(last))
  assert(is_last(z), what)
  close(z, y, what)
  local dy = lunce.randn(y.shape, { seed = 9, stream = 1 }):to(y.dtype)
  y:backward(dy)
  z:backward(dy)
  for i = 1, #inputs do
    close(last[i].grad, plain[i].grad, what .. ": gradient " .. i, y.dtype == "bfloat16" and 0.1)
    if last[i].ndim == 4 then assert(is_last(last[i].grad), what .. ": gradient " .. i) end
  end
end

local CONVOLUTIONS = {
  { "3x3", { 2, 8, 6, 5 }, { 16, 8, 3, 3 }, { padding = 1 } },
  { "3x3, every second place", { 2, 8, 7, 6 }, { 16, 8, 3, 3 }, { padding = 1, stride = 2 } },
  { "more samples than are multiplied at once", { 9, 8, 6, 5 }, { 4, 8, 3, 3 }, { padding = 1 } },
  { "1x1", { 3, 8, 4, 4 }, { 4, 8, 1, 1 }, {} },
  { "1x1, every second place", { 3, 8, 6, 6 }, { 4, 8, 1, 1 }, { stride = 2 } },
  { "odd channels", { 2, 3, 5, 5 }, { 5, 3, 2, 3 }, {} },
  { "groups", { 2, 4, 5, 5 }, { 6, 2, 3, 3 }, { groups = 2 } },
  { "dilated groups", { 2, 4, 6, 6 }, { 4, 1, 2, 2 }, { groups = 4, dilation = 2 } },
  { "one channel", { 2, 1, 5, 5 }, { 4, 1, 3, 3 }, { padding = 1 } },
}

describe("conv2d in channels_last", function()
  for _, dtype in ipairs { "float64", "float32", "float16", "bfloat16" } do
    it("gives what it gives of row-major tensors: " .. dtype, function()
      for _, case in ipairs(CONVOLUTIONS) do
        local x = lunce.randn(case[2], { seed = 1, stream = 1 }):to(dtype)
        local w = (lunce.randn(case[3], { seed = 2, stream = 1 }) * 0.25):to(dtype)
        local b = lunce.randn({ case[3][1] }, { seed = 3, stream = 1 }):to(dtype)
        same_in_both(function(...)
          local set = {}
          for k, v in pairs(case[4]) do set[k] = v end
          local input, weight, bias = ...
          return lunce.conv2d(input, weight, bias, set)
        end, { x, w, b }, dtype .. ", " .. case[1])
      end
    end)
  end

  it("takes the format of either operand", function()
    local x, w = lunce.randn(2, 3, 5, 5), lunce.randn(4, 3, 3, 3)
    assert.is_true(is_last(lunce.conv2d(x:to(LAST), w)))
    assert.is_true(is_last(lunce.conv2d(x, w:to(LAST))))
    assert.is_false(is_last(lunce.conv2d(x, w)))
  end)

  it("reads views that begin anywhere and have gaps", function()
    local base = lunce.randn(3, 6, 5, 5):to(LAST)
    local w = lunce.randn(4, 3, 3, 3)
    local part = base[{ { 2, 3 }, { 2, 4 } }]
    close(lunce.conv2d(part, w), lunce.conv2d(part:clone(), w))
    local shifted = lunce.randn(2 * 75 + 1)[{ { 2, -1 } }]:view(2, 3, 5, 5)
    close(lunce.conv2d(shifted, w), lunce.conv2d(shifted:clone(), w))
  end)
end)

describe("pools in channels_last", function()
  it("give what they give of row-major tensors", function()
    local x = lunce.randn(2, 5, 6, 7)
    same_in_both(function(t) return lunce.max_pool2d(t, 3, { stride = 2, padding = 1 }) end, { x },
      "max_pool2d")
    same_in_both(function(t) return lunce.avg_pool2d(t, 2) end, { x }, "avg_pool2d")
    same_in_both(function(t) return lunce.adaptive_avg_pool2d(t, 2) end, { x }, "adaptive")
    same_in_both(function(t) return lunce.adaptive_avg_pool2d(t, 1) end, { x }, "global")
  end)
end)

-- ---- Batch normalisation ---------------------------------------------------------------------

-- channels, extents: of which the CUDA kernel takes 16 bytes at a time, in several chunks of rows
-- and tiles of channels; and others that it leaves to the kernel for any strides.
local NORMS = {
  { "float32", { 5, 64, 8, 9 } }, { "float32", { 3, 132, 4, 3 } }, { "float32", { 4, 3, 5, 5 } },
  { "float16", { 6, 64, 10, 10 } }, { "bfloat16", { 6, 24, 7, 9 } }, { "float64", { 3, 4, 5, 5 } },
  { "bfloat16", { 3, 6, 3, 3 } },
}

local function normalised(x, w, b, residual, separate, training)
  local C = x.shape[2]
  local wide = x.dtype == "float64" and "float64" or "float32"
  local mean = lunce.full({ C }, 0.25, { dtype = wide })
  local var = lunce.full({ C }, 2, { dtype = wide })
  local set = { training = training }
  local y
  if separate then
    y = lunce.batch_norm(x, mean, var, w, b, set)
    if residual then y = y + residual end
    y = y:relu()
  else
    y = lunce.batch_norm(x, mean, var, w, b,
      { training = training, residual = residual, relu = true })
  end
  return y, mean, var
end

-- Leaves anew, so that gradients do not add up.
local function leaves(list, format)
  local made = {}
  for i = 1, 4 do
    local x = list[i]
    if x then
      made[i] = (format and x.ndim == 4 and x:to(format) or x):detach():requires_grad_()
    end
  end
  return made
end

describe("batch_norm with a residual and relu", function()
  for _, case in ipairs(NORMS) do
    local dtype, shape = case[1], case[2]
    it(("is the three operators: %s (%s)"):format(dtype, table.concat(shape, ",")), function()
      local wide = dtype == "float64" and "float64" or "float32"
      local x = (lunce.randn(shape, { seed = 1, stream = 2 }) * 2 + 5):to(dtype)
      local residual = lunce.randn(shape, { seed = 2, stream = 2 }):to(dtype)
      local w = (lunce.rand({ shape[2] }, { seed = 3, stream = 2 }) + 0.5):to(wide)
      local b = lunce.randn({ shape[2] }, { seed = 4, stream = 2 }):to(wide)
      local dy = lunce.randn(shape, { seed = 5, stream = 2 }):to(dtype)
      for _, format in ipairs { { memory_format = "contiguous" }, LAST } do
        for _, with_residual in ipairs { residual, false } do
          for _, training in ipairs { true, false } do
            -- The reference is computed on the CPU in float64 from the same, rounded, inputs.
            local exact = leaves { x:cpu():double(), w:cpu():double(), b:cpu():double(),
              with_residual and residual:cpu():double() }
            local given = leaves({ x, w, b, with_residual }, format)
            local y, mean, var = normalised(given[1], given[2], given[3], given[4], false, training)
            local z, exact_mean, exact_var
            do
              local C = shape[2]
              exact_mean = lunce.full({ C }, 0.25, { dtype = "float64", device = "cpu" })
              exact_var = lunce.full({ C }, 2, { dtype = "float64", device = "cpu" })
              z = lunce.batch_norm(exact[1], exact_mean, exact_var, exact[2], exact[3],
                { training = training })
              if exact[4] then z = z + exact[4] end
              z = z:relu()
            end
            assert.equal(format == LAST, is_last(y))
            close(y:cpu():double(), z, "output", TOLERANCE[dtype])
            close(mean:cpu():double(), exact_mean, "running mean", TOLERANCE[wide])
            close(var:cpu():double(), exact_var, "running variance", TOLERANCE[wide])
            -- Places that rounding takes to the other side of 0 get no gradient in one of the two.
            local sure = z:detach():abs():gt(4 * TOLERANCE[dtype]):to(dtype):to(x.device)
            y:backward(dy * sure)
            z:backward((dy * sure):cpu():double())
            for i = 1, 4 do
              if given[i] then
                close(given[i].grad:cpu():double(), exact[i].grad, "gradient " .. i,
                  3 * TOLERANCE[i == 1 and dtype or i == 4 and dtype or "float16"])
              end
            end
            assert.equal(format == LAST, is_last(given[1].grad))
          end
        end
      end
    end)
  end

  it("takes a gradient where the input needs none", function()
    local w = lunce.ones(8):requires_grad_()
    local b = lunce.zeros(8):requires_grad_()
    local r = lunce.randn(2, 8, 3, 3):requires_grad_()
    lunce.batch_norm(lunce.randn(2, 8, 3, 3), nil, nil, w, b,
      { training = true, residual = r, relu = true }):sum():backward()
    assert.is_true(w.grad:isfinite():all():item())
    assert.same({ 2, 8, 3, 3 }, r.grad.shape)
    lunce.layer_norm(lunce.randn(4, 8), 8, w, b):sum():backward()
  end)

  it("passes NaN on, and adds a residual of another dtype as + does", function()
    local x = lunce.randn(2, 8, 3, 3):to(LAST)
    x[{ 1, 1, 1, 1 }] = 0 / 0
    local y = lunce.batch_norm(x, nil, nil, nil, nil, { training = true, relu = true })
    assert.is_true(y[{ {}, 1 }]:isnan():all():item())
    assert.is_false(y[{ {}, { 2, 8 } }]:isnan():any():item())
    local half, residual = lunce.randn(2, 8, 3, 3):half(), lunce.randn(2, 8, 3, 3)
    local z = lunce.batch_norm(half, nil, nil, nil, nil,
      { training = true, residual = residual, relu = true })
    assert.equal("float32", z.dtype)
  end)

  it("refuses a residual of another shape", function()
    refuses(function()
      lunce.batch_norm(lunce.randn(2, 8, 3, 3), nil, nil, nil, nil,
        { training = true, residual = lunce.randn(2, 8, 3, 2) })
    end, "batch_norm", "the residual", "(2,8,3,2)")
  end)

  it("is what a layer gives that is called with them", function()
    local bn = lunce.nn.BatchNorm2d(8):to(lunce.zeros(1).device)
    local x, r = lunce.randn(4, 8, 3, 3), lunce.randn(4, 8, 3, 3)
    close(bn(x, { residual = r, relu = true }), (bn(x) + r):relu())
    refuses(function() bn(x, { gelu = true }) end, "unknown option gelu")
  end)
end)

-- ---- A network -------------------------------------------------------------------------------

local function network()
  local nn = lunce.nn
  lunce.manual_seed(3)
  local block = nn.module("Block", {
    init = function(self, from, to, stride)
      self.conv1 = nn.Conv2d(from, to, 3, { stride = stride, padding = 1, bias = false })
      self.bn1 = nn.BatchNorm2d(to)
      self.conv2 = nn.Conv2d(to, to, 3, { padding = 1, bias = false })
      self.bn2 = nn.BatchNorm2d(to)
      self.down = nn.Conv2d(from, to, 1, { stride = stride, bias = false })
    end,
    forward = function(self, x)
      local y = self.bn1(self.conv1(x), { relu = true })
      return self.bn2(self.conv2(y), { residual = self.down(x), relu = true })
    end,
  })
  return nn.Sequential(block(3, 16, 1), block(16, 32, 2), nn.GlobalAvgPool(), nn.Linear(32, 4))
    :to(lunce.zeros(1).device)
end

-- The loss, the gradients and how many tensors' memory a step took.
local function step(model, x, dtype)
  for _, p in model:named_parameters() do p.grad = nil end
  local before = lunce.memory(x.device).allocations
  local loss
  if dtype then
    lunce.autocast(dtype, function() loss = model(x):float():square():mean() end)
  else
    loss = model(x):square():mean()
  end
  loss:backward()
  return loss, lunce.memory(x.device).allocations - before
end

describe("a residual network in channels_last", function()
  for _, dtype in ipairs { false, "float16", "bfloat16" } do
    it("gives the row-major one's loss and gradients: " .. (dtype or "float32"), function()
      local plain, last = network(), network():to(LAST)
      local x = lunce.randn(3, 3, 8, 8)
      local loss, taken = step(plain, x, dtype)
      local loss_last, taken_last = step(last, x:to(LAST), dtype)
      local tolerance = dtype and 4 * TOLERANCE[dtype] or 1e-4
      close(loss_last, loss, "loss", tolerance)
      for name, p in last:named_parameters() do
        local twin
        for other, q in plain:named_parameters() do if other == name then twin = q end end
        close(p.grad, twin.grad, name, tolerance)
        if p.ndim == 4 then assert(is_last(p.grad), name) end
      end
      -- No layer's input was converted: the step takes memory for as many tensors as the row-major
      -- one, which has to mask the gradient before two relus aside.
      if away and lunce.cuda.cudnn() then assert.equal(taken - 2, taken_last) end
    end)
  end

  it("has channels-last tensors between all its layers", function()
    local last = network():to(LAST)
    local seen = 0
    local conv2d, batch_norm = lunce.conv2d, lunce.batch_norm
    local function watched(fn)
      return function(x, a, b, c, d, set)
        local y = fn(x, a, b, c, d, set)
        assert(is_last(x) and is_last(y))
        seen = seen + 1
        return y
      end
    end
    lunce.conv2d, lunce.batch_norm = watched(conv2d), watched(batch_norm)
    local ok, message = pcall(last, lunce.randn(3, 3, 8, 8):to(LAST))
    lunce.conv2d, lunce.batch_norm = conv2d, batch_norm
    assert(ok, message)
    assert.equal(10, seen)
  end)
end)

-- ---- cuDNN -----------------------------------------------------------------------------------

if not away then return end

local function both_ways(fn)
  local by_cudnn = fn()
  lunce.cuda.cudnn(false)
  local ok, by_products = pcall(fn)
  lunce.cuda.cudnn(true)
  assert(ok, by_products)
  return by_cudnn, by_products
end

describe("cudnn", function()
  it("tells its version, and why it is not used", function()
    local version, why = lunce.cuda.cudnn(false)
    assert.is_false(version)
    assert.equal("it is not allowed", why)
    version, why = lunce.cuda.cudnn(true)
    if shim then assert.equal("9.0.0", version) end
    assert(version or #why > 0)
  end)

  it("gives what matrix products give", function()
    for _, dtype in ipairs { "float32", "float16", "bfloat16" } do
      for _, case in ipairs(CONVOLUTIONS) do
        local a, b = both_ways(function()
          local x = lunce.randn(case[2], { seed = 1, stream = 3 }):to(dtype):to(LAST)
          local w = (lunce.randn(case[3], { seed = 2, stream = 3 }) * 0.25):to(dtype)
          x:requires_grad_()
          w:requires_grad_()
          local y = lunce.conv2d(x, w, nil, case[4])
          y:backward(lunce.randn(y.shape, { seed = 3, stream = 3 }):to(dtype))
          return { y:detach(), x.grad, w.grad }
        end)
        for i = 1, 3 do close(a[i], b[i], case[1], 5 * TOLERANCE[dtype]) end
      end
    end
  end)

  it("rounds float32 to TF32 where that was allowed, and only there", function()
    if not shim then return end
    local x = lunce.full({ 1, 4, 3, 3 }, 1 + 2 ^ -12)
    local w = lunce.ones(2, 4, 1, 1)
    assert.equal(4 + 2 ^ -10, lunce.conv2d(x, w):max():item())
    lunce.cuda.tf32(true)
    local ok, y = pcall(lunce.conv2d, x, w)
    lunce.cuda.tf32(false)
    assert(ok, y)
    assert.equal(4, y:max():item())
    assert.equal(4 + 2 ^ -10, lunce.conv2d(x, w):max():item())
  end)

  it("is not needed", function()
    local script = "local lunce = require 'lunce'; local x = lunce.ones(1, 2, 4, 4, { device ="
      .. " 'cuda' }); print(lunce.conv2d(x, x):item(), lunce.cuda.cudnn())"
    local child = io.popen(("LUNCE_CUDNN=/nowhere/libcudnn.so %s -e %q 2>&1"):format(program,
      script))
    local text = child:read "*a"
    child:close()
    assert(text:match "^32%s+false%s+.*nowhere", text)
  end)
end)

-- Every differentiable operator against central differences in float64, in every layout, empty and
-- of one element, and float32 against float64; products, convolutions and reductions exactly on
-- integers; shapes that do not fit. One row an operator.
local lunce = require "lunce"
local gradcheck = require "tests.gradcheck"

local A, B, C4 = { 3, 4 }, { 3, 4 }, { 2, 3, 5, 5 }
local labels = lunce.tensor({ 2, 4, 1 }, { dtype = "int64" })
local columns = lunce.tensor({ { 2, 4 }, { 1, 1 }, { 3, 2 } }, { dtype = "int64" })
local mask = lunce.tensor({ { true, false, true, false }, { false, false, true, true },
  { true, true, false, false } })

-- name, function, shapes, range of values, and what a row cannot take: `empty` = false where an
-- empty input is an error by definition; `one` = shapes of one element where all-ones is wrong.
local ROWS = {
  { "neg", function(x) return -x end, { A }, -2, 2 },
  { "abs", function(x) return x:abs() end, { A }, 0.1, 2 },
  { "abs of negatives", function(x) return x:abs() end, { A }, -2, -0.1 },
  { "square", function(x) return x:square() end, { A }, -2, 2 },
  { "exp", function(x) return x:exp() end, { A }, -2, 2 },
  { "expm1", function(x) return x:expm1() end, { A }, -2, 2 },
  { "log", function(x) return x:log() end, { A }, 0.2, 3 },
  { "log1p", function(x) return x:log1p() end, { A }, -0.8, 3 },
  { "sqrt", function(x) return x:sqrt() end, { A }, 0.2, 3 },
  { "rsqrt", function(x) return x:rsqrt() end, { A }, 0.2, 3 },
  { "reciprocal", function(x) return x:reciprocal() end, { A }, 0.3, 3 },
  { "sin", function(x) return x:sin() end, { A }, -3, 3 },
  { "cos", function(x) return x:cos() end, { A }, -3, 3 },
  { "tanh", function(x) return x:tanh() end, { A }, -2, 2 },
  { "sigmoid", function(x) return x:sigmoid() end, { A }, -3, 3 },
  { "softplus", function(x) return x:softplus() end, { A }, -3, 3 },
  { "gelu", function(x) return x:gelu() end, { A }, -3, 3 },
  { "erf", function(x) return x:erf() end, { A }, -2, 2 },
  { "relu", function(x) return x:relu() end, { A }, 0.1, 2 },
  { "relu of negatives", function(x) return x:relu() end, { A }, -2, -0.1 },
  { "clamp", function(x) return x:clamp(-0.5, 0.7) end, { A }, -2, 2 },
  { "floor is flat", function(x) return x:floor() * 1 end, { A }, 0.1, 0.9 },
  { "x + y", function(x, y) return x + y end, { A, B }, -2, 2 },
  { "x - y", function(x, y) return x - y end, { A, B }, -2, 2 },
  { "x * y", function(x, y) return x * y end, { A, B }, -2, 2 },
  { "x / y", function(x, y) return x / y end, { A, B }, 0.5, 2 },
  { "x ^ y", function(x, y) return x ^ y end, { A, B }, 0.5, 2 },
  { "numbers on either side", function(x) return 2 - x * 3 + 1 / x + x / 4 + 2 ^ x + x ^ 3 end,
    { A }, 0.5, 2 },
  { "broadcast x + y", function(x, y) return x + y end, { A, { 4 } }, -2, 2 },
  { "broadcast x * y", function(x, y) return x * y end, { { 3, 1 }, { 1, 4 } }, -2, 2 },
  { "minimum", function(x, y) return x:minimum(y) end, { A, B }, -2, 2 },
  { "maximum", function(x, y) return x:maximum(y) end, { A, B }, -2, 2 },
  { "where", function(x, y) return lunce.where(mask, x, y) end, { A, B }, -2, 2, fixed = true },
  { "masked_fill", function(x) return x:masked_fill(mask, 3) end, { A }, -2, 2, fixed = true },
  { "sum", function(x) return x:sum() end, { A }, -2, 2 },
  { "sum(dim)", function(x) return x:sum(1) + x:sum(2, true):mean() end, { A }, -2, 2 },
  { "sum of two dims", function(x) return x:sum{ 1, 3 } end, { { 2, 3, 4 } }, -2, 2 },
  { "mean", function(x) return x:mean(2) end, { A }, -2, 2, empty = false },
  { "prod", function(x) return x:prod(2) end, { A }, 0.5, 2 },
  { "var", function(x) return x:var(2) end, { A }, -2, 2, empty = false, one = false },
  { "std", function(x) return x:std(1) end, { A }, -2, 2, empty = false, one = false,
    skip = { expanded = true } }, -- equal values: the root has no derivative at 0
  { "min", function(x) return (x:min(2)) end, { A }, -2, 2, empty = false },
  { "max", function(x) return (x:max(1)) end, { A }, -2, 2, empty = false,
    skip = { expanded = true } }, -- ties
  { "max of all", function(x) return x:max() end, { A }, -2, 2, empty = false,
    skip = { expanded = true } },
  { "logsumexp", function(x) return x:logsumexp(2) end, { A }, -2, 2 },
  { "norm", function(x) return x:norm(2, 2) end, { A }, 0.5, 2 },
  { "norm 1", function(x) return x:norm(1, 2) end, { A }, 0.5, 2 },
  { "cumsum", function(x) return x:cumsum(2) end, { A }, -2, 2 },
  { "sort", function(x) return (x:sort(2)) end, { A }, -2, 2 },
  { "topk", function(x) return (x:topk(2, 2)) end, { A }, -2, 2, empty = false, one = false },
  { "index_select", function(x) return x:index_select(2, labels) end, { A }, -2, 2, fixed = true },
  { "gather", function(x) return x:gather(2, columns) end, { A }, -2, 2, fixed = true },
  { "scatter_add", function(x, y) return x:scatter_add(2, columns, y) end, { A, { 3, 2 } }, -2, 2,
    fixed = true },
  { "cat", function(x, y) return lunce.cat({ x, y, x }, 1) end, { A, B }, -2, 2 },
  { "stack", function(x, y) return lunce.stack({ x, y }, 2) end, { A, B }, -2, 2 },
  { "reshape", function(x) return x:reshape(-1):sin() end, { A }, -2, 2, empty = false },
  { "permute", function(x) return x:permute(3, 1, 2):sin() end, { { 2, 3, 4 } }, -2, 2 },
  { "transpose", function(x) return x:transpose(1, 2):sin() end, { A }, -2, 2 },
  { "select", function(x) return x:select(1, -1):sin() end, { A }, -2, 2, empty = false },
  { "narrow", function(x) return x:narrow(2, 2, 2):sin() end, { A }, -2, 2, one = false,
    empty = false },
  { "indexing", function(x) return x[{ { 1, 2 }, -1 }] * 2 end, { A }, -2, 2, one = false,
    empty = false },
  { "expand", function(x) return x:unsqueeze(1):expand(2, -1, -1):sin() end, { A }, -2, 2 },
  { "squeeze", function(x) return x:unsqueeze(2):squeeze(2):sin() end, { A }, -2, 2 },
  { "flatten", function(x) return x:flatten(1, 2):sin() end, { { 2, 3, 4 } }, -2, 2 },
  { "diagonal", function(x) return x:diagonal(1, 1, 2):sin() end, { A }, -2, 2 },
  { "to float32 and back", function(x) return x:to("float64"):exp() end, { A }, -1, 1 },
  { "clone", function(x) return x:clone():exp() end, { A }, -1, 1 },
  { "matmul", function(x, y) return x:matmul(y) end, { { 3, 4 }, { 4, 2 } }, -2, 2 },
  { "matmul of vectors", function(x, y) return x:matmul(y) end, { { 4 }, { 4 } }, -2, 2 },
  { "matrix by vector", function(x, y) return x:matmul(y) end, { { 3, 4 }, { 4 } }, -2, 2 },
  { "batched matmul", function(x, y) return x:matmul(y) end, { { 2, 3, 4 }, { 2, 4, 2 } }, -2, 2 },
  { "batched matmul, broadcast", function(x, y) return x:matmul(y) end, { { 2, 3, 4 }, { 4, 2 } },
    -2, 2 },
  { "linear", function(x, w, b) return lunce.linear(x, w, b) end, { { 3, 4 }, { 2, 4 }, { 2 } }, -2,
    2, one = false },
  { "softmax", function(x) return x:softmax(2) end, { A }, -2, 2 },
  { "log_softmax", function(x) return x:log_softmax(1) end, { A }, -2, 2 },
  { "cross_entropy of classes", function(x)
    return lunce.cross_entropy(x, labels, { label_smoothing = 0.1 })
  end, { A }, -2, 2, fixed = true },
  { "cross_entropy of soft targets", function(x)
    return lunce.cross_entropy(x, lunce.full({ 3, 4 }, 0.25, { dtype = "float64" }))
  end, { A }, -2, 2, fixed = true },
  { "conv2d", function(x, w, b)
    return lunce.conv2d(x, w, b, { stride = 2, padding = 1 })
  end, { C4, { 4, 3, 3, 3 }, { 4 } }, -1, 1, one = false, empty = false },
  { "conv2d, grouped and dilated", function(x, w)
    return lunce.conv2d(x, w, nil, { groups = 2, dilation = 2 })
  end, { { 1, 4, 5, 5 }, { 2, 2, 2, 2 } }, -1, 1, one = false, empty = false },
  { "max_pool2d", function(x) return lunce.max_pool2d(x, 2, { stride = 1 }) end, { { 2, 2, 3, 4 } },
    -2, 2, one = false, empty = false },
  { "avg_pool2d", function(x) return lunce.avg_pool2d(x, 2, { padding = 1 }) end,
    { { 2, 2, 3, 4 } }, -2, 2, one = false, empty = false },
  { "adaptive_avg_pool2d", function(x) return lunce.adaptive_avg_pool2d(x, 2) end,
    { { 2, 2, 3, 5 } }, -2, 2, one = false, empty = false },
  { "batch_norm", function(x, w, b)
    return lunce.batch_norm(x, nil, nil, w, b, { training = true })
  end, { { 4, 3, 2, 2 }, { 3 }, { 3 } }, 0.5, 2, one = false, empty = false,
    skip = { expanded = true } }, -- equal rows: the variance is no more than rounding
  { "layer_norm", function(x, w, b) return lunce.layer_norm(x, { 4 }, w, b) end,
    { A, { 4 }, { 4 } }, 0.5, 2, one = false, empty = false },
}

local function messages(faults) return table.concat(faults, "\n") end

describe("gradients in float64", function()
  for _, row in ipairs(ROWS) do
    local name, f, shapes, low, high = row[1], row[2], row[3], row[4], row[5]
    it(name .. ": agrees with central differences in every layout", function()
      assert.equal("", messages(gradcheck.all_layouts(f, shapes, low, high, row.skip)))
    end)
    if row.one ~= false and not row.fixed then
      it(name .. ": of one element", function()
        local ones = {}
        for i, shape in ipairs(shapes) do
          ones[i] = {}
          for d = 1, #shape do ones[i][d] = 1 end
        end
        if name == "matmul of vectors" then ones = { { 1 }, { 1 } } end
        assert.equal("", messages(gradcheck.all_layouts(f, ones, low, high, row.skip)))
      end)
    end
    if row.empty ~= false and not row.fixed then
      it(name .. ": of no elements", function()
        local leaves = {}
        for i, shape in ipairs(shapes) do
          local empty = {}
          for d = 1, #shape do empty[d] = shape[d] end
          local second = name:find "matmul" and i == 2 and #empty < 3
          if #empty > 0 and not second then empty[1] = 0 end
          if name == "matmul of vectors" then empty = { 0 } end
          if name == "matrix by vector" and i == 2 then empty = { 4 } end
          if name:find "broadcast x" and i == 2 and #empty < 2 then empty = { 4 } end
          if name == "broadcast x * y" and i == 2 then empty = { 1, 4 } end
          if name == "linear" and i > 1 then empty = shape end
          leaves[i] = lunce.zeros(empty, { dtype = "float64" }):requires_grad_()
        end
        f(unpack(leaves)):sum():backward()
        for _, leaf in ipairs(leaves) do assert.same(leaf.shape, leaf.grad.shape) end
      end)
    end
    it(name .. ": float32 agrees with float64", function()
      local in_64, in_32 = {}, {}
      for i, shape in ipairs(shapes) do
        in_64[i] = gradcheck.leaf_like(shape, 100 + i, low, high):to("float32"):to("float64")
        in_32[i] = in_64[i]:to("float32"):requires_grad_()
        in_64[i]:requires_grad_()
      end
      local y_64 = f(unpack(in_64))
      if name == "cross_entropy of soft targets" then
        return -- its targets are float64: mixing is tested apart
      end
      local y_32 = f(unpack(in_32))
      y_64:sum():backward()
      y_32:sum():backward()
      -- float32 has a relative step of 6e-8; sums of tens of terms and steep functions lose two
      -- digits of it.
      local function close(a, b)
        local difference = (a:to("float64") - b:to("float64")):abs()
        assert.is_true(difference:le(b:to("float64"):abs() * 2e-5 + 2e-5):all():item())
      end
      close(y_32, y_64)
      for i in ipairs(in_64) do close(in_32[i].grad, in_64[i].grad) end
    end)
  end
end)

local function integers(shape, seed)
  return lunce.randint(-8, 8, shape, { seed = seed }):to("float32")
end

-- Sums of small integers are exact in float32 whatever their order, so there is no tolerance.
describe("on integers, error 0:", function()
  local function exact(a, b)
    assert.same(b.shape, a.shape)
    assert.is_true(a:to("float64"):eq(b:to("float64")):all():item())
  end

  it("matmul, float32 against int64, in odd sizes and layouts", function()
    local sizes = { { 1, 1, 1 }, { 3, 5, 7 }, { 17, 33, 9 }, { 64, 64, 64 }, { 130, 71, 129 } }
    for i, size in ipairs(sizes) do
      local x, y = integers({ size[1], size[2] }, i), integers({ size[2], size[3] }, 50 + i)
      local expected = x:to("int64"):matmul(y:to("int64"))
      exact(x:matmul(y), expected)
      exact(x:to("float64"):matmul(y:to("float64")), expected)
      exact(x:t():contiguous():t():matmul(y:t():contiguous():t()), expected)
    end
  end)

  it("conv2d, float32 against float64, strided, padded, dilated and grouped", function()
    for _, o in ipairs{ { stride = 1, padding = 1 }, { stride = 2, padding = 0 },
      { padding = 2, dilation = 2 }, { groups = 3, padding = 1 } } do
      local x = integers({ 2, 6, 9, 11 }, 3)
      local w = integers({ 12, 6 / (o.groups or 1), 3, 3 }, 4)
      local x64, w64 = x:to("float64"):requires_grad_(), w:to("float64"):requires_grad_()
      x:requires_grad_()
      w:requires_grad_()
      local y, y64 = lunce.conv2d(x, w, nil, o), lunce.conv2d(x64, w64, nil, o)
      exact(y, y64)
      y:sum():backward()
      y64:sum():backward()
      exact(x.grad, x64.grad)
      exact(w.grad, w64.grad)
    end
  end)

  it("sum, mean of powers of two, prod, min, max, cumsum against int64 and each other", function()
    local x = integers({ 33, 64 }, 9)
    exact(x:sum(), x:to("int64"):sum())
    exact(x:sum(1), x:to("int64"):sum(1))
    exact(x:sum(2), x:t():contiguous():sum(1))
    exact(x:mean(2) * 64, x:sum(2))
    exact(x:max(2), x:t():contiguous():max(1))
    exact(x:min(1), -((-x):max(1)))
    exact(x:cumsum(2):select(2, -1), x:sum(2))
    exact(x:clamp(-1, 1):prod(2), x:to("int64"):clamp(-1, 1):prod(2))
  end)

  it("the same bits for teams of 1, 2, 3 and 5", function()
    local before = lunce.threads()
    local x = lunce.randn(300, 1001, { seed = 5 })
    local first
    for _, team in ipairs{ 1, 2, 3, 5 } do
      lunce.threads(team)
      local parts = { x:sum(1), x:sum(2), x:sum():reshape(1), x:var(2), x:logsumexp(2) }
      local sums = lunce.cat(parts, 1)
      first = first or sums
      assert.is_true(first:eq(sums):all():item())
    end
    lunce.threads(before)
  end)
end)

-- A large result is written past the caches, by loops of their own.
describe("an element has the same bits in a tensor of 32 MB as in a small one:", function()
  local n, part = 2 ^ 23 + 5, 2 ^ 20
  local x = lunce.rand(n, { seed = 6 }) * 200 - 100
  x:narrow(1, part - 3, 8):copy_(lunce.tensor{ 1 / 0, -1 / 0, 0 / 0, 0, -0.0, 1e-42, 1, -1 })

  for _, name in ipairs{ "exp", "expm1", "log", "log1p", "sqrt", "rsqrt", "reciprocal", "sin",
    "cos", "tanh", "sigmoid", "softplus", "gelu", "erf", "clone" } do
    it(name, function()
      local large = x[name](x)
      for start = 1, n, part do
        local length = math.min(part, n - start + 1)
        local y, small = large:narrow(1, start, length), x:narrow(1, start, length)
        small = small[name](small)
        assert.is_true(y:eq(small):logical_or(y:isnan():logical_and(small:isnan())):all():item())
      end
    end)
  end
end)

describe("index_copy_", function()
  local function at(list, dtype) return lunce.tensor(list, { dtype = dtype or "int64" }) end

  -- x with the lines of src written one after the other.
  local function by_lines(x, dim, list, src)
    local y = x:clone()
    for i, place in ipairs(list) do y:select(dim, place):copy_(src:select(dim, i)) end
    return y
  end

  local LAYOUTS = {
    ["as it is"] = function(x) return x:clone() end,
    transposed = function(x) return x:transpose(1, -1):contiguous():transpose(1, -1) end,
    ["a part"] = function(x)
      local shape = { unpack(x.shape) }
      shape[#shape] = shape[#shape] + 3
      return lunce.zeros(shape, { dtype = x.dtype }):narrow(#shape, 2, shape[#shape] - 3):copy_(x)
    end,
  }

  for layout, arranged in pairs(LAYOUTS) do
    it("writes lines in the order of the index, " .. layout, function()
      for _, dtype in ipairs { "float32", "float64", "float16", "bfloat16", "int64", "uint8" } do
        local x = lunce.randint(0, 99, { 5, 70, 3 }, { seed = 1 }):to(dtype)
        for dim, list in ipairs { { 4, 1, 4, -1, 1, 5 }, { 70, 1, -1, 33, 69, 33 }, { 2 } } do
          local shape = { 5, 70, 3 }
          shape[dim] = #list
          local src = arranged(lunce.randint(100, 199, shape, { seed = 2 }):to(dtype))
          local y = arranged(x)
          assert.equal(y, y:index_copy_(dim, at(list, dim == 2 and "int32" or nil), src))
          assert.is_true(y:eq(by_lines(x, dim, list, src)):all():item())
        end
      end
    end)
  end

  it("writes over what is not finite, and nothing for an empty index", function()
    local x = lunce.tensor { 1 / 0, 0 / 0, 3, -1 / 0 }
    x:index_copy_(1, at { 2, 1, 4 }, lunce.tensor { 5, 6, 7 })
    assert.same({ 6, 5, 3, 7 }, x:tolist())
    x:index_copy_(1, lunce.zeros(0, { dtype = "int64" }), lunce.zeros(0))
    assert.same({ 6, 5, 3, 7 }, x:tolist())
  end)

  it("refuses what does not fit, and changes nothing then", function()
    local x, rows = lunce.arange(6):reshape(3, 2), lunce.zeros(2, 2)
    for text, fn in pairs {
      ["index_copy_: index 4 at position 2 is outside 1..3"] = function()
        return x:index_copy_(1, at { -1, 4 }, rows):sum():item()
      end,
      ["index_copy_: (2,2) float32 along dimension 2 into (3,2) float32 at an index of 2"] =
        function() x:index_copy_(2, at { 1, 2 }, rows) end,
      ["index_copy_: (2,2) float64 into (3,2) float32; dtypes must be equal"] =
        function() x:index_copy_(1, at { 1, 2 }, rows:double()) end,
      ["index_copy_: the source is a view of what is written to; clone it"] =
        function() x:index_copy_(1, at { 1, 2 }, x:narrow(1, 2, 2)) end,
      ["index_copy_: the index is float32"] =
        function() x:index_copy_(1, lunce.ones(2), rows) end,
      ["index_copy_: cannot write in place into an expanded tensor"] =
        function() lunce.zeros(1, 2):expand(3, -1):index_copy_(1, at { 1, 2 }, rows) end,
      ["in-place change of a tensor that requires a gradient"] =
        function() lunce.zeros(3, 2):requires_grad_():index_copy_(1, at { 1, 2 }, rows) end,
      ["the source requires a gradient"] =
        function() x:index_copy_(1, at { 1, 2 }, rows:clone():requires_grad_()) end,
    } do
      local ok, message = pcall(fn)
      assert.is_false(ok)
      assert(message:find(text, 1, true), message)
    end
    if x.device == "cpu" then assert.equal(21, x:sum():item()) end
  end)

  it("counts as a change of what it writes", function()
    local x, w = lunce.ones(3), lunce.ones(3):requires_grad_()
    local y = (w * x):sum()
    x:index_copy_(1, at { 2 }, lunce.zeros(1))
    assert.is_false((pcall(y.backward, y)))
  end)

  it("the same bits for teams of 1, 2, 3 and 5", function()
    local before, first = lunce.threads(), nil
    local places = lunce.randint(1, 50, { 40000 }, { seed = 1, dtype = "int64" })
    local src = lunce.randn(40000, 4, { seed = 2 })
    for _, team in ipairs{ 1, 2, 3, 5 } do
      lunce.threads(team)
      local x = lunce.zeros(50, 4):index_copy_(1, places, src)
      local y = lunce.zeros(4, 50):index_copy_(2, places, src:t())
      first = first or x
      assert.is_true(first:eq(x):all():item() and first:t():eq(y):all():item())
    end
    lunce.threads(before)
  end)
end)

describe("what does not fit is refused at the caller's line:", function()
  -- A device tells of indices at the next wait for it.
  local function refused(pattern, f, ...)
    local ok, message = pcall(function(...)
      local y = f(...)
      if lunce.is_tensor(y) then y:tolist() end
    end, ...)
    assert.is_false(ok)
    assert.matches("ops_test.lua:%d+:", message)
    assert.matches(pattern, message)
  end

  it("names the operator, what it got and what it takes", function()
    local x, y = lunce.zeros(2, 3), lunce.zeros(4, 5)
    refused("add.*%(2,3%).*%(4,5%)", function() local _ = x + y end)
    refused("matmul.*%(2,3%).*%(4,5%)", function() x:matmul(y) end)
    refused("reshape.*%(2,3%)", function() x:reshape(4, 2) end)
    refused("select.*7", function() x:select(2, 7) end)
    assert.same({ 0 }, x:diagonal(-2 ^ 63).shape)
    assert.same({ 0 }, x:diagonal(2 ^ 62).shape)
    refused("dimension", function() x:sum(3) end)
    refused("dimensions are a table with names", function() x:sum { dim = 1 } end)
    for _, name in ipairs{ "sum", "mean", "max", "argmin", "logsumexp" } do
      refused(name .. ": keepdim is 1; a boolean", function() x[name](x, 1, 1) end)
      refused(name .. ": unknown option keepdims", function() x[name](x, 1, { keepdims = 1 }) end)
      assert.same({ 1, 3 }, x[name](x, 1, { keepdim = true }).shape)
      assert.same({ 3 }, x[name](x, 1, {}).shape)
    end
    refused("dtype", function() x:to("float31") end)
    local far = lunce.tensor({ 9 }, { dtype = "int64" })
    refused("index_select", function() return x:index_select(2, far) end)
    refused("topk", function() x:topk(9, 2) end)
    refused("conv2d", function() lunce.conv2d(x, y) end)
    refused("cross_entropy", function()
      return lunce.cross_entropy(x, lunce.tensor{ 1, 9 }:long())
    end)
    refused("unknown option", function() lunce.zeros(2, 2, { dtpe = "float32" }) end)
    if not lunce.cuda.is_available() then refused("cuda", function() x:to("cuda") end) end
    assert.equal(0, x:sum():item())
  end)
end)

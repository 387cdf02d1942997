-- The tape: what it records, how gradients come back, what it frees and what it refuses. Gradients
-- of single operators are checked in ops_test.lua.
local lunce = require "lunce"

local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local refuses = dofile(here .. "refusals.lua")("autograd_test.lua")

local function leaf(values, dtype)
  return lunce.tensor(values, { requires_grad = true, dtype = dtype })
end

local function tensors()
  collectgarbage()
  collectgarbage()
  return lunce.memory().tensors
end

describe("backward:", function()
  it("a product's gradients are the factors", function()
    local x, y = leaf { 2, 3 }, leaf { 5, 7 };
    (x * y):sum():backward()
    assert.same({ 5, 7 }, x.grad:tolist())
    assert.same({ 2, 3 }, y.grad:tolist())
  end)

  it("accumulates over calls until the gradient is taken away", function()
    local x = leaf { 1, 2 }
    for _ = 1, 3 do (x * 2):sum():backward() end
    assert.same({ 6, 6 }, x.grad:tolist())
    x.grad = nil;
    (x * 2):sum():backward()
    assert.same({ 2, 2 }, x.grad:tolist())
  end)

  it("adds the gradients of all uses", function()
    local x = leaf { 3 }
    local y = x * x + x * 2 + x
    y:backward()
    assert.same({ 9 }, x.grad:tolist())
  end)

  it("the same tensor in both places", function()
    local x = leaf { 1, 2 };
    (x + x):sum():backward()
    assert.same({ 2, 2 }, x.grad:tolist())
  end)

  it("walks a long chain and a wide fan without recursion", function()
    local x = leaf { 1 }
    local y = x
    for _ = 1, 20000 do y = y + 1 end
    y:backward()
    assert.same({ 1 }, x.grad:tolist())
    x.grad = nil
    local sum = x
    for _ = 1, 1000 do sum = sum + x end
    sum:backward()
    assert.same({ 1001 }, x.grad:tolist())
  end)

  it("needs a cotangent of its shape unless it has one element", function()
    local x = leaf { 1, 2 }
    local y = x * 3
    refuses(function() y:backward() end, "backward: a tensor of 2 elements needs a cotangent")
    refuses(function() y:backward(lunce.ones(3)) end, "cotangent is (3)", "tensor is (2)")
    refuses(function() y:backward(lunce.ones(2):double()) end, "float64")
    refuses(function() y:backward(7) end, "backward: argument 2 is 7")
    local g = lunce.tensor { 1, 10 }
    y:backward(g)
    assert.same({ 3, 30 }, x.grad:tolist())
    assert.same({ 1, 10 }, g:tolist())
  end)

  it("leaves the cotangent to its owner, also at a leaf", function()
    local x, g = leaf { 1, 2 }, lunce.tensor { 3, 4 }
    x:backward(g)
    x.grad:zero_()
    assert.same({ 3, 4 }, g:tolist())
    local y, twice = leaf { 1, 2 }, lunce.tensor { 1, 1 };
    (y + 0):backward(twice);
    (y + 0):backward(twice)
    assert.same({ 1, 1 }, twice:tolist())
    assert.same({ 2, 2 }, y.grad:tolist())
  end)

  it("refuses a tensor that depends on nothing", function()
    refuses(function() lunce.ones(1):backward() end, "needs no gradient")
    refuses(function() leaf({ 1 }):detach():backward() end, "needs no gradient")
  end)

  it("sums over broadcast dimensions and returns to the input's dtype", function()
    local a, b, c = leaf { { 1 }, { 2 } }, leaf { 1, 2, 3 }, leaf(2)
    local z = a * b + c
    assert.same({ 2, 3 }, z.shape)
    z:sum():backward()
    assert.same({ { 6 }, { 6 } }, a.grad:tolist())
    assert.same({ 3, 3, 3 }, b.grad:tolist())
    assert.same(6, c.grad:tolist())
    local f, d = leaf { 1, 2 }, leaf({ 3, 4 }, "float64");
    (f * d):sum():backward()
    assert.equal("float32", f.grad.dtype)
    assert.equal("float64", d.grad.dtype)
    assert.same({ 3, 4 }, f.grad:tolist())
  end)

  it("is right for views, expanded and empty inputs", function()
    local x = leaf { { 1, 2 }, { 3, 4 } };
    (x:t()[1] * lunce.tensor { 10, 100 }):sum():backward()
    assert.same({ { 10, 0 }, { 100, 0 } }, x.grad:tolist())
    local v = leaf { 5 }
    v:expand(3, 4):sum():backward()
    assert.same({ 12 }, v.grad:tolist())
    local e = lunce.zeros(0, 3, { requires_grad = true });
    (e * 2):sum():backward()
    assert.same({ 0, 3 }, e.grad.shape)
  end)

  it("a gradient is never shared between leaves", function()
    local a, b = leaf { 1, 2 }, leaf { 3, 4 };
    (a + b):sum():backward()
    a.grad:add_(5)
    assert.same({ 1, 1 }, b.grad:tolist())
    local c, d = leaf { 1 }, leaf { 2 }
    lunce.cat({ c, d }):backward(lunce.tensor { 7, 8 })
    c.grad:zero_()
    assert.same({ 8 }, d.grad:tolist())
  end)
end)

describe("the tape:", function()
  it("is freed by backward; a second use is an error that says so", function()
    local x = leaf { 2 }
    local y = (x * x):sum()
    y:backward()
    refuses(function() y:backward() end, "used already", "retain_graph")
    local h = x * 3
    local first, second = h * 2, h * 5
    first:backward()
    refuses(function() second:backward() end, "tape of mul", "used already")
  end)

  it("retain_graph allows a second use", function()
    local x = leaf { 3 }
    local y = x * x
    y:backward { retain_graph = true }
    y:backward(nil, { retain_graph = true })
    y:backward()
    assert.same({ 18 }, x.grad:tolist())
    refuses(function() (x * 1):backward { retain = true } end, "unknown option retain")
  end)

  it("no_grad records nothing, passes values through and is undone by errors", function()
    local x = leaf { 1 }
    local y, n = lunce.no_grad(function(k) return x * k, k end, 4)
    assert.is_false(y.requires_grad)
    assert.equal(4, n)
    assert.is_true(lunce.is_grad_enabled())
    pcall(lunce.no_grad, function() error "x" end)
    assert.is_true(lunce.is_grad_enabled())
    assert.is_true(lunce.no_grad(function()
      return lunce.enable_grad(function() return x * 2 end)
    end).requires_grad)
  end)

  it("detach cuts, sharing the elements", function()
    local x = leaf { 2 }
    local y = (x * 3):detach()
    assert.is_false(y.requires_grad);
    (x * y):backward()
    assert.same({ 6 }, x.grad:tolist())
    x:detach():fill_(9)
    assert.same({ 9 }, x:tolist())
  end)

  it("integers and comparisons carry no gradient", function()
    local x = leaf { 1.5, 2.5 }
    assert.is_false(x:long().requires_grad)
    assert.is_false(x:gt(2).requires_grad)
    assert.is_false(x:argmax(1).requires_grad)
    refuses(function() lunce.ones(2):long():requires_grad_() end, "int64")
  end)

  it("retain_grad keeps the gradient of a result", function()
    local x = leaf { 1, 2 }
    local h = (x * 3):retain_grad();
    (h * h):sum():backward()
    assert.same({ 6, 12 }, h.grad:tolist())
    assert.same({ 18, 36 }, x.grad:tolist())
  end)

  it("an in-place change of a saved tensor is an error that names the operator", function()
    local w, x = leaf { 2, 3 }, lunce.tensor { 1, 1 }
    local y = (w * x):sum()
    x:add_(1)
    refuses(function() y:backward() end, "mul", "changed in place")
    local z = w:exp()
    lunce.no_grad(function() z:mul_(2) end)
    refuses(function() z:sum():backward() end, "exp", "changed in place")
    local v = lunce.tensor { 1, 1, 1, 1 }
    local p = (w * v:narrow(1, 1, 2)):sum()
    v:fill_(0)
    refuses(function() p:backward() end, "mul", "changed in place")
  end)

  it("in-place operators are refused where they would go unrecorded", function()
    local w = leaf { 1, 2 }
    refuses(function() w:add_(1) end, "add_", "no_grad")
    refuses(function() (w * 2):mul_(3) end, "mul_")
    refuses(function() w[1] = 5 end, "no_grad")
    refuses(function() lunce.zeros(2):copy_(w) end, "copy_", "detach")
    lunce.no_grad(function() w:sub_(lunce.ones(2), { alpha = 0.5 }) end)
    assert.same({ 0.5, 1.5 }, w:tolist())
  end)

  it("a tensor freed before its rule ran is an error", function()
    local x = leaf { 1 }
    local y = x * 2
    local z = y * y
    y:free()
    refuses(function() z:backward() end, "freed")
  end)
end)

describe("memory of the tape:", function()
  -- A network's worth of operators, of which all intermediates are dropped.
  local function step(w, x)
    local h = (x:matmul(w) + 1):relu():dropout(0.5)
    local pooled = h:max(2) + h:sort(2):sum(2) + h:topk(2, 2):sum(2)
    return (pooled:exp():mean() + h:var()):log()
  end

  it("what the walk creates is freed when it ends", function()
    local w = lunce.randn(8, 8, { requires_grad = true })
    local x = lunce.randn(4, 8)
    step(w, x):backward()
    local before = tensors()
    lunce.scope(function()
      local y = step(w, x)
      local forward = lunce.memory().tensors
      y:backward()
      assert.is_true(lunce.memory().tensors <= forward)
    end)
    assert.equal(before, lunce.memory().tensors)
  end)

  it("is flat over many steps", function()
    local w = lunce.randn(8, 8, { requires_grad = true })
    local x = lunce.randn(4, 8)
    lunce.scope(function() step(w, x):backward() end)
    collectgarbage()
    local live = lunce.memory().live_bytes
    for _ = 1, 300 do lunce.scope(function() step(w, x):backward() end) end
    assert.equal(live, lunce.memory().live_bytes)
  end)

  it("nothing is left behind by a backward that fails", function()
    local x = leaf { 1, 2 }
    local before = tensors()
    lunce.scope(function()
      local mask = lunce.tensor { 1, 1 }
      local y = ((x * mask):exp() * 2):sum()
      mask:add_(1)
      local live = lunce.memory().tensors
      refuses(function() y:backward() end, "changed in place")
      assert.is_true(lunce.memory().tensors <= live)
    end)
    assert.equal(before, lunce.memory().tensors)
    assert.is_nil(x.grad);
    (x * 2):sum():backward()
    assert.same({ 2, 2 }, x.grad:tolist())
  end)

  it("out of memory in backward leaves the tape usable again from a new forward", function()
    local x = lunce.ones(1000, { requires_grad = true })
    local y = (x * x):sum()
    local hard = lunce.memory().hard_bytes
    lunce.memory_limit { hard = lunce.memory().live_bytes + 1024 }
    refuses(function() y:backward() end, "out of memory")
    lunce.memory_limit { hard = hard }
    x.grad = nil;
    (x * x):sum():backward()
    assert.equal(2, x.grad[1]:item())
  end)
end)

describe("lunce.grad:", function()
  it("returns gradients and leaves .grad alone", function()
    local x, y = leaf { 2 }, leaf { 3 }
    local g = lunce.grad(x * x * y, { x, y })
    assert.same({ 12 }, g[1]:tolist())
    assert.same({ 4 }, g[2]:tolist())
    assert.is_nil(x.grad)
    assert.is_nil(y.grad)
  end)

  it("takes results of operators, and a cotangent", function()
    local x = leaf { 1, 2 }
    local h = x * 2
    local g = lunce.grad(h * h, { h, x }, lunce.tensor { 1, 10 })
    assert.same({ 4, 80 }, g[1]:tolist())
    assert.same({ 8, 160 }, g[2]:tolist())
  end)

  it("its results are separate, and belong to the scope around it", function()
    local x, y, g = leaf { 1 }, leaf { 2 }, nil
    lunce.scope(function()
      g = lunce.grad(x + y, { x, y })
      g[1]:fill_(9)
      assert.same({ 1 }, g[2]:tolist())
    end)
    refuses(function() return g[1]:item() end, "freed")
  end)

  it("refuses what the result does not depend on", function()
    local x, y = leaf { 1 }, leaf { 2 }
    refuses(function() lunce.grad(x * 2, { x, y }) end, "does not depend on tensor 2")
    refuses(function() lunce.grad(x * 2, { lunce.ones(1) }) end, "tensor 1 does not require")
  end)
end)

describe("detect_anomaly:", function()
  before_each(function() lunce.detect_anomaly(true) end)
  after_each(function() lunce.detect_anomaly(false) end)

  it("names the operator that first gave a NaN or an infinity", function()
    refuses(function() return leaf({ -1 }):log() * 2 end, "log gave a NaN")
    refuses(function() return (leaf({ 0 }) * 1):log() end, "log gave an infinity")
    refuses(function() return 1 / leaf { 0 } end, "div gave an infinity")
  end)

  it("names the operator whose gradient is not finite", function()
    refuses(function() leaf({ 0 }):sqrt():backward() end, "backward of sqrt gave an infinity")
  end)

  it("lets pass the -inf of a mask and all that is finite", function()
    local x = leaf { { 1, 2 }, { 3, 4 } }
    local masked = x:masked_fill(lunce.eye(2):bool(), -math.huge)
    masked:logsumexp(2):sum():backward()
    assert.same({ { 0, 1 }, { 1, 0 } }, x.grad:tolist())
  end)
end)

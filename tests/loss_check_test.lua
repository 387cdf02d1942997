-- loss.check: what it finds in losses that are right and in losses that are not, what it leaves
-- alone, its report and its pictures, and bad input.
local lunce = require "lunce"
local link = require "lunce.link"

local loss = lunce.loss
local a, b = lunce.randn(6, 4, { seed = 1 }), lunce.randn(6, 4, { seed = 2 })

local function check(f, ...) return loss.check(f, a, b, ...) end

-- A loss whose gradient lacks what goes through the norms of input `which`.
local function half(which)
  return function(...)
    local views = { ... }
    local x = views[which]
    views[which] = x / x:detach():norm(2, 2, true)
    return (views[1] * views[2]):sum()
  end
end

describe("loss.check:", function()
  it("passes the losses of the library", function()
    for name, f in pairs{ nt_xent = loss.nt_xent, siglip = loss.siglip, vicreg = loss.vicreg,
      weibit = function(x, y) return loss.weibit(x, y, { beta = 2 }) end } do
      local report = check(f)
      assert.is_true(report.passed, name .. "\n" .. tostring(report))
      assert.equal(32, report.gradient.elements)
      assert.is_true(report.gradient.error < 1e-6)
      assert.is_true(report.float32.loss < 1e-5 and report.float32.gradient < 1e-4)
      assert.is_true(report.order < 1e-12)
    end
  end)

  it("finds a gradient that is wrong, and where", function()
    for which = 1, 2 do
      local report = check(half(which))
      assert.is_false(report.passed)
      assert.is_true(report.gradient.error > 0.1)
      assert.is_truthy(report.gradient.worst:match("of input " .. which))
      assert.is_truthy(tostring(report):match "gradient   WRONG .*\n.* the tape gives ")
    end
  end)

  it("passes a gradient that is zero, which differences see as rounding", function()
    assert.is_true(check(function(x, y)
      return (x / x:norm(2, 2, true)):square():sum() + 0 * y:sum()
    end).passed)
  end)

  it("takes for rounding what engines leave of a gradient that is zero", function()
    local report = loss.check(function(x, y) -- of one feature, where cosines are 1 and -1
      return lunce.similarity.cosine(x, y):lse(function(s) return s / 0.07 end):sum()
    end, lunce.randn(30, 1, { seed = 1 }), lunce.randn(40, 1, { seed = 2 }))
    assert.is_true(report.passed, tostring(report))
    assert.is_true(report.gradient.error < 1e3 and report.float32.gradient < 1e3)
    for _, more in ipairs{ 0, math.huge } do
      local wrong = check(function(x, y)
        local by = lunce.similarity.engine() == "dense" and 1e-8 or 0
        return loss.alignment(x, y) + by * (x - x:detach()):sum() + more
      end)
      assert.is_true(lunce.similarity.engine() == "dense" or not wrong.engines.passed)
    end
  end)

  it("passes a loss whose statistics are its inputs, and says so of others", function()
    local function weighted(x, y, weights)
      return ((x - y):square():sum(2) * weights:detach():to(x.dtype)):mean()
    end
    local function weights(x, y) return (x * y):sum(2):detach():exp() end
    assert.is_true(check(weighted, weights(a, b)).passed)
    local report = check(function(x, y) return weighted(x, y, weights(x, y)) end)
    assert.is_false(report.passed)
    assert.is_truthy(tostring(report):match "no gradient by intention %(detach, no_grad,\n")
  end)

  it("refuses a loss that changes by itself", function()
    local calls = 0
    for _, f in ipairs{
      function(x, y) return (x * y * lunce.rand(6, 4, { dtype = x.dtype })):sum() end,
      function(x, y)
        calls = calls + 1
        return (x * y):sum() * calls
      end,
    } do
      local ok, message = pcall(function()
        local report = check(f)
        return report
      end)
      assert.is_false(ok)
      assert.matches("loss_check_test.lua:%d+: check: the loss is %S+, and of the same inputs %S+ ",
        message)
    end
  end)

  it("finds a gradient that is NaN", function()
    local report = check(function(x, y) return ((x - x) ^ 0.5 + y * y):sum() end)
    assert.is_false(report.passed)
  end)

  it("tells whether views and samples may change places", function()
    local report = check(function(x, y) return (x * y):sum() end)
    assert.is_true(report.exchange < 1e-12 and report.order < 1e-12)
    report = check(function(x, y) return (x * x * y):sum() end)
    assert.is_true(report.exchange > 1e-3 and report.order < 1e-12)
    local weights = lunce.arange(1, 6, 1, { dtype = "float64" }):unsqueeze(2)
    report = check(function(x, y) return (x * y * weights:to(x.dtype)):sum() end)
    assert.is_true(report.exchange < 1e-12 and report.order > 1e-3)
    assert.is_truthy(tostring(report):match "exchange   yes .*order      no ")
  end)

  it("takes labels and other inputs that are not alike", function()
    local labels = lunce.randint(1, 2, { 6 }, { seed = 1 })
    local report = loss.check(loss.sup_con, a, labels, { samples = 3 })
    assert.is_true(report.passed)
    assert.equal(3, report.gradient.elements)
    assert.is_nil(report.exchange)
    assert.is_true(report.order < 1e-12)
    assert.is_nil(tostring(report):match "exchange")
    local queue = loss.queue(5, 4)
    report = loss.check(loss.moco, a, b, queue.keys)
    assert.is_true(report.passed)
    assert.same({ 2, 3 }, report.gradient.without)
    assert.is_truthy(tostring(report):match "none at input 2, 3")
  end)

  it("makes two views where none are given", function()
    local seen
    local report = loss.check(function(x, y)
      seen = { x.shape[1], x.shape[2], y.shape[1], y.shape[2] }
      return (x - y):square():sum()
    end, { samples = 1 })
    assert.same({ 128, 64, 128, 64 }, seen)
    assert.is_true(report.passed)
  end)

  it("measures memory and time beside nt_xent", function()
    local x, y = lunce.randn(64, 8, { seed = 1 }), lunce.randn(64, 8, { seed = 2 })
    local report = loss.check(loss.nt_xent, x, y, { samples = 1 })
    assert.equal(report.nt_xent.bytes, report.cost.bytes)
    assert.is_true(report.cost.bytes > 0 and report.cost.seconds > 0)
    local held = loss.check(function(p, q)
      return loss.nt_xent(p, q) + 0 * lunce.zeros(1e6, { dtype = p.dtype }):sum()
    end, x, y, { samples = 1 })
    assert.is_true(held.cost.bytes > 4e6 and held.nt_xent.bytes < 4e6)
    assert.is_truthy(tostring(held):match "memory     %d+%.%d%d MB   nt_xent 0%.%d%d MB")
  end)

  it("compares the engines, or says why not", function()
    local report = check(loss.nt_xent)
    if lunce.similarity.engine() == "dense" then
      assert.is_nil(report.engines)
      assert.is_truthy(tostring(report):match "engines    skipped   the dense engine")
      return
    end
    assert.is_true(report.engines.passed)
    local used = lunce.similarity.engine()
    local differs = check(function(x, y)
      local scale = lunce.similarity.engine() == "dense" and 2 or 1
      return scale * loss.nt_xent(x, y)
    end)
    assert.is_false(differs.engines.passed or differs.passed)
    assert.is_truthy(tostring(differs):match "engines    WRONG")
    local ok = pcall(check, function(x, y)
      if lunce.similarity.engine() == "dense" then error "refused" end
      return loss.nt_xent(x, y)
    end)
    assert.is_false(ok)
    assert.equal(used, lunce.similarity.engine())
  end)

  it("changes neither inputs nor their gradients", function()
    local x = lunce.randn(5, 3, { seed = 3 }):requires_grad_()
    local before = x:tolist()
    loss.check(loss.nt_xent, x, x:detach() * 2, { samples = 4 })
    assert.same(before, x:tolist())
    assert.is_nil(x.grad)
  end)

  it("draws the link", function()
    local base = os.tmpname()
    local report = check(loss.nt_xent, { samples = 1, picture = base .. ".svg",
      link = function(s, tau) return link.square(s) / tau + s end, parameters = { 0.7 } })
    assert.same({ base .. "-logit.svg", base .. "-weight.svg" }, report.pictures)
    for _, path in ipairs(report.pictures) do
      local file = assert(io.open(path))
      assert.is_truthy(file:read("*a"):match "<svg.*this link.*</svg>")
      file:close()
      assert(os.remove(path))
    end
    os.remove(base)
  end)
end)

describe("bad input:", function()
  local line = debug.getinfo(1, "l").currentline + 2
  local function refused(pattern, ...)
    local ok, message = pcall(function(...) return (loss.check(...)) end, ...)
    assert.is_false(ok)
    assert(message:match(pattern), message)
    assert(message:find("loss_check_test.lua:" .. line .. ":", 1, true), message)
  end

  it("is an error at the user's line", function()
    refused("f is nil; a function of tensors is taken", nil)
    refused("the loss gave %(6,4%); it must give a tensor of one element", function(x, y)
      return x + y
    end, a, b)
    refused("the loss gave 3;", function() return 3 end, a)
    refused("has no gradient at any input", function() return lunce.zeros(1) end, a)
    refused("input 2 is \"b\"; a tensor is taken", loss.nt_xent, a, "b", a)
    refused("options are a table", loss.nt_xent, a, b, 4)
    refused("no gradient at any input", function(x) return x:sum() end,
      lunce.ones(3, { dtype = "int64" }))
    refused("unknown option sample", loss.nt_xent, a, b, { sample = 1 })
    refused("a picture is of a link; link is false", loss.nt_xent, a, b, { picture = "a.svg" })
    refused("a name in .svg or .png", loss.nt_xent, a, b, { picture = "a", link = link.exp,
      samples = 1 })
    refused("/nonexistent/a%-logit.svg was not made", loss.nt_xent, a, b,
      { picture = "/nonexistent/a.svg", link = link.exp, samples = 1 })
    for _, samples in ipairs{ 0, -1, 1.5 } do
      refused("samples is %-?%d.*; a positive integer", loss.nt_xent, a, b, { samples = samples })
    end
  end)

  it("passes on what the loss raises", function()
    local ok, message = pcall(check, function() error("own message", 0) end)
    assert.is_false(ok)
    assert.equal("own message", message)
  end)
end)

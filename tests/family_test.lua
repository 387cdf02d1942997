-- The family around NT-Xent and WEINCE against float64 references (tests/reference), their limits,
-- learnable parameters, the queue, the losses that are not contrastive, and bad input; and what
-- losses say of themselves. Tolerances: loss 1e-5 relative in float32 and 1e-10 in float64,
-- gradients 1e-4 and 1e-7 relative in norm (they are stored as float32).
local json = require "cjson"
local lunce = require "lunce"
local safetensors = require("lunce.io").safetensors

local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local gradcheck = dofile(here .. "gradcheck.lua")

local loss, similarity = lunce.loss, lunce.similarity
local ENGINES = similarity.engine() == "dense" and { "dense" } or { "dense", similarity.engine() }
local LOSS = { float32 = 1e-5, float64 = 1e-10 }
local GRADIENT = { float32 = 1e-4, float64 = 1e-7 }

local function leaf(t, dtype) return t:to(dtype):clone():requires_grad_() end

local function normal(N, D, seed) return lunce.randn(N, D, { seed = seed, dtype = "float64" }) end

local function indices(list) return lunce.tensor(list, { dtype = "int64" }) end

-- ---- References ------------------------------------------------------------------------------

local function two(zi, zj, labels)
  return lunce.cat({ zi, zj }, 1), lunce.cat({ labels, labels }, 1)
end

-- How each reference case is called, with its parameters p and leaves x.
local CALLS = {
  dcl = function(x, p) return loss.dcl(x.zi, x.zj, p) end,
  debiased = function(x, p)
    return loss.debiased(x.zi, x.zj, { tau = p.tau, tau_plus = p.tau_plus })
  end,
  hcl = function(x, p) return loss.hcl(x.zi, x.zj, p) end,
  sup_con = function(x, p)
    local z, labels = two(x.zi, x.zj, x.labels)
    return loss.sup_con(z, labels, p)
  end,
  clip = function(x) return loss.clip(x.zi, x.zj, { scale = x.scale }) end,
  siglip = function(x) return loss.siglip(x.zi, x.zj, { scale = x.scale, bias = x.bias }) end,
  alignment = function(x, p) return loss.alignment(x.zi, x.zj, { alpha = p.alpha }) end,
  uniformity = function(x, p)
    return (loss.uniformity(x.zi, { t = p.t }) + loss.uniformity(x.zj, { t = p.t })) / 2
  end,
}

local function run(tensors, case, p, dtype)
  local x = { zi = leaf(tensors.zi, dtype), zj = leaf(tensors.zj, dtype), labels = tensors.labels }
  for _, name in ipairs{ "scale", "bias" } do
    x[name] = p[name] and lunce.tensor({ p[name] }, { dtype = dtype }):requires_grad_()
  end
  local value = CALLS[case](x, p)
  value:backward()
  return value, x
end

local function check_case(tensors, case, p, dtype)
  local value, x = run(tensors, case, p, dtype)
  local expected = tensors[case .. ".loss"]:item()
  assert(math.abs(value:item() - expected) <= LOSS[dtype] * math.abs(expected),
    ("loss %.12g, expected %.12g"):format(value:item(), expected))
  for _, name in ipairs{ "zi", "zj", "scale", "bias" } do
    local gradient = tensors[case .. ".grad_" .. name]
    if gradient then
      gradient = gradient:to("float64")
      -- 1e-14: rounding in the reference where the gradient is 0. scale's is what is left of terms
      -- of the loss's size that cancel.
      local bound = GRADIENT[dtype] * gradient:norm():item() + 1e-14
      if name == "scale" then bound = bound + LOSS[dtype] end
      local off = (x[name].grad:to("float64") - gradient):norm():item()
      assert(off <= bound, ("%s: off by %.3g, %.3g allowed"):format(name, off, bound))
    end
  end
end

for _, file in ipairs{ "random-8x16", "paired-32x64", "clustered-32x64", "collapsed-32x64" } do
  describe("references " .. file .. ":", function()
    local tensors, metadata = safetensors.load(here .. "reference/pairs-" .. file .. ".safetensors")
    local cases, seen = json.decode(metadata.cases), 0
    local collapsed = file:match "^collapsed" ~= nil
    local function finite(case, p)
      local value, x = run(tensors, case, p, "float32")
      for _, t in ipairs{ value, x.zi.grad, x.zj.grad } do
        assert.is_true(t:isfinite():all():item())
      end
    end
    after_each(function() similarity.engine(ENGINES[#ENGINES]) end)
    for case in pairs(CALLS) do
      local p = cases[case]
      seen = seen + (p and 1 or 0)
      for _, engine in ipairs(p and ENGINES or {}) do
        it(("%s in float64, %s"):format(case, engine), function()
          similarity.engine(engine)
          check_case(tensors, case, p, "float64")
        end)
        it(("%s in float32, %s"):format(case, engine), function()
          similarity.engine(engine)
          -- float32 cannot resolve 1 - s where the rows have collapsed; it stays finite.
          if collapsed then finite(case, p) else check_case(tensors, case, p, "float32") end
        end)
      end
    end
    it("covers the cases", function() assert.is_true(seen >= 6) end)
  end)
end

-- ---- Limits ----------------------------------------------------------------------------------

describe("limits:", function()
  local zi, zj = normal(12, 7, 3), normal(12, 7, 4)

  it("debiased without false negatives is nt_xent", function()
    assert.near(loss.nt_xent(zi, zj, { tau = 0.3 }):item(),
      loss.debiased(zi, zj, { tau = 0.3, tau_plus = 0 }):item(), 1e-12)
  end)

  it("hcl that draws towards none is debiased", function()
    assert.near(loss.debiased(zi, zj):item(), loss.hcl(zi, zj, { beta = 0 }):item(), 1e-12)
  end)

  it("hcl where the floor holds has the floor's value and gradient", function()
    local x = zi:clone():requires_grad_()
    local value = loss.hcl(x, zi * 2, { tau_plus = 0.9 }) -- the positive has cosine 1
    assert.near(math.log(1 + 22 * math.exp(-2 - 2)), value:item(), 1e-12)
    value:backward()
    -- Only the positive's logit is left, whose slope is 0 at cosine 1.
    assert.is_true(x.grad:norm():item() < 1e-12)
  end)

  it("hcl and debiased are finite in float32 at temperature 0.01", function()
    local centre = lunce.randn(16, 8, { seed = 1 })
    local a, b = centre:requires_grad_(), centre:detach() + 0.05 * lunce.randn(16, 8, { seed = 2 })
    for _, name in ipairs{ "hcl", "debiased" } do
      local value = loss[name](a, b, { tau = 0.01 })
      value:backward()
      assert.is_true(value:isfinite():item())
      assert.is_true(a.grad:isfinite():all():item())
    end
  end)

  it("sup_con with a label for each sample is nt_xent", function()
    local z, labels = two(zi, zj, lunce.arange(1, 12, 1, { dtype = "int64" }))
    assert.near(loss.nt_xent(zi, zj, { tau = 0.2 }):item(),
      loss.sup_con(z, labels, { tau = 0.2 }):item(), 1e-12)
  end)

  it("sup_con leaves rows out that are alone with their label", function()
    local z = normal(4, 5, 6):requires_grad_()
    local value = loss.sup_con(z, indices{ 1, 1, 2, 3 }, { tau = 0.5 })
    value:backward()
    local s = similarity.cosine(z:detach()):dense():tolist()
    local function row(a, p)
      local sum = 0
      for b = 1, 4 do sum = sum + (b ~= a and math.exp(s[a][b] / 0.5) or 0) end
      return math.log(sum) - s[a][p] / 0.5
    end
    assert.near((row(1, 2) + row(2, 1)) / 2, value:item(), 1e-12)
    assert.is_true(z.grad:isfinite():all():item())
    local none = loss.sup_con(z, indices{ 1, 2, 3, 4 })
    assert.equal(0, none:item())
  end)

  it("dcl is nt_xent without the positive's share", function()
    local a, b = zi:narrow(1, 1, 2), zj:narrow(1, 1, 2)
    local s = similarity.cosine(lunce.cat({ a, b }, 1)):dense():tolist()
    local sum = 0
    for anchor, negatives in ipairs{ { 2, 4 }, { 1, 3 }, { 2, 4 }, { 1, 3 } } do
      local p = (anchor + 1) % 4 + 1
      sum = sum - s[anchor][p] / 0.5 + math.log(math.exp(s[anchor][negatives[1]] / 0.5)
        + math.exp(s[anchor][negatives[2]] / 0.5))
    end
    assert.near(sum / 4, loss.dcl(a, b):item(), 1e-12)
  end)

  it("alignment is 0, with gradient 0, for equal views", function()
    for _, alpha in ipairs{ 1, 2, 3 } do
      local x = zi:clone():requires_grad_()
      local value = loss.alignment(x, zi, { alpha = alpha })
      value:backward()
      assert.equal(0, value:item())
      assert.equal(0, x.grad:abs():max():item())
    end
  end)

  it("uniformity of opposite points", function()
    local z = lunce.tensor({ { 1, 0 }, { -2, 0 } }, { dtype = "float64" })
    assert.near(-3 * 4, loss.uniformity(z, { t = 3 }):item(), 1e-12)
  end)

  it("clip of orthonormal rows", function()
    local eye = lunce.eye(5, { dtype = "float64" })
    assert.near(math.log(1 + 4 * math.exp(-3)), loss.clip(eye, eye, { scale = 3 }):item(), 1e-12)
  end)

  it("siglip of orthonormal rows", function()
    local eye = lunce.eye(5, { dtype = "float64" })
    local function softplus(x) return math.log(1 + math.exp(x)) end
    assert.near(softplus(-(3 - 1)) + 4 * softplus(-1),
      loss.siglip(eye, eye, { scale = 3, bias = -1 }):item(), 1e-12)
  end)
end)

-- ---- Gradients -------------------------------------------------------------------------------

describe("gradients against central differences:", function()
  local labels = indices{ 1, 2, 1, 3, 2 }
  local queue = normal(4, 3, 9)
  local cases = {
    dcl = function(a, b) return loss.dcl(a, b) end,
    debiased = function(a, b) return loss.debiased(a, b) end,
    hcl = function(a, b) return loss.hcl(a, b) end,
    sup_con = function(a) return loss.sup_con(a, labels) end,
    clip = function(a, b, scale) return loss.clip(a, b, { scale = scale }) end,
    siglip = function(a, b, scale)
      return loss.siglip(a, b, { scale = scale, bias = -scale })
    end,
    alignment = function(a, b) return loss.alignment(a, b, { alpha = 1.5 }) end,
    uniformity = function(a) return loss.uniformity(a) end,
    moco = function(a) return loss.moco(a, normal(5, 3, 8), queue, { tau = 0.5 }) end,
    barlow_twins = function(a, b) return loss.barlow_twins(a, b, { lambda = 0.3 }) end,
    vicreg = function(a, b) return loss.vicreg(a, b) end,
    simsiam = function(a, b) return loss.simsiam(a, b, normal(5, 3, 8), normal(5, 3, 9)) end,
    byol = function(a, b) return loss.byol(a, b, normal(5, 3, 8), normal(5, 3, 9)) end,
  }
  for name, f in pairs(cases) do
    it(name, function()
      local scale = lunce.tensor({ 4 }, { dtype = "float64" })
      local fault = gradcheck.compare(f, { normal(5, 3, 1), normal(5, 3, 2), scale },
        function(_, x) return x end)
      assert.is_nil(fault)
    end)
  end

  it("tau, too, may be learned", function()
    for _, name in ipairs{ "dcl", "debiased", "hcl" } do
      local fault = gradcheck.compare(function(tau)
        return loss[name](normal(5, 3, 1), normal(5, 3, 2), { tau = tau })
      end, { lunce.tensor({ 0.4 }, { dtype = "float64" }) }, function(_, x) return x end)
      assert.is_nil(fault, name)
    end
  end)
end)

-- ---- Queue and targets -----------------------------------------------------------------------

describe("moco:", function()
  it("is InfoNCE of each query over its key and the queue", function()
    local q, k, queue = normal(3, 4, 1), normal(3, 4, 2), normal(6, 4, 3)
    local s = similarity.cosine(q, lunce.cat({ k, queue }, 1)):dense()
    local logits = lunce.cat({ s:narrow(2, 1, 3):diagonal():unsqueeze(2), s:narrow(2, 4, 6) }, 2)
    assert.near(lunce.cross_entropy(logits / 0.2, indices{ 1, 1, 1 }):item(),
      loss.moco(q, k, queue, { tau = 0.2 }):item(), 1e-12)
  end)

  it("no gradient reaches keys or queue", function()
    local q, k, queue = normal(3, 4, 1):requires_grad_(), normal(3, 4, 2):requires_grad_(),
      normal(6, 4, 3):requires_grad_()
    loss.moco(q, k, queue):backward()
    assert.is_truthy(q.grad)
    assert.is_nil(k.grad)
    assert.is_nil(queue.grad)
  end)

  it("the queue replaces its oldest keys, around its end", function()
    local queue = loss.queue(5, 2)
    assert.is_true(queue.keys:norm(2, 2):min():item() > 0)
    local function rows(first, N) return lunce.arange(first, first + 2 * N - 1):reshape(N, 2) end
    queue:push(rows(1, 3))
    queue:push(rows(11, 3))
    assert.same({ { 15, 16 }, { 3, 4 }, { 5, 6 }, { 11, 12 }, { 13, 14 } }, queue.keys:tolist())
    assert.equal(2, queue.next)
    queue:push(rows(21, 5))
    assert.same({ { 29, 30 }, { 21, 22 }, { 23, 24 }, { 25, 26 }, { 27, 28 } },
      queue.keys:tolist())
  end)

  it("the queue starts from its seed and survives a checkpoint and a scope", function()
    local one, two_, other = loss.queue(4, 3, { seed = 1 }), loss.queue(4, 3, { seed = 1 }),
      lunce.scope(loss.queue, 4, 3, { seed = 2, dtype = "float64" })
    assert.same(one.keys:tolist(), two_.keys:tolist())
    assert.equal("float64", other.keys.dtype)
    lunce.scope(function() one:push(lunce.randn(3, 3, { seed = 5 }):requires_grad_() * 2) end)
    two_:load_state_dict(one:state_dict())
    assert.same(one.keys:tolist(), two_.keys:tolist())
    assert.equal(4, two_.next)
    assert.is_false(one.keys.requires_grad)
  end)
end)

describe("predictions and their targets:", function()
  local function rows(values) return lunce.tensor(values, { dtype = "float64" }) end

  it("simsiam and byol by hand", function()
    local p_i, z_j = rows{ { 2, 0 } }, rows{ { 1, 1 } }
    local p_j, z_i = rows{ { 0, 3 } }, rows{ { 0, -1 } }
    local first, second = math.sqrt(0.5), -1
    assert.near(-(first + second) / 2, loss.simsiam(p_i, p_j, z_i, z_j):item(), 1e-12)
    assert.near(4 - 2 * (first + second), loss.byol(p_i, p_j, z_i, z_j):item(), 1e-12)
  end)

  it("no gradient reaches the targets", function()
    for _, name in ipairs{ "simsiam", "byol" } do
      local x = {}
      for i = 1, 4 do x[i] = normal(3, 4, i):requires_grad_() end
      loss[name](unpack(x)):backward()
      assert.is_truthy(x[1].grad and x[2].grad)
      assert.is_nil(x[3].grad or x[4].grad)
    end
  end)
end)

describe("features, by hand:", function()
  -- Two samples: every centred feature is +-1/2 of its range, every correlation +-1.
  local a = lunce.tensor({ { 1, 0 }, { 3, 4 } }, { dtype = "float64" })
  local b = lunce.tensor({ { 0, 5 }, { 1, 3 } }, { dtype = "float64" })

  it("barlow_twins", function()
    -- C = [[1, -1], [1, -1]]
    assert.near((1 - 1) ^ 2 + (1 + 1) ^ 2 + 0.1 * (1 + 1),
      loss.barlow_twins(a, b, { lambda = 0.1 }):item(), 1e-12)
    assert.near(2 * 5e-3, loss.barlow_twins(a, a):item(), 1e-12)
  end)

  it("vicreg", function()
    -- Variances 2 and 8, 0.5 and 2; covariances 4 and -1.
    local invariance = (1 + 25 + 4 + 1) / 4
    local v_b = (1 - math.sqrt(0.5 + 1e-4)) / 2
    local c_a, c_b = 2 * 4 ^ 2 / 2, 2 * 1 / 2
    assert.near(25 * invariance + 25 * v_b / 2 + c_a + c_b, loss.vicreg(a, b):item(), 1e-12)
    assert.near(c_a + c_b, loss.vicreg(a, b, { invariance = 0, variance = 0 }):item(), 1e-12)
  end)
end)

-- ---- Memory, description, bad input ----------------------------------------------------------

describe("memory:", function()
  it("a step in a scope leaves only the gradients", function()
    local x = {}
    for i = 1, 4 do x[i] = lunce.randn(12, 8, { seed = i }):requires_grad_() end
    local labels = lunce.randint(1, 4, { 12 }, { seed = 1 })
    local inputs = { sup_con = { x[1], labels }, uniformity = { x[1] }, moco = { x[1], x[2], x[3] },
      simsiam = x, byol = x }
    for _, name in ipairs{ "dcl", "debiased", "hcl", "clip", "siglip", "alignment", "barlow_twins",
      "vicreg", "sup_con", "uniformity", "moco", "simsiam", "byol" } do
      local function step()
        lunce.scope(function() loss[name](unpack(inputs[name] or { x[1], x[2] })):backward() end)
      end
      step()
      collectgarbage()
      local before = lunce.memory()
      for _ = 1, 3 do step() end
      assert.equal(before.live_bytes, lunce.memory().live_bytes, name)
      assert.equal(before.tensors, lunce.memory().tensors, name)
    end
  end)
end)

describe("description:", function()
  it("every loss says its formula, source and options with their defaults", function()
    assert.is_true(#loss.names() >= 23)
    for _, name in ipairs(loss.names()) do
      local text = loss.describe(name)
      assert.equal(text, tostring(loss[name]))
      assert.equal(name, text:match "^[%w_]+")
      assert.is_truthy(text:match "\n  formula  %S" and text:match "\n  source   .*arXiv %d+%.%d+")
      for line in text:gmatch "[^\n]+" do assert.is_true(#line <= 100, line) end
      for _, option in ipairs(loss[name].options) do
        assert.is_truthy(text:find("  " .. option[1] .. " ", 1, true), name .. " " .. option[1])
      end
    end
    assert.is_truthy(loss.describe "clip":find("scale  14.29", 1, true))
  end)

  it("the list names every loss and what it is", function()
    for _, name in ipairs(loss.names()) do
      local line = ("%-26s %s\n"):format(name, loss[name].summary)
      assert.is_truthy((loss.describe() .. "\n"):find(line, 1, true), name)
    end
    assert.equal(loss.describe(), tostring(loss))
    for _, name in ipairs{ "names", "check", "nt_xnet" } do
      assert.has_error_match(function() return (loss.describe(name)) end,
        "loss.describe%(%) lists")
    end
  end)

  it("the options that are described are those that are taken", function()
    for _, name in ipairs(loss.names()) do
      local taken = loss[name]
      local ok, message = pcall(taken, unpack({ false, false, false, false }, 1, #taken.takes))
      assert.is_false(ok, message) -- the arguments are nothing
      local given = { unpack({ false, false, false, false }, 1, #taken.takes) }
      given[#given + 1] = { nonsense = 1 }
      ok, message = pcall(taken, unpack(given))
      assert.is_false(ok)
      for _, option in ipairs(taken.options) do
        assert.is_truthy(message:find(option[1], 1, true), message)
      end
    end
  end)

  it("a loss of the user's own goes by its name", function()
    loss.mine = function(z) return z:sum() end
    assert.equal(4, loss.mine(lunce.ones(4)):item())
    loss.mine = nil
  end)
end)

describe("bad input:", function()
  local z = lunce.randn(4, 3, { seed = 1 })
  local line = debug.getinfo(1, "l").currentline + 2
  local function refused(pattern, name, ...)
    local ok, message = pcall(function(...) return (loss[name](...)) end, ...)
    assert.is_false(ok)
    assert(message:match(pattern), message)
    assert(message:find("family_test.lua:" .. line .. ":", 1, true), message)
  end

  it("shapes and dtypes", function()
    for _, name in ipairs{ "dcl", "debiased", "hcl", "clip", "siglip", "alignment", "barlow_twins",
      "vicreg" } do
      refused(name .. ": the views differ: z_i %(4,3%) float32, z_j %(3,3%)", name, z,
        z:narrow(1, 1, 3))
      refused(name .. ": z_j is a tensor of two dimensions; got nil", name, z)
    end
    refused("p_i %(4,3%) float32, z_j %(4,3%) float64", "simsiam", z, z, z, z:to("float64"))
    refused("byol: p_j is a tensor of two dimensions; got a table", "byol", z, {}, z, z)
    refused("labels is a tensor %(4%); got %(3%)", "sup_con", z, indices{ 1, 2, 3 })
    refused("labels is a tensor %(4%); got nil", "sup_con", z)
    refused("queue %(4,2%) float32 and q %(4,3%)", "moco", z, z, lunce.zeros(4, 2))
    refused("queue is a tensor of two dimensions; got a queue", "moco", z, z, loss.queue(4, 3))
  end)

  it("too few rows", function()
    local one = z:narrow(1, 1, 1)
    for _, name in ipairs{ "dcl", "debiased", "hcl" } do
      refused("one pair has no negatives", name, one, one)
    end
    refused("z has 1 rows", "uniformity", one)
    refused("one row has no variance", "vicreg", one, one)
  end)

  it("values and options", function()
    refused("scale is 0;", "clip", z, z, { scale = 0 })
    refused("bias is nan;", "siglip", z, z, { bias = 0 / 0 })
    refused("bias is \"x\";", "siglip", z, z, { bias = "x" })
    refused("tau_plus is 1;", "hcl", z, z, { tau_plus = 1 })
    refused("option beta is \"big\"", "hcl", z, z, { beta = "big" })
    refused("alpha is 0.5;", "alignment", z, z, { alpha = 0.5 })
    refused("t is %-1;", "uniformity", z, { t = -1 })
    refused("unknown option lambd; it takes lambda", "barlow_twins", z, z, { lambd = 1 })
    refused("option margin is nan; a number is taken", "weince", z, z, { margin = 0 / 0 })
    refused("option beta is nan; a number is taken", "hcl", z, z, { beta = 0 / 0 })
    refused("unknown option tau", "byol", z, z, z, z, { tau = 1 })
    refused("takes z_i %(N,D%), z_j %(N,D%) and options; got 4", "nt_xent", z, z, {}, {})
  end)

  it("the queue", function()
    refused("size is 0;", "queue", 0, 3)
    refused("width is nil;", "queue", 4)
    local queue = loss.queue(4, 3)
    local ok, message = pcall(queue.push, queue, lunce.zeros(5, 3))
    assert.is_false(ok)
    assert.is_truthy(message:find("keys (5,3) for a queue (4,3)", 1, true))
    ok, message = pcall(queue.load_state_dict, queue, { keys = lunce.zeros(5, 3) })
    assert.is_false(ok)
    assert.is_truthy(message:find("takes { keys = (4,3), next = }", 1, true))
  end)
end)

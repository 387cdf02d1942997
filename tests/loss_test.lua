-- Losses against float64 references (tests/reference), and what the references cannot show: limits,
-- precision, state and bad input. Tolerances: loss 1e-5 relative in float32 and 1e-10 in float64,
-- gradients 1e-4 and 1e-7 relative in norm (they are stored as float32), statistics 1e-4.
local json = require "cjson"
local lunce = require "lunce"
local evt = require "lunce.evt"
local safetensors = require("lunce.io").safetensors

local loss = lunce.loss
local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local LOSS = { float32 = 1e-5, float64 = 1e-10 }
local GRADIENT = { float32 = 1e-4, float64 = 1e-7 }
local STATISTIC = 1e-4

local function load(name)
  return safetensors.load(here .. "reference/" .. name .. ".safetensors")
end

local function distance(a, b) return (a:to("float64") - b:to("float64")):norm():item() end

local function same_loss(expected, value, dtype, what)
  local difference = math.abs(value:item() - expected:item())
  assert(difference <= LOSS[dtype] * math.abs(expected:item()),
    ("%s: loss %.12g, expected %.12g"):format(what, value:item(), expected:item()))
end

local function same_gradient(expected, gradient, dtype, what)
  -- 1e-14: a clamped similarity has gradient 0 here, and rounding noise in the reference.
  local bound = GRADIENT[dtype] * expected:to("float64"):norm():item() + 1e-14
  local difference = distance(gradient, expected)
  assert(difference <= bound, ("%s: gradient off by %.3g, %.3g allowed"):format(what, difference,
    bound))
end

local function leaf(t, dtype) return t:to(dtype):clone():requires_grad_() end

-- How each reference case is called.
local function with(name, extra)
  return function(zi, zj, o)
    for key, value in pairs(extra or {}) do o[key] = value end
    return loss[name](zi, zj, o)
  end
end

local CALLS = {
  nt_xent = with "nt_xent", nt_xent_cold = with "nt_xent",
  weince = with "weince", weince_loose = with "weince", weince_anchor_beta = with "weince",
  weince_rho = with "weince", weince_aic = with "weince",
  weibit = with "weibit", weibit_shrink = with("weibit", { beta = "anchor" }),
  soft = with "soft", gate = with "gate",
  hard_select = with "hard_select", soft_select = with "soft_select",
  top_m_weibit = with("top_m", { link = "weibit" }),
  top_m_softmax = with("top_m", { link = "softmax" }),
}

local FILES = { "random-8x16", "paired-32x64", "clustered-32x64", "collapsed-32x64" }
if not os.getenv "LUNCE_CUDA" then -- too large where CUDA's kernels run on the host
  FILES[5], FILES[6] = "paired-256x64", "clustered-256x64"
end

local function run(tensors, case, o, dtype)
  local zi, zj = leaf(tensors.zi, dtype), leaf(tensors.zj, dtype)
  local value = CALLS[case](zi, zj, o)
  value:backward()
  return value, zi.grad, zj.grad
end

for _, file in ipairs(FILES) do
  describe("references " .. file .. ":", function()
    local tensors, metadata = load("pairs-" .. file)
    local collapsed = file:match "^collapsed" ~= nil
    local seen = 0
    for case in pairs(json.decode(metadata.cases)) do
      if CALLS[case] then
        seen = seen + 1
        for _, dtype in ipairs{ "float64", not collapsed and "float32" or nil } do
          it(case .. " in " .. dtype, function()
            local o = json.decode(metadata.cases)[case]
            local value, gi, gj = run(tensors, case, o, dtype)
            same_loss(tensors[case .. ".loss"], value, dtype, case)
            same_gradient(tensors[case .. ".grad_zi"], gi, dtype, case .. " z_i")
            same_gradient(tensors[case .. ".grad_zj"], gj, dtype, case .. " z_j")
          end)
        end
        if collapsed then
          it(case .. " stays finite in float32, which cannot resolve 1 - s", function()
            local value, gi, gj = run(tensors, case, json.decode(metadata.cases)[case], "float32")
            for _, t in ipairs{ value, gi, gj } do assert.is_true(t:isfinite():all():item()) end
          end)
        end
      end
    end

    it("covers the cases", function() assert.is_true(seen >= 5) end)

    it("weince's statistics", function()
      for _, dtype in ipairs{ "float64", not collapsed and "float32" or nil } do
        local _, found = loss.weince(tensors.zi:to(dtype), tensors.zj:to(dtype))
        local shape = json.decode(metadata.weince_tail)
        assert.equal(shape.k, found.k)
        assert.equal(shape.n, found.n)
        for key, name in pairs{ lambda = "lam", lambda_rho = "lam_rho", lambda_aic = "lam_aic",
          delta_aic = "d_aic", beta_hat = "beta_hat", r2 = "r2", rho = "rho", rho0 = "rho0" } do
          local expected = tensors["weince." .. name]
          local allowed = STATISTIC * expected:norm():item() + 1e-12
          assert(distance(found[key]:reshape(-1), expected) <= allowed, dtype .. " " .. key)
        end
      end
    end)

    it("the pooled tail", function()
      local z = lunce.cat({ tensors.zi, tensors.zj }, 1):to("float64")
      local N = tensors.zi.shape[1]
      local first = lunce.arange(1, N, 1, { dtype = "int64" })
      local S = lunce.similarity.cosine(z):without_self()
      local pooled = S:without(lunce.cat({ first + N, first }, 1)):tail{ pooled = true }
      for key, value in pairs{ beta_hat = pooled.beta_hat, r2 = pooled.r2 } do
        local expected = tensors["batch_tail." .. key]:item()
        assert.is_true(math.abs(value - expected) <= STATISTIC * math.abs(expected) + 1e-12)
      end
    end)
  end)
end

describe("soft targets:", function()
  local tensors, metadata = load "soft-targets"
  for shape, o in pairs(json.decode(metadata.cases)) do
    for _, kind in ipairs{ "hard", "smooth", "mixup", "dense" } do
      for _, dtype in ipairs{ "float32", "float64" } do
        local function check(name, key, ...)
          local logits = leaf(tensors[shape .. ".logits"], dtype)
          local targets = tensors[("%s.%s.targets"):format(shape, kind)]:to(dtype)
          local value = loss[name](logits, targets, ...)
          value:backward()
          local place = ("%s.%s.%s."):format(shape, kind, key)
          same_loss(tensors[place .. "loss"], value, dtype, place)
          same_gradient(tensors[place .. "grad"], logits.grad, dtype, place)
        end
        it(("soft_target_infonce %s %s %s"):format(shape, kind, dtype), function()
          check("soft_target_infonce", "soft_target_infonce", { temperature = o.temperature,
            offset = o.offset, noise = tensors[shape .. ".noise"] })
        end)
        if tensors[("%s.%s.soft_target_ce.loss"):format(shape, kind)] then
          it(("soft_target_cross_entropy %s %s %s"):format(shape, kind, dtype), function()
            check("soft_target_cross_entropy", "soft_target_ce", { temperature = o.temperature })
          end)
        end
      end
    end
  end

  it("one-hot targets with a uniform prior give InfoNCE over labels", function()
    local logits = lunce.randn(6, 6, { dtype = "float64", seed = 1 })
    local labels = lunce.arange(1, 6, 1, { dtype = "int64" })
    local value = loss.soft_target_infonce(logits, lunce.eye(6, { dtype = "float64" }))
    assert.near(lunce.cross_entropy(logits, labels):item(), value:item(), 1e-12)
  end)

  it("no gradient reaches targets or noise", function()
    local logits = lunce.randn(4, 3, { seed = 1 }):requires_grad_()
    local targets = lunce.randn(4, 3, { seed = 2 }):softmax(2):requires_grad_()
    local noise = lunce.full({ 3 }, 1 / 3):requires_grad_()
    loss.soft_target_infonce(logits, targets, { noise = noise }):backward()
    loss.soft_target_cross_entropy(logits, targets):backward()
    assert.is_nil(targets.grad)
    assert.is_nil(noise.grad)
  end)
end)

describe("the moving shape:", function()
  it("weibit follows the trace of beta_t and its losses", function()
    local tensors, metadata = load "batch-beta"
    local p = json.decode(metadata.parameters)
    local state = loss.beta_state{ beta = p.beta, lo = p.lo, hi = p.hi, momentum = p.momentum,
      r2_min = p.r2_min }
    for i, expected in ipairs(json.decode(metadata.trace)) do
      local zi, zj = tensors[i - 1 .. ".zi"]:to("float64"), tensors[i - 1 .. ".zj"]:to("float64")
      local value = loss.weibit(zi, zj, { beta = "batch", state = state })
      -- cjson writes 14 digits at least
      assert.near(expected.beta_t, state.beta, 1e-10 * expected.beta_t)
      assert.near(expected.loss, value:item(), 1e-10 * expected.loss)
    end
  end)

  it("survives a checkpoint", function()
    local state = loss.beta_state{ beta = 5 }
    state:update{ beta_hat = 9, r2 = 0.9 }
    local again = loss.beta_state()
    again:load_state_dict(state:state_dict())
    assert.equal(state.beta, again.beta)
    assert.is_true(again.fitted)
    assert.near(5.4, state.beta, 1e-12)
  end)

  it("an untrusted fit does not move it", function()
    local state = loss.beta_state()
    state:update(nil)
    state:update{ beta_hat = 9, r2 = 0.84 }
    state:update{ beta_hat = 0, r2 = 1 }
    assert.equal(4, state.beta)
    assert.is_false(state.fitted)
  end)

  it("gate is NT-Xent until a trusted fit has been seen", function()
    local zi, zj = lunce.randn(5, 8, { seed = 1 }), lunce.randn(5, 8, { seed = 2 })
    local state = loss.beta_state{ r2_min = 2 } -- no fit is ever that good
    local value, statistics = loss.gate(zi, zj, { beta = "batch", state = state })
    assert.near(loss.nt_xent(zi, zj):item(), value:item(), 1e-6)
    assert.equal(0, statistics.lambda:max():item())
  end)

  it("weince takes it with both forms of beta", function()
    local zi, zj = lunce.randn(40, 8, { seed = 1 }), lunce.randn(40, 8, { seed = 2 })
    for _, beta in ipairs{ "batch", "anchor" } do
      local state = loss.beta_state()
      local _, statistics = loss.weince(zi, zj, { beta = beta, state = state })
      assert.is_true(state.fitted)
      local given = beta == "batch" and state.beta or nil
      local again = loss.weince(zi, zj, { beta = given or beta, beta_t = state.beta })
      local mean = type(statistics.beta) == "number" and statistics.beta
        or statistics.beta:mean():item()
      assert.is_true(mean >= 0.5 and mean <= 16)
      local once_more = loss.weince(zi, zj, { beta = beta, state = loss.beta_state() })
      assert.near(again:item(), once_more:item(), 1e-6)
    end
  end)
end)

describe("limits:", function()
  local zi = lunce.randn(12, 7, { seed = 3, dtype = "float64" })
  local zj = lunce.randn(12, 7, { seed = 4, dtype = "float64" })

  it("weince: lambda zero gives nt_xent", function()
    local value, statistics = loss.weince(zi, zj, { margin = 1e9, tau = 0.2 })
    assert.equal(0, statistics.lambda:max():item())
    local expected = loss.nt_xent(zi, zj, { tau = 0.2 }):item()
    assert.near(expected, value:item(), 1e-6 * expected)
  end)

  it("weince: lambda one gives weibit with its beta", function()
    local value = loss.weince(zi, zj, { margin = -1e9, evidence = "aic", beta = 3 })
    assert.near(loss.weibit(zi, zj, { beta = 3 }):item(), value:item(), 1e-10)
  end)

  it("soft: its two ends", function()
    assert.near(loss.nt_xent(zi, zj):item(), loss.soft(zi, zj, { mix = 0 }):item(), 1e-12)
    assert.near(loss.weibit(zi, zj):item(), loss.soft(zi, zj, { mix = 1 }):item(), 1e-12)
  end)

  it("weince adds the top-M terms by their weights", function()
    local value = loss.weince(zi, zj, { top_weibit = 0.5, top_softmax = 0.25, top_m = 5 })
    local expected = loss.weince(zi, zj):item()
      + 0.5 * loss.top_m(zi, zj, { link = "weibit", m = 5 }):item()
      + 0.25 * loss.top_m(zi, zj, { link = "softmax", m = 5 }):item()
    assert.near(expected, value:item(), 1e-10)
  end)

  it("top_m over all negatives is the whole loss", function()
    assert.near(loss.nt_xent(zi, zj):item(), loss.top_m(zi, zj, { m = 1000 }):item(), 1e-12)
  end)

  it("one pair has no negatives: loss and gradient are zero", function()
    for _, name in ipairs{ "nt_xent", "weince", "weibit", "soft", "gate", "hard_select",
      "soft_select", "top_m" } do
      local a = lunce.randn(1, 4, { seed = 1 }):requires_grad_()
      local b = lunce.randn(1, 4, { seed = 2 })
      local value = loss[name](a, b)
      value:backward()
      assert.equal(0, value:item(), name)
      assert.equal(0, a.grad:abs():sum():item(), name)
    end
  end)

  it("two pairs, with a tail too short to fit, give NT-Xent", function()
    local a, b = lunce.randn(2, 4, { seed = 1 }), lunce.randn(2, 4, { seed = 2 })
    assert.near(loss.nt_xent(a, b):item(), loss.weince(a, b):item(), 1e-6)
  end)

  it("confident rows keep their gradient in float32 at temperature 0.02", function()
    local centre = lunce.randn(64, 32, { seed = 5, dtype = "float64" })
    local a = centre + 0.1 * lunce.randn(64, 32, { seed = 6, dtype = "float64" })
    local gradient = {}
    for _, dtype in ipairs{ "float32", "float64" } do
      local x = leaf(centre, dtype)
      loss.nt_xent(x, a:to(dtype), { tau = 0.02 }):backward()
      gradient[dtype] = x.grad
    end
    -- Subtracting 1 from the positive's probability would be off by about a half here.
    assert.is_true(distance(gradient.float32, gradient.float64)
      < 1e-4 * gradient.float64:norm():item())
  end)

  it("a learnable temperature gets the gradient of central differences", function()
    for _, name in ipairs{ "nt_xent", "weince" } do
      local tau = lunce.tensor({ 0.3 }, { dtype = "float64" }):requires_grad_()
      loss[name](zi, zj, { tau = tau }):backward()
      local h = 1e-6
      local slope = (loss[name](zi, zj, { tau = 0.3 + h }):item()
        - loss[name](zi, zj, { tau = 0.3 - h }):item()) / (2 * h)
      assert.near(slope, tau.grad:item(), 1e-6)
    end
  end)

  it("zero rows are harmless", function()
    local a = lunce.zeros(4, 3):requires_grad_()
    for _, name in ipairs{ "nt_xent", "weince" } do
      local value = loss[name](a, lunce.randn(4, 3, { seed = 1 }))
      value:backward()
      assert.is_true(value:isfinite():item())
      assert.is_true(a.grad:isfinite():all():item())
    end
  end)

  it("statistics carry no gradient", function()
    local _, statistics = loss.weince(zi:clone():requires_grad_(), zj)
    for _, value in pairs(statistics) do
      if lunce.is_tensor(value) then assert.is_false(value.requires_grad) end
    end
  end)
end)

describe("memory:", function()
  it("a step in a scope leaves only the gradients", function()
    local zi = lunce.randn(20, 8, { seed = 1 }):requires_grad_()
    local zj, state = lunce.randn(20, 8, { seed = 2 }), loss.beta_state()
    for _, name in ipairs{ "nt_xent", "weince", "weibit", "soft", "gate", "hard_select",
      "soft_select", "top_m" } do
      local o = name == "weince" and { beta = "anchor", state = state, top_softmax = 0.5 } or nil
      local function step()
        lunce.scope(function() (loss[name](zi, zj, o)):backward() end)
      end
      step()
      collectgarbage()
      local before = lunce.memory()
      for _ = 1, 5 do step() end
      assert.equal(before.live_bytes, lunce.memory().live_bytes, name)
      assert.equal(before.tensors, lunce.memory().tensors, name)
    end
  end)
end)

describe("bad input:", function()
  local z = lunce.randn(4, 3, { seed = 1 })
  local line = debug.getinfo(1, "l").currentline + 2
  local function refused(pattern, name, ...)
    local ok, message = pcall(function(...) return (loss[name](...)) end, ...)
    assert.is_false(ok)
    assert(message:match(pattern), message)
    assert(message:find("loss_test.lua:" .. line .. ":", 1, true), message)
  end

  it("shapes", function()
    refused("views differ: z_i %(4,3%) float32, z_j %(3,3%)", "nt_xent", z, z:narrow(1, 1, 3))
    refused("views differ", "weince", z, z:to("float64"))
    refused("z_j is a tensor of two dimensions; got %(4%)", "weince", z, z:select(2, 1))
    refused("z_j is a tensor of two dimensions; got nil", "weibit", z)
    refused("no rows", "nt_xent", z:narrow(1, 1, 0), z:narrow(1, 1, 0))
    refused("z_i is float32 or float64; got int64", "nt_xent", z:to("int64"), z)
    refused("differ in classes", "soft_target_infonce", z, lunce.randn(4, 2, { seed = 1 }))
    refused("logits %(4,3%) and targets %(2,3%)", "soft_target_cross_entropy", z, z:narrow(1, 1, 2))
  end)

  it("values", function()
    refused("tau is 0;", "nt_xent", z, z, { tau = 0 })
    refused("tau is %-1;", "weince", z, z, { tau = -1 })
    refused("tau is nan;", "nt_xent", z, z, { tau = 0 / 0 })
    for _, state in ipairs{ {}, 3 } do
      refused("state is %w", "weince", z, z, { beta = "batch", state = state })
    end
    refused("tau is %(4,3%)", "nt_xent", z, z, { tau = z })
    refused("mix is 2", "soft", z, z, { mix = 2 })
    refused("q is 1.5", "weince", z, z, { q = 1.5 })
    refused("evidence is \"none\"", "weince", z, z, { evidence = "none" })
    refused("beta is \"batched\"", "weince", z, z, { beta = "batched" })
    refused("needs state", "weince", z, z, { beta = "batch" })
    refused("link is \"cubic\"", "top_m", z, z, { link = "cubic" })
    refused("top_m is 0", "soft_select", z, z, { top_m = 0 })
    refused("not within the 4 given", "soft_target_infonce", z, z, { offset = 1 })
    refused("noise is a tensor %(3%)", "soft_target_infonce", z, z, { noise = lunce.ones(4) })
  end)

  it("unknown options and losses", function()
    refused("unknown option temperature", "nt_xent", z, z, { temperature = 1 })
    refused("unknown option taus", "weince", z, z, { taus = 1 })
    refused("no loss \"nt_sent\"", "nt_sent", z, z)
    assert.equal(4, evt.moving_beta().beta)
  end)
end)

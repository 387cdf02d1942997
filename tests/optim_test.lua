-- The update rules against PyTorch's in float64, schedules, clipping, groups, saving. Reference:
-- reference/optimisers.safetensors, eight steps from one start for each rule.
local cjson = require "cjson"
local lunce = require "lunce"
local optim = lunce.optim
local schedule = optim.schedule

local vectors, metadata = lunce.io.safetensors.load "tests/reference/optimisers.safetensors"
local cases = cjson.decode(metadata.cases)

local rules = { sgd = optim.SGD, sgd_momentum = optim.SGD, sgd_nesterov = optim.SGD,
  adam = optim.Adam, adamw = optim.AdamW, lars = optim.LARS }

local function largest(t) return t:abs():max():item() end

local function parameter(values, dtype)
  return lunce.tensor(values, { dtype = dtype or "float64" }):requires_grad_()
end

-- Puts g in the place of p's gradient.
local function give(p, g) p.grad = g:to(p.dtype):clone() end

local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local _, raises = dofile(here .. "refusals.lua")("optim_test.lua")

describe("optim", function()
  -- The vectors are float64 results. In float32 each step rounds values below 3 in size at 2^-24.
  for dtype, tolerance in pairs { float64 = 1e-12, float32 = 3e-6 } do
    for name, opts in pairs(cases) do
      it(("%s follows the reference in %s"):format(name, dtype), function()
        local p = vectors.p0:to(dtype):clone():requires_grad_()
        local opt = rules[name]({ p }, opts)
        for step = 1, vectors.grads.shape[1] do
          give(p, vectors.grads[step])
          opt:step()
          local off = largest(p:detach():double() - vectors[name][step])
          assert.is_true(off <= tolerance, ("step %d is off by %g"):format(step, off))
        end
      end)
    end
  end

  it("the state of a rule, saved and loaded, goes on to the same bits", function()
    for name, opts in pairs(cases) do
      local function run(resume_at)
        local p = vectors.p0:clone():requires_grad_()
        local opt = rules[name]({ p }, opts)
        for step = 1, 8 do
          if step == resume_at then
            local saved = opt:state_dict()
            opt = rules[name]({ p }, { lr = 99 })
            opt:load_state_dict(saved)
          end
          give(p, vectors.grads[step])
          opt:step()
        end
        return p:detach()
      end
      assert.are.equal(0, largest(run(5) - run(nil)), name)
    end
  end)

  it("state passes through a file", function()
    local path = os.tmpname()
    local p = parameter { 1, 2 }
    local opt = optim.Adam({ p }, { lr = 0.1 })
    give(p, lunce.ones(2))
    opt:step()
    lunce.io.safetensors.save(path, opt:state_dict())
    local other = optim.Adam({ p })
    other:load_state_dict((lunce.io.safetensors.load(path)))
    os.remove(path)
    assert.are.equal(0.1, other.groups[1].lr)
    assert.are.equal(1, other:state_dict()["state.1.step"]:item())
  end)

  it("groups have settings of their own", function()
    local a, b = parameter { 1 }, parameter { 1 }
    local opt = optim.SGD({ { params = { a } }, { params = { b }, lr = 1 } }, { lr = 0.5 })
    give(a, lunce.ones(1))
    give(b, lunce.ones(1))
    opt:step()
    assert.are.equal(0.5, a:item())
    assert.are.equal(0, b:item())
    opt.groups[1].lr = 0.25
    opt:step()
    assert.are.equal(0.25, a:item())
  end)

  it("schedule multiplies every group's rate", function()
    local a, b = parameter { 1 }, parameter { 1 }
    local opt = optim.SGD({ { params = { a } }, { params = { b }, lr = 1 } }, { lr = 0.5 })
    give(a, lunce.ones(1))
    give(b, lunce.ones(1))
    opt:schedule(0.5)
    opt:step()
    assert.are.equal(0.75, a:item())
    assert.are.equal(0.5, b:item())
  end)

  it("step leaves parameters without a gradient alone", function()
    local p = parameter { 1 }
    optim.AdamW({ p }):step()
    assert.are.equal(1, p:item())
  end)

  it("zero_grad drops the gradients", function()
    local p = parameter { 1 }
    local opt = optim.SGD({ p }, { lr = 1 })
    give(p, lunce.ones(1))
    opt:zero_grad()
    assert.is_nil(p.grad)
  end)

  it("LARS leaves biases unscaled and undecayed unless told", function()
    local function step(exclude)
      local p = parameter { 2 }
      local opt = optim.LARS({ p }, { lr = 1, momentum = 0, weight_decay = 0.5, eta = 0.25,
        exclude_bias_and_norm = exclude })
      give(p, lunce.ones(1))
      opt:step()
      return p:item()
    end
    assert.are.equal(1, step(true))
    assert.are.equal(1.5, step(false)) -- u = 1 + 0.5 * 2 scaled to 0.25 |p|
  end)

  it("LARS takes a plain step where a norm is zero", function()
    local p = parameter { { 0, 0 } }
    local opt = optim.LARS({ p }, { lr = 1 })
    give(p, lunce.tensor { { 3, 4 } })
    opt:step()
    assert.are.same({ { -3, -4 } }, p:tolist())
  end)

  it("state outlives the scope it was made in, and nothing else does", function()
    local p = parameter { { 1, 2 } }
    local opt = optim.LARS({ p }, { lr = 0.1, weight_decay = 0.1 })
    give(p, lunce.ones(1, 2))
    lunce.scope(function() opt:step() end)
    local before = lunce.memory().tensors
    for _ = 1, 10 do opt:step() end
    assert.are.equal(before, lunce.memory().tensors)
  end)

  it("wrong settings are errors at the caller's line", function()
    local p = parameter { 1 }
    raises("SGD: option lr is missing", function() optim.SGD({ p }) end)
    raises("SGD: option lr is -1", function() optim.SGD({ p }, { lr = -1 }) end)
    raises("SGD: option lr is nan", function() optim.SGD({ p }, { lr = 0 / 0 }) end)
    raises("unknown option learning_rate", function() optim.Adam({ p }, { learning_rate = 1 }) end)
    raises("Adam: unknown option rate", function() optim.Adam { { params = { p }, rate = 1 } } end)
    raises("from 0 to below 1", function() optim.Adam({ p }, { betas = { 0.9, 1 } }) end)
    raises("nesterov", function() optim.SGD({ p }, { lr = 1, nesterov = true }) end)
    raises("is empty", function() optim.Adam {} end)
    raises("parameter 2 is 3", function() optim.Adam { p, 3 } end)
    raises("given twice", function() optim.Adam { p, p } end)
    raises("leaf", function() optim.Adam { p * 2 } end)
    raises("parameters are a tensor", function() optim.Adam(p) end)
    raises("factor", function() optim.Adam({ p }):schedule(-1) end)
  end)

  it("a state that does not fit is refused whole", function()
    local p, q = parameter { 1, 2 }, parameter { 1, 2, 3 }
    local opt, other = optim.Adam({ p }, { lr = 0.1 }), optim.Adam { q }
    give(p, lunce.ones(2))
    opt:step()
    raises("state.1.exp_avg has shape (2), its parameter (3)", function()
      other:load_state_dict(opt:state_dict())
    end)
    assert.are.equal(1e-3, other.groups[1].lr)
    local partial = opt:state_dict()
    partial["state.1.step"] = nil
    raises("state.1.step is missing", function() opt:load_state_dict(partial) end)
    partial = opt:state_dict()
    partial.extra = p
    raises("extra is unexpected", function() opt:load_state_dict(partial) end)
    raises("groups.1.betas is unexpected", function()
      optim.SGD({ p }, { lr = 1 }):load_state_dict { ["groups.1.betas"] = p }
    end)
  end)
end)

describe("schedule", function()
  it("cosine follows the reference", function()
    local factor = schedule.cosine { steps = 10 }
    for i, expected in ipairs(cjson.decode(metadata.cosine_10)) do
      assert.is_true(math.abs(factor(i - 1) - expected) < 1e-15)
    end
    assert.are.equal(0, factor(11))
    assert.are.equal(0.1, schedule.cosine { steps = 10, floor = 0.1 }(10))
  end)

  it("warmup rises to one", function()
    local factor = schedule.warmup { steps = 4 }
    assert.are.same({ 0.25, 0.5, 0.75, 1, 1 },
      { factor(0), factor(1), factor(2), factor(3), factor(4) })
  end)

  it("step falls by gamma", function()
    local every = schedule.step { step_size = 2, gamma = 0.5 }
    assert.are.same({ 1, 1, 0.5, 0.5, 0.25 }, { every(0), every(1), every(2), every(3), every(4) })
    local at = schedule.step { milestones = { 1, 3 }, gamma = 0.5 }
    assert.are.same({ 1, 0.5, 0.5, 0.25 }, { at(0), at(1), at(2), at(3) })
  end)

  it("constant stays, chain follows one schedule by another", function()
    local factor = schedule.chain {
      { 2, schedule.warmup { steps = 2 } },
      { 2, schedule.cosine { steps = 2 } },
      { 1, schedule.constant { factor = 0.5 } },
    }
    local expected = { 0.5, 1, 1, 0.5, 0.5, 0.5 }
    for i = 1, 6 do assert.is_true(math.abs(factor(i - 1) - expected[i]) < 1e-15) end
  end)

  it("wrong settings are errors at the caller's line", function()
    raises("option steps is missing", function() schedule.cosine() end)
    raises("option steps is 0", function() schedule.warmup { steps = 0 } end)
    raises("one of step_size and milestones", function() schedule.step {} end)
    raises("part 1", function() schedule.chain { schedule.constant() } end)
  end)
end)

describe("clipping", function()
  local function gradients()
    local a, b = parameter { 0, 0 }, parameter { 0 }
    give(a, lunce.tensor { 3, 0 })
    give(b, lunce.tensor { -4 })
    return { a, b, parameter { 0 } }
  end

  it("clip_grad_norm scales all gradients as one vector and returns the norm", function()
    local params = gradients()
    assert.are.equal(5, optim.clip_grad_norm(params, 1))
    -- PyTorch's allowance of 1e-6 in the divisor.
    assert.is_true(math.abs(params[1].grad[1]:item() - 0.6) < 1e-6)
    assert.is_true(math.abs(params[2].grad:item() + 0.8) < 1e-6)
    assert.is_true(math.abs(optim.clip_grad_norm(params, 10) - 1) < 1e-6)
    assert.are.equal(4, optim.clip_grad_norm(gradients(), 9, { norm_type = math.huge }))
    assert.are.equal(0, optim.clip_grad_norm({ parameter { 0 } }, 1))
  end)

  it("clip_grad_norm refuses a norm that is not finite unless told", function()
    local params = gradients()
    params[2].grad:fill_(0 / 0)
    raises("the norm of the gradients is", function() optim.clip_grad_norm(params, 1) end)
    local norm = optim.clip_grad_norm(params, 1, { error_if_nonfinite = false })
    assert.is_true(norm ~= norm)
  end)

  it("clip_grad_value clamps each element", function()
    local params = gradients()
    optim.clip_grad_value(params, 3.5)
    assert.are.same({ 3, 0 }, params[1].grad:tolist())
    assert.are.same({ -3.5 }, params[2].grad:tolist())
  end)
end)

-- The gradient scaler: what it does to gradients and steps, how its scale moves, the order of its
-- calls, saving; and small networks trained with it in half precision.
local lunce = require "lunce"
local nn, optim = lunce.nn, lunce.optim

local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local _, raises = dofile(here .. "refusals.lua")("grad_scaler_test.lua")

local function live_bytes()
  collectgarbage()
  collectgarbage()
  return lunce.memory().live_bytes
end

-- A parameter with a gradient, and SGD of rate 1 over it.
local function parameter(values, gradient)
  local p = lunce.tensor(values):requires_grad_()
  p.grad = gradient and lunce.tensor(gradient)
  return p, optim.SGD({ p }, { lr = 1 })
end

-- A scaler, a parameter and its optimiser; iterate(g) makes an iteration with gradient g.
local function iteration(opts)
  local scaler, p, opt = optim.GradScaler(opts), parameter { 1, 2 }
  return function(g)
    opt:zero_grad()
    scaler:scale((p * lunce.tensor { g, 1 }):sum()):backward()
    local stepped = scaler:step(opt)
    scaler:update()
    return stepped
  end, scaler, p
end

describe("GradScaler", function()
  it("gives the step that there is without it", function()
    local iterate, scaler, p = iteration()
    assert.equal(65536, scaler:get_scale())
    assert.is_true(iterate(0.1))
    local q, opt = parameter({ 1, 2 }, { 0.1, 1 })
    opt:step()
    assert.same(q:tolist(), p:tolist())
    assert.same(q.grad:tolist(), p.grad:tolist())
  end)

  it("leaves a step out and falls where a gradient is infinite or NaN", function()
    for _, bad in ipairs { 1 / 0, -1 / 0, 0 / 0, 1e38 } do
      local iterate, scaler, p = iteration { init_scale = 1024, backoff_factor = 0.25 }
      assert.is_false(iterate(bad))
      assert.same({ 1, 2 }, p:tolist())
      assert.equal(256, scaler:get_scale())
      assert.is_true(iterate(1))
      assert.same({ 0, 1 }, p:tolist())
    end
  end)

  it("rises after growth_interval good steps running", function()
    local iterate, scaler = iteration { init_scale = 8, growth_factor = 4, growth_interval = 2 }
    local scales = {}
    for i, g in ipairs { 1, 1, 1, 1 / 0, 1, 1 } do
      iterate(g)
      scales[i] = scaler:get_scale()
    end
    assert.same({ 8, 32, 32, 16, 16, 64 }, scales)
  end)

  it("never rises past what float32 holds", function()
    local iterate, scaler = iteration { init_scale = 2 ^ 126, growth_interval = 1 }
    for _ = 1, 3 do iterate(0) end
    assert.is_true(scaler:get_scale() < 2 ^ 128)
  end)

  it("looks at every gradient of every group and dtype", function()
    local a, b = parameter({ 1 }, { 1 }), parameter({ 1 }, { 1 })
    local c = lunce.zeros(2, 0, { dtype = "float64" }):requires_grad_()
    local d = lunce.zeros(2, { dtype = "float64" }):requires_grad_()
    c.grad, d.grad = lunce.zeros(2, 0, { dtype = "float64" }), lunce.tensor({ 1, 1e300 },
      { dtype = "float64" })
    local opt = optim.SGD({ { params = { a } }, { params = { b, c, d } } }, { lr = 1 })
    local scaler = optim.GradScaler()
    assert.is_true(scaler:step(opt))
    scaler:update()
    b.grad:fill_(0 / 0)
    assert.is_false(scaler:step(opt))
    assert.same({ 1 - 2 ^ -16 }, a:tolist())
  end)

  it("unscales for clipping, once, and says whether the gradients are finite", function()
    local p, opt = parameter({ 1, 2 }, { 3 * 65536, 4 * 65536 })
    local scaler = optim.GradScaler()
    assert.is_true(scaler:unscale(opt))
    assert.same({ 3, 4 }, p.grad:tolist())
    optim.clip_grad_value({ p }, 1)
    assert.is_true(scaler:step(opt))
    assert.same({ 0, 1 }, p:tolist())
    scaler:update()
    p.grad:fill_(1 / 0)
    assert.is_false(scaler:unscale(opt))
    assert.is_false(scaler:step(opt))
    scaler:update()
    assert.equal(32768, scaler:get_scale())
  end)

  it("serves several optimisers: each skips for itself, and the scale falls for any", function()
    local p, of_p = parameter({ 1 }, { 65536 })
    local q, of_q = parameter({ 1 }, { 1 / 0 })
    local scaler = optim.GradScaler()
    assert.is_false(scaler:step(of_q))
    assert.is_true(scaler:step(of_p))
    scaler:update()
    assert.same({ 0, 1 }, { p:item(), q:item() })
    assert.equal(32768, scaler:get_scale())
  end)

  it("keeps gradients that float16 would lose", function()
    local x = lunce.ones(1, 4)
    local function gradient(scaler)
      local w = lunce.zeros(2, 4):requires_grad_()
      local opt = optim.SGD({ w }, { lr = 1 })
      local loss = lunce.autocast("float16", function() return lunce.linear(x, w):sum() * 1e-9 end)
      scaler:scale(loss):backward()
      scaler:unscale(opt)
      return w.grad:max():item()
    end
    assert.equal(0, gradient(optim.GradScaler { enabled = false }))
    -- 65536e-9 is a normal float16, whose rounding is at most 2^-11.
    assert.is_true(math.abs(gradient(optim.GradScaler()) / 1e-9 - 1) <= 2 ^ -11)
  end)

  it("scales a loss in halves in float32", function()
    local loss = lunce.full({}, 16, { dtype = "float16" }):requires_grad_()
    local scaled = optim.GradScaler():scale(loss)
    assert.equal("float32", scaled.dtype)
    assert.equal(2 ^ 20, scaled:item())
  end)

  it("that is not enabled does nothing", function()
    local p, opt = parameter({ 1 }, { 1 / 0 })
    local scaler = optim.GradScaler { enabled = false }
    local loss = p:sum()
    assert.equal(loss, scaler:scale(loss))
    assert.is_true(scaler:unscale(opt))
    assert.is_true(scaler:step(opt))
    scaler:update()
    assert.equal(1, scaler:get_scale())
    assert.equal(-1 / 0, p:item())
  end)

  it("calls in a wrong order are errors at the caller's line", function()
    local p, opt = parameter({ 1 }, { 1 })
    local scaler = optim.GradScaler()
    raises("update: no optimiser was unscaled or stepped", function() scaler:update() end)
    scaler:unscale(opt)
    raises("unscale: called after another unscale", function() scaler:unscale(opt) end)
    scaler:step(opt)
    raises("unscale: called after step", function() scaler:unscale(opt) end)
    raises("step: called twice", function() scaler:step(opt) end)
    scaler:update()
    opt:zero_grad()
    raises("step: no parameter of the optimiser has a gradient", function() scaler:step(opt) end)
    raises("unscale: argument 1 is a tensor; an optimiser is taken", function()
      scaler:unscale(p)
    end)
    raises("scale: argument 1 is 3", function() scaler:scale(3) end)
    local half = lunce.ones(1, { dtype = "float16" }):requires_grad_()
    half.grad = lunce.ones(1, { dtype = "float16" })
    raises("step: the gradient of parameter 2 is float16", function()
      scaler:step(optim.SGD({ p, half }, { lr = 1 }))
    end)
  end)

  it("wrong settings are errors at the caller's line", function()
    raises("GradScaler: option init_scale is 0; a number above 0 is taken", optim.GradScaler,
      { init_scale = 0 })
    raises("option init_scale is inf", optim.GradScaler, { init_scale = 1 / 0 })
    raises("option growth_factor is 1; a number above 1", optim.GradScaler, { growth_factor = 1 })
    raises("option backoff_factor is 1; a number between 0 and 1", optim.GradScaler,
      { backoff_factor = 1 })
    raises("option growth_interval is 1.5; a whole number", optim.GradScaler,
      { growth_interval = 1.5 })
    raises("unknown option scale", optim.GradScaler, { scale = 1 })
  end)

  it("says so where no scale helps", function()
    local iterate = iteration { init_scale = 2 ^ -125 }
    iterate(0 / 0)
    raises("update: gradients are infinite or NaN at every scale down to", iterate, 0 / 0)
  end)

  it("goes on from a saved state as without the break", function()
    local path = os.tmpname()
    local iterate, scaler = iteration { init_scale = 8, growth_interval = 3 }
    iterate(1)
    iterate(1)
    lunce.io.safetensors.save(path, scaler:state_dict())
    local resumed_iterate, resumed = iteration()
    resumed:load_state_dict((lunce.io.safetensors.load(path)))
    os.remove(path)
    for _, g in ipairs { 1, 1, 1 / 0, 1, 1, 1 } do
      assert.equal(iterate(g), resumed_iterate(g))
      assert.equal(scaler:get_scale(), resumed:get_scale())
    end
    assert.equal(16, scaler:get_scale())
  end)

  it("refuses a state that does not fit whole", function()
    local scaler = optim.GradScaler()
    local state = optim.GradScaler({ init_scale = 8 }):state_dict()
    local function with(name, value)
      local changed = {}
      for key, tensor in pairs(state) do changed[key] = tensor end
      changed[name] = value
      return changed
    end
    local partial = with("scale", nil)
    partial.scale = nil
    raises("scale is nil; a tensor", scaler.load_state_dict, scaler, partial)
    raises("extra is unexpected", scaler.load_state_dict, scaler, with("extra", state.scale))
    raises("growth_factor is 0.5; a number above 1", scaler.load_state_dict, scaler,
      with("growth_factor", lunce.tensor(0.5)))
    raises("scale is (2)", scaler.load_state_dict, scaler, with("scale", lunce.ones(2)))
    raises("a table of tensors by name is taken", scaler.load_state_dict, scaler, 3)
    assert.equal(65536, scaler:get_scale())
  end)

  it("leaves no tensor behind", function()
    local iterate = iteration()
    iterate(1)
    local before = live_bytes()
    for _ = 1, 3 do
      iterate(1)
      iterate(1 / 0)
    end
    assert.equal(before, live_bytes())
  end)
end)

describe("training", function()
  -- The last loss of a small network that learns the class of points by their angle; and how many
  -- steps were left out.
  local function train(dtype, scaler)
    lunce.manual_seed(3)
    local x = lunce.randn(128, 2)
    local y = (x:select(2, 1) * x:select(2, 2)):gt(0):long() + 1
    local net = nn.Sequential(nn.Linear(2, 32), nn.LayerNorm(32), nn.ReLU(), nn.Linear(32, 2))
    local parameters = net:parameters()
    local opt = optim.Adam(parameters, { lr = 0.02 })
    local last, skipped = nil, 0
    for _ = 1, 60 do
      lunce.scope(function()
        opt:zero_grad()
        local loss = lunce.autocast(dtype, function() return lunce.cross_entropy(net(x), y) end)
        scaler:scale(loss):backward()
        if scaler:unscale(opt) then optim.clip_grad_norm(parameters, 1) end
        if not scaler:step(opt) then skipped = skipped + 1 end
        scaler:update()
        last = loss:item()
      end)
    end
    return last, skipped
  end

  it("in float16 with a scaler comes to nearly the loss of float32", function()
    local plain = train(false, optim.GradScaler { enabled = false })
    assert.is_true(plain < 0.2, ("float32 comes to %g"):format(plain))
    local low, skipped = train("float16", optim.GradScaler())
    assert.is_true(math.abs(low - plain) < 0.1 * plain, ("%g and %g"):format(low, plain))
    assert.is_true(skipped <= 3)
    -- From a scale at which gradients overflow it comes down by itself.
    low, skipped = train("float16", optim.GradScaler { init_scale = 2 ^ 24 })
    assert.is_true(skipped > 3 and skipped < 15, skipped .. " steps were left out")
    assert.is_true(low < 2 * plain, ("%g and %g"):format(low, plain))
  end)

  it("in bfloat16 needs no scaler", function()
    local plain = train(false, optim.GradScaler { enabled = false })
    local low = train("bfloat16", optim.GradScaler { enabled = false })
    assert.is_true(math.abs(low - plain) < 0.2 * plain, ("%g and %g"):format(low, plain))
  end)
end)

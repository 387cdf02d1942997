-- Captured steps whose state or decision the device has: labelled losses, a moving Weibull shape, a
-- MoCo queue, a GradScaler. What a replay leaves behind is what the function leaves behind, to the
-- bit where the engine's shifts are the same, and the host reads it when it asks.
local lunce = require "lunce"
local optim = lunce.optim

local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local refuses = dofile(here .. "refusals.lua")("captured_test.lua")

if not lunce.cuda.is_available() then return end

local GPU = { device = "cuda" }
local function on_gpu(seed) return { device = "cuda", seed = seed } end
local function gpu_labels(list) return lunce.tensor(list, { dtype = "int64", device = "cuda" }) end
local function plain(fn) return fn end
local function captured(fn) return lunce.graph(fn, { warmup = 1 }) end

-- That a captured step refuses fn, which concerns numbers of its own.
local function only_outside(fn, what)
  local calls = 0
  local step = captured(function()
    calls = calls + 1
    if calls > 1 then fn() end
  end)
  step()
  refuses(step, what .. ": cannot be a part of a captured step", "between its calls")
end

local function same(a, b, name)
  assert.equal(a.dtype, b.dtype)
  assert.same(a.shape, b.shape)
  assert(a:eq(b):all():item(), name or "the bits differ")
end

local function same_dicts(a, b)
  for name, t in pairs(a) do same(t, assert(b[name], name), name) end
  for name in pairs(b) do assert(a[name], name) end
end

local function largest_difference(a, b) return (a - b):abs():max():item() end

-- ---- Labels ----------------------------------------------------------------------------------

describe("sup_con in a captured step", function()
  -- Seven steps on new rows and labels, some of which are alone.
  local function train(wrap)
    local w = lunce.randn(6, 8, on_gpu(4)):requires_grad_()
    local sgd = optim.SGD({ w }, { lr = 0.5, momentum = 0.9 })
    local step = wrap(function(x, labels)
      sgd:zero_grad()
      local value = lunce.loss.sup_con(x:matmul(w), labels)
      value:backward()
      sgd:step()
      return value
    end)
    local losses = {}
    for i = 1, 7 do
      local labels = i == 6 and gpu_labels { 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12 }
        or lunce.randint(1, 4 + i, { 12 }, { seed = i, dtype = "int64", device = "cuda" })
      losses[i] = step(lunce.randn(12, 6, on_gpu(i)), labels):detach()
    end
    return lunce.stack(losses), w
  end

  it("has the bits of the loss, whatever the labels are", function()
    local losses, w = train(plain)
    local again, v = train(captured)
    same(losses, again)
    same(w, v)
    assert.equal(0, again[6]:item())
    assert.is_true(losses:std():item() > 0.1)
  end)

  it("takes tails whose candidates shapes tell", function()
    local at = lunce.randint(1, 40, { 40 }, { seed = 2, dtype = "int64", device = "cuda" })
    local k = lunce.randn(70, 5, on_gpu(9))
    local function tails(z)
      local S, all = lunce.similarity, {}
      local cosine = S.cosine(z)
      for _, matrix in ipairs { S.cosine(z, k), S.cosine(z, k):t(), cosine:without_self(),
        cosine:without(at), cosine:triangle(), cosine } do
        for _, fit in ipairs { matrix:tail(), matrix:tail { pooled = true } } do
          for _, name in ipairs { "beta_hat", "r2", "delta_aic" } do
            local value = fit[name]
            all[#all + 1] = lunce.is_tensor(value) and value:reshape(-1)
              or lunce.full({ 1 }, value, { dtype = "float64", device = "cuda" })
          end
          all[#all + 1] = lunce.full({ 1 }, fit.k, { dtype = "float64", device = "cuda" })
        end
      end
      return lunce.cat(all, 1)
    end
    local step = captured(tails)
    for i = 1, 3 do
      local z = lunce.randn(40, 5, on_gpu(i))
      same(tails(z), step(z))
    end
  end)

  it("counts candidates on the device", function()
    local S, at = lunce.similarity, gpu_labels { 3, -1, 1, 1, 9, 5 }
    local step = captured(function(z, labels)
      local matrix = S.cosine(z)
      return matrix:count(), matrix:triangle():count(), matrix:same(labels):without_self():count(),
        matrix:different(labels):without(at):without_self():count(),
        matrix:same(labels):triangle():without(at):count()
    end)
    local z = lunce.randn(6, 3, on_gpu(1))
    local function counts(list)
      local all = { step(z, gpu_labels(list)) }
      for i, count in ipairs(all) do all[i] = count:tolist() end
      return all
    end
    at:copy_(gpu_labels { 3, -1, 1, 1, 6, 5 })
    for _, list in ipairs { { 1, 1, 2, 2, 2, 7 }, { 5, 1, 5, 1, 5, 1 }, { 4, 4, 4, 4, 4, 4 } } do
      counts(list)
      local rows = {}
      for i = 1, 5 do rows[i] = {} end
      for r = 1, 6 do
        local n = { 6, 6 - r, 0, 0, 0 }
        local dropped = ({ 3, 6, 1, 1, 6, 5 })[r]
        for c = 1, 6 do
          local alike = list[r] == list[c]
          n[3] = n[3] + (alike and c ~= r and 1 or 0)
          n[4] = n[4] + (not alike and c ~= r and c ~= dropped and 1 or 0)
          n[5] = n[5] + (alike and c > r and c ~= dropped and 1 or 0)
        end
        for i = 1, 5 do rows[i][r] = n[i] end
      end
      assert.same(rows, counts(list))
    end
  end)
end)

-- ---- A moving shape --------------------------------------------------------------------------

describe("a moving shape in a captured step", function()
  local function batch(i)
    local x = lunce.randn(16, 6, on_gpu(i))
    return x, x + lunce.randn(16, 6, on_gpu(50 + i))
  end

  -- Six steps of a loss with a state; the losses, and the state.
  local function train(wrap, name, more)
    local w = lunce.randn(6, 8, on_gpu(4)):requires_grad_()
    local state = lunce.loss.beta_state { r2_min = 0.3, momentum = 0.5 }
    local sgd, o = optim.SGD({ w }, { lr = 0.2 }), { state = state }
    for key, value in pairs(more) do o[key] = value end
    local step = wrap(function(a, b)
      sgd:zero_grad()
      local value, tail = lunce.loss[name](a:matmul(w), b:matmul(w), o)
      value:backward()
      sgd:step()
      return value, tail and tail.beta or value
    end)
    local losses = {}
    for i = 1, 6 do losses[i] = (step(batch(i))):detach() end
    return lunce.stack(losses), state
  end

  for text, case in pairs {
    ["weince with the batch's shape"] = { "weince", { beta = "batch" } },
    ["weince with anchors' shapes and the hardest"] = { "weince",
      { beta = "anchor", top_weibit = 0.5, top_m = 5 } },
    ["weibit"] = { "weibit", { beta = "batch" } },
    ["gate"] = { "gate", { beta = "batch" } },
    ["hard_select"] = { "hard_select", {} },
  } do
    -- Running maxima move the rounding: 1e-4 of a loss of about 3.
    it("serves " .. text, function()
      local losses, state = train(plain, unpack(case))
      local again, other = train(captured, unpack(case))
      assert.equal("float32", again.dtype)
      assert.is_true(largest_difference(losses, again) < 1e-4)
      assert.is_true(losses:std():item() > 0.01)
      assert.is_true(state.fitted and other.fitted)
      assert.near(state.beta, other.beta, 1e-4)
      assert.are_not.equal(4, state.beta)
    end)
  end

  it("moves to the same bits as on the host, and gates until a fit is trusted", function()
    local function all(wrap)
      local state = lunce.loss.beta_state { r2_min = 0.9, momentum = 0.7 }
      local step = wrap(function(z)
        local S = lunce.similarity.cosine(z):without_self()
        local beta = state:update(S:tail { pooled = true, candidates = z:size(1) - 1 })
        return lunce.is_tensor(beta) and beta or lunce.full({}, beta, { dtype = "float64",
          device = "cuda" }), state:gate(lunce.ones(2, GPU))
      end)
      local values = {}
      for i = 1, 6 do
        -- Rows of two clusters have no tail that a line fits.
        local z = lunce.randn(20, 5, on_gpu(i))
        local centre = z:narrow(1, 1, 1):expand(10, -1)
        if i < 4 then z = lunce.cat({ centre, -z:narrow(1, 1, 10) }, 1) end
        local beta, gate = step(z)
        values[i] = lunce.cat({ beta:reshape(1), gate:double() }, 1)
      end
      return lunce.stack(values):cpu(), state
    end
    local values, state = all(plain)
    local again, other = all(captured)
    same(values, again)
    same_dicts(state:state_dict(), other:state_dict())
    assert.equal(0, values[1][2]:item())
    assert.equal(1, values[6][3]:item())
    assert.is_true(values[6][1]:item() ~= values[5][1]:item())
  end)

  it("is read, loaded and moved by the host between replays, and shared by two steps", function()
    local state = lunce.loss.beta_state { momentum = 0.5 }
    local one = lunce.ones({}, { dtype = "float64", device = "cuda" })
    local function update(z) return state:update { beta_hat = z, r2 = one } end
    local first, second = captured(update), captured(update)
    local expected = 4
    local function moved(how, beta)
      how(beta)
      expected = (expected + beta) / 2
      assert.equal(expected, state.beta)
    end
    local function by_first(beta) first(one * beta) end
    local function by_second(beta) second(one * beta) end
    local function by_host(beta) state:update { beta_hat = beta, r2 = 1 } end
    for _, how in ipairs { by_first, by_second, by_first, by_first, by_host, by_first, by_second,
      by_second, by_first, by_host, by_host, by_second } do
      moved(how, 1 + expected % 3)
    end
    assert.is_true(first.captured and second.captured)
    state:load_state_dict { beta = lunce.tensor({ 2, 1 }, { dtype = "float64", device = "cpu" }) }
    expected = 2
    moved(by_first, 8)
    by_first(3)
    by_second(6)
    assert.equal(((5 + 3) / 2 + 6) / 2, state.beta)
    local numbers = captured(function() return state:update { beta_hat = 3, r2 = 1 } end)
    numbers()
    refuses(function() numbers() end, "moving_beta:update: in a captured step", "tensors")
  end)
end)

-- ---- A queue of keys -------------------------------------------------------------------------

describe("moco in a captured step", function()
  local nn = lunce.nn
  local SIZE, N = 11, 4

  local function new_encoder(from)
    lunce.manual_seed(5)
    local net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 5))
      :to "cuda"
    if from then net:load_state_dict(from:state_dict()) end
    return net
  end

  -- Eleven steps: the queue's end lies within a batch of keys at most of its turns.
  local function train(wrap, more)
    local encoder = new_encoder()
    local momentum_encoder = new_encoder(encoder)
    local sgd = optim.SGD(encoder:parameters(), { lr = 0.2, momentum = 0.9 })
    local queue = lunce.loss.queue(SIZE, 5, { seed = 3, device = "cuda" })
    local momentum_parameters = momentum_encoder:parameters()
    local step = wrap(function(x_q, x_k, m)
      local k = lunce.no_grad(function()
        for i, p in ipairs(encoder:parameters()) do
          momentum_parameters[i]:mul_(m):add_(p * (1 - m))
        end
        return momentum_encoder(x_k)
      end)
      sgd:zero_grad()
      local value = lunce.loss.moco(encoder(x_q), k, queue.keys, { tau = 0.2 })
      value:backward()
      sgd:step()
      queue:push(k)
      if more then queue:push(k:narrow(1, 1, 1) * 2) end
      return value, k
    end)
    local losses, keys, places = {}, {}, {}
    for i = 1, 11 do
      local x = lunce.randn(N, 6, on_gpu(i))
      local value, k = step(x, x + 0.1 * lunce.randn(N, 6, on_gpu(50 + i)),
        lunce.full({}, 1 - 0.1 / i, GPU))
      losses[i], keys[i] = value:detach(), k
      if i % 3 == 0 then places[#places + 1] = queue.next end
    end
    local left = { losses = lunce.stack(losses), keys = lunce.cat(keys, 1), queue = queue.keys }
    for name, t in pairs(encoder:state_dict()) do left["encoder." .. name] = t end
    for name, t in pairs(momentum_encoder:state_dict()) do left["momentum." .. name] = t end
    places[#places + 1] = queue.next
    return left, places, queue
  end

  for _, more in ipairs { false, true } do
    it("has the bits of encoders and queue" .. (more and ", pushed to twice" or ""), function()
      local left, places = train(plain, more)
      local again, others = train(captured, more)
      same_dicts(left, again)
      assert.same(places, others)
      assert.equal(11 * (more and N + 1 or N) % SIZE + 1, places[4])
      assert.is_true(left.losses:std():item() > 0.01)
      if more then return end
      -- By hand: row (i-1) % SIZE + 1 has the last key i that came to it.
      for i = 11 * N - SIZE + 1, 11 * N do
        same(left.keys[i], again.queue[(i - 1) % SIZE + 1])
      end
    end)
  end

  it("has a queue that the host pushes to, saves and loads between replays", function()
    local function run(wrap)
      local queue = lunce.loss.queue(5, 2, { device = "cuda", dtype = "float64" })
      local function push(x) queue:push(x) end
      local first, second, seen, saved = wrap(push), wrap(push), {}, nil
      for i, how in ipairs { first, second, first, second, push, first, first, second, push, push,
        second, first } do
        how(lunce.randn(i == 5 and 5 or 3, 2, { seed = i, device = "cuda", dtype = "float64" }))
        if i == 6 then
          saved = queue:state_dict()
          saved.keys = saved.keys:clone()
        end
        if i == 8 or i == 10 then
          queue:load_state_dict(saved)
          same(saved.keys, queue.keys)
          assert.equal(saved.next:item(), queue.next)
        end
        if i > 4 then seen[#seen + 1] = queue.keys:clone() end
        if i % 3 == 0 then
          seen[#seen + 1] = lunce.full({ 5, 2 }, queue.next, { dtype = "float64", device = "cuda" })
        end
      end
      return lunce.stack(seen)
    end
    same(run(plain), run(captured))
  end)

  it("takes a batch of the queue's size, one of no keys, and what is not finite", function()
    local queue = lunce.loss.queue(3, 2, GPU)
    local step = captured(function(x, none)
      queue:push(x)
      queue:push(none)
    end)
    local none = lunce.zeros(0, 2, GPU)
    step(lunce.full({ 3, 2 }, 1 / 0, GPU), none)
    for i = 1, 3 do
      step(lunce.arange(6, GPU):reshape(3, 2) * i, none)
      assert.same({ { i, 2 * i }, { 3 * i, 4 * i }, { 5 * i, 6 * i } }, queue.keys:tolist())
      assert.equal(1, queue.next)
    end
  end)

  it("tells and takes the queue's place outside only", function()
    local queue = lunce.loss.queue(3, 2, GPU)
    local state = queue:state_dict()
    only_outside(function() return queue.next end, "queue")
    only_outside(function() queue:state_dict() end, "queue")
    only_outside(function() queue:load_state_dict(state) end, "queue")
    local keys = lunce.randn(4, 2, GPU)
    local step = captured(function(x) queue:push(x) end)
    refuses(function() step(keys) end, "queue:push: keys (4,2) for a queue (3,2)")
  end)
end)

-- ---- Loss scaling ----------------------------------------------------------------------------

describe("a GradScaler in a captured step", function()
  local RULES = {
    SGD = { lr = 0.1, momentum = 0.9, dampening = 0.1, weight_decay = 1e-3 },
    Adam = { lr = 0.05, weight_decay = 1e-2 }, AdamW = { lr = 0.05 },
    LARS = { lr = 0.3, weight_decay = 1e-3 },
  }

  -- Fourteen steps, of which those in `bad` overflow; all that is left, and which were made.
  local function train(wrap, rule, bad, opts)
    lunce.manual_seed(5)
    local net = lunce.nn.Sequential(lunce.nn.Linear(4, 6), lunce.nn.ReLU(), lunce.nn.Linear(6, 3))
      :to "cuda"
    local optimiser = optim[rule](net:parameters(), RULES[rule])
    local scaler = optim.GradScaler(opts or { init_scale = 1024, growth_interval = 3,
      backoff_factor = 0.25 })
    local y = gpu_labels { 1, 2, 3, 1 }
    local step = wrap(function(x, factor)
      optimiser:zero_grad()
      local loss = lunce.autocast("float16", function() return lunce.cross_entropy(net(x), y) end)
      scaler:scale(loss * factor):backward()
      if scaler:unscale(optimiser) then optim.clip_grad_norm(net:parameters(), 0.5,
        { error_if_nonfinite = false }) end
      local made = scaler:step(optimiser)
      scaler:update()
      return loss, made
    end)
    local made = {}
    for i = 1, 14 do
      optimiser:schedule(1 / i)
      local loss, was = step(lunce.randn(4, 4, on_gpu(i)),
        lunce.full({}, bad[i] and math.huge or 1, GPU))
      made[i] = lunce.is_tensor(was) and was:item()
      if not lunce.is_tensor(was) then made[i] = was end
      assert.is_true(loss:isfinite():item())
    end
    local left = net:state_dict()
    for name, t in pairs(optimiser:state_dict()) do left["optimiser." .. name] = t end
    for name, t in pairs(scaler:state_dict()) do left["scaler." .. name] = t end
    for name, t in pairs(left) do left[name] = t:clone() end
    return left, made, step, scaler, optimiser
  end

  local function trains_alike(...)
    local left, made = train(plain, ...)
    local again, other, step = train(captured, ...)
    assert.is_true(step.captured)
    assert.same(made, other)
    same_dicts(left, again)
    return made
  end

  for rule in pairs(RULES) do
    it("has the bits of " .. rule .. " where steps are left out", function()
      local made = trains_alike(rule, { [5] = true, [6] = true, [10] = true, [14] = true })
      for i, was in ipairs(made) do assert.equal(i ~= 5 and i ~= 6 and i ~= 10 and i ~= 14, was) end
    end)
  end

  it("grows, and is captured when a first step has been made", function()
    trains_alike("Adam", {}, { init_scale = 2 ^ 15, growth_interval = 1, growth_factor = 2 })
    local left = train(captured, "Adam", { true, true, true, true, [9] = true })
    same_dicts((train(plain, "Adam", { true, true, true, true, [9] = true })), left)
  end)

  it("goes on by hand, from what was loaded, and in another captured step", function()
    local function run(wrap)
      local w = lunce.ones(3, GPU):requires_grad_()
      local adam, scaler = optim.Adam({ w }, { lr = 0.1 }), optim.GradScaler { init_scale = 8,
        growth_interval = 2 }
      local function iterate(x)
        adam:zero_grad()
        scaler:scale((w * x):sum()):backward()
        local made = scaler:step(adam)
        scaler:update()
        return lunce.is_tensor(made) and made or lunce.tensor(made, GPU)
      end
      local first, second, scales = wrap(iterate), wrap(iterate), {}
      local good, bad = lunce.full({ 3 }, 0.5, GPU), lunce.full({ 3 }, math.huge, GPU)
      for i, how in ipairs { first, second, first, second, first, first, iterate, first, iterate,
        second, second, first, first } do
        how((i == 6 or i == 10) and bad or good * i)
        if i % 3 == 0 then scales[#scales + 1] = scaler:get_scale() end
        if i == 11 then
          scales[#scales + 1] = adam.state[w].step
          scaler:load_state_dict(optim.GradScaler({ init_scale = 2, growth_interval = 2 })
            :state_dict())
        end
      end
      scales[#scales + 1] = adam.state[w].step
      scales[#scales + 1] = scaler:get_scale()
      return w, scales
    end
    local w, scales = run(plain)
    local v, others = run(captured)
    assert.same(scales, others)
    same(w, v)
    assert.equal(11, others[#others - 1])
  end)

  it("serves several optimisers, each of which is left out for itself", function()
    local function run(wrap)
      local p, q = lunce.ones(2, GPU):requires_grad_(), lunce.ones(2, GPU):requires_grad_()
      local a, b = optim.Adam({ p }, { lr = 0.1 }), optim.SGD({ q }, { lr = 0.1, momentum = 0.5 })
      local scaler = optim.GradScaler { init_scale = 16 }
      local step = wrap(function(x, y)
        a:zero_grad()
        b:zero_grad()
        scaler:scale((p * x):sum() + (q * y):sum()):backward()
        scaler:step(a)
        scaler:step(b)
        scaler:update()
      end)
      local one, bad = lunce.ones(2, GPU), lunce.full({ 2 }, 0 / 0, GPU)
      for i = 1, 8 do
        step(i % 3 == 0 and bad or one * i, i % 4 == 0 and bad or one)
      end
      return lunce.cat({ p, q }, 1):detach(), scaler:get_scale()
    end
    local expected, scale = run(plain)
    local got, other = run(captured)
    same(expected, got)
    assert.equal(1, scale)
    assert.equal(1, other)
  end)

  it("keeps the last scale where none helps, which the host would refuse", function()
    local w = lunce.ones(2, GPU):requires_grad_()
    local sgd, scaler = optim.SGD({ w }, { lr = 1 }), optim.GradScaler { init_scale = 2 ^ -124 }
    local step = captured(function(x)
      sgd:zero_grad()
      scaler:scale((w * x):sum()):backward()
      scaler:step(sgd)
      scaler:update()
    end)
    step(lunce.zeros(2, GPU))
    for _ = 1, 5 do step(lunce.full({ 2 }, 0 / 0, GPU)) end
    assert.equal(2 ^ -126, scaler:get_scale())
    assert.same({ 1, 1 }, w:tolist())
  end)

  it("tells and takes its numbers outside only, as a moving shape does", function()
    local scaler, state = optim.GradScaler(), lunce.loss.beta_state()
    local scaler_dict, state_dict = scaler:state_dict(), state:state_dict()
    for what, list in pairs {
      GradScaler = { function() scaler:get_scale() end, function() scaler:state_dict() end,
        function() scaler:load_state_dict(scaler_dict) end },
      beta_state = { function() return state.fitted end, function() state:state_dict() end,
        function() state:load_state_dict(state_dict) end },
    } do
      for _, fn in ipairs(list) do only_outside(fn, what) end
    end
  end)

  it("saves, and goes back to what it saved, between replays", function()
    local function run(wrap)
      local w = lunce.ones(3, GPU):requires_grad_()
      local sgd = optim.SGD({ w }, { lr = 0.1 })
      local scaler = optim.GradScaler { init_scale = 8, growth_interval = 2 }
      local step = wrap(function(x)
        sgd:zero_grad()
        scaler:scale((w * x):sum()):backward()
        scaler:step(sgd)
        scaler:update()
      end)
      local seen, saved = {}, nil
      for i = 1, 12 do
        step(lunce.full({ 3 }, i % 5 == 0 and math.huge or i, GPU))
        if i == 3 then saved = scaler:state_dict() end
        if i == 9 then scaler:load_state_dict(saved) end
        local now = scaler:state_dict()
        seen[i] = { now.scale:item(), now.growth_tracker:item(), scaler:get_scale() }
      end
      return w, seen
    end
    local w, seen = run(plain)
    local v, others = run(captured)
    same(w, v)
    assert.same(seen, others)
    assert.same({ 16, 1, 16 }, seen[9])
    assert.same(seen[3], seen[9])
    assert.are_not.same(seen[8], seen[9])
  end)

  it("has its update there, too, and no step that is always made after its own", function()
    local w = lunce.ones(2, GPU):requires_grad_()
    local adam, scaler = optim.Adam({ w }), optim.GradScaler()
    local calls, twice = 0, false
    local step = captured(function(x)
      adam:zero_grad()
      scaler:scale((w * x):sum()):backward()
      scaler:step(adam)
      if twice then adam:step() end
      calls = calls + 1
      if calls == 1 or twice then scaler:update() end
    end)
    local x = lunce.ones(2, GPU)
    step(x)
    twice = true
    refuses(function() step(x) end, "Adam: in a captured step", "cannot follow a GradScaler's")
    twice = false
    step(x)
    refuses(function() scaler:update() end, "update: no optimiser", "has its update there")
  end)
end)

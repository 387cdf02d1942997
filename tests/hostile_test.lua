-- What no function was made for: values of a wrong kind in every place, by a sweep over all public
-- functions, and one by one what used to pass in silence or to fail inside of the library.
local lunce = require "lunce"

local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local refuses = dofile(here .. "refusals.lua")("hostile_test.lua")

local evt, nn, optim, similarity = lunce.evt, lunce.nn, lunce.optim, lunce.similarity

local NAN = 0 / 0

local function matrix() return lunce.ones(2, 3) end

local function parameter()
  local p = matrix():requires_grad_()
  p.grad = matrix()
  return p
end

-- ---- The sweep -------------------------------------------------------------------------------

local VALUES = {
  [false] = "false", [true] = "true", [-1] = "-1", [1.5] = "1.5", [2 ^ 40] = "2^40",
  [math.huge] = "inf", [""] = '""', x = '"x"', [io.stdout] = "a file",
  [function() end] = "a function",
}

local function tables()
  local freed = matrix()
  freed:free()
  return { ["{}"] = {}, ["{ -1 }"] = { -1 }, ["{ x = 1 }"] = { x = 1 }, ["{ {} }"] = { {} },
    ["{ false }"] = { false }, ["a tensor"] = matrix(), ["a freed tensor"] = freed,
    ["int64"] = lunce.tensor({ 99, -99 }, { dtype = "int64" }), ["none"] = lunce.zeros(0, 3),
    ["a module"] = nn.ReLU(), ["an object"] = setmetatable({}, {}) }
end

-- A first argument that most functions go on from.
local FIRST = { matrix, function() return { matrix() } end, function() return "x" end,
  function() return {} end, function() return 2 end, function() return function() end end }

local SKIPPED = {
  ["nn.module"] = true, -- gives a constructor of whatever methods it was given
  ["lunce.graph"] = true, -- a capture wants a device
  ["random.address"] = true, -- the library's own, at every draw
  ["lunce.memory_limit"] = true, ["cuda.tf32"] = true, ["cuda.cudnn"] = true, -- settings
}

local function functions()
  local list = {}
  local function add(prefix, module)
    for name, value in pairs(module) do
      local what = prefix .. name
      if type(value) == "function" and not SKIPPED[what] then list[what] = value end
    end
  end
  add("lunce.", lunce)
  add("evt.", evt)
  add("nn.", nn)
  add("nn.init.", nn.init)
  add("optim.", optim)
  add("optim.schedule.", optim.schedule)
  add("augment.", lunce.augment)
  add("data.", lunce.data)
  add("eval.", lunce.eval)
  add("random.", lunce.random)
  add("link.", lunce.link)
  add("plot.", lunce.plot)
  add("progress.", lunce.progress)
  add("similarity.", { cosine = similarity.cosine, dot = similarity.dot,
    together = similarity.together, tile_memory = similarity.tile_memory,
    tile_dtype = similarity.tile_dtype, engine = similarity.engine })
  add("cuda.", lunce.cuda)
  return list
end

-- Whether an error is the library's own words at the line of the call, which is in this file.
local function is_clear(message)
  return type(message) == "string" and message:match "^[^\n]*hostile_test%.lua:%d+: "
    and not message:find("lualib/", 1, true) and not message:find("attempt to", 1, true)
    and not message:find("bad argument", 1, true)
end

local function settings()
  local state, threads, isa = lunce.random.state(), lunce.threads(), lunce.isa()
  local engine, bytes, dtype = similarity.engine(), similarity.tile_memory(),
    similarity.tile_dtype()
  return function()
    lunce.random.set_state(state)
    lunce.threads(threads)
    lunce.isa(isa)
    lunce.detect_anomaly(false)
    similarity.engine(engine)
    similarity.tile_memory(bytes)
    similarity.tile_dtype(dtype)
  end
end

it("errors of all functions are clear, whatever stands in whatever place", function()
  local faults, calls, restore = {}, 0, settings()
  for what, fn in pairs(functions()) do
    local function call(words, ...)
      local ok, message = pcall(fn, ...)
      calls = calls + 1
      if not ok and not is_clear(message) then
        faults[#faults + 1] = ("%s(%s): %s"):format(what, words, tostring(message))
      end
    end
    local function each(words, value)
      call(words, value)
      for i, first in ipairs(FIRST) do
        call(("first %d, %s"):format(i, words), first(), value)
        call(("first %d, 1, %s"):format(i, words), first(), 1, value)
      end
    end
    call "nothing"
    call(NAN, NAN)
    for value, words in pairs(VALUES) do each(words, value) end
    for words, value in pairs(tables()) do each(words, value) end
    restore()
  end
  assert(calls > 50000, calls .. " calls alone")
  table.sort(faults)
  assert(#faults == 0, ("%d of %d calls:\n"):format(#faults, calls)
    .. table.concat(faults, "\n", 1, math.min(#faults, 20)))
end)

-- ---- One by one ------------------------------------------------------------------------------

-- By function: a call, and texts that the message holds.
local REFUSED = {
  ["options that are flags"] = {
    { function() lunce.zeros(2, { requires_grad = "no" }) end, "requires_grad", '"no"', "boolean" },
    { function() matrix():sort(1, { descending = "x" }) end, "descending", '"x"', "boolean" },
    { function() matrix():sum():backward({ retain_graph = 1 }) end, "retain_graph", "1" },
    { function() matrix():sum(1, { keepdim = 0 }) end, "keepdim", "0", "boolean" },
    { function() matrix():to("float64", { non_blocking = 1 }) end, "non_blocking", "boolean" },
    { function() lunce.batch_norm(matrix(), nil, nil, nil, nil, { training = 1 }) end, "training" },
    { function() nn.BatchNorm1d(3)(matrix(), { relu = 1 }) end, "relu", "boolean" },
    { function() optim.SGD({ parameter() }, { lr = 1, nesterov = "x" }) end, "nesterov", '"x"' },
    { function() similarity.cosine(matrix()):tail { pooled = 0 } end, "pooled", "0", "boolean" },
    { function() lunce.models.projector(3, 2, { batch_norm = 1 }) end, "batch_norm", "boolean" },
    { function() matrix():requires_grad_(0) end, "requires_grad_", "0", "boolean" },
    { function() nn.ReLU():train("x") end, "train", '"x"', "boolean" },
    { function() nn.ReLU():requires_grad_(0) end, "requires_grad_", "0", "boolean" },
    { function() lunce.detect_anomaly(0) end, "detect_anomaly", "0", "boolean" },
    { function() lunce.cuda.tf32("x") end, "tf32", '"x"', "boolean" },
    { function() lunce.cuda.cudnn(1) end, "cudnn", "1", "boolean" },
  },
  ["options that are tables"] = {
    { function() optim.Adam({ parameter() }, { betas = matrix() }) end, "betas", "a tensor" },
    { function() lunce.models.convnet { channels = lunce.ones(2) } end, "channels", "a tensor" },
  },
  ["options that nobody takes"] = {
    { function() lunce.zeros_like(matrix(), { dtype = "float64" }) end, "zeros_like", "t:to" },
    { function() lunce.ones_like(matrix(), {}) end, "ones_like", "not taken" },
    { function() lunce.full_like(matrix(), 1, {}) end, "full_like", "not taken" },
    { function() matrix():new_zeros({ 2 }, {}) end, "new_zeros", "not taken" },
    { function() matrix():new_full({ 2 }, 1, {}) end, "new_full", "not taken" },
  },
  ["shapes"] = {
    { function() lunce.zeros(nil) end, "zeros: extent 1 is nil" },
    { function() lunce.ones(2, nil) end, "ones: extent 2 is nil" },
    { function() lunce.randn(2, nil, { seed = 1 }) end, "randn: extent 2 is nil" },
    { function() matrix():reshape(-1, nil) end, "reshape: extent 2 is nil" },
    { function() lunce.ones(1):expand(2, nil) end, "expand: extent 2 is nil" },
    { function() matrix():sum_to_size() end, "sum_to_size: the shape is nil" },
    { function() matrix():sum_to_size(3) end, "sum_to_size: the shape is 3" },
    { function() matrix():sum_to_size { 5, 3 } end, "(2,3)", "(5,3)" },
    { function() matrix():sum_to_size { 1, 2, 3 } end, "(2,3)", "(1,2,3)" },
    { function() matrix():sum_to_size { 1, false } end, "(2,3)", "(1,false)" },
    { function() lunce.layer_norm(matrix()) end, "shape nil", "(2,3)" },
    { function() lunce.layer_norm(matrix(), { {} }) end, "shape (a table)", "(2,3)" },
    { function() lunce.layer_norm(matrix(), matrix()) end, "shape a tensor", "(2,3)" },
    { function() lunce.layer_norm(matrix(), 3, nil, nil, { eps = -1 }) end, "eps is -1" },
    { function() nn.Flatten(true) end, "Flatten", "true", "whole number" },
    { function() nn.Flatten()(3) end, "flatten", "3", "tensor" },
    { function() nn.BatchNorm1d(3)() end, "BatchNorm1d", "nil", "tensor" },
  },
  ["lists of tensors"] = {
    { function() lunce.cat { matrix(), nil, matrix() } end, "cat: element 2", "nil" },
    { function() lunce.stack { nil, matrix() } end, "stack: element 1", "nil" },
    { function() lunce.grad(matrix():sum()) end, "grad: argument 2 is nil" },
    { function() lunce.grad(matrix():sum(), 3) end, "grad: argument 2 is 3", "list" },
    { function() lunce.grad(matrix():sum(), {}) end, "argument 2 is a table", "at least one" },
    { function() lunce.grad(matrix():sum(), { x = 1 }) end, "grad: argument 2 is a table" },
    { function() lunce.grad(matrix():sum(), nn.ReLU()) end, "grad: argument 2 is a ReLU" },
    { function() lunce.grad(matrix():sum(), { parameter(), 3 }) end, "grad: element 2", "3" },
    { function() optim.clip_grad_norm(parameter(), 1) end, "a tensor", "a list is taken" },
    { function() optim.clip_grad_norm(nn.Linear(2, 2), 1) end, "a Linear", "m:parameters()" },
    { function() optim.clip_grad_value({ x = parameter() }, 1) end, "a table", "a list is taken" },
    { function() optim.clip_grad_value({ 1 }, 1) end, "parameter 1 is 1" },
    { function() lunce.augment.chain(lunce.augment.grayscale()) end, "an augmentation step" },
    { function() lunce.loss.check(lunce.loss.nt_xent, nil, matrix()) end, "input 1 is nil" },
  },
  ["positions"] = {
    { function() return matrix()[{ { nil, 2 } }] end, "no first position" },
    { function() return matrix()[{ dim = 1 }] end, "without a first entry" },
    { function() lunce.data.digits():subset { 1, 1.5 } end, "position 2 is 1.5" },
    { function()
      lunce.augment.chain({}):views(lunce.zeros(1, 1, 2, 2, { dtype = "uint8" }), { 1.5 })
    end, "position 1 is 1.5" },
  },
  ["the tail's statistics"] = {
    { function() evt.round() end, "evt.round", "nil" },
    { function() evt.tail_size(-1) end, "evt.tail_size", "-1" },
    { function() evt.burnt "x" end, "evt.burnt", '"x"' },
    { function() evt.judge(matrix()) end, "evt.judge: argument 2 is nil" },
    { function() evt.quantile(3, 0.5) end, "evt.quantile: argument 1 is 3" },
    { function() evt.quantile(matrix(), 0.5) end, "evt.quantile", "(2,3)" },
    { function() evt.quantile(lunce.zeros(0), 0.5) end, "evt.quantile", "(0)" },
    { function() evt.quantile(lunce.ones(3)) end, "evt.quantile: q is nil" },
    { function() evt.rho_gate(3, 1, 1) end, "evt.rho_gate: argument 1 is 3" },
    { function() evt.rho_gate(matrix(), -1, 1) end, "rho0 is -1", "above 0" },
    { function() evt.rho_gate(matrix(), 1) end, "kappa is nil" },
    { function() evt.aic_gate(matrix(), nil, 1) end, "margin is nil" },
    { function() evt.aic_gate(matrix(), 1, NAN) end, "kappa is nan" },
    { function() evt.shrink() end, "evt.shrink: argument 1 is nil" },
    { function() evt.shrink { n = 3 } end, "n, r2 and beta_hat" },
    { function() evt.shrink({}, { lo = 3, hi = 2 }) end, "lo is 3, above hi, 2" },
    { function() evt.moving_beta { lo = 20 } end, "lo is 20, above hi, 16" },
    { function() evt.moving_beta { momentum = -1 } end, "momentum is -1" },
    { function() evt.moving_beta { beta = -1 } end, "beta is -1" },
    { function() evt.moving_beta():update(3) end, "update: 3" },
    { function() evt.moving_beta():update { r2 = 1, beta_hat = matrix() } end, "one element" },
    { function() evt.moving_beta():gate(3) end, "gate: argument 1 is 3" },
    { function() evt.moving_beta():load_state_dict() end, "state_dict gives" },
    { function() evt.moving_beta():load_state_dict { beta = lunce.ones(2) / 0 } end, "finite" },
    { function() evt.gpd_fit(3) end, "evt.gpd_fit: argument 1 is 3" },
  },
  ["what trains"] = {
    { function()
      local optimiser = optim.Adam({ parameter() }, { lr = 1 })
      optimiser.groups[1].lr = "x"
      optimiser:step()
    end, "Adam: option lr", '"x"' },
    { function() optim.GradScaler({ enabled = false }):step(3) end, "step: argument 1 is 3" },
    { function() optim.GradScaler({ enabled = false }):unscale() end, "unscale", "nil" },
    { function() optim.schedule.cosine({ steps = 3 })() end, "schedule.cosine", "nil" },
    { function() optim.schedule.warmup({ steps = 3 })("x") end, "schedule.warmup", '"x"' },
    { function() optim.schedule.step({ step_size = 3 })() end, "schedule.step", "nil" },
    { function() optim.schedule.step { milestones = { "x" } } end, "milestones", "numbers" },
    { function() optim.schedule.chain { nil, { 1, print } } end, "part 1" },
    { function() nn.init.gain("leaky_relu", "x") end, "slope", '"x"' },
    { function() nn.init.xavier_uniform_(matrix(), "x") end, "xavier_uniform_", "gain" },
    { function() nn.init.xavier_normal_(matrix(), "x") end, "xavier_normal_", "gain" },
    { function() nn.init.orthogonal_(matrix(), "x") end, "orthogonal_", "gain" },
    { function() nn.ReLU():register_buffer(nil, matrix()) end, "name is nil" },
    { function() nn.module("M", { forward = 3 }) end, "nn.module", "forward" },
    { function() lunce.cross_entropy(matrix(), lunce.ones(2):gt(0)) end, "labels are bool" },
    { function()
      lunce.batch_norm(matrix(), nil, nil, nil, nil, { training = true, residual = 3 })
    end, "residual is 3" },
    { function() similarity.cosine(matrix()):same(lunce.ones(2)) end, "labels are float32" },
    { function() lunce.loss.queue(4, 2):load_state_dict() end, "queue:load_state_dict" },
    { function()
      lunce.loss.queue(4, 2):load_state_dict { keys = lunce.ones(4, 2), next = lunce.ones(1) * 5 }
    end, "next is from 1 to 4" },
    { function() matrix():norm(NAN) end, "norm", "nan" },
  },
  ["what is around"] = {
    { function() lunce.args({}, 3) end, "args: arguments are 3" },
    { function() lunce.args({ a = 1 }, { 3 }) end, "argument 1 is 3" },
    { function() lunce.random.set_state() end, "random: a state nil" },
    { function() lunce.eval.features(3, {}) end, "eval.features: argument 1 is 3" },
    { function() lunce.eval.features(print, 3) end, "eval.features: argument 2 is 3" },
    { function() lunce.eval.table() end, "heading is nil" },
    { function() lunce.eval.table({ "a" }, { 3 }) end, "row 1 is 3" },
    { function()
      local x, y = matrix(), lunce.ones(2, { dtype = "int64" })
      lunce.eval.linear_probe(x, y, x, y, { batch = 0 })
    end, "batch is 0" },
    { function() lunce.data.set(lunce.zeros(1, 1, 2, 2, { dtype = "uint8" }), nil, 3) end, "3" },
    { function() lunce.data.image("none.png", { channels = 1.5 }) end, "channels is 1.5" },
    { function() lunce.io.with_opened(here .. "hostile_test.lua", "x") end, "argument 3 is nil" },
    { function() lunce.io.bytes(nil, 0, 1) end, "io.bytes: argument 1 is nil" },
    { function()
      lunce.io.with_opened(here .. "hostile_test.lua", "x", function(f) lunce.io.bytes(f) end)
    end, "io.bytes: the offset is nil" },
    { function() lunce.plot.lines(3, { { y = { 1 } } }) end, "plot: 3" },
    { function() lunce.plot.lines("a.svg", { { y = 3 } }) end, "series 1's y is 3" },
    { function() lunce.plot.lines("a.svg", { { y = { "x" } } }) end, '"x" at 1' },
    { function() lunce.plot.lines("a.svg", { { y = { 1 } } }, { width = -1 }) end, "width is -1" },
    { function() lunce.plot.histogram("a.svg", { { values = { 1 } } }, { bins = 0 }) end, "bins" },
    { function() lunce.plot.histogram("a.svg", { { values = { 1 } } }, { range = { 1 } }) end,
      "{ low, high }" },
    { function() lunce.progress.new(3, 1) end, "progress.new: argument 1 is 3" },
    { function() lunce.progress.new(io.stdout, 1):show() end, "progress:show: argument 1 is nil" },
    { function() lunce.progress.new(io.stdout, 1):show(1, 3) end, "argument 2 is 3" },
    { function() lunce.progress.new(io.stdout, 1):show(1, "%d") end, "does not fit" },
    { function() lunce.data.loader(lunce.data.digits(), { batch = 1, queue = -1 }) end, "-1" },
    { function()
      lunce.augment.simclr({ size = 8, blur = -1 }):apply(lunce.zeros(3, 8, 8))
    end, "p is not 0 to 1" },
  },
}

describe("is refused at the caller's line:", function()
  for what, rows in pairs(REFUSED) do
    it(what, function()
      for _, row in ipairs(rows) do refuses(unpack(row)) end
    end)
  end
end)

it("sum_to_size sums over what was broadcast, and over nothing else", function()
  assert.same({ { 2, 2, 2 } }, matrix():sum_to_size({ 1, 3 }):tolist())
  assert.same({ 2, 2, 2 }, matrix():sum_to_size({ 3 }):tolist())
  assert.equal(6, matrix():sum_to_size({}):item())
  assert.same({ 2, 3 }, matrix():sum_to_size({ 2, 3 }).shape)
end)

-- Layers by example, the module protocol, initialisers. Convolutions, pools and norms as functions
-- are tested with the operators.
local lunce = require "lunce"
local nn = lunce.nn

local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local _, raises = dofile(here .. "refusals.lua")("nn_test.lua")

local function near(expected, x, tolerance)
  local difference = x:detach():double() - lunce.tensor(expected, { dtype = "float64" })
  assert.is_true(difference:abs():max():item() <= (tolerance or 1e-6), tostring(x))
end

-- Sets a parameter's values.
local function set(p, values) lunce.no_grad(p.copy_, p, lunce.tensor(values)) end

local function names(iterator)
  local list = {}
  for name in iterator do list[#list + 1] = name end
  return list
end

describe("layers", function()
  it("Linear: x W^T + b", function()
    local layer = nn.Linear(2, 1)
    set(layer.weight, { { 1, 2 } })
    set(layer.bias, { 3 })
    assert.are.same({ { 8 }, { 4 } }, layer(lunce.tensor { { 1, 2 }, { 1, 0 } }):tolist())
    assert.is_nil(nn.Linear(2, 1, { bias = false }).bias)
  end)

  it("Conv2d: a sum of shifted images", function()
    local layer = nn.Conv2d(1, 1, 3, { padding = 1, bias = false })
    set(layer.weight, { { { { 0, 0, 0 }, { 1, 0, 0 }, { 0, 0, 0 } } } }) -- the left neighbour
    local x = lunce.tensor { { { { 1, 2 }, { 3, 4 } } } }
    assert.are.same({ { { { 0, 1 }, { 0, 3 } } } }, layer(x):tolist())
    local strided = nn.Conv2d(4, 6, { 1, 3 }, { stride = { 1, 2 }, groups = 2 })
    assert.are.same({ 6, 2, 1, 3 }, strided.weight.shape)
    assert.are.same({ 5, 6, 7, 3 }, strided(lunce.randn(5, 4, 7, 7)).shape)
  end)

  it("BatchNorm1d: the batch's statistics in training, the running ones after", function()
    local layer = nn.BatchNorm1d(1)
    near({ { -1 }, { 1 } }, layer(lunce.tensor { { 1 }, { 3 } }), 1e-5) -- eps is 1e-5
    near({ 0.2 }, layer.running_mean) -- a tenth of the mean, 2
    near({ 1.1 }, layer.running_var) -- nine tenths of 1 and one of the unbiased 2
    assert.are.equal(1, layer.num_batches_tracked:item())
    layer:eval()
    near({ { 1.8 / math.sqrt(1.1 + 1e-5) } }, layer(lunce.tensor { { 2 } }))
    near({ 0.2 }, layer.running_mean)
    assert.are.same({ 2, 1, 5 }, layer(lunce.randn(2, 1, 5)).shape)
    local bare = nn.BatchNorm1d(1, { affine = false, track_running_stats = false }):eval()
    near({ { -1 }, { 1 } }, bare(lunce.tensor { { 1 }, { 3 } }), 1e-5)
    assert.are.same({}, bare:state_dict())
  end)

  it("BatchNorm2d: over the batch and the planes", function()
    local y = nn.BatchNorm2d(3)(lunce.randn(4, 3, 5, 5) * 7 + 2):detach()
    near({ 0, 0, 0 }, y:mean { 1, 3, 4 })
    near({ 1, 1, 1 }, y:var({ 1, 3, 4 }, { correction = 0 }), 1e-5)
  end)

  it("LayerNorm: over each sample", function()
    near({ { -1, 1 }, { -1, 1 } }, nn.LayerNorm(2)(lunce.tensor { { 1, 3 }, { 10, 30 } }), 1e-5)
    assert.are.same({ 3, 4 }, nn.LayerNorm({ 3, 4 }).weight.shape)
  end)

  it("ReLU and GELU", function()
    assert.are.same({ 0, 2 }, nn.ReLU()(lunce.tensor { -1, 2 }):tolist())
    near({ 0, 0.8413447, -0.1586553 }, nn.GELU()(lunce.tensor { 0, 1, -1 }))
  end)

  it("MaxPool2d, AvgPool2d and GlobalAvgPool", function()
    local x = lunce.arange(16):reshape(1, 1, 4, 4)
    assert.are.same({ { { { 6, 8 }, { 14, 16 } } } }, nn.MaxPool2d(2)(x):tolist())
    assert.are.same({ { { { 3.5, 5.5 }, { 11.5, 13.5 } } } }, nn.AvgPool2d(2)(x):tolist())
    assert.are.same({ 1, 1, 2, 2 }, nn.MaxPool2d(3, { stride = 2, padding = 1 })(x).shape)
    assert.are.same({ { 8.5 } }, nn.GlobalAvgPool()(x):tolist())
  end)

  it("Flatten: all but the batch, or a range", function()
    local x = lunce.zeros(2, 3, 4)
    assert.are.same({ 2, 12 }, nn.Flatten()(x).shape)
    assert.are.same({ 6, 4 }, nn.Flatten(1, 2)(x).shape)
  end)

  it("Dropout: zeros and scales in training only", function()
    local layer, x = nn.Dropout(0.25), lunce.ones(10000)
    local y = layer(x)
    local kept = y:gt(0):float():mean():item()
    assert.is_true(math.abs(kept - 0.75) < 0.03) -- seven standard deviations
    near(4 / 3, y:max())
    assert.is_true(layer:eval()(x):eq(x):all():item())
  end)

  it("Sequential: one after the other, named from 0", function()
    local net = nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2, { bias = false }))
    assert.are.same({ 5, 2 }, net(lunce.randn(5, 4)).shape)
    assert.are.same({ "0.weight", "0.bias", "2.weight" }, names(net:named_parameters()))
    assert.are.equal(net[3].weight, net:parameters()[3])
  end)

  it("Residual: shortcut plus body", function()
    local body = nn.Linear(2, 2, { bias = false })
    set(body.weight, { { 1, 1 }, { 0, 0 } })
    assert.are.same({ { 4, 2 } }, nn.Residual(body)(lunce.tensor { { 1, 2 } }):tolist())
    local both = nn.Residual(body, nn.ReLU())
    assert.are.same({ { 1, 2 } }, both(lunce.tensor { { -1, 2 } }):tolist())
    assert.are.same({ "body.weight" }, names(both:named_parameters()))
  end)

  it("print their settings as a tree", function()
    local net = nn.Sequential(nn.Conv2d(1, 8, 3, { padding = 1 }), nn.Residual(nn.Linear(2, 2)))
    assert.are.equal([[
Sequential(
  (0): Conv2d(1, 8, 3, stride 1, padding 1)
  (1): Residual(
    (body): Linear(2, 2)
  )
)]], tostring(net))
  end)

  it("wrong settings and inputs are errors at the caller's line", function()
    raises("Linear: in_features is nil", function() nn.Linear() end)
    raises("Linear: out_features is 1.5", function() nn.Linear(1, 1.5) end)
    raises("Linear: unknown option biased", function() nn.Linear(1, 1, { biased = true }) end)
    raises("Conv2d: stride is 0", function() nn.Conv2d(1, 1, 3, { stride = 0 }) end)
    raises("Conv2d: groups is 2", function() nn.Conv2d(3, 4, 3, { groups = 2 }) end)
    raises("BatchNorm2d: momentum is 2", function() nn.BatchNorm2d(1, { momentum = 2 }) end)
    raises("Dropout: p is 2", function() nn.Dropout(2) end)
    raises("Sequential: argument 2 is 3", function() nn.Sequential(nn.ReLU(), 3) end)
    raises("Residual: body is nil", function() nn.Residual() end)
    raises("linear: input (2,3)", function() nn.Linear(2, 2)(lunce.zeros(2, 3)) end)
    raises("BatchNorm2d: the input is (2,3)", function() nn.BatchNorm2d(3)(lunce.zeros(2, 3)) end)
    raises("batch_norm", function() nn.BatchNorm1d(3)(lunce.zeros(2, 4)) end)
    raises("relu: argument 1 is nil", function() nn.ReLU()() end)
  end)
end)

-- A module of one's own, as the opening comment of nn/module.lua has it.
local Gated = nn.module("Gated", {
  init = function(self, features)
    self.value = nn.Linear(features, features)
    self.gate = nn.Linear(features, features)
    self.scale = lunce.ones(1):requires_grad_()
    self:register_buffer("seen", lunce.zeros(1))
  end,
  forward = function(self, x)
    self.seen:add_(1)
    return self.value(x) * self.gate(x):sigmoid() * self.scale
  end,
})

describe("a module", function()
  it("lists what its fields declare, its own before its children's", function()
    local m = nn.Sequential(Gated(2), Gated(2))
    assert.are.same({ "0.scale", "0.value.weight", "0.value.bias", "0.gate.weight", "0.gate.bias" },
      { unpack(names(m:named_parameters()), 1, 5) })
    assert.are.same({ "0.seen", "1.seen" }, names(m:named_buffers()))
    assert.are.same({ "", "0", "0.value", "0.gate", "1", "1.value", "1.gate" },
      names(m:named_modules()))
    assert.are.equal(10, #m:parameters())
  end)

  it("keeps the place of a field that is set anew, and forgets one that is set to nil", function()
    local m = Gated(2)
    m.value = nn.Linear(2, 2, { bias = false })
    assert.are.same({ "scale", "value.weight", "gate.weight", "gate.bias" },
      names(m:named_parameters()))
    m.gate = nil
    assert.are.same({ "scale", "value.weight" }, names(m:named_parameters()))
    m.scale = lunce.zeros(1)
    assert.are.same({ "scale", "value.weight" }, names(m:named_parameters()))
    raises("field value is a module", function() m.value = 3 end)
  end)

  it("may have fields of any name", function()
    local m = nn.Sequential()
    m.fields, m.kinds, m.order = 1, 2, 3
    m.weight = lunce.zeros(1):requires_grad_()
    assert.are.same({ "weight" }, names(m:named_parameters()))
    assert.are.equal(6, m.fields + m.kinds + m.order)
  end)

  it("does not take activations and plain tensors for state", function()
    local m = nn.Linear(1, 1)
    m.last, m.plain = m(lunce.ones(1, 1)), lunce.ones(1)
    assert.are.same({ "weight", "bias" }, names(m:named_parameters()))
    assert.are.same({}, names(m:named_buffers()))
  end)

  it("counts a shared child once among parameters and under each name in its state", function()
    local shared = nn.Linear(1, 1, { bias = false })
    local m = nn.Sequential(shared, shared)
    assert.are.equal(1, #m:parameters())
    assert.is_truthy(m:state_dict()["0.weight"] and m:state_dict()["1.weight"])
    m:to "float64"
    assert.are.equal(m[1].weight, m[2].weight)
    assert.are.equal("float64", m[1].weight.dtype)
  end)

  it("outlives the scope that made it", function()
    local m = lunce.scope(function() return { Gated(2) } end)[1]
    local kept
    lunce.scope(function() kept = Gated(2) end)
    assert.are.same({ 1, 2 }, m(lunce.ones(1, 2)).shape)
    assert.are.same({ 1, 2 }, kept(lunce.ones(1, 2)).shape)
  end)

  it("train and eval reach every child", function()
    local m = nn.Sequential(nn.Sequential(nn.Dropout()))
    assert.is_true(m[1][1].training)
    assert.is_false(m:eval()[1][1].training)
    assert.is_true(m:train()[1][1].training)
  end)

  it("freezes: requires_grad_(false) keeps backward away and the parameters listed", function()
    local m = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
    m[1]:requires_grad_(false)
    m(lunce.ones(1, 2)):sum():backward()
    assert.is_nil(m[1].weight.grad)
    assert.is_truthy(m[2].weight.grad)
    assert.are.equal(4, #m:parameters())
    m:zero_grad()
    assert.is_nil(m[2].weight.grad)
  end)

  it("to changes the dtype of floating-point state only", function()
    local m = nn.BatchNorm1d(2):to "float64"
    assert.are.equal("float64", m.weight.dtype)
    assert.are.equal("float64", m.running_var.dtype)
    assert.are.equal("int64", m.num_batches_tracked.dtype)
    assert.is_true(m.weight.requires_grad)
    assert.are.equal("float64", m(lunce.randn({ 4, 2 }, { dtype = "float64" })).dtype)
    raises("to: dtype", function() m:to "float63" end)
  end)

  it("leaves no tensor behind", function()
    collectgarbage()
    local before = lunce.memory().tensors
    lunce.scope(function()
      local m = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Dropout(), nn.Linear(3, 1))
      m(lunce.randn(4, 2)):sum():backward()
    end)
    collectgarbage()
    collectgarbage()
    assert.are.equal(before, lunce.memory().tensors)
  end)
end)

describe("state_dict", function()
  it("passes weights, running statistics and counts from one module to another", function()
    local a = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    local b = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    a(lunce.randn(5, 2))
    local missing, unexpected = b:load_state_dict(a:state_dict())
    assert.are.same({ {}, {} }, { missing, unexpected })
    a:eval()
    b:eval()
    local x = lunce.randn(5, 2)
    assert.is_true(a(x):eq(b(x)):all():item())
    assert.are.equal(1, b[2].num_batches_tracked:item())
    assert.is_true(b[1].weight.requires_grad)
  end)

  it("casts to the module's dtype", function()
    local m = nn.Linear(1, 1, { bias = false })
    m:load_state_dict { weight = lunce.tensor({ { 3 } }, { dtype = "float64" }) }
    assert.are.equal("float32", m.weight.dtype)
    assert.are.equal(3, m.weight:item())
  end)

  it("names what is missing, unexpected or of another shape, and changes nothing", function()
    local m = nn.Linear(2, 1)
    local before = m.weight:clone()
    local function load(state, opts) return m:load_state_dict(state, opts) end
    raises("missing bias; unexpected b, c", function()
      load { weight = lunce.ones(1, 2), c = lunce.ones(1), b = lunce.ones(1) }
    end)
    raises("weight has shape (1,2), given (2,1)", function()
      load { weight = lunce.ones(2, 1), bias = lunce.ones(1) }
    end)
    raises("bias is 3, not a tensor", function() load({ bias = 3 }, { strict = false }) end)
    raises("argument 1 is nil", function() load() end)
    assert.is_true(m.weight:eq(before):all():item())
    local partial = { bias = lunce.ones(1), x = lunce.ones(1) }
    local missing, unexpected = load(partial, { strict = false })
    assert.are.same({ { "weight" }, { "x" } }, { missing, unexpected })
    assert.are.equal(1, m.bias:item())
  end)
end)

describe("init", function()
  local init = nn.init

  -- The bounds are five standard deviations of the estimate from n = 60,000 values.
  local function looks(t, mean, std)
    local n = t:numel()
    assert.is_true(math.abs(t:mean():item() - mean) < 5 * std / math.sqrt(n))
    assert.is_true(math.abs(t:std():item() / std - 1) < 5 / math.sqrt(2 * n))
  end

  local function weight() return lunce.zeros(200, 30, 2, 5):requires_grad_() end -- fans 300, 2000

  it("constants, uniform, normal", function()
    assert.are.equal(60000, init.ones_(weight()):sum():item())
    assert.are.equal(0, init.zeros_(init.ones_(weight())):sum():item())
    assert.are.equal(120000, init.constant_(weight(), 2):sum():item())
    local u = init.uniform_(weight(), 2, 4)
    looks(u, 3, 2 / math.sqrt(12))
    assert.is_true(u:min():item() >= 2 and u:max():item() <= 4)
    looks(init.normal_(weight(), 1, 3), 1, 3)
    assert.is_true(u.requires_grad and u.is_leaf)
  end)

  it("truncated normal stays within its bounds", function()
    local t = init.trunc_normal_(weight(), 1, 2, -1, 3)
    assert.is_true(t:min():item() >= -1 and t:max():item() <= 3)
    looks(t, 1, 2 * 0.539560) -- a standard normal value within one deviation of its mean
    raises("less than 1 %", function() init.trunc_normal_(weight(), 0, 1, 5, 6) end)
  end)

  it("Xavier and Kaiming have the variance of their fans", function()
    looks(init.xavier_uniform_(weight()), 0, math.sqrt(2 / 2300))
    looks(init.xavier_normal_(weight(), 2), 0, 2 * math.sqrt(2 / 2300))
    looks(init.kaiming_uniform_(weight()), 0, math.sqrt(2 / 300))
    looks(init.kaiming_uniform_(weight(), { a = math.sqrt(5) }), 0, math.sqrt(1 / 3 / 300))
    looks(init.kaiming_normal_(weight(), { mode = "fan_out", nonlinearity = "relu" }), 0,
      math.sqrt(2 / 2000))
    raises("mode", function() init.kaiming_normal_(weight(), { mode = "fan" }) end)
    raises("nonlinearity", function() init.kaiming_normal_(weight(), { nonlinearity = "x" }) end)
    raises("2 dimensions", function() init.xavier_normal_(lunce.zeros(3)) end)
    raises("argument 1 is nil", function() init.normal_() end)
  end)

  it("orthogonal rows or columns", function()
    local wide = init.orthogonal_(lunce.zeros(4, 3, 3), 2)
    local flat = wide:flatten(2)
    near(lunce.eye(4):mul_(4):tolist(), flat:matmul(flat:t()), 1e-5)
    local tall = init.orthogonal_(lunce.zeros(9, 4))
    near(lunce.eye(4):tolist(), tall:t():matmul(tall), 1e-5)
  end)

  it("the same seed gives the same values", function()
    local function draw()
      lunce.manual_seed(5)
      return nn.Linear(10, 10).weight:detach()
    end
    assert.is_true(draw():eq(draw()):all():item())
  end)
end)

-- The networks: names and shapes as torchvision's, ResNet-18 against float64 results of PyTorch
-- (reference/resnet18-cifar.safetensors; its metadata says how the weights are made), and that a
-- small encoder learns.
local bit = require "bit"
local cjson = require "cjson"
local lunce = require "lunce"
local models, nn, optim = lunce.models, lunce.nn, lunce.optim

local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local _, raises = dofile(here .. "refusals.lua")("models_test.lua")

local function named(model)
  local names, shapes = {}, {}
  for name, p in model:named_parameters() do
    names[#names + 1] = name
    shapes[name] = table.concat(p.shape, ",")
  end
  return names, shapes
end

-- ---- The reference -----------------------------------------------------------------------------

-- a * b mod 2^32 of whole numbers below 2^32: the products of halves stay below 2^53.
local function multiply(a, b)
  local high = bit.rshift(a, 16) * b % 65536
  return (high * 65536 + bit.band(a, 65535) * b) % 2 ^ 32
end

-- A tensor of n values scale * r + offset in float32, r from the hash of the metadata's `fill`.
local function filled(shape, p, scale, offset)
  local n, values = 1, {}
  for _, extent in ipairs(shape) do n = n * extent end
  for i = 1, n do
    local u = (i * 2654435761 + p * 40503) % 2 ^ 32
    u = multiply(bit.bxor(u, bit.rshift(u, 16)) % 2 ^ 32, 2246822519)
    values[i] = (u / 2 ^ 32 - 0.5) * scale + offset
  end
  return lunce.tensor(values):reshape(shape)
end

local function fill(name, p, position)
  local shape = p.shape
  if #shape == 4 then
    local fan_in = shape[2] * shape[3] * shape[4]
    return filled(shape, position, 2 * math.sqrt(3) * math.sqrt(2 / fan_in), 0)
  end
  return filled(shape, position, 0.2, name:find "weight$" and 1 or 0)
end

local function distance(x, reference)
  reference = reference:double()
  return ((x:detach():double() - reference):norm() / reference:norm()):item()
end

local vectors, metadata = lunce.io.safetensors.load "tests/reference/resnet18-cifar.safetensors"

local reference_state = {}
for name, p in models.resnet18():named_parameters() do reference_state[name] = p end
for i, name in ipairs(cjson.decode(metadata.parameter_order)) do
  reference_state[name] = fill(name, reference_state[name], i - 1)
end

local function reference_model(dtype)
  local model = models.resnet18()
  model:load_state_dict(reference_state, { strict = false })
  return model:to(dtype)
end

describe("resnet18 against PyTorch", function()
  -- float64 differs from the reference by the order of sums; its stored tensors are rounded to
  -- float32 in part (6e-8). float32: the bounds of the reference's README.
  for dtype, bound in pairs {
    float64 = { loss = 1e-12, gradient = 1e-10, stored = 1e-7, features = 1e-12 },
    float32 = { loss = 1e-5, gradient = 1e-4, stored = 1e-4, features = 1e-5 },
  } do
    it("agrees in " .. dtype, function()
      local model = reference_model(dtype)
      local x = filled({ 4, 3, 32, 32 }, 999, 4, 0):to(dtype):requires_grad_()
      local features = model(x)
      local loss = features:square():mean()
      loss:backward()
      assert.is_true(distance(features, vectors.features) < bound.features)
      assert.is_true(distance(loss, vectors.loss) < bound.loss)
      assert.is_true(distance(x.grad, vectors.grad_x) < bound.stored)
      local norms = cjson.decode(metadata.grad_norms)
      for name, p in model:named_parameters() do
        local off = math.abs(p.grad:norm():item() / norms[name] - 1)
        assert.is_true(off < bound.gradient, ("%s: the norm is off by %g"):format(name, off))
        off = distance(p.grad:flatten():narrow(1, 1, 8), vectors["grad_head." .. name])
        assert.is_true(off < 10 * bound.gradient, ("%s: the head is off by %g"):format(name, off))
      end
      for name, buffer in model:named_buffers() do
        local after = vectors["after." .. name]
        if after then
          assert.is_true(distance(buffer, after) < bound.stored, name)
        else
          assert.are.equal(1, buffer:item(), name)
        end
      end
      model:eval()
      assert.is_true(distance(model(x), vectors.eval_features) < bound.features)
    end)
  end
end)

-- ---- Names and shapes --------------------------------------------------------------------------

describe("resnet", function()
  it("resnet18 has torchvision's parameters in torchvision's order", function()
    assert.are.same(cjson.decode(metadata.parameter_order), (named(models.resnet18())))
    local names, shapes = named(models.resnet18 { num_classes = 10 })
    assert.are.equal(62, #names)
    assert.are.equal("fc.weight", names[61])
    assert.are.equal("10,512", shapes["fc.weight"])
  end)

  it("resnet34 has torchvision's parameters", function()
    local names, shapes = named(models.resnet34 { num_classes = 1000, stem = "7x7" })
    assert.are.equal(110, #names)
    assert.are.equal("64,3,7,7", shapes["conv1.weight"])
    assert.are.equal("256,256,3,3", shapes["layer3.5.conv2.weight"])
    assert.are.equal("1000", shapes["fc.bias"])
  end)

  it("resnet50 has torchvision's parameters", function()
    local model = models.resnet50 { num_classes = 1000, stem = "7x7" }
    local names, shapes = named(model)
    assert.are.equal(161, #names)
    assert.are.equal("64,64,1,1", shapes["layer1.0.conv1.weight"])
    assert.are.equal("256,64,1,1", shapes["layer1.0.downsample.0.weight"])
    assert.are.equal("256", shapes["layer1.0.downsample.1.bias"])
    assert.are.equal("2048,512,1,1", shapes["layer4.2.conv3.weight"])
    assert.are.equal("1000,2048", shapes["fc.weight"])
    local buffers = 0
    for name in model:named_buffers() do
      assert.truthy(name:find "running_mean$" or name:find "running_var$"
        or name:find "num_batches_tracked$")
      buffers = buffers + 1
    end
    assert.are.equal(3 * 53, buffers)
  end)

  it("the two stems keep or quarter the image", function()
    lunce.no_grad(function()
      local x = lunce.randn(2, 1, 16, 16)
      local small = models.resnet18 { in_channels = 1 }
      assert.are.same({ 2, 64, 16, 16 }, small.layer1(small.conv1(x)).shape)
      local large = models.resnet18 { in_channels = 1, stem = "7x7" }
      assert.are.same({ 2, 64, 4, 4 }, large.maxpool(large.conv1(x)).shape)
      assert.are.same({ 2, 512 }, large(x).shape)
      assert.are.same({ 2, 2048 }, models.resnet50 { in_channels = 1 }(x).shape)
    end)
  end)

  it("convolutions start as Kaiming's fan_out, norms at one and zero", function()
    lunce.manual_seed(1)
    local model = models.resnet18()
    local w = model.layer4[2].conv1.weight
    -- 2.4 million draws: the standard deviation is within 1 / sqrt(2 n) = 0.05 % of its value.
    assert.is_true(math.abs(w:std():item() / math.sqrt(2 / (512 * 9)) - 1) < 0.003)
    assert.are.equal(64, model.bn1.weight:sum():item())
    assert.are.equal(0, model.bn1.bias:abs():max():item())
  end)

  it("wrong settings and inputs are errors at the caller's line", function()
    raises("resnet18: stem", function() models.resnet18 { stem = "5x5" } end)
    raises("unknown option classes", function() models.resnet18 { classes = 10 } end)
    local model = models.resnet18()
    raises("conv2d", function() model(lunce.zeros(1, 1, 32, 32)) end)
    raises("conv2d", function() model(lunce.zeros({ 1, 3, 32, 32 }, { dtype = "float64" })) end)
  end)
end)

describe("convnet and projector", function()
  it("give features and their projection", function()
    local encoder = models.convnet { in_channels = 1 }
    local projector = models.projector(encoder.out_features, 64)
    local h = encoder(lunce.randn(5, 1, 16, 16))
    assert.are.same({ 5, 128 }, h.shape)
    assert.are.same({ 5, 64 }, projector(h).shape)
    assert.are.same({ "0.weight", "2.weight" }, (named(projector)))
    local wide = models.projector(128, 64, { hidden_features = 256, batch_norm = true })
    assert.are.same({ "0.weight", "1.weight", "1.bias", "3.weight" }, (named(wide)))
    assert.are.same({ 5, 64 }, wide(h).shape)
  end)

  it("the same seed gives the same network", function()
    local function weights()
      lunce.manual_seed(7)
      return models.convnet():state_dict()["4.weight"]
    end
    assert.is_true(weights():eq(weights()):all():item())
  end)

  it("an encoder and a classifier learn to tell rows, columns, checks and nothing", function()
    lunce.manual_seed(3)
    local patterns = {}
    for k = 1, 4 do
      patterns[k] = {}
      for i = 1, 8 do
        patterns[k][i] = {}
        for j = 1, 8 do patterns[k][i][j] = ({ i % 2, j % 2, (i + j) % 2, 0.5 })[k] end
      end
    end
    local y = lunce.randint(1, 4, 64)
    local x = lunce.tensor(patterns):index_select(1, y):unsqueeze(2)
    x = x + lunce.randn(64, 1, 8, 8) * 0.2
    local model = nn.Sequential(models.convnet { channels = { 8, 16 } }, nn.Linear(16, 4))
    local opt = optim.Adam(model:parameters(), { lr = 1e-2 })
    local function step()
      opt:zero_grad()
      local loss = lunce.cross_entropy(model(x), y)
      loss:backward()
      opt:step()
      return loss:item()
    end
    local first = lunce.scope(step)
    collectgarbage()
    local live = lunce.memory().live_bytes
    local last
    for _ = 1, 60 do last = lunce.scope(step) end
    assert.is_true(first > 1 and last < 0.1, ("loss went from %g to %g"):format(first, last))
    assert.are.equal(live, lunce.memory().live_bytes)
  end)
end)

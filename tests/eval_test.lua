-- Evaluation: the kNN vote against its reference on the digits, the linear probe on problems of
-- known answer, features of an encoder, and bad input.
local lunce = require "lunce"
local data = require "lunce.data"
local safetensors = require("lunce.io").safetensors

local eval = lunce.eval
local device = lunce.zeros(1).device -- the one that the tests are run on
local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"

local function pixels(split)
  local set = data.digits{ split = split }:to(device)
  return set.images:to("float32"):flatten(2) / 255, set.labels
end

local function refused(pattern, fn)
  local ok, message = pcall(fn)
  assert.is_false(ok)
  assert(message:match("eval_test.lua:%d+: .*" .. pattern), message)
end

describe("knn:", function()
  local bank, bank_labels = pixels "train"
  local queries, labels = pixels "test"

  it("votes and recalls on the digits are the reference's", function()
    local tensors, metadata =
      safetensors.load(here .. "reference/knn-digits.safetensors")
    for _, chunk in ipairs{ 1024, 100 } do
      local result = eval.knn(bank, bank_labels, queries, labels, { chunk = chunk })
      -- The reference's labels count from 0.
      assert.equal(797, result.predicted:eq(tensors.predicted + 1):sum():item())
      assert.near(tonumber(metadata["weighted_vote_k50_tau0.1"]), result.accuracy, 1e-9)
      for _, k in ipairs{ 1, 2, 5, 10, 20, 50 } do
        assert.near(tonumber(metadata["recall_at_" .. k]), result.recall[k], 1e-9)
      end
    end
  end)

  it("one neighbour's vote is recall at 1", function()
    local result = eval.knn(bank, bank_labels, queries, labels, { k = 1, recall = { 1 } })
    assert.equal(result.recall[1], result.accuracy)
  end)

  it("a cold temperature does not overflow, and takes the nearest", function()
    local one = eval.knn(bank, bank_labels, queries, labels, { k = 1 })
    local cold = eval.knn(bank, bank_labels, queries, labels, { temperature = 1e-6 })
    assert.equal(797, cold.predicted:eq(one.predicted):sum():item())
  end)

  it("a bank smaller than k votes with all of it", function()
    local result = eval.knn(bank:narrow(1, 1, 3), bank_labels:narrow(1, 1, 3), queries, labels)
    assert.is_true(result.recall[50] >= result.recall[1])
  end)

  it("bad input", function()
    refused("bank are a tensor", function() eval.knn(bank, labels, queries, labels) end)
    refused("queries are a tensor", function()
      eval.knn(bank, bank_labels, queries, labels:to("float32"))
    end)
    refused("temperature is 0", function()
      eval.knn(bank, bank_labels, queries, labels, { temperature = 0 })
    end)
    refused("positive integers", function()
      eval.knn(bank, bank_labels, queries, labels, { k = 0 })
    end)
    refused("empty", function()
      eval.knn(bank, bank_labels, queries:narrow(1, 1, 0), labels:narrow(1, 1, 0))
    end)
    refused("unknown option tau", function()
      eval.knn(bank, bank_labels, queries, labels, { tau = 1 })
    end)
  end)
end)

describe("linear probe:", function()
  -- Three well separated clusters.
  local function clusters(n, seed)
    local y = lunce.randint(1, 3, { n }, { seed = seed })
    local centres = lunce.eye(3) * 4
    return centres:index_select(1, y) + 0.3 * lunce.randn(n, 3, { seed = seed + 1 }), y
  end
  local x, y = clusters(300, 1)
  local test_x, test_y = clusters(130, 3)

  it("separates what is separable", function()
    local result = eval.linear_probe(x, y, test_x, test_y, { lr = 0.05, epochs = 20 })
    assert.equal(1, result.test)
    assert.equal(1, result.validation)
  end)

  it("is a function of the seed, whatever the global generator did", function()
    local o = { epochs = 3, seed = 5 }
    local one = eval.linear_probe(x, y, test_x, test_y, o)
    lunce.randn(3)
    local two = eval.linear_probe(x, y, test_x, test_y, o)
    assert.is_true(one.weight:eq(two.weight):all():item())
    local other = eval.linear_probe(x, y, test_x, test_y, { epochs = 3, seed = 6 })
    assert.is_false(one.weight:eq(other.weight):all():item())
  end)

  it("drop_last leaves the last partial batch out, as the released code does", function()
    local o = { lr = 0.05, epochs = 20, batch = 100, drop_last = true }
    local spoilt = test_y:clone()
    spoilt[{ { 101, 130 } }] = lunce.ones(30, { dtype = "int64" })
    assert.equal(1, eval.linear_probe(x, y, test_x, spoilt, o).test)
    o.drop_last = false
    assert.is_true(eval.linear_probe(x, y, test_x, spoilt, o).test < 1)
  end)

  it("standardised columns train a layer for columns as they were", function()
    local o = { lr = 0.05, epochs = 20, standardise = true }
    local function stretched(t) return t * lunce.tensor{ 1e-3, 1, 1e3 } + 5 end
    local result = eval.linear_probe(stretched(x), y, stretched(test_x), test_y, o)
    assert.equal(1, result.test)
    local scores = lunce.linear(stretched(test_x), result.weight, result.bias)
    assert.equal(130, scores:argmax(2):eq(test_y):sum():item())
  end)

  it("no validation share, no validation figure", function()
    local o = { epochs = 1, validation = 0 }
    assert.is_nil(eval.linear_probe(x, y, test_x, test_y, o).validation)
  end)

  it("leaves no memory behind", function()
    local function live()
      collectgarbage()
      collectgarbage()
      return lunce.memory().live_bytes
    end
    eval.linear_probe(x, y, test_x, test_y, { epochs = 1 })
    local before = live()
    eval.linear_probe(x, y, test_x, test_y, { epochs = 5 })
    assert.equal(before, live())
  end)

  it("bad input", function()
    refused("the training set is a tensor", function()
      eval.linear_probe(x, test_y, test_x, test_y)
    end)
    refused("have 2 columns, the others 3", function()
      eval.linear_probe(x, y, test_x:narrow(2, 1, 2), test_y)
    end)
    refused("validation is 1", function()
      eval.linear_probe(x, y, test_x, test_y, { validation = 1 })
    end)
    refused("unknown option epoch;", function()
      eval.linear_probe(x, y, test_x, test_y, { epoch = 1 })
    end)
  end)
end)

describe("features:", function()
  local set = data.digits{ split = "test" }
  local function loader()
    return data.loader(set:to(device), { batch = 100, shuffle = false,
      augment = lunce.augment.eval{ size = 16 } })
  end

  it("come in the set's order, without a tape, and leave the mode as it was", function()
    local encoder = lunce.models.convnet{}
    encoder:train()
    local features, labels = eval.features(encoder, loader())
    assert.same({ 797, 128 }, features.shape)
    assert.is_false(features.requires_grad)
    assert.equal(device, features.device)
    assert.is_true(labels:cpu():eq(set.labels):all():item())
    assert.is_true(encoder.training)
    local again = eval.features(encoder, loader())
    assert.is_true(features:eq(again):all():item())
  end)

  it("an encoder's error leaves the mode as it was", function()
    local encoder = lunce.models.convnet{ in_channels = 3 }
    encoder:train()
    assert.has_error(function() eval.features(encoder, loader()) end)
    assert.is_true(encoder.training)
  end)
end)

describe("features on two devices", function()
  if not lunce.cuda.is_available() then return end
  local x, y = lunce.rand(6, 3, { device = "cpu" }), lunce.ones(6, { dtype = "int64",
    device = "cpu" })

  it("are refused by name", function()
    refused("of the test set some lie on cpu, others on cuda:0", function()
      eval.linear_probe(x, y, x:cuda(), y)
    end)
    refused("of the training set some lie on cuda:0, others on cpu", function()
      eval.linear_probe(x:cuda(), y, x, y)
    end)
    refused("of the queries some lie on cuda:0, the bank on cpu", function()
      eval.knn(x, y, x, y:cuda())
    end)
    refused("of the bank some lie on cpu, the bank on cuda:0", function()
      eval.knn(x:cuda(), y, x:cuda(), y:cuda())
    end)
  end)

  it("give the CPU's accuracies on either", function()
    local bank, bank_labels = pixels "train"
    local queries, labels = pixels "test"
    local o, results = { lr = 0.01, epochs = 3, standardise = true }, {}
    for _, at in ipairs{ "cpu", "cuda" } do
      results[at] = eval.linear_probe(bank:to(at), bank_labels:to(at), queries:to(at),
        labels:to(at), o)
      assert.is_true(results[at].test > 0.8)
    end
    assert.near(results.cpu.test, results.cuda.test, 0.01)
    local difference = (results.cpu.weight - results.cuda.weight:cpu()):abs():max():item()
    assert.is_true(difference < 1e-3)
  end)
end)

describe("tables:", function()
  it("align numbers to the right, and leave cells empty", function()
    local text = eval.table({ "encoder", "kNN@1", "seconds" },
      { { "raw pixels", 0.96737, false }, { "NT-Xent", 0.95, 12 } })
    assert.equal("encoder      kNN@1  seconds\nraw pixels  0.9674\nNT-Xent     0.9500       12",
      text)
  end)
end)

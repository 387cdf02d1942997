-- From nothing to a trained encoder, and what `make demo` runs: scripts/simclr.lua on the shipped
-- digits with NT-Xent and with WEINCE, beside an untrained encoder and raw pixels. About a minute
-- on two cores:
--
--   ./lunce scripts/demo.lua
--
-- With --device=cuda a GPU trains and measures; the bounds are the same. It leaves checkpoints, the
-- loss curve and a histogram of negative cosines in --out. Its last line begins "demo: ok", or
-- "demo: failed" (exit status 1) when an accuracy is below its bound.
local lunce = require "lunce"
local plot = require "lunce.plot"
local progress = require "lunce.progress"
local data, eval, similarity = lunce.data, lunce.eval, lunce.similarity

local args = lunce.args({ out = "build/demo", epochs = 60, size = 16, seed = 7, threads = 1,
  device = "cpu" }, { ... })

local LEAST = { linear = 0.94, knn = 0.93 }
local NAMES = { untrained = "untrained encoder", nt_xent = "NT-Xent", weince = "WEINCE" }
local TRAINED, ALL = { "nt_xent", "weince" }, { "untrained", "nt_xent", "weince" }

local start = progress.clock()
local simclr = assert(loadfile((arg[0]:match "^(.*/)" or "") .. "simclr.lua"))

local function train(name)
  return simclr("--loss=" .. (name == "untrained" and "nt_xent" or name),
    "--epochs=" .. (name == "untrained" and 0 or args.epochs), "--out=" .. args.out .. "/" .. name,
    "--size=" .. args.size, "--seed=" .. args.seed, "--threads=" .. args.threads,
    "--device=" .. args.device)
end

local results = {}
for _, name in ipairs(ALL) do results[name] = train(name) end

local function digits(split) return data.digits{ split = split }:to(args.device) end

local function pixels(set) return set.images:to("float32"):flatten(2) / 255, set.labels end

local train_x, train_y = pixels(digits "train")
local test = digits "test"
local test_x, test_y = pixels(test)
local raw = {
  knn = eval.knn(train_x, train_y, test_x, test_y).recall[1],
  linear = eval.linear_probe(train_x, train_y, test_x, test_y,
    { lr = 1e-3, standardise = true }).test,
}

-- The cosines of all pairs of test images' projections: what the losses call negatives.
local function negative_cosines(result)
  return lunce.no_grad(lunce.scope, function()
    local loader = data.loader(test, { batch = 400, shuffle = false,
      augment = lunce.augment.eval{ size = args.size } })
    local z = result.projector(eval.features(result.encoder, loader))
    return similarity.cosine(z):triangle():dense():flatten():tolist()
  end)
end

local curves, histograms = {}, {}
for i, name in ipairs(TRAINED) do
  curves[i] = { name = NAMES[name], y = results[name].losses }
  histograms[i] = { name = NAMES[name], values = negative_cosines(results[name]) }
end
for _, kind in ipairs{ ".svg", ".png" } do
  assert(plot.lines(args.out .. "/loss" .. kind, curves,
    { title = "Training loss on the digits", x = "epoch", y = "loss" }))
  assert(plot.histogram(args.out .. "/negative-cosines" .. kind, histograms,
    { title = "Projections of different test images", x = "cosine", y = "density",
      range = { -1, 1 }, bins = 100 }))
end

local rows = { { "raw pixels", raw.knn, raw.linear, false } }
for _, name in ipairs(ALL) do
  local r = results[name]
  rows[#rows + 1] = { NAMES[name], r.knn, r.linear,
    name ~= "untrained" and ("%.1f"):format(r.seconds) }
end
print("\n" .. eval.table({ "representation", "kNN@1", "linear", "seconds" }, rows) .. "\n")
print("checkpoints and figures are in " .. args.out)

local passed = true
for _, name in ipairs(TRAINED) do
  for figure, least in pairs(LEAST) do
    local value = results[name][figure]
    passed = passed and value >= least and value > results.untrained[figure]
  end
end
local figures = ("untrained_knn=%.4f nt_xent_linear=%.4f nt_xent_knn=%.4f weince_linear=%.4f "
  .. "weince_knn=%.4f seconds=%.1f"):format(results.untrained.knn, results.nt_xent.linear,
  results.nt_xent.knn, results.weince.linear, results.weince.knn, progress.clock() - start)
print(("demo: %s %s"):format(passed and "ok" or "failed", figures))
if not passed then os.exit(1, true) end

-- SimCLR on the shipped digits: trains a small convolutional encoder on two augmented views of each
-- image, saves it, and measures it frozen. Half a minute on two cores:
--
--   ./lunce scripts/simclr.lua --loss=weince --out=runs/weince
--
-- ends with knn and linear near 0.96 (nt_xent: 0.97; an untrained encoder, --epochs=0: 0.93).
-- --resume=<checkpoint> goes on to the same bits as a run that was not interrupted, and views made
-- with --augment=device are the same; with --device=cuda a GPU makes them, from the set it holds.
local lunce = require "lunce"
local progress = require "lunce.progress"
local augment, data, eval, loss = lunce.augment, lunce.data, lunce.eval, lunce.loss
local models, optim, safetensors = lunce.models, lunce.optim, lunce.io.safetensors

local args = lunce.args({
  loss = "nt_xent",      -- a loss of two views: nt_xent, weince, weibit, or another by its name
  tau = 0.5,             -- temperature
  beta = "1",            -- weince's and weibit's shape: a number, anchor or batch
  epochs = 60,
  batch = 250,
  lr = 1e-3,
  size = 16,             -- the 8x8 digits are resampled to size x size
  features = 64,         -- width of the projection
  seed = 7,
  threads = 1,           -- loader threads
  augment = "loader",    -- where views are made: loader (its threads), device (that holds the set)
  device = "cpu",        -- where the encoder trains and is measured, and the set lies: cpu, cuda
  save_every = 20,       -- epochs
  out = "runs/simclr",
  resume = "",
}, { ... })

local train = data.digits{ split = "train" }
local test = data.digits{ split = "test" }
local views = augment.chain{
  augment.random_resized_crop{ size = args.size, scale = { 0.6, 1 }, ratio = { 0.8, 1.25 } },
  augment.color_jitter{ brightness = 0.4, contrast = 0.4 },
}
local on_device = args.augment == "device"
assert(on_device or args.augment == "loader", "simclr: --augment is loader or device")
local loader = data.loader(on_device and train:to(args.device) or train, { batch = args.batch,
  views = 2, seed = args.seed, threads = args.threads, drop_last = true, augment = views,
  on_device = on_device, device = args.device })

lunce.manual_seed(args.seed)
local encoder = models.convnet{ channels = { 32, 64, 128 } }:to(args.device)
local projector = models.projector(encoder.out_features, args.features):to(args.device)
local parameters = encoder:parameters()
for _, p in ipairs(projector:parameters()) do parameters[#parameters + 1] = p end
local optimiser = optim.Adam(parameters, { lr = args.lr })
local beta_state = loss.beta_state()

local beta = tonumber(args.beta) or args.beta
local state = type(beta) == "string" and beta_state or nil
local criteria = {
  nt_xent = function(a, b) return loss.nt_xent(a, b, { tau = args.tau }) end,
  weince = function(a, b)
    return loss.weince(a, b, { tau = args.tau, beta = beta, state = state })
  end,
  weibit = function(a, b) return loss.weibit(a, b, { beta = beta, state = state }) end,
}
local criterion = criteria[args.loss] or loss[args.loss]

-- Everything that the next step depends on, as tensors under the name of the part they belong to.
local parts = { encoder = encoder, projector = projector, optimiser = optimiser, beta = beta_state }
local checkpoint = args.out .. "/checkpoint.safetensors"

local function save(epoch)
  local tensors = {}
  for name, part in pairs(parts) do
    for key, tensor in pairs(part:state_dict()) do tensors[name .. "." .. key] = tensor end
  end
  safetensors.save(checkpoint, tensors, { epoch = tostring(epoch), loss = args.loss })
end

local function restore(path)
  local tensors, metadata = assert(safetensors.load(path))
  for name, part in pairs(parts) do
    local own = {}
    for key, tensor in pairs(tensors) do
      if key:sub(1, #name + 1) == name .. "." then own[key:sub(#name + 2)] = tensor end
    end
    part:load_state_dict(own)
  end
  return tonumber(metadata.epoch)
end

local function forward(batch)
  local z = projector(encoder(lunce.cat(batch.x, 1)))
  local B = batch.x[1]:size(1)
  return (criterion(z:narrow(1, 1, B), z:narrow(1, B + 1, B)))
end

local function finite(x) return x == x and math.abs(x) < math.huge end

-- One update; gives the loss. Where it or its gradient is not finite, the step is made again with
-- every operator watched, which raises an error that names the first to produce such a value.
local function step(batch)
  optimiser:zero_grad()
  local value = forward(batch)
  value:backward()
  local number = value:item()
  local norm = optim.clip_grad_norm(parameters, math.huge, { error_if_nonfinite = false })
  if not finite(number) or not finite(norm) then
    lunce.detect_anomaly(true)
    forward(batch):backward()
    error(("simclr: the loss is %g and its gradient's norm %g"):format(number, norm), 0)
  end
  optimiser:step()
  return number
end

os.execute("mkdir -p '" .. args.out:gsub("'", "'\\''") .. "'")
local first = args.resume ~= "" and restore(args.resume) + 1 or 1
local line, losses = progress.new(io.stderr, args.epochs), {}
encoder:train()
for epoch = first, args.epochs do
  local sum, batches = 0, 0
  for batch in loader:epoch(epoch) do
    sum, batches = sum + lunce.scope(step, batch), batches + 1
  end
  losses[epoch] = sum / batches
  line:show(epoch, "%s  epoch %d  loss %.4f ", args.loss, epoch, losses[epoch])
  if epoch % args.save_every == 0 then save(epoch) end
end
line:finish()
local seconds = line:seconds()
save(args.epochs)

-- The frozen encoder: 1 nearest neighbour by cosine, and a linear probe.
local function features(set)
  return eval.features(encoder, data.loader(set:to(args.device), { batch = 500, shuffle = false,
    augment = augment.eval{ size = args.size } }))
end
local x, y = features(train)
local test_x, test_y = features(test)
local knn = eval.knn(x, y, test_x, test_y).recall[1]
local linear = eval.linear_probe(x, y, test_x, test_y, { lr = 1e-3, standardise = true,
  seed = args.seed }).test
print(("simclr: loss=%s epochs=%d knn=%.4f linear=%.4f seconds=%.1f checkpoint=%s"):format(
  args.loss, args.epochs, knn, linear, seconds, checkpoint))

return { encoder = encoder, projector = projector, losses = losses, knn = knn, linear = linear,
  seconds = seconds, checkpoint = checkpoint }

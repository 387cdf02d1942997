-- The linear probe: a linear classifier trained on frozen features, where they lie. Holds no state.
-- Invariant: the result is a function of the features, the options and the seed alone; features are
-- used as given unless the options ask for standardised ones.
local lunce = require "lunce"
local optim = require "lunce.optim"
local options = require("lunce.options").options
local raise = require("lunce.ffi").raise

local FLAGS = { drop_last = true, standardise = true }
local DEFAULTS = { lr = 3e-4, batch = 256, epochs = 100, weight_decay = 0, validation = 0.1,
  drop_last = false, standardise = false, seed = 1 }

local function check(x, y, name, like)
  if not lunce.is_tensor(x) or not lunce.is_tensor(y) or #x.shape ~= 2 or #y.shape ~= 1
    or x.shape[1] ~= y.shape[1] or y.dtype ~= "int64" then
    raise("eval.linear_probe: the %s set is a tensor (N,D) and int64 labels (N)", name)
  end
  if like and x.shape[2] ~= like.shape[2] then
    raise("eval.linear_probe: features of the %s set have %d columns, the others %d", name,
      x.shape[2], like.shape[2])
  end
  for _, t in ipairs{ x, y } do
    if t.device ~= (like or x).device then
      raise("eval.linear_probe: features and labels of both sets lie on one device; of the %s set"
        .. " some lie on %s, others on %s", name, (like or x).device, t.device)
    end
  end
end

-- Streams of the probe's own generator: weights, the validation split, and one for each epoch.
local WEIGHTS, BIAS, SPLIT, EPOCH = 1, 2, 3, 4

-- torch.nn.Linear's start: uniform within 1/sqrt(D).
local function classifier(x, classes, seed)
  local D = x.shape[2]
  local bound = 1 / math.sqrt(D)
  local function uniform(stream, ...)
    local u = lunce.rand({ ... },
      { dtype = x.dtype, device = x.device, seed = seed, stream = stream })
    return ((u * 2 - 1) * bound):requires_grad_()
  end
  return uniform(WEIGHTS, classes, D), uniform(BIAS, classes)
end

-- Trains on standardised columns, and gives the layer that does the same to columns as they were.
local function on_standardised(x, fit)
  local mean = x:mean(1)
  -- A dead column has no deviation; any scale keeps it at zero.
  local deviation = x:std(1):clamp(1e-6, math.huge)
  local w, b = fit((x - mean) / deviation)
  return lunce.no_grad(function()
    w = w / deviation
    return w, b - (w * mean):sum(2)
  end)
end

local function train(x, y, classes, o)
  local w, b = classifier(x, classes, o.seed)
  local optimiser = optim.Adam({ w, b }, { lr = o.lr, weight_decay = o.weight_decay })
  local N = x.shape[1]
  for epoch = 1, o.epochs do
    local order = lunce.randperm(N, { seed = o.seed, stream = EPOCH + epoch, device = x.device })
    for first = 1, N, o.batch do
      lunce.scope(function()
        local rows = order:narrow(1, first, math.min(o.batch, N - first + 1))
        local logits = lunce.linear(x:index_select(1, rows), w, b)
        optimiser:zero_grad()
        lunce.cross_entropy(logits, y:index_select(1, rows)):backward()
        optimiser:step()
      end)
    end
  end
  return w, b
end

local function accuracy(w, b, x, y, o)
  local N = x.shape[1]
  if o.drop_last then N = N - N % o.batch end
  if N == 0 then return nil end
  return lunce.scope(lunce.no_grad, function()
    local right = lunce.linear(x, w, b):argmax(2):eq(y):narrow(1, 1, N)
    return right:sum():item() / N
  end)
end

--- Trains a linear layer by Adam on frozen features and measures it on all test samples.
---@param x lunce.Tensor (N,D) features to train on; the others lie on its device
---@param y lunce.Tensor (N) int64, from 1
---@param test_x lunce.Tensor (T,D)
---@param test_y lunce.Tensor (T) int64
---@param given table|nil lr (3e-4), batch (256), epochs (100), weight_decay (0), seed (1);
---  validation (0.1): the share of the training samples held out; drop_last (false): leaves the
---  last partial batch out of the test and validation samples, as the released code of WEINCE does;
---  standardise (false): trains on columns of mean 0 and deviation 1
---@return table result test, validation (accuracies; nil without samples), weight (classes,D), bias
return function(x, y, test_x, test_y, given)
  local o = options(given, DEFAULTS, "eval.linear_probe", FLAGS)
  check(x, y, "training")
  check(test_x, test_y, "test", x)
  if not (o.validation >= 0 and o.validation < 1) then
    raise("eval.linear_probe: validation is %g; a share from 0 to below 1 is taken", o.validation)
  end
  for _, name in ipairs{ "batch", "epochs" } do
    if o[name] % 1 ~= 0 or o[name] < 1 then
      raise("eval.linear_probe: %s is %g; a positive integer is taken", name, o[name])
    end
  end
  local N = x.shape[1]
  local held = math.floor(o.validation * N)
  if N - held < 1 then raise("eval.linear_probe: no samples are left to train on") end
  local order = lunce.randperm(N, { seed = o.seed, stream = SPLIT, device = x.device })
  local fit, rest = order:narrow(1, held + 1, N - held), order:narrow(1, 1, held)
  local fit_x, fit_y = x:detach():index_select(1, fit), y:index_select(1, fit)
  local classes = y:max():item()
  local function layer(columns) return train(columns, fit_y, classes, o) end
  local w, b
  if o.standardise then
    w, b = on_standardised(fit_x, layer)
  else
    w, b = layer(fit_x)
  end
  return { weight = w, bias = b, test = accuracy(w, b, test_x, test_y, o),
    validation = accuracy(w, b, x:index_select(1, rest), y:index_select(1, rest), o) }
end

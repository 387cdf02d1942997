-- What the bench measures on a CUDA device: rows as rows.lua has them. Holds no table. Invariant:
-- both sides compute with random numbers, for products of ones or zeros are faster; and the device
-- has done its work when a clock is read.
--
-- The chunk's argument is whether to be quick: sizes that kernels on the host can be asked for. A
-- row also has torch = true where PyTorch has a figure.
local lunce = require "lunce"
local sides = require "tests.bench.sides"

local cuda, loss, similarity = lunce.cuda, lunce.loss, lunce.similarity
local quick = ...

-- What a loss of R rows of d needs, with its tiles computed twice, in operations over R^2 d.
local WORK = { nt_xent = 4, weince = 5 }
local TITLE = { float32 = "", tf32 = ", TF32", bfloat16 = ", bfloat16", float16 = ", float16" }

local function random(seed, ...)
  return lunce.randn({ ... }, { device = "cuda", seed = seed })
end

local FILL = sides.fill(quick)
local ROUNDS = quick and 1 or 5
local ROWS = quick and { 32, 64 } or { 2048, 8192, 32768 }
local COLUMNS = quick and { 8 } or { 128, 512 }
local LARGE = quick and 2 ^ 12 or 2 ^ 26 -- float32 elements: 256 MB
local SQUARE = quick and 32 or 4096
local CEILING = quick and 64 or 8192 -- of the product that shares are of
local MANY = quick and 128 or 2 ^ 20 -- rows of the loss that shows memory
local BATCH, EXTENT = quick and 2 or 512, quick and 8 or 32
local VIEWS = quick and 4 or 8192 -- images a launch, two views each

-- ---- Sides --------------------------------------------------------------------------------------

-- fn with float32 products in TF32 where that is the precision, and tiles of similarities in it.
-- What fails is not measured.
local function guarded(precision, fn)
  return function()
    cuda.tf32(precision == "tf32")
    similarity.tile_dtype(precision)
    local ok, value = pcall(fn)
    cuda.tf32(false)
    similarity.tile_dtype "float32"
    collectgarbage()
    if ok then return value end
    return nil, (tostring(value):gsub("\n.*", ""))
  end
end

-- make() gives a step; figure makes a row's figure of its seconds.
local function timed(precision, make, figure)
  return guarded(precision, function() return figure(sides.device_wall(FILL, make())) end)
end

-- MB that the device's pool took for inputs and step, which it keeps.
local function peak(precision, make)
  return guarded(precision, function()
    collectgarbage()
    cuda.empty_cache()
    lunce.scope(make())
    cuda.synchronize()
    local memory = lunce.memory "cuda"
    return (memory.live_bytes + memory.cached_bytes) / 2 ^ 20
  end)
end

local function row(name, unit, better, rounds, make_sides, torch)
  return { name = name, unit = unit, better = better, rounds = rounds, torch = torch ~= nil,
    sides = function(tools)
      local result = make_sides()
      if torch then
        result.PyTorch = sides.asks(tools.torch, torch.question, torch.scale, torch.work)
      end
      return result
    end }
end

local function ms_row(name, precision, make, question)
  return row(name, "ms", "less", ROUNDS, function()
    return { lunce = timed(precision, make, function(seconds) return seconds * 1e3 end) }
  end, { question = "time " .. question, scale = 1e3 })
end

local function memory_row(name, precision, make, question)
  return row(name .. ", peak memory", "MB", "less", 1, function()
    return { lunce = peak(precision, make) }
  end, { question = "memory " .. question, scale = 1 / 2 ^ 20 })
end

-- ---- Losses -------------------------------------------------------------------------------------

local function loss_step(name, R, d)
  return function()
    local z_i = random(1, R / 2, d):requires_grad_()
    local z_j = random(2, R / 2, d):requires_grad_()
    return function()
      z_i.grad, z_j.grad = nil, nil;
      (loss[name](z_i, z_j, { tau = 0.5 })):backward()
    end
  end
end

local function product_step(n, dtype)
  return function()
    local x, y = random(1, n, n):to(dtype), random(2, n, n):to(dtype)
    return function() return x:mm(y) end
  end
end

-- Its operations a second in percent of a large product's.
local function share_row(name, precision, make, work)
  return row(name .. ", share of product", "%", "more", math.min(ROUNDS, 3), function()
    local step = timed(precision, make, function(seconds) return work / seconds end)
    local dtype = precision == "tf32" and "float32" or precision
    local ceiling = timed(precision, product_step(CEILING, dtype),
      function(seconds) return 2 * CEILING ^ 3 / seconds end)
    return { lunce = function()
      local most, reason = ceiling()
      if not most then return nil, reason end
      local rate
      rate, reason = step()
      return rate and 100 * rate / most, reason
    end }
  end)
end

local rows = {}
local function add(new) rows[#rows + 1] = new end

local function add_loss(loss_name, R, d)
  local make = loss_step(loss_name, R, d)
  for _, precision in ipairs { "float32", "tf32", "float16" } do
    local name = ("%s %d x %d%s"):format(loss_name, R, d, TITLE[precision])
    local question = ("%s %s %d %d"):format(loss_name, precision, R, d)
    add(ms_row(name, precision, make, question))
    add(share_row(name, precision, make, WORK[loss_name] * R * R * d))
    if precision == "float32" then add(memory_row(name, precision, make, question)) end
  end
end

-- Beside PyTorch's compiler.
local function add_compiled(R, d)
  local name = ("nt_xent %d x %d, float16, torch.compile"):format(R, d)
  add(ms_row(name, "float16", loss_step("nt_xent", R, d), ("nt_xent_compiled float16 %d %d"):format(
    R, d)))
end

-- Where a matrix has no room: of lunce alone.
local function add_many(R, d)
  local name, make = ("nt_xent %d x %d, float16"):format(R, d), loss_step("nt_xent", R, d)
  add(row(name, "ms", "less", 1, function()
    return { lunce = timed("float16", make, function(seconds) return seconds * 1e3 end) }
  end))
  add(row(name .. ", peak memory", "MB", "less", 1, function()
    return { lunce = peak("float16", make) }
  end))
end

-- ---- Operators, networks, starting --------------------------------------------------------------

-- GB touched a second, of an operator that reads and writes `arrays` of them.
local function add_large(name, operator, run, arrays)
  local work = 4e-9 * arrays * LARGE
  add(row(name .. (quick and "" or " over 256 MB"), "GB/s", "more", ROUNDS, function()
    local function make()
      local x, y = random(1, LARGE), random(2, LARGE)
      return function() return run(x, y) end
    end
    return { lunce = timed("float32", make, function(seconds) return work / seconds end) }
  end, { question = ("time %s float32 %d"):format(operator, LARGE), work = work }))
end

local function add_product(precision)
  local dtype = precision == "tf32" and "float32" or precision
  local work = 2e-12 * SQUARE ^ 3
  add(row(("matmul %d%s"):format(SQUARE, TITLE[precision]), "TFLOP/s", "more", ROUNDS, function()
    return { lunce = timed(precision, product_step(SQUARE, dtype),
      function(seconds) return work / seconds end) }
  end, { question = ("time matmul %s %d"):format(precision, SQUARE), work = work }))
end

local function resnet_step(precision, captured)
  return function()
    local last = { device = "cuda", memory_format = "channels_last" }
    local model = lunce.models.resnet18():to(last)
    local x = random(1, BATCH, 3, EXTENT, EXTENT):to(last)
    local optimiser = lunce.optim.SGD(model:parameters(), { lr = 0.01, momentum = 0.9 })
    local dtype = precision == "bfloat16" and precision
    local function forward() return model(x):square():mean() end
    local function step()
      optimiser:zero_grad()
      local value = lunce.autocast(dtype, forward)
      value:backward()
      optimiser:step()
      return value
    end
    if not captured then return step end
    local again = lunce.graph(step)
    for _ = 1, 3 do again() end
    return again
  end
end

local function add_resnet(precision)
  local name = ("ResNet-18 step, batch %d%s"):format(BATCH, TITLE[precision])
  local question = ("resnet18 %s %d %d"):format(precision, BATCH, EXTENT)
  add(ms_row(name, precision, resnet_step(precision), question))
  if precision ~= "tf32" then
    add(memory_row(name, precision, resnet_step(precision), question))
  end
end

-- Beside PyTorch's compiled step, which takes CUDA graphs too.
local function add_captured(precision)
  local name = ("ResNet-18 step, captured, batch %d%s"):format(BATCH, TITLE[precision])
  add(ms_row(name, precision, resnet_step(precision, true),
    ("resnet18_compiled %s %d %d"):format(precision, BATCH, EXTENT)))
end

local function add_views()
  add(row("SimCLR views, 32 x 32", "M/s", "more", ROUNDS, function()
    local function make()
      local images = lunce.randint(0, 256, { VIEWS, 3, 32, 32 }, { seed = 1 })
      images = images:to("uint8"):to("cuda")
      local chain, indices = lunce.augment.simclr { size = 32 }, lunce.arange(1, VIEWS):to("int64")
      local epoch = 0
      return function()
        epoch = epoch + 1
        return unpack(chain:views(images, indices, { seed = 1, epoch = epoch, views = 2 }))
      end
    end
    return { lunce = timed("float32", make, function(seconds) return 2e-6 * VIEWS / seconds end) }
  end))
end

local function add_start()
  local ours = [[./lunce -e 'require("lunce").ones(1, { device = "cuda" }):sum():item()']]
  local theirs = [[ -c 'import torch; torch.ones(1, device="%s").sum().item()']]
  add({ name = "start to a sum on the device", unit = "ms", better = "less",
    rounds = quick and 1 or 3, torch = true,
    sides = function(tools)
      return { lunce = function() return sides.command_wall(ours) * 1e3 end,
        PyTorch = tools.torch and function()
          return sides.command_wall(tools.python .. theirs:format(tools.peer_device)) * 1e3
        end }
    end })
end

-- The kernels of a link, forward and backward, with a cache of its own.
local function add_link(name, before)
  local command = [[sh -c '%s; mkdir -p build/bench/cache; ]]
    .. [[XDG_CACHE_HOME="$PWD/build/bench/cache" exec ./lunce tests/bench/first.lua']]
  add({ name = "a new link, " .. name, unit = "ms", better = "less", rounds = quick and 1 or 3,
    sides = function()
      return { lunce = guarded("float32", function()
        return sides.printed(command:format(before), "link_ms ")
      end) }
    end })
end

add_start()
add_link("compiled", "rm -rf build/bench/cache")
add_link("from disk", ":")
add_large("copy", "copy", function(x) return x:clone() end, 2)
add_large("add", "add", function(x, y) return x + y end, 3)
add_large("exp", "exp", function(x) return x:exp() end, 2)
for _, precision in ipairs { "float32", "tf32", "bfloat16", "float16" } do
  add_product(precision)
end
for _, name in ipairs { "nt_xent", "weince" } do
  for _, d in ipairs(COLUMNS) do
    for _, R in ipairs(ROWS) do add_loss(name, R, d) end
  end
end
for _, d in ipairs(COLUMNS) do add_compiled(ROWS[#ROWS], d) end
add_many(MANY, COLUMNS[1])
for _, precision in ipairs { "float32", "tf32", "bfloat16" } do add_resnet(precision) end
add_captured "bfloat16"
add_views()
return rows

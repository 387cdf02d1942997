-- Views of a batch made on the device that holds the images, beside those that a chain makes of one
-- image at a time on the CPU: each step alone, whole chains, loaders, and what is refused.
local lunce = require "lunce"
local device = require("tests.on_device").name
local data, augment = lunce.data, lunce.augment
local on_cuda = device ~= "cpu"

-- Both sides compute by the same formulas in the same order, without fused multiply-add, so they
-- give the same bits; but a Gaussian's weights come of each side's own exp, and may be off by a
-- float's last place, 6e-8, of values up to 1.
local BLUR = on_cuda and 1e-6 or 0

local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local refuses = dofile(here .. "refusals.lua")("augment_test.lua")

local function images_of(n, channels, height, width)
  return lunce.randint(0, 255, { n, channels, height, width }, { seed = height + width,
    dtype = "uint8", device = "cpu" })
end

local function largest_difference(a, b)
  assert.same(a.shape, b.shape)
  return (a - b):abs():max():item()
end

-- Whether the views of these samples are those that the chain makes of their images.
local function agrees(what, chain, images, indices, tolerance, given)
  local at = given or { seed = 5, epoch = 3, views = 2 }
  local views = chain:views(images:to(device), indices, at)
  assert.equal(at.views, #views)
  for v, x in ipairs(views) do
    assert.equal(device, x.device)
    x = x:to("cpu")
    for row, sample in ipairs(indices) do
      local place = sample == -1 and images.shape[1] or sample
      local view = chain:apply(images[place], { seed = at.seed, epoch = at.epoch, sample = place,
        view = v })
      local difference = largest_difference(x[row], view)
      assert(difference <= tolerance, ("%s: view %d of sample %d is off by %g"):format(what, v,
        place, difference))
    end
  end
end

-- Odd sizes, sides of one pixel, more than the 1024 values that a sum takes at once, and the
-- remainders that it takes one by one.
local SHAPES = { { 3, 7, 9 }, { 1, 8, 5 }, { 3, 1, 1 }, { 1, 2, 1 }, { 3, 33, 63 }, { 1, 4, 4 } }

describe("on the device, as from single images:", function()
  local STEPS = {
    { "crop at the top left", function(h, w)
      return augment.crop { height = math.ceil(h / 2), width = math.ceil(w / 2), size = { 5, 6 } }
    end },
    { "crop at the bottom right", function(h, w)
      local height, width = math.ceil(h / 2), math.ceil(w / 3)
      return augment.crop { top = h - height + 1, left = w - width + 1, height = height,
        width = width, size = { 9, 11 }, filter = "bicubic" }
    end },
    { "crop of one pixel", function(h, w)
      return augment.crop { top = h, left = w, height = 1, width = 1, size = 3 }
    end },
    { "crop without resampling", function(h)
      return augment.crop { top = h, height = 1, width = 1 }
    end },
    { "resize to less", function(h, w)
      return augment.resize { size = { math.ceil(h / 3), math.ceil(w / 4) } }
    end },
    { "resize to less, bicubic", function()
      return augment.resize { size = { 1, 2 }, filter = "bicubic" }
    end },
    { "resize to more", function() return augment.resize { size = { 40, 37 } } end },
    { "resize of the shorter side", function() return augment.resize { size = 6 } end },
    { "center_crop", function(h, w) return augment.center_crop { size = { h, math.ceil(w / 2) } }
    end },
    { "random_resized_crop", function()
      return augment.random_resized_crop { size = { 13, 12 }, filter = "bicubic" }
    end },
    { "horizontal_flip", function() return augment.horizontal_flip { p = 1 } end },
    { "horizontal_flip of some", function() return augment.horizontal_flip() end },
    { "brightness", function() return augment.brightness { factor = 1.7 } end },
    { "contrast", function() return augment.contrast { factor = 0.4 } end },
    { "saturation", function() return augment.saturation { factor = 1.6 } end },
    { "hue", function() return augment.hue { turn = -0.37 } end },
    { "grayscale", function() return augment.grayscale() end },
    { "solarize", function() return augment.solarize { threshold = 0.3 } end },
    { "normalize", function()
      return augment.normalize { mean = { 0.1, 0.5, 0.4 }, std = { 0.2, 3, 0.7 } }
    end },
    { "color_jitter", function()
      return augment.color_jitter { brightness = 0.4, contrast = 0.4, saturation = 0.4, hue = 0.1 }
    end },
  }

  for _, about in ipairs(STEPS) do
    local name, step = unpack(about)
    it(name, function()
      for _, shape in ipairs(SHAPES) do
        local what = table.concat(shape, "x")
        agrees(what, augment.chain { step(shape[2], shape[3]) }, images_of(4, unpack(shape)),
          { 4, 1, 2 }, 0)
      end
    end)
  end

  it("gaussian_blur", function()
    for _, shape in ipairs(SHAPES) do
      local side, images = math.min(shape[2], shape[3]), images_of(3, unpack(shape))
      for kernel = 1, 2 * side - 1, 2 * math.ceil(side / 3) do
        local step = augment.gaussian_blur { kernel = kernel, sigma = { 0.1, 9 } }
        agrees(("%s, kernel %d"):format(table.concat(shape, "x"), kernel), augment.chain { step },
          images, { 3, 1 }, BLUR)
      end
    end
  end)

  it("nothing to do, which gives bytes over 255", function()
    for _, shape in ipairs(SHAPES) do
      local images = images_of(3, unpack(shape))
      local x = augment.chain({}):views(images:to(device), { 2, 3 })[1]
      local plain = images[{ { 2, 3 } }]:to "float32" / 255
      assert.equal(0, largest_difference(x:to("cpu"), plain))
    end
  end)

  it("whole chains", function()
    local jitter = augment.color_jitter { brightness = 0.4, contrast = 0.4, hue = 0.1 }
    local some = { 7, 1, 12, 3, 4, 5, 6, 8, 9, 10, 11, 2 }
    for name, about in pairs {
      simclr = { augment.simclr { size = 16 }, 0 },
      strong = { augment.simclr_strong { size = 32 }, BLUR },
      -- Dividing by 0.2 makes five times as much of what is off.
      normalised = { augment.simclr_strong { size = 11, mean = 0.45, std = 0.2 }, 5 * BLUR },
      eval = { augment.eval { size = 12, mean = 0.5, std = 0.25 }, 0 },
      ["steps before the crop"] = { augment.chain { augment.horizontal_flip(), jitter,
        augment.random_resized_crop { size = 10 } }, 0 },
      ["three crops"] = { augment.chain { augment.resize { size = 30 }, augment.contrast
        { factor = 0.5 }, augment.random_resized_crop { size = { 9, 21 } }, jitter,
        augment.resize { size = { 17, 5 }, filter = "bicubic" } }, 0 },
    } do
      for _, shape in ipairs { { 3, 32, 32 }, { 1, 19, 27 }, { 3, 21, 13 } } do
        agrees(name .. " of " .. table.concat(shape, "x"), about[1], images_of(12, unpack(shape)),
          some, about[2])
      end
    end
  end)

  it("images of 96 x 96 in colour", function()
    agrees("96x96", augment.simclr { size = 96 }, images_of(2, 3, 96, 96), { 2, 1 }, 0)
  end)

  it("large images, where views are small", function()
    local chain = augment.simclr { size = 16 }
    agrees("200x300", chain, images_of(2, 3, 200, 300), { 1, 2 }, 0)
  end)
end)

describe("indices:", function()
  local images = images_of(9, 3, 8, 8)
  local chain = augment.simclr { size = 8 }

  it("one, the same again, and -1 for the last", function()
    for _, indices in ipairs { { 9 }, { 4, 4, 1, 4 }, { -1, 2, -1 } } do
      agrees("indices", chain, images, indices, 0)
    end
    agrees("one view", chain, images, { 3 }, 0, { seed = 1, epoch = 0, views = 1 })
    agrees("16 views", chain, images, { 3, 5 }, 0, { seed = 2 ^ 40 + 1, epoch = 2 ^ 32 - 1,
      views = 16 })
  end)

  it("a tensor on any device, of any layout", function()
    local pairs_of = lunce.tensor({ { 3, 0 }, { 7, 0 } }, { dtype = "int64", device = "cpu" })
    local held, expected = images:to(device), chain:views(images:to(device), { 3, 7 })[1]
    for _, index in ipairs { pairs_of:select(2, 1), pairs_of:select(2, 1):to(device) } do
      assert.equal(0, largest_difference(expected, chain:views(held, index)[1]))
    end
  end)

  it("none", function()
    local x = chain:views(images:to(device), {}, { views = 2 })
    assert.same({ 0, 3, 8, 8 }, x[2].shape)
    local nothing = lunce.zeros(0, 3, 8, 8, { dtype = "uint8", device = device })
    assert.same({ 0, 3, 8, 8 }, chain:views(nothing, {})[1].shape)
  end)

  it("out of range are refused", function()
    local held = images:to(device)
    refuses(function() chain:views(held, { 1, 2, 10 }) end,
      "augment: index 10 at position 3 is outside 1..9")
    for _, bad in ipairs { 0, -2, 2 ^ 40 } do
      refuses(function() chain:views(held, { bad }) end, "at position 1 is outside 1..9")
    end
    local nothing = lunce.zeros(0, 3, 8, 8, { dtype = "uint8", device = device })
    refuses(function() chain:views(nothing, { -1 }) end, "index -1 at position 1")
  end)
end)

it("halves are the float32 views, rounded", function()
  local images, chain = images_of(5, 3, 9, 8):to(device), augment.simclr { size = 7 }
  local x = chain:views(images, { 1, 5 }, { views = 2 })
  for _, dtype in ipairs { "float16", "bfloat16" } do
    local y = chain:views(images, { 1, 5 }, { views = 2, dtype = dtype })
    for v = 1, 2 do
      assert.equal(dtype, y[v].dtype)
      assert.is_true(y[v]:eq(x[v]:to(dtype)):all():item())
    end
  end
end)

it("a view is a function of its address alone", function()
  local images, chain = images_of(6, 3, 12, 12):to(device), augment.simclr { size = 12 }
  local at = { seed = 1, epoch = 2, views = 2 }
  local first = chain:views(images, { 1, 2, 3, 4 }, at)
  local again = chain:views(images, { 6, 4, 3, 2, 1 }, at)
  for v = 1, 2 do
    for row = 1, 4 do
      assert.equal(0, largest_difference(first[v][row], again[v][6 - row]))
    end
  end
  assert(largest_difference(first[1], first[2]) > 0)
  for _, other in ipairs { { seed = 2, epoch = 2 }, { seed = 1, epoch = 3 } } do
    assert(largest_difference(first[1], chain:views(images, { 1, 2, 3, 4 }, other)[1]) > 0)
  end
end)

describe("a loader of a set on the device", function()
  local images = images_of(53, 3, 12, 10)
  local labels = lunce.randint(1, 3, { 53 }, { seed = 2, dtype = "int64", device = "cpu" })
  local set = data.set(images, labels)

  local function options(more)
    local given = { batch = 16, views = 2, seed = 7, threads = 0,
      augment = augment.simclr { size = 8 } }
    for name, value in pairs(more or {}) do given[name] = value end
    return given
  end

  local function collect(loader, start)
    local batches = {}
    for batch in loader:epoch(4, { start = start or 1 }) do batches[#batches + 1] = batch end
    return batches
  end

  local function same(expected, got)
    assert.equal(#expected, #got)
    for i, batch in ipairs(expected) do
      assert.same(batch.index:tolist(), got[i].index:tolist())
      assert.equal(device, got[i].y.device)
      assert.same(batch.y:tolist(), got[i].y:tolist())
      assert.equal(#batch.x, #got[i].x)
      for v, x in ipairs(batch.x) do
        assert.equal(device, got[i].x[v].device)
        assert.equal(0, largest_difference(x, got[i].x[v]:to("cpu")))
      end
    end
  end

  it("gives what a loader of the set in host memory gives", function()
    for _, threads in ipairs { 0, 2 } do
      for _, more in ipairs { {}, { drop_last = true, shuffle = false }, { limit = 20 },
        { rank = 2, world = 3, views = 1 } } do
        local expected = collect(data.loader(set, options(more)))
        more.threads, more.on_device = threads, true
        same(expected, collect(data.loader(set:to(device), options(more))))
      end
    end
  end)

  it("goes on from the middle of an epoch", function()
    local rest = collect(data.loader(set:to(device), options { on_device = true }), 3)
    local whole = collect(data.loader(set, options()))
    same({ whole[3], whole[4] }, rest)
  end)

  it("makes views there without being asked to, where the device has no threads", function()
    if not on_cuda then return pending "on the CPU a loader's threads make them" end
    same(collect(data.loader(set, options())), collect(data.loader(set:to(device), options())))
  end)

  it("makes a batch again that failed", function()
    local loader = data.loader(set:to(device), options { on_device = true, threads = 1 })
    local expected = collect(data.loader(set, options()))
    for n = 1, 12 do
      lunce.zeros(1):free()
      require("lunce.ffi").C.ln_memory_fail_after(n)
      local ok, got = pcall(collect, loader)
      require("lunce.ffi").C.ln_memory_fail_after(0)
      assert(ok, got)
      same(expected, got)
    end
  end)

  it("may have no labels, and subsets and splits of it stay there", function()
    local held = data.set(images):to(device)
    for batch in data.loader(held, options { on_device = true }):epoch(0) do
      assert.is_nil(batch.y)
    end
    assert.equal(held, held:to(device))
    local part, rest = set:to(device):split(0.5, 1)
    assert.equal(device, part:subset({ 2, 1 }).images.device)
    assert.equal(device, rest.labels.device)
    assert.is_true((set:split(0.5, 1)).images:eq(part.images:to("cpu")):all():item())
  end)

  it("gives all memory back", function()
    local held = set:to(device)
    for _ = 1, 2 do collectgarbage() end
    lunce.zeros(1):free()
    local before = lunce.memory()
    local loader = data.loader(held, options { on_device = true })
    for batch in loader:epoch(0) do
      for _, x in ipairs(batch.x) do x:free() end
    end
    loader:close()
    for _ = 1, 2 do collectgarbage() end
    lunce.zeros(1):free()
    assert.equal(before.live_bytes, lunce.memory().live_bytes)
    assert.equal(before.tensors, lunce.memory().tensors)
  end)
end)

describe("refused:", function()
  local chain = augment.simclr { size = 8 }
  local images = images_of(4, 3, 10, 10):to(device)
  local function views(...)
    local arguments = { ... }
    return function() chain:views(unpack(arguments)) end
  end

  it("other images", function()
    refuses(views(images:to "float32", { 1 }), "(4,3,10,10) float32", "(N,C,H,W) uint8")
    refuses(views(images[1], { 1 }), "(3,10,10) uint8", "(N,C,H,W)")
    refuses(views(images:transpose(3, 4), { 1 }), "not contiguous")
    refuses(views(lunce.zeros(2, 2, 8, 8, { dtype = "uint8", device = device }), { 1 }),
      "(2,8,8)", "1 or 3 channels")
    refuses(views(nil, { 1 }), "argument 1 is nil")
  end)

  it("other indices and options", function()
    refuses(views(images, nil), "argument 2 is nil")
    refuses(views(images, lunce.ones(2)), "the index is (2) float32")
    refuses(views(images, images), "the index is")
    refuses(views(images, { 1 }, { views = 0 }), "views 0", "1 to 16")
    refuses(views(images, { 1 }, { views = 17 }), "views 17")
    refuses(views(images, { 1 }, { views = 1.5 }), "views is 1.5")
    refuses(views(images, { 1 }, { epoch = -1 }), "epoch -1")
    refuses(views(images, { 1 }, { epoch = 2 ^ 32 }), "epoch 4294967296")
    refuses(views(images, { 1 }, { dtype = "float64" }), "dtype float64", "float16 and bfloat16")
    refuses(views(images, { 1 }, { dtype = "uint8" }), "dtype uint8")
    refuses(views(images, { 1 }, { sample = 1 }), "unknown option sample")
    local too_large = augment.chain { augment.center_crop { size = 11 } }
    refuses(function() too_large:views(images, { 1 }) end, "center_crop", "10 x 10 pixels")
    refuses(function() data.set(images):to("gpu") end, 'set:to: device "gpu"')
  end)

  -- However few steps are drawn: whether a view fits does not depend on the draws.
  it("views that do not fit a block's shared memory, which the CPU makes", function()
    local large = images_of(2, 3, 150, 150)
    for _, given in ipairs { augment.chain {}, augment.chain { augment.horizontal_flip { p = 0 },
      augment.resize { size = 8 } }, augment.simclr { size = 150 } } do
      if on_cuda then
        refuses(function() given:views(large:to(device), { 1 }) end, "of images (3,150,150) take",
          "bytes of shared memory and " .. device)
        refuses(function()
          data.loader(data.set(large):to(device), { batch = 2, augment = given }):epoch(0)()
        end, "bytes of shared memory")
      end
      agrees("on the cpu", given, large, on_cuda and {} or { 1 }, 0)
    end
  end)
end)

it("another cuda device makes them too", function()
  if not on_cuda or lunce.cuda.device_count() < 2 then return pending "no second cuda device" end
  local images, chain = images_of(3, 3, 9, 9), augment.simclr { size = 9 }
  local x = chain:views(images:to("cuda:1"), { 3, 1 })[1]
  assert.equal("cuda:1", x.device)
  assert.equal(0, largest_difference(x:to("cpu"), chain:views(images, { 3, 1 })[1]))
end)

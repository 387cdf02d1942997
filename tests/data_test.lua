-- Data sets and images: IDX files sound and forged, the digits, subsets and splits, decoding, and
-- every augmentation against torchvision's result.
local lunce = require "lunce"
local data, augment = lunce.data, lunce.augment

local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local forge = dofile(here .. "forge.lua")
local reference, notes = lunce.io.safetensors.load(here .. "reference/images.safetensors")
assert(notes.note:find "antialiased")

local refuses = dofile(here .. "refusals.lua")("data_test.lua")

local function largest_difference(a, b)
  return (a - b):abs():max():item()
end

describe("IDX:", function()
  local images, labels, zipped = os.tmpname(), os.tmpname(), os.tmpname()
  local sound = forge.idx({ 3, 2, 2 }, "abcdefghijkl")
  before_each(function() forge.write(labels, forge.idx({ 3 }, "\0\2\1")) end)
  teardown(function()
    os.remove(images)
    os.remove(labels)
    os.remove(zipped)
  end)

  local function zip(content)
    forge.write(images, content)
    os.execute(("gzip -c %s > %s"):format(images, zipped))
    return forge.read(zipped)
  end

  it("reads images and labels, labels from 1", function()
    forge.write(images, sound)
    local set = data.idx(images, labels)
    assert.same({ 3, 1, 2, 2 }, set.images.shape)
    assert.same({ { { 97, 98 }, { 99, 100 } } }, set.images[1]:tolist())
    assert.same({ 1, 3, 2 }, set.labels:tolist())
    assert.same({ "0", "1", "2" }, set.class_names)
    assert.equal("2", set.class_names[set.labels[2]:item()])
  end)

  it("reads them gzip'd, and with channels", function()
    forge.write(zipped, zip(forge.idx({ 3, 1, 2, 2 }, "abcdefghijkl")))
    local set = data.idx(zipped, labels)
    assert.same({ 3, 1, 2, 2 }, set.images.shape)
    assert.equal(108, set.images[{ 3, 1, 2, 2 }]:item())
  end)

  it("reads a set of none", function()
    forge.write(images, forge.idx({ 0, 2, 2 }, ""))
    forge.write(labels, forge.idx({ 0 }, ""))
    assert.equal(0, data.idx(images, labels):size())
  end)

  it("a missing file gives nil and says so", function()
    local set, message = data.idx("/nowhere", labels)
    assert.is_nil(set)
    assert(message:find("'/nowhere': no such file", 1, true))
    forge.write(images, sound)
    assert.is_nil((data.idx(images, "/nowhere")))
  end)

  local function forged(name, content, ...)
    local texts = { ... }
    it("refuses " .. name, function()
      forge.write(images, type(content) == "function" and content() or content)
      refuses(function() data.idx(images, labels) end, "'" .. images .. "'", unpack(texts))
    end)
  end

  forged("no bytes", "", "truncated: 0 of the 4 bytes of its header")
  forged("a cut header", sound:sub(1, 9), "truncated", "header")
  forged("cut data", sound:sub(1, -2), "truncated", "(3,2,2) takes 12 bytes and 11")
  forged("trailing bytes", sound .. "x", "trailing bytes")
  forged("another magic", "\1" .. sound:sub(2), "magic begins 01 00")
  forged("floats", "\0\0\13" .. sound:sub(4), "type 0x0d; unsigned bytes")
  forged("rank 0", "\0\0\8\0", "rank 0")
  forged("rank 9", forge.idx({ 1, 1, 1, 1, 1, 1, 1, 1, 1 }, "a"), "rank 9")
  forged("rank 2 for images", forge.idx({ 3, 4 }, "abcdefghijkl"), "rank 2; images have 3")
  forged("a size of 2^96", forge.idx({ 2 ^ 32 - 1, 2 ^ 32 - 1, 2 ^ 32 - 1 }, "a"), "overflows")
  forged("a size that wraps to 0", forge.idx({ 2 ^ 31, 2 ^ 31, 4 }, ""), "overflows")
  forged("a size that wraps beside 0", forge.idx({ 0, 2 ^ 31, 2 ^ 31, 4 }, ""), "overflows")
  forged("a size of 64 GB", forge.idx({ 2 ^ 16, 2 ^ 10, 2 ^ 10 }, "abc"), "truncated")
  forged("cut gzip", function() return zip(sound):sub(1, -9) end, "truncated")
  forged("gzip with a wrong checksum", function()
    local z = zip(sound)
    return z:sub(1, -9) .. string.char((z:byte(-8) + 1) % 256) .. z:sub(-7)
  end, "damaged gzip data")
  forged("bytes after gzip", function() return zip(sound) .. "x" end, "trailing bytes")
  forged("trailing bytes inside gzip", function() return zip(sound .. "x") end, "trailing bytes")
  forged("cut data inside gzip", function() return zip(sound:sub(1, -2)) end, "truncated")
  forged("a size beyond gzip's reach", function()
    return zip(forge.idx({ 2 ^ 16, 2 ^ 10, 2 ^ 10 }, "abc"))
  end, "truncated")

  it("refuses labels of another number or rank, and names that are none", function()
    forge.write(images, sound)
    forge.write(labels, forge.idx({ 2 }, "\0\1"))
    refuses(function() data.idx(images, labels) end, "has 2 labels where", "has 3 images")
    refuses(function() data.idx(images, images) end, "rank 3; labels have 1")
    refuses(function() data.idx(nil, labels) end, "path of the images is nil")
  end)

  it("a forged size takes no memory", function()
    forge.write(images, forge.idx({ 2 ^ 16, 2 ^ 10, 2 ^ 4 }, "abc"))
    local before = lunce.memory().allocations
    pcall(data.idx, images, labels)
    assert.equal(before, lunce.memory().allocations)
  end)
end)

describe("the digits", function()
  it("are 1000 and 797 of ten classes", function()
    local train, test = data.digits(), data.digits { split = "test" }
    assert.same({ 1000, 1, 8, 8 }, train.images.shape)
    assert.same({ 797, 1, 8, 8 }, test.images.shape)
    assert.same({ 1, 2, 3, 4 }, train.labels[{ { 1, 4 } }]:tolist())
    assert.equal("9", train.class_names[10])
    local all = data.digits { split = "all" }
    assert.equal(1797, all:size())
    assert.is_true(all.images[{ { 1001, 1797 } }]:eq(test.images):all():item())
    assert.equal(10, all.labels:max():item())
  end)

  it("other splits, and other sets, are refused", function()
    refuses(function() data.digits { split = "valid" } end, '"valid"', '"train"')
    refuses(function() data.digits { part = "test" } end, "unknown option part")
    refuses(function() return data.no_such_set end, 'lunce.data has no "no_such_set"')
  end)
end)

describe("sets:", function()
  local all = data.digits { split = "all" }

  it("a subset has the samples asked for, in order", function()
    local part = all:subset { 5, 1, 1 }
    assert.same({ 5, 1, 1 }, part.labels:tolist())
    assert.is_true(part.images[2]:eq(all.images[1]):all():item())
    assert.equal(2, all:subset(lunce.tensor({ 3, 4 }, { dtype = "int64" })):size())
    refuses(function() all:subset { 1798 } end, "1798")
    refuses(function() all:subset(3) end, "set:subset: 3")
  end)

  it("a split takes its part of every class, by the seed", function()
    local function counts(set)
      local n = {}
      for _, y in ipairs(set.labels:tolist()) do n[y] = (n[y] or 0) + 1 end
      return n
    end
    local total, first, second = counts(all), all:split(0.3, 1)
    for class, n in pairs(counts(first)) do
      assert.equal(math.floor(0.3 * total[class] + 0.5), n)
    end
    assert.equal(all:size(), first:size() + second:size())
    local again, other = all:split(0.3, 1), all:split(0.3, 2)
    assert.is_true(first.images:eq(again.images):all():item())
    assert.is_false(first.images:eq(other.images):all():item())
    assert.equal(0, (all:split(0, 1)):size())
    assert.equal(0, select(2, all:split(1, 1)):size())
    refuses(function() all:split(1.5, 1) end, "fraction is 1.5")
    refuses(function() all:split(0.5) end, "seed is nil")
  end)

  it("tensors that do not fit are refused", function()
    refuses(function() data.set(lunce.zeros(2, 1, 8, 8)) end, "float32; (N,C,H,W) uint8")
    refuses(function() data.set(all.images, all.labels[{ { 1, 2 } }]) end, "labels are (2) int64")
    refuses(function() data.set(nil) end, "argument 1 is nil")
    local from_zero = lunce.arange(0, 2, 1, { dtype = "int64" })
    refuses(function() data.set(all.images[{ { 1, 3 } }], from_zero) end, "count from 1")
  end)
end)

describe("decoding:", function()
  local path = os.tmpname()
  teardown(function() os.remove(path) end)

  local pixels = {}
  for i = 0, 6 * 5 * 3 - 1 do pixels[i + 1] = string.char(i * 37 % 256) end
  pixels = table.concat(pixels)

  -- (C,H,W) as nested tables from interleaved bytes.
  local function planes(text, height, width, of, channels)
    local result = {}
    for c = 1, channels do
      result[c] = {}
      for y = 1, height do
        result[c][y] = {}
        for x = 1, width do result[c][y][x] = text:byte(((y - 1) * width + x - 1) * of + c) end
      end
    end
    return result
  end

  for _, name in ipairs { "china", "flower" } do
    it(name .. ".jpg has the reference's mean and thumbnail", function()
      local image = data.image(here .. "reference/" .. name .. ".jpg")
      assert.same({ 3, 427, 640 }, image.shape)
      -- Decoders differ by 1 or 2 levels a pixel, and less than a tenth on average.
      local mean = image:to("float64"):mean { 2, 3 }
      assert(largest_difference(mean, reference["jpeg." .. name .. ".mean_rgb"]) < 0.1)
      -- The thumbnail's pixels are the means of boxes whose edges are rounded to whole pixels.
      local thumb = reference["jpeg." .. name .. ".thumb"]:to "float32"
      for y = 0, 15 do
        local top = math.floor(y * 427 / 16 + 0.5)
        local bottom = math.floor((y + 1) * 427 / 16 + 0.5)
        local rows = image[{ {}, { top + 1, bottom } }]:to "float32"
        local means = rows:reshape(3, bottom - top, 16, 40):mean { 2, 4 }
        assert(largest_difference(means, thumb[y + 1]:t()) <= 2)
      end
    end)
  end

  it("PNG and BMP come back to the byte, also odd sizes, grey and alpha", function()
    forge.write(path, forge.png(6, 5, 2, pixels))
    assert.same(planes(pixels, 5, 6, 3, 3), data.image(path):tolist())
    forge.write(path, forge.bmp(5, 6, pixels))
    assert.same(planes(pixels, 6, 5, 3, 3), data.image(path):tolist())
    forge.write(path, forge.png(9, 10, 0, pixels))
    assert.same(planes(pixels, 10, 9, 1, 1), data.image(path, { channels = 1 }):tolist())
    local rgb = data.image(path):tolist()
    assert.same(rgb[1], rgb[3])
    forge.write(path, forge.png(5, 4, 6, pixels:sub(1, 80)))
    assert.same(planes(pixels, 4, 5, 4, 3), data.image(path):tolist())
  end)

  it("a missing file gives nil and says so", function()
    local image, message = data.image "/nowhere"
    assert.is_nil(image)
    assert(message:find "no such file")
  end)

  local jpeg = forge.read(here .. "reference/china.jpg")
  local png, bmp = forge.png(6, 5, 2, pixels), forge.bmp(6, 5, pixels)

  local function damaged(name, content, ...)
    local texts = { ... }
    it("refuses " .. name, function()
      forge.write(path, content)
      refuses(function() data.image(path) end, "'" .. path .. "'", unpack(texts))
    end)
  end

  damaged("no bytes", "", "neither JPEG, PNG nor BMP")
  damaged("a GIF", "GIF89a" .. ("\0"):rep(100), "neither JPEG, PNG nor BMP")
  for _, part in ipairs { 0.02, 0.2, 0.5, 0.9, 0.9999 } do
    damaged(("a JPEG cut at %g"):format(part), jpeg:sub(1, math.floor(part * #jpeg)), "JPEG")
  end
  damaged("a JPEG without its end", jpeg:sub(1, -3), "no end-of-image marker")
  for _, n in ipairs { 9, 30, 60, #png - 1 } do
    damaged(("a PNG cut at %d"):format(n), png:sub(1, n), "truncated PNG")
  end
  damaged("a PNG with a flipped bit", png:sub(1, 60) .. string.char((png:byte(61) + 1) % 256)
    .. png:sub(62), "checksum is wrong")
  damaged("a BMP cut short", bmp:sub(1, -2), "truncated BMP")
  damaged("a BMP's header alone", bmp:sub(1, 20), "truncated BMP")
  damaged("65 megapixels", forge.png_magic .. forge.chunk("IHDR", forge.big(13000, 4)
    .. forge.big(5200, 4) .. "\8\2\0\0\0") .. forge.chunk("IDAT", "x") .. forge.chunk("IEND", ""),
    "13000 x 5200 pixels; at most 64 megapixels")
  damaged("2^31 pixels a side", forge.png_magic .. forge.chunk("IHDR", forge.big(2 ^ 31 - 1, 4)
    .. forge.big(1, 4) .. "\8\2\0\0\0") .. forge.chunk("IDAT", "x") .. forge.chunk("IEND", ""))

  it("bytes after the end do not matter, and a preview inside is not the image", function()
    forge.write(path, jpeg .. "trailing")
    assert.same({ 3, 427, 640 }, data.image(path).shape)
    local comment = "\255\254" .. forge.big(2 + 4, 2) .. "\255\216\255\217"
    forge.write(path, jpeg:sub(1, 2) .. comment .. jpeg:sub(3, -3))
    refuses(function() data.image(path) end, "no end-of-image marker")
  end)

  it("other channels are refused", function()
    forge.write(path, png)
    refuses(function() data.image(path, { channels = 4 }) end, "channels 4")
  end)
end)

describe("augmentation:", function()
  local bytes = reference.image:permute(3, 1, 2):contiguous()
  local floats = bytes:to "float32" / 255

  -- Both sides compute in float32 from values up to 1: a few units of 6e-8 for colours. Resampling
  -- and blurring take their weights from float32 positions in torchvision (up to 128, so 4e-6 off)
  -- and from double ones here.
  local COLOR, FILTER = 1e-6, 1e-5

  local function agrees(name, step, tolerance)
    it(name .. " is torchvision's", function()
      for _, image in ipairs { bytes, floats } do
        local result = augment.chain({ step }):apply(image)
        assert.same(reference[name].shape, result.shape)
        local difference = largest_difference(result, reference[name])
        assert(difference <= tolerance, ("off by %g"):format(difference))
      end
    end)
  end

  for name in pairs(reference) do
    local op, value = name:match "^(%l+)_(-?[%d.]+)$"
    local kernel, sigma = name:match "^gaussian_blur_(%d+)_([%d.]+)$"
    local top, left, height, width, size, filter =
      name:match "^resized_crop_(%d+)_(%d+)_(%d+)_(%d+)_(%d+)_(%l+)$"
    if op == "hue" then
      agrees(name, augment.hue { turn = tonumber(value) }, COLOR)
    elseif op == "solarize" then
      agrees(name, augment.solarize { threshold = tonumber(value) }, COLOR)
    elseif op then
      agrees(name, augment[op] { factor = tonumber(value) }, COLOR)
    elseif kernel then
      agrees(name, augment.gaussian_blur { kernel = tonumber(kernel), sigma = tonumber(sigma) },
        FILTER)
    elseif top then
      agrees(name, augment.crop { top = top + 1, left = left + 1, height = tonumber(height),
        width = tonumber(width), size = tonumber(size), filter = filter }, FILTER)
    end
  end
  agrees("grayscale", augment.grayscale(), COLOR)
  agrees("hflip", augment.horizontal_flip { p = 1 }, 0)

  it("every reference was compared", function()
    local count = 0
    for name in pairs(reference) do
      if name ~= "image" and not name:find "^jpeg" then count = count + 1 end
    end
    assert.equal(19, count)
  end)

  it("nothing to do gives bytes over 255", function()
    assert.equal(0, largest_difference(augment.chain({}):apply(bytes), floats))
    assert.equal(0, largest_difference(augment.chain({}):apply(floats), floats))
  end)

  it("resizing by nothing changes nothing, and a constant stays one", function()
    local same = augment.chain { augment.resize { size = { 96, 128 } } }
    assert.equal(0, largest_difference(same:apply(bytes), floats))
    for _, filter in ipairs { "bilinear", "bicubic" } do
      local flat = augment.chain { augment.resize { size = { 7, 200 }, filter = filter } }
      local result = flat:apply(lunce.full({ 3, 33, 50 }, 0.7))
      -- The weights of an output sum to 1 within their rounding to float32.
      assert(largest_difference(result, lunce.full({ 3, 7, 200 }, 0.7)) < 1e-6)
    end
  end)

  it("one-pixel images and sizes work", function()
    local dot = lunce.full({ 3, 1, 1 }, 0.25)
    local up = augment.chain { augment.resize { size = 5, filter = "bicubic" } }:apply(dot)
    assert.equal(0, largest_difference(up, lunce.full({ 3, 5, 5 }, 0.25)))
    local down = augment.chain { augment.resize { size = { 1, 1 } } }:apply(floats)
    assert.same({ 3, 1, 1 }, down.shape)
  end)

  it("resize takes the shorter side, and eval the square in the middle", function()
    assert.same({ 3, 48, 64 }, augment.chain({ augment.resize { size = 48 } }):apply(bytes).shape)
    local square = augment.eval { size = 48 }:apply(bytes)
    local whole = augment.chain({ augment.resize { size = 48 } }):apply(bytes)
    assert.equal(0, largest_difference(square, whole[{ {}, {}, { 9, 56 } }]))
  end)

  it("normalises each channel", function()
    local chain = augment.eval { size = 96, mean = { 0.1, 0.2, 0.3 }, std = { 1, 2, 4 } }
    local plain = augment.eval { size = 96 }:apply(bytes)
    local mean = lunce.tensor({ 0.1, 0.2, 0.3 }):reshape(3, 1, 1)
    local std = lunce.tensor({ 1, 2, 4 }):reshape(3, 1, 1)
    assert(largest_difference(chain:apply(bytes), (plain - mean) / std) < 1e-6)
  end)

  it("grey images keep brightness and contrast, and know no colour", function()
    local grey = bytes[{ { 1, 1 } }]:contiguous()
    local plain = grey:to "float32" / 255
    for _, step in ipairs { augment.saturation { factor = 0 }, augment.hue { turn = 0.3 },
      augment.grayscale() } do
      assert.equal(0, largest_difference(augment.chain({ step }):apply(grey), plain))
    end
    local mean = plain:mean():item()
    local contrast = augment.chain({ augment.contrast { factor = 0.5 } }):apply(grey)
    assert(largest_difference(contrast, plain * 0.5 + 0.5 * mean) < COLOR)
    local jitter = augment.color_jitter { brightness = 0.4, contrast = 0.4, saturation = 0.4,
      hue = 0.1 }
    assert.same({ 1, 96, 128 }, augment.chain({ jitter }):apply(grey).shape)
  end)

  it("hue is a turn: thrice a third is none, and red becomes green", function()
    local third = augment.hue { turn = 1 / 3 }
    local turned = augment.chain({ third, third, third }):apply(floats)
    assert(largest_difference(turned, floats) < 3e-6) -- three roundings of COLOR
    local red = lunce.tensor({ 1, 0, 0 }):reshape(3, 1, 1)
    local green = augment.chain({ third }):apply(red):flatten():tolist()
    assert.near(0, green[1], COLOR)
    assert.near(1, green[2], COLOR)
  end)

  it("a view is a function of its address alone", function()
    local chain = augment.simclr { size = 32 }
    local first = chain:apply(bytes, { seed = 5, epoch = 2, sample = 9, view = 2 })
    local again = chain:apply(bytes, { seed = 5, epoch = 2, sample = 9, view = 2 })
    assert.equal(0, largest_difference(first, again))
    for _, other in ipairs { { seed = 6, epoch = 2, sample = 9, view = 2 },
      { seed = 5, epoch = 3, sample = 9, view = 2 }, { seed = 5, epoch = 2, sample = 10, view = 2 },
      { seed = 5, epoch = 2, sample = 9, view = 1 } } do
      assert(largest_difference(first, chain:apply(bytes, other)) > 0)
    end
  end)

  it("a step's draws do not depend on the steps before it", function()
    local flip, grey = augment.horizontal_flip(), augment.grayscale()
    local one, two = augment.chain { flip }, augment.chain { flip, grey }
    for sample = 1, 20 do
      local flipped = one:apply(bytes, { sample = sample })
      local both = two:apply(bytes, { sample = sample })
      local expected = augment.chain({ grey }):apply(flipped)
      assert.equal(0, largest_difference(both, expected))
    end
  end)

  it("draws have the frequencies and ranges that were asked for", function()
    local N, flips, sums = 2000, 0, {}
    local left_right = lunce.tensor({ { { 0, 1 } } })
    local flip = augment.chain { augment.horizontal_flip { p = 0.3 } }
    local jitter = augment.chain { augment.color_jitter { brightness = { 0.2, 0.6 } } }
    local dot = lunce.ones(1, 1, 1)
    for sample = 1, N do
      flips = flips + flip:apply(left_right, { sample = sample })[{ 1, 1, 1 }]:item()
      sums[sample] = jitter:apply(dot, { sample = sample }):item()
    end
    -- Four standard deviations of a binomial and of a uniform mean.
    assert.near(0.3, flips / N, 4 * math.sqrt(0.21 / N))
    table.sort(sums)
    assert(sums[1] >= 0.2 and sums[1] < 0.21 and sums[N] <= 0.6 and sums[N] > 0.59)
    assert.near(0.4, lunce.tensor(sums):mean():item(), 4 * 0.4 / math.sqrt(12 * N))
  end)

  it("a random crop's area and place are spread over their ranges", function()
    -- An image whose value is its column (row): a crop's mean is its middle, its span its width.
    local ramp = lunce.arange(0, 63):div_(63):reshape(1, 1, 64):expand(1, 64, 64):contiguous()
    local chain = augment.chain { augment.random_resized_crop { size = 64, scale = { 0.25, 1 },
      ratio = { 1, 1 } } }
    local N, areas, middles = 500, 0, 0
    for sample = 1, N do
      local row = chain:apply(ramp, { sample = sample })[{ 1, 1 }]
      local side = (row[64]:item() - row[1]:item()) + 1 / 64
      assert(side > 0.48 and side < 1.02)
      areas, middles = areas + side * side, middles + row:mean():item()
    end
    assert.near(0.625, areas / N, 0.05)
    assert.near(0.5, middles / N, 0.03)
  end)

  it("bad steps are refused at the caller's line", function()
    refuses(function() augment.resize {} end, "size is missing")
    refuses(function() augment.resize { size = { 1, 2, 3 } } end, "size has 3 numbers; it takes 2")
    refuses(function() augment.resize { size = "big" } end, 'size is "big"')
    refuses(function() augment.resize { size = 8, filter = "box" } end, 'filter "box"')
    refuses(function() augment.hue { factor = 0.1 } end, "unknown option factor")
    refuses(function() augment.color_jitter { brightness = -1 } end, "brightness is -1")
    refuses(function() augment.chain { 3 } end, "item 1 is 3")
    refuses(function() augment.chain(nil) end, "augment.chain: nil")
    local function apply(step) return function() augment.chain({ step }):apply(bytes) end end
    refuses(apply(augment.hue { turn = 0.6 }), "step 1 (hue) on 96 x 128 pixels", "-0.5 to 0.5")
    refuses(apply(augment.crop { top = 90, height = 10, width = 10 }), "not inside the image")
    refuses(apply(augment.center_crop { size = 100 }), "larger than the image")
    refuses(apply(augment.resize { size = 0.5 }), "no such size")
    refuses(apply(augment.resize { size = 1e9 }), "no such size")
    refuses(apply(augment.gaussian_blur { kernel = 4 }), "kernel is not odd")
    refuses(apply(augment.gaussian_blur { kernel = 3, sigma = 0 }), "sigma")
    refuses(apply(augment.normalize { std = 0 }), "deviation not above 0")
    refuses(function() augment.brightness { factor = 0 / 0 } end, "option factor is nan")
    refuses(apply(augment.horizontal_flip { p = 2 }), "p is not 0 to 1")
    refuses(apply(augment.random_resized_crop { size = 8, scale = { 1, 0.5 } }), "scale")
    refuses(apply(augment.random_resized_crop { size = 8, ratio = { 0, 1 } }), "ratio")
    refuses(function() augment.chain({}):apply(lunce.zeros(2, 3, 3)) end, "(2,3,3)", "1 or 3")
    refuses(function() augment.chain({}):apply(lunce.zeros(3, 3)) end, "(C,H,W)")
    refuses(function() augment.chain({}):apply(bytes, { sample = 1.5 }) end, "sample is 1.5")
  end)
end)

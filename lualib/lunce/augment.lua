-- The vocabulary of augmentations: steps on an image, chains of them, and the usual chains. Holds
-- descriptions only; pixels and draws are C's. Invariant: a step is a plain list of numbers that
-- says all that C needs, so that a chain gives the same views wherever it runs.
local ffi = require "ffi"
local lib = require "lunce.ffi"
local tensor = require "lunce.tensor"
local create = require "lunce.ops.create"
local option = require "lunce.options"

local C, raise, call = lib.C, lib.raise, lib.call
local options, describe = option.options, option.describe

local M = {}

---@class lunce.Step

local Step = { __name = "augmentation step" }

local function step(op, p, ...)
  return setmetatable({ op = op, p = p, ... }, Step)
end

-- ---- Options of steps ------------------------------------------------------------------------

local function number_of(value, name, what)
  if type(value) ~= "number" then
    raise("%s: option %s is %s; a number is taken", what, name, describe(value))
  end
  return value
end

-- A list of exactly n numbers; one number stands for n of them.
local function numbers_of(value, n, name, what)
  local list = type(value) == "number" and {} or value
  if type(list) ~= "table" or getmetatable(list) then
    raise("%s: option %s is %s; a number or %d of them are taken", what, name, describe(value), n)
  end
  local result = {}
  for i = 1, n do
    result[i] = list[i] == nil and #list <= 1 and (list[1] or value) or list[i]
    number_of(result[i], name, what)
  end
  if #list > n then raise("%s: option %s has %d numbers; it takes %d", what, name, #list, n) end
  return result
end

local function size_of(set, what)
  if not set.size then
    raise("%s: option size is missing; a number or { height, width } is taken", what)
  end
  local size = numbers_of(set.size, 2, "size", what)
  return size[1], size[2]
end

local filters = { bilinear = C.LN_BILINEAR, bicubic = C.LN_BICUBIC }

local function filter_of(set, what)
  local filter = filters[set.filter]
  if not filter then
    raise('%s: filter %s; "bilinear" or "bicubic" is taken', what, describe(set.filter))
  end
  return tonumber(filter)
end

-- { from, to }; a number is the distance to both sides of `middle`, not below `lowest`.
local function range_of(value, middle, lowest, name, what)
  if type(value) == "number" then
    if value < 0 then raise("%s: option %s is %s; 0 or more is taken", what, name, value) end
    return math.max(lowest, middle - value), middle + value
  end
  local range = numbers_of(value, 2, name, what)
  return range[1], range[2]
end

-- ---- Steps -----------------------------------------------------------------------------------

--- Part of the area (scale, from to) at a ratio of sides (from, to), resampled to size.
---@param given { size: integer|integer[], scale: number[], ratio: number[], filter: string }
---@return lunce.Step
function M.random_resized_crop(given)
  local what = "augment.random_resized_crop"
  local set = options(given, { size = false, scale = { 0.08, 1 }, ratio = { 3 / 4, 4 / 3 },
    filter = "bilinear" }, what)
  local height, width = size_of(set, what)
  local scale = numbers_of(set.scale, 2, "scale", what)
  local ratio = numbers_of(set.ratio, 2, "ratio", what)
  return step(C.LN_RANDOM_RESIZED_CROP, 1, height, width, scale[1], scale[2], ratio[1], ratio[2],
    filter_of(set, what))
end

--- A number for the length of the shorter side, or { height, width }.
---@param given { size: integer|integer[], filter: string }
---@return lunce.Step
function M.resize(given)
  local what = "augment.resize"
  local set = options(given, { size = false, filter = "bilinear" }, what)
  local height, width = size_of(set, what)
  local shorter = type(set.size) == "number" and height or 0
  return step(C.LN_RESIZE, 1, shorter, height, width, filter_of(set, what))
end

---@param given { size: integer|integer[] }
---@return lunce.Step
function M.center_crop(given)
  local what = "augment.center_crop"
  return step(C.LN_CENTER_CROP, 1, size_of(options(given, { size = false }, what), what))
end

--- The box whose first row and column are top and left (from 1), resampled to size.
---@class lunce.CropOptions
---@field top integer
---@field left integer
---@field height integer
---@field width integer
---@field size integer|integer[]|nil the box's own where not given
---@field filter "bilinear"|"bicubic"|nil

---@param given lunce.CropOptions
---@return lunce.Step
function M.crop(given)
  local what = "augment.crop"
  local set = options(given, { top = 1, left = 1, height = false, width = false, size = false,
    filter = "bilinear" }, what)
  local height, width = number_of(set.height, "height", what), number_of(set.width, "width", what)
  local out_height, out_width = height, width
  if set.size then out_height, out_width = size_of(set, what) end
  return step(C.LN_CROP, 1, set.top - 1, set.left - 1, height, width, out_height, out_width,
    filter_of(set, what))
end

---@param given { p: number }|nil
---@return lunce.Step
function M.horizontal_flip(given)
  return step(C.LN_HFLIP, options(given, { p = 0.5 }, "augment.horizontal_flip").p)
end

--- Brightness, contrast, saturation and hue, in an order that is drawn for each view. A number b
--- draws a factor between max(0, 1 - b) and 1 + b (for hue a part of a turn between -b and b);
--- { from, to } between those.
---@class lunce.JitterOptions
---@field brightness number|number[]|nil
---@field contrast number|number[]|nil
---@field saturation number|number[]|nil
---@field hue number|number[]|nil
---@field p number|nil

---@param given lunce.JitterOptions
---@return lunce.Step
function M.color_jitter(given)
  local what = "augment.color_jitter"
  local set = options(given, { brightness = false, contrast = false, saturation = false,
    hue = false, p = 1 }, what)
  local numbers = {}
  for i, name in ipairs { "brightness", "contrast", "saturation" } do
    numbers[2 * i - 1], numbers[2 * i] = range_of(set[name] or 0, 1, 0, name, what)
  end
  numbers[7], numbers[8] = range_of(set.hue or 0, 0, -0.5, "hue", what)
  return step(C.LN_COLOR_JITTER, set.p, unpack(numbers))
end

-- Steps with one number of a fixed value.
for name, about in pairs {
  brightness = { C.LN_BRIGHTNESS, "factor", 1 }, contrast = { C.LN_CONTRAST, "factor", 1 },
  saturation = { C.LN_SATURATION, "factor", 1 }, hue = { C.LN_HUE, "turn", 0 },
  solarize = { C.LN_SOLARIZE, "threshold", 0.5 },
} do
  M[name] = function(given)
    local set = options(given, { [about[2]] = about[3], p = 1 }, "augment." .. name)
    return step(about[1], set.p, set[about[2]])
  end
end

---@param given { p: number }|nil
---@return lunce.Step
function M.grayscale(given)
  return step(C.LN_GRAYSCALE, options(given, { p = 1 }, "augment.grayscale").p)
end

--- kernel: its odd side in pixels; sigma: a number, or { from, to } to draw between (0.1 to 2).
---@param given { kernel: integer, sigma: number|number[], p: number }
---@return lunce.Step
function M.gaussian_blur(given)
  local what = "augment.gaussian_blur"
  local set = options(given, { kernel = false, sigma = false, p = 1 }, what)
  local sigma = numbers_of(set.sigma or { 0.1, 2 }, 2, "sigma", what)
  return step(C.LN_BLUR, set.p, number_of(set.kernel, "kernel", what), sigma[1], sigma[2])
end

--- (x - mean) / std; a number for all channels, or one for each of three.
---@param given { mean: number|number[], std: number|number[] }
---@return lunce.Step
function M.normalize(given)
  local what = "augment.normalize"
  local set = options(given, { mean = false, std = false }, what)
  local mean = numbers_of(set.mean or 0, 3, "mean", what)
  local std = numbers_of(set.std or 1, 3, "std", what)
  return step(C.LN_NORMALIZE, 1, mean[1], mean[2], mean[3], std[1], std[2], std[3])
end

-- ---- Chains ----------------------------------------------------------------------------------

---@class lunce.Chain
---@field n integer the number of steps
---@field steps ffi.cdata* ln_transform[n]
local Chain = { __name = "augmentation chain" }
Chain.__index = Chain

function M.is_chain(x)
  return getmetatable(x) == Chain
end

local function flatten(list, into)
  for i = 1, #list do
    local item = list[i]
    if M.is_chain(item) then
      flatten(item, into)
    elseif getmetatable(item) == Step then
      into[#into + 1] = item
    else
      raise("augment.chain: item %d is %s; steps and chains are taken", i, describe(item))
    end
  end
  return into
end

--- Steps and chains, one after the other. Bytes 0 to 255 become 0 to 1 before the first.
---@param list (lunce.Step|lunce.Chain)[]
---@return lunce.Chain
function M.chain(list)
  if type(list) ~= "table" or getmetatable(list) then
    raise("augment.chain: %s; a list of steps and chains is taken", describe(list))
  end
  local chain = flatten(list, {})
  chain.n = #chain
  chain.steps = ffi.new("ln_transform[?]", chain.n + 1)
  for i, s in ipairs(chain) do
    local to = chain.steps[i - 1]
    to.op, to.p = s.op, s.p
    for k = 1, #s do to.a[k - 1] = s[k] end
  end
  return setmetatable(chain, Chain)
end

local address = ffi.new "ln_draw_address"

--- The view of one image (C,H,W), uint8 or float32, that a loader makes with this seed for this
--- epoch, sample and view (from 1).
---@param image lunce.Tensor
---@param given { seed: integer, epoch: integer, sample: integer, view: integer }|nil
---@return lunce.Tensor float32
function Chain:apply(image, given)
  local what = "chain:apply"
  local set = options(given, { seed = 0, epoch = 0, sample = 1, view = 1 }, what)
  tensor.need(image, what, 1)
  for name, value in pairs(set) do tensor.need_integer(value, what, name) end
  address.seed, address.epoch = set.seed, set.epoch
  address.sample, address.view = set.sample - 1, set.view - 1
  call(C.ln_image_transform, tensor.out(), image:contiguous().h, self.steps, self.n, address)
  return tensor.take()
end

--- The views of samples of a set that a loader makes with this seed for this epoch, made on the
--- device that holds the images, in one launch on a CUDA device: there each view with its steps has
--- to fit in a block's shared memory (about 96 x 96 in colour), or is refused.
---@param images lunce.Tensor (N,C,H,W) uint8, contiguous
---@param indices lunce.Tensor|integer[] (B) int64 from 1, on any device
---@param given { seed: integer, epoch: integer, views: integer, dtype: string }|nil
---@return lunce.Tensor[] one (B,C,H,W) for each view; float32, or float16 or bfloat16 if asked for
function Chain:views(images, indices, given)
  local what = "chain:views"
  local set = options(given, { seed = 0, epoch = 0, views = 1, dtype = "float32" }, what)
  tensor.need(images, what, 1)
  if type(indices) == "table" and not getmetatable(indices) then
    for i = 1, table.maxn(indices) do
      tensor.need_integer(indices[i], what, "position " .. i)
    end
    indices = create.tensor(indices, { dtype = "int64", device = "cpu" })
  end
  local index = tensor.need(indices, what, 2):to("cpu"):contiguous()
  for _, name in ipairs { "seed", "epoch", "views" } do
    tensor.need_integer(set[name], what, name)
  end
  call(C.ln_augment, tensor.out(), tensor.dtype(set.dtype, what), images.h, index.h, self.steps,
    self.n, set.seed, set.epoch, set.views)
  local all, views = tensor.take(), {}
  for v = 1, set.views do views[v] = all:select(1, v) end
  all:free()
  return views
end

-- ---- Presets ---------------------------------------------------------------------------------

-- The given chain, then a normalisation where one is asked for.
local function finish(set, list)
  if set.mean or set.std then
    list[#list + 1] = M.normalize { mean = set.mean, std = set.std }
  end
  return M.chain(list)
end

local function simclr(given, defaults, what)
  local set = options(given, defaults, what)
  local s = set.strength
  local list = {
    M.random_resized_crop { size = set.size, scale = set.scale },
    M.horizontal_flip { p = set.flip },
    M.color_jitter { brightness = 0.8 * s, contrast = 0.8 * s, saturation = 0.8 * s, hue = 0.2 * s,
      p = 0.8 },
    M.grayscale { p = 0.2 },
  }
  if set.blur ~= 0 then
    local kernel = math.max(3, 2 * math.floor(size_of(set, what) / 20) + 1)
    list[#list + 1] = M.gaussian_blur { kernel = kernel, sigma = { 0.1, 2 }, p = set.blur }
  end
  return finish(set, list)
end

---@class lunce.SimclrOptions
---@field size integer
---@field scale number[]|nil the crop's part of the area, from and to
---@field flip number|nil its probability
---@field strength number|nil of the colours
---@field blur number|nil its probability
---@field mean number|number[]|nil with std: a normalisation at the end
---@field std number|number[]|nil

--- SimCLR's views of small images: crop, flip, colours at half strength, grey.
---@param given lunce.SimclrOptions
---@return lunce.Chain
function M.simclr(given)
  return simclr(given, { size = false, scale = { 0.08, 1 }, flip = 0.5, strength = 0.5, blur = 0,
    mean = false, std = false }, "augment.simclr")
end

--- SimCLR's views of large images: full strength, and a blur over a tenth of the side.
---@param given lunce.SimclrOptions
---@return lunce.Chain
function M.simclr_strong(given)
  return simclr(given, { size = false, scale = { 0.08, 1 }, flip = 0.5, strength = 1, blur = 0.5,
    mean = false, std = false }, "augment.simclr_strong")
end

--- For evaluation: the shorter side to size, then the square in the middle; nothing is drawn.
---@param given { size: integer, mean: number|number[], std: number|number[] }
---@return lunce.Chain
function M.eval(given)
  local set = options(given, { size = false, mean = false, std = false }, "augment.eval")
  return finish(set, { M.resize { size = set.size }, M.center_crop { size = set.size } })
end

return M

-- Data sets in memory and the loader over them. One published data set is one file beside this, a
-- module with a function `load`, found by its name: data.digits{...} calls data/digits.lua. Holds
-- no file format and no pixel. Invariant: images (N,C,H,W) uint8 and labels (N) int64 from 1 agree
-- in N.
local ffi = require "ffi"
local lib = require "lunce.ffi"
local tensor = require "lunce.tensor"
local augment = require "lunce.augment"
local files = require "lunce.io"
local create = require "lunce.ops.create"
local option = require "lunce.options"

local C, raise, call = lib.C, lib.raise, lib.call
local options, describe = option.options, option.describe

local M = {}

-- ---- Sets ------------------------------------------------------------------------------------

---@class lunce.Set
---@field images lunce.Tensor (N,C,H,W) uint8
---@field labels lunce.Tensor|nil (N) int64, from 1
---@field class_names string[]|nil
local Set = { __name = "data set" }
Set.__index = Set

--- A set of tensors.
---@param images lunce.Tensor (N,C,H,W) uint8
---@param labels lunce.Tensor|nil (N) int64, from 1
---@param class_names string[]|nil
---@return lunce.Set
function M.set(images, labels, class_names)
  tensor.need(images, "data.set", 1)
  if images.ndim ~= 4 or images.dtype ~= "uint8" then
    raise("data.set: images are (%s) %s; (N,C,H,W) uint8 is taken", table.concat(images.shape, ","),
      images.dtype)
  end
  if class_names ~= nil and (type(class_names) ~= "table" or getmetatable(class_names)) then
    raise("data.set: class names are %s; a list is taken", describe(class_names))
  end
  if labels ~= nil then
    tensor.need(labels, "data.set", 2)
    if labels.ndim ~= 1 or labels.dtype ~= "int64" or labels.shape[1] ~= images.shape[1] then
      raise("data.set: labels are (%s) %s; (%d) int64 is taken", table.concat(labels.shape, ","),
        labels.dtype, images.shape[1])
    end
    if labels.shape[1] > 0 and labels:min():item() < 1 then
      raise("data.set: a label is %d; labels count from 1", labels:min():item())
    end
  end
  return setmetatable({ images = images, labels = labels, class_names = class_names }, Set)
end

--- The number of samples.
---@return integer
function Set:size()
  return self.images.shape[1]
end

--- The samples at these positions, in this order, as a set of its own.
---@param indices lunce.Tensor|integer[] from 1
---@return lunce.Set
function Set:subset(indices)
  if not tensor.is_tensor(indices) then
    if type(indices) ~= "table" or getmetatable(indices) then
      raise("set:subset: %s; a list of positions is taken", describe(indices))
    end
    for i = 1, table.maxn(indices) do
      tensor.need_integer(indices[i], "set:subset", "position " .. i)
    end
    indices = create.tensor(indices, { dtype = "int64" })
  end
  local function chosen(t) return t and t:index_select(1, indices:to(t.device)) end
  return M.set(chosen(self.images), chosen(self.labels), self.class_names)
end

--- The set with its tensors on a device: itself where they are there.
---@param device string "cpu", "cuda" or "cuda:<number>"
---@return lunce.Set
function Set:to(device)
  tensor.device(device, "set:to")
  local images, labels = self.images:to(device), self.labels and self.labels:to(device)
  if images == self.images and labels == self.labels then return self end
  return setmetatable({ images = images, labels = labels, class_names = self.class_names }, Set)
end

--- Two sets, the first with this part of every class (rounded), the second with the rest. Which
--- samples they are depends on the seed; they keep their order.
---@param fraction number 0 to 1
---@param seed integer
---@return lunce.Set
---@return lunce.Set
function Set:split(fraction, seed)
  if type(fraction) ~= "number" or not (fraction >= 0 and fraction <= 1) then
    raise("set:split: fraction is %s; 0 to 1 is taken", describe(fraction))
  end
  tensor.need_integer(seed, "set:split", "seed")
  local N = self:size()
  local labels = self.labels and self.labels:tolist() or {}
  local order = create.randperm(N, { seed = seed }):tolist()
  local totals, taken, first = {}, {}, {}
  for i = 1, N do
    local class = labels[i] or 1
    totals[class] = (totals[class] or 0) + 1
    taken[class] = 0
  end
  for _, i in ipairs(order) do
    local class = labels[i] or 1
    if taken[class] < math.floor(fraction * totals[class] + 0.5) then
      taken[class] = taken[class] + 1
      first[i] = true
    end
  end
  local parts = { {}, {} }
  for i = 1, N do
    local part = first[i] and parts[1] or parts[2]
    part[#part + 1] = i
  end
  return self:subset(parts[1]), self:subset(parts[2])
end

-- ---- Loaders ---------------------------------------------------------------------------------

---@class lunce.Batch
---@field x lunce.Tensor[] one (B,C,H,W) float32 for each view, on the loader's device
---@field y lunce.Tensor|nil (B) int64, likewise
---@field index lunce.Tensor (B) int64 on the CPU: positions in the set

---@class lunce.Loader
local Loader = { __name = "loader" }
Loader.__index = Loader

local defaults = { batch = false, views = 1, seed = 0, threads = 1, queue = 0, augment = false,
  shuffle = true, drop_last = false, limit = false, rank = 1, world = 1, on_device = false,
  device = false }

local flags = { drop_last = true, on_device = true }

local function struct_of(set, on_device, device)
  for _, name in ipairs { "batch", "views", "seed", "threads", "rank", "world" } do
    tensor.need_integer(set[name], "data.loader", name)
  end
  tensor.need_count(set.queue, "data.loader", "queue")
  return ffi.new("ln_loader_options", { seed = set.seed, batch = set.batch, views = set.views,
    threads = set.threads, queue = set.queue > 0 and set.queue or math.max(2, 2 * set.threads),
    on_device = on_device, shuffle = set.shuffle, drop_last = set.drop_last, rank = set.rank - 1,
    world = set.world, device = tensor.device(device, "data.loader") })
end

local function limited(t, n)
  return n and t and t:narrow(1, 1, math.min(n, t.shape[1])) or t
end

--- Batches of augmented views, made on `threads` threads of their own (0: by the caller). The order
--- of samples is a function of (seed, epoch), a view of (seed, epoch, sample, view).
--- batch: samples in one; augment: a chain (none: 0..255 to 0..1 only); limit: the first samples
--- only; queue: batches made ahead (0: two for each thread); rank of world (from 1): every world-th
--- sample; on_device: views are made by the device that holds the set, when a batch is asked for,
--- and always are where that is a CUDA device (chain:views); to the bit the same but for blurs.
--- device: where x and y are given out (the set's); from a set on the CPU to a CUDA device the next
--- batch is copied while one is used.
---@param source lunce.Set
---@param given table
---@return lunce.Loader
function M.loader(source, given)
  if getmetatable(source) ~= Set then
    raise("data.loader: %s; a data set is taken (data.set makes one of tensors)", describe(source))
  end
  local set = options(given, defaults, "data.loader", flags)
  local chain = set.augment or augment.chain {}
  if not augment.is_chain(chain) then
    raise("data.loader: option augment is %s; a chain is taken", describe(chain))
  end
  if set.limit then tensor.need_integer(set.limit, "data.loader", "limit") end
  local images = limited(source.images, set.limit):contiguous()
  local labels = limited(source.labels, set.limit)
  labels = labels and labels:to("cpu"):contiguous()
  local held = images.device
  local device = set.device or held
  if held ~= "cpu" and tensor.device(device, "data.loader") ~= tensor.device(held) then
    raise("data.loader: device %s; a set on %s gives its batches there", describe(device), held)
  end
  local struct = struct_of(set, set.on_device and true or held ~= "cpu",
    held == "cpu" and device or "cpu")
  local box = ffi.new "ln_loader *[1]"
  call(C.ln_loader_new, box, images.h, labels and labels.h, chain.steps, chain.n, struct)
  return setmetatable({ h = ffi.gc(box[0], C.ln_loader_release), views = set.views, begun = 0,
    device = device, x = ffi.new("ln_tensor *[?]", set.views), y = ffi.new "ln_tensor *[1]",
    index = ffi.new "ln_tensor *[1]" }, Loader)
end

local function handle_of(loader)
  return loader.h or raise("the loader is closed")
end

-- The next batch, or nil when the epoch is over.
local function pull(self)
  local boxes, y, index = self.x, self.y, self.index
  call(C.ln_loader_next, handle_of(self), boxes, y, index)
  if index[0] == nil then return nil end
  local batch = { x = {}, index = tensor.wrap(index[0]) }
  for v = 1, self.views do batch.x[v] = tensor.wrap(boxes[v - 1]) end
  if y[0] ~= nil then batch.y = tensor.wrap(y[0]):to(self.device) end
  return batch
end

--- Iterates over the batches of an epoch: `for batch in loader:epoch(3) do`. start: the number of
--- the first batch, to go on where an earlier run stopped.
---@param epoch integer 0 or more
---@param given { start: integer }|nil
---@return fun(): lunce.Batch|nil
function Loader:epoch(epoch, given)
  local set = options(given, { start = 1 }, "loader:epoch")
  tensor.need_integer(epoch, "loader:epoch", "epoch")
  tensor.need_integer(set.start, "loader:epoch", "start")
  call(C.ln_loader_start, handle_of(self), epoch, set.start - 1)
  self.begun = self.begun + 1
  local begun = self.begun
  return function()
    if self.begun ~= begun then raise("loader: another epoch was begun, which ended this one") end
    return pull(self)
  end
end

--- The number of batches in an epoch.
---@return integer
function Loader:batches()
  return tonumber(C.ln_loader_batches(handle_of(self)))
end

--- How loading keeps up, since the loader was made: batches and samples given out; queued, those
--- that lie ready; starved, batches that were not ready when asked for; wait_seconds, spent waiting
--- for them; work_seconds, spent making them on all threads; seconds, since the first was asked
--- for; throughput, samples a second over that time.
---@return table<string, number>
function Loader:stats()
  local box, result = ffi.new "ln_loader_stats", {}
  C.ln_loader_info(box, handle_of(self))
  for _, name in ipairs { "batches", "samples", "queued", "starved", "wait_seconds",
    "work_seconds", "seconds" } do
    result[name] = tonumber(box[name])
  end
  result.throughput = result.seconds > 0 and result.samples / result.seconds or 0
  return result
end

--- Stops the threads and gives back what they hold. A loader that is collected closes itself.
function Loader:close()
  local handle = self.h
  if handle then
    self.h = nil
    C.ln_loader_release(ffi.gc(handle, nil))
  end
end

-- ---- Images ----------------------------------------------------------------------------------

--- The image (C,H,W) in a JPEG, PNG or BMP file; nil and a message where there is no such file.
---@param path string
---@param given { channels: integer }|nil 3 for RGB (default), 1 for grey
---@return lunce.Tensor|nil uint8
---@return string|nil
function M.image(path, given)
  local set = options(given, { channels = 3 }, "data.image")
  tensor.need_integer(set.channels, "data.image", "option channels")
  local bytes, absent = files.read(path)
  if not bytes then return nil, absent end
  local box = tensor.out()
  if C.ln_image_decode(box, bytes, #bytes, set.channels) == C.LN_OK then return tensor.take() end
  raise("'%s': %s", path, ffi.string(C.ln_error()))
end

-- ---- Published sets --------------------------------------------------------------------------

return setmetatable(M, {
  __index = function(t, name)
    local module = "lunce.data." .. tostring(name)
    if not package.searchpath(module, package.path) then
      raise("lunce.data has no %s", describe(name))
    end
    local load = require(module).load
    rawset(t, name, load)
    return load
  end,
})

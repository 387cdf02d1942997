-- Data sets in MNIST's IDX format: one file of images and one of labels, plain or gzip'd. Holds no
-- parsing, which is C's. Invariant: labels 0, 1, ... of the file become 1, 2, ...
local ffi = require "ffi"
local lib = require "lunce.ffi"
local tensor = require "lunce.tensor"
local data = require "lunce.data"

local C, raise, call = lib.C, lib.raise, lib.call

local M = {}

local function read(path, what)
  if type(path) ~= "string" then
    raise("data.idx: the path of the %s is %s; a string is taken", what, tostring(path))
  end
  local status = C.ln_idx_read(tensor.out(), path)
  if status == C.LN_NOT_FOUND then return nil, ffi.string(C.ln_error()) end
  if status ~= C.LN_OK then call(C.ln_idx_read, tensor.out(), path) end
  return tensor.take()
end

local function names_of(labels)
  local names = {}
  for i = 1, labels:numel() > 0 and labels:max():item() or 0 do names[i] = tostring(i - 1) end
  return names
end

--- The set in two IDX files; nil and a message where one is missing. Class names are the labels as
--- the file has them.
---@param images_path string (N,H,W) or (N,C,H,W) unsigned bytes
---@param labels_path string (N) unsigned bytes
---@return lunce.Set|nil
---@return string|nil
function M.load(images_path, labels_path)
  local images, no_images = read(images_path, "images")
  if not images then return nil, no_images end
  local labels, no_labels = read(labels_path, "labels")
  if not labels then return nil, no_labels end
  if images.ndim == 3 then images = images:unsqueeze(2) end
  if images.ndim ~= 4 then
    raise("'%s': IDX rank %d; images have 3, or 4 with channels", images_path, images.ndim)
  end
  if labels.ndim ~= 1 then
    raise("'%s': IDX rank %d; labels have 1", labels_path, labels.ndim)
  end
  if labels.shape[1] ~= images.shape[1] then
    raise("'%s' has %d labels where '%s' has %d images", labels_path, labels.shape[1], images_path,
      images.shape[1])
  end
  labels = labels:to("int64"):add_(1)
  return data.set(images, labels, names_of(labels))
end

return M

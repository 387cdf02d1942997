-- The shipped digits: 1,797 images 8 x 8, 10 classes (digits/README.md says whose). Invariant: the
-- first 1000 are for training, the other 797 for testing.
local raise = require("lunce.ffi").raise
local option = require "lunce.options"
local idx = require "lunce.data.idx"
local data = require "lunce.data"

local M = {}

local folder = debug.getinfo(1, "S").source:match "^@(.*)%.lua$" .. "/"
local parts = { train = { 1, 1000 }, test = { 1001, 797 }, all = { 1, 1797 } }

---@param given { split: "train"|"test"|"all" }|nil "train" where not given
---@return lunce.Set
function M.load(given)
  local set = option.options(given, { split = "train" }, "data.digits")
  local part = parts[set.split]
  if not part then
    raise('data.digits: split %s; "train", "test" or "all" is taken', option.describe(set.split))
  end
  local all = assert(idx.load(folder .. "digits-images.idx3-ubyte",
    folder .. "digits-labels.idx1-ubyte"))
  return data.set(all.images:narrow(1, part[1], part[2]), all.labels:narrow(1, part[1], part[2]),
    all.class_names)
end

return M

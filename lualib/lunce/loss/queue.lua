-- The queue of keys of MoCo: state of a training run that its checkpoint must hold. Holds no
-- gradient and no encoder. Invariant: always `size` rows, the newest over the oldest.
local lunce = require "lunce"
local arguments = require "lunce.loss.arguments"
local autocast = require "lunce.autocast"
local options = require("lunce.options").options
local raise = require("lunce.ffi").raise
local tensor = require "lunce.tensor"

---@class lunce.Queue
---@field keys lunce.Tensor (size,D) the negatives of the next batch
---@field next integer the row that the next key takes
local Queue = { __name = "queue" }
Queue.__index = Queue

local DEFAULTS = { seed = 0, dtype = "float32" }

local function check_size(value, name)
  if type(value) ~= "number" or value % 1 ~= 0 or value < 1 then
    raise("queue: %s is %s; a positive integer is taken", name, arguments.describe(value))
  end
end

--- Overwrites the oldest keys, one for each row. To be called after the batch's backward, which
--- still reads them.
---@param keys lunce.Tensor (N,D), N up to the queue's size; taken without gradient
function Queue:push(keys)
  tensor.no_capture("queue:push", "its place in the queue is Lua's number; push after the step")
  local size, D = self.keys.shape[1], self.keys.shape[2]
  keys = autocast.wide(keys)
  local N = arguments.rows(keys, "keys", "queue:push").shape[1]
  if keys.shape[2] ~= D or N > size then
    raise("queue:push: keys (%d,%d) for a queue (%d,%d); up to %d rows of width %d are taken", N,
      keys.shape[2], size, D, size, D)
  end
  local fit = math.min(N, size - self.next + 1)
  keys = keys:detach()
  lunce.no_grad(function()
    self.keys:narrow(1, self.next, fit):copy_(keys:narrow(1, 1, fit))
    self.keys:narrow(1, 1, N - fit):copy_(keys:narrow(1, fit + 1, N - fit))
  end)
  self.next = (self.next + N - 1) % size + 1
end

---@return table<string, lunce.Tensor>
function Queue:state_dict()
  return { keys = self.keys, next = lunce.tensor({ self.next }, { dtype = "int64" }) }
end

---@param state table as state_dict gives
function Queue:load_state_dict(state)
  local keys, own = state.keys, self.keys.shape
  if not keys or not state.next or keys.shape[1] ~= own[1] or keys.shape[2] ~= own[2] then
    raise("queue:load_state_dict: takes { keys = (%d,%d), next = }, as state_dict gives", own[1],
      own[2])
  end
  self.keys:copy_(keys)
  self.next = state.next:item()
end

--- A queue of random keys, as MoCo starts.
---@param size integer
---@param D integer width of a key
---@param given table|nil seed (0), dtype ("float32")
---@return lunce.Queue
return function(size, D, given)
  local o = options(given, DEFAULTS, "queue")
  check_size(size, "size")
  check_size(D, "width")
  local keys = lunce.randn(size, D, { seed = o.seed, dtype = o.dtype }):keep()
  return setmetatable({ keys = keys, next = 1 }, Queue)
end

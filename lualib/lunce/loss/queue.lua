-- The queue of keys of MoCo: state of a training run that its checkpoint must hold. In a captured
-- step (lunce.graph) its place moves on the device. Holds no gradient and no encoder. Invariant:
-- always `size` rows, the newest over the oldest.
local lunce = require "lunce"
local arguments = require "lunce.loss.arguments"
local autocast = require "lunce.autocast"
local new_numbers = require("lunce.numbers").new
local options = require("lunce.options").options
local raise = require("lunce.ffi").raise
local running = require("lunce.tensor").state

---@class lunce.Queue
---@field keys lunce.Tensor (size,D) the negatives of the next batch
---@field next integer the row that the next key takes; not told in a captured step
local Queue = { __name = "queue" }

function Queue.__index(queue, key)
  if key == "next" then return queue.numbers:values().next end
  return Queue[key]
end

local DEFAULTS = { seed = 0, dtype = "float32", device = "cpu" }

local function check_size(value, name)
  if type(value) ~= "number" or value % 1 ~= 0 or value < 1 then
    raise("queue: %s is %s; a positive integer is taken", name, arguments.describe(value))
  end
end

local function push_here(self, keys)
  local size, N, first = self.keys.shape[1], keys.shape[1], self.next
  local fit = math.min(N, size - first + 1)
  self.keys:narrow(1, first, fit):copy_(keys:narrow(1, 1, fit))
  self.keys:narrow(1, 1, N - fit):copy_(keys:narrow(1, fit + 1, N - fit))
  self.numbers:set { next = (first + N - 1) % size + 1 }
end

-- The same rows, where the device knows which is the next.
local function push_there(self, keys)
  local size, N = self.keys.shape[1], keys.shape[1]
  local first = self.numbers:captured(running.graph).next
  local function around(rows) return rows - rows:gt(size) * size end
  local rows = around(first + lunce.arange(0, N - 1, { dtype = "float64", device = first.device }))
  self.keys:index_copy_(1, rows:to "int64", keys)
  first:copy_(around(first + N))
end

--- Overwrites the oldest keys, one for each row. To be called after the batch's backward, which
--- still reads them. It may be a part of a captured step.
---@param keys lunce.Tensor (N,D), N up to the queue's size; taken without gradient
function Queue:push(keys)
  local size, D = self.keys.shape[1], self.keys.shape[2]
  keys = autocast.wide(keys)
  local N = arguments.rows(keys, "keys", "queue:push").shape[1]
  if keys.shape[2] ~= D or N > size then
    raise("queue:push: keys (%d,%d) for a queue (%d,%d); up to %d rows of width %d are taken", N,
      keys.shape[2], size, D, size, D)
  end
  lunce.no_grad(lunce.scope, running.graph and push_there or push_here, self,
    keys:detach():to(self.keys.dtype))
end

---@return table<string, lunce.Tensor>
function Queue:state_dict()
  return { keys = self.keys, next = lunce.tensor({ self.next }, { dtype = "int64" }) }
end

---@param state table as state_dict gives
function Queue:load_state_dict(state)
  self.numbers:need_host()
  local own = self.keys.shape
  local given = type(state) == "table" and state or {}
  local keys, first = given.keys, given.next
  local fits = lunce.is_tensor(keys) and #keys.shape == 2 and keys.shape[1] == own[1]
    and keys.shape[2] == own[2] and lunce.is_tensor(first) and first:numel() == 1
  first = fits and first:item()
  if not fits or first % 1 ~= 0 or first < 1 or first > own[1] then
    raise("queue:load_state_dict: takes { keys = (%d,%d), next = }, as state_dict gives; next is"
      .. " from 1 to %d", own[1], own[2], own[1])
  end
  self.numbers:set { next = first }
  self.keys:copy_(keys)
end

--- A queue of random keys, as MoCo starts.
---@param size integer
---@param D integer width of a key
---@param given table|nil seed (0), dtype ("float32"), device ("cpu")
---@return lunce.Queue
return function(size, D, given)
  local o = options(given, DEFAULTS, "queue")
  check_size(size, "size")
  check_size(D, "width")
  local keys = lunce.randn(size, D, { seed = o.seed, dtype = o.dtype, device = o.device }):keep()
  return setmetatable({ keys = keys, numbers = new_numbers({ next = 1 }, "queue") }, Queue)
end

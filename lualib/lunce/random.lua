-- The global generator: which address of Philox the next draw has. Holds two numbers; draws
-- nothing itself. Invariant: the key is the seed, and no two draws of one seed share a stream.
local raise = require("lunce.ffi").raise
local describe = require("lunce.options").describe
local running = require("lunce.tensor").state

local M = {}

local seed, stream = 0, 0

local function need_word(value, name)
  if type(value) ~= "number" or value % 1 ~= 0 or value < 0 or value > 2 ^ 53 then
    raise("random: %s %s; a whole number from 0 to 2^53 is taken", name, describe(value))
  end
  return value
end

--- Starts the generator anew: the same seed gives the same numbers.
---@param value integer 0 to 2^53
function M.manual_seed(value)
  seed, stream = need_word(value, "seed"), 0
end

--- What a checkpoint keeps, to go on with the same numbers after a resume.
---@return { seed: integer, stream: integer }
function M.state()
  return { seed = seed, stream = stream }
end

---@param state { seed: integer, stream: integer }
function M.set_state(state)
  if type(state) ~= "table" then
    raise("random: a state %s; a table, as random.state gives, is taken", describe(state))
  end
  seed, stream = need_word(state.seed, "seed"), need_word(state.stream, "stream")
end

--- The address of one draw into t, as ln_random takes it: the given seed and stream where there is
--- a seed, else the next stream of the global generator; in a captured step that of the replay.
---@param given { seed: integer|false, stream: integer|false }
---@param t lunce.Tensor
---@return integer seed
---@return integer stream
---@return cdata|nil address
function M.address(given, t)
  if given.seed then
    return need_word(given.seed, "seed"), need_word(given.stream or 0, "stream")
  end
  if running.graph then return running.graph:draw(t) end
  stream = stream + 1
  return seed, stream - 1
end

return M

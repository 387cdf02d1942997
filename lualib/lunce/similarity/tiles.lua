-- What tiles are computed in, and tiles of a matrix that its passes share: a forward pass or a tail
-- keeps what the backward pass and later reductions would compute again, as far as a fixed amount
-- of memory goes. Decides what is kept and how long; the runtime fills and reads it. Invariant:
-- what is read was computed from q and k as they are, and weights are read by the backward pass of
-- the reduction they belong to.
local ffi = require "ffi"
local lib = require "lunce.ffi"
local describe = require("lunce.options").describe
local joined = require "lunce.similarity.joined"
local tensor = require "lunce.tensor"

local C, raise, call = lib.C, lib.raise, lib.call

local M = {}

local most = 144 * 2 ^ 20 -- bytes: all tiles of 8192 rows with each other
local WORTH = 2 -- tiles are kept where at least this part of the matrix fits: 1 / WORTH

--- The most bytes of tiles that a matrix keeps, after setting them where given; 0: none.
---@param bytes integer|nil
---@return integer
function M.memory(bytes)
  if bytes ~= nil then
    if type(bytes) ~= "number" or bytes < 0 or bytes % 1 ~= 0 then
      raise("similarity.tile_memory: %s; a whole number of bytes from 0 on is taken",
        tostring(bytes))
    end
    most = bytes
  end
  return most
end

local DTYPES = { float32 = C.LN_TILE_FLOAT32, tf32 = C.LN_TILE_TF32,
  bfloat16 = C.LN_TILE_BFLOAT16, float16 = C.LN_TILE_FLOAT16 }
local dtype = "float32"

--- The name of the dtype of tiles, after setting it where one is given.
---@param name string|nil
---@return string
function M.dtype(name)
  if name ~= nil then
    if not DTYPES[name] then
      raise('similarity.tile_dtype: %s; "float16", "bfloat16", "tf32" or "float32" is taken',
        describe(name))
    end
    dtype = name
  end
  return dtype
end

--- The same as an ln_tile_dtype.
---@return integer
function M.dtype_number() return DTYPES[dtype] end

-- The scope that each matrix was made in, which frees its tiles: a tail's own scope, say, ends
-- before they are read again.
local births = setmetatable({}, { __mode = "kv" })

--- Remembers where a matrix was made.
function M.born(base) births[base] = tensor.state.scope end

-- Hands t, the last that the innermost scope was given, to another.
local function move(t, scope)
  local inner = tensor.state.scope
  if inner then
    inner[inner.n] = nil
    inner.n = inner.n - 1
  end
  if scope then
    scope.n = scope.n + 1
    scope[scope.n] = t
  end
  return t
end

local elements = ffi.new "int64_t[1]"

-- A tensor with room for the tiles of q and k, or nil.
local function room(base, q, k)
  if most == 0 then return nil end
  call(C.ln_similarity_tiles, elements, q.h, k and k.h)
  local size = q.dtype == "float64" and 8 or 4
  local wanted = tonumber(elements[0])
  if wanted == 0 or wanted * size > WORTH * most then return nil end
  local about = tensor.info(q)
  local shape = ffi.new("int64_t[1]", math.min(wanted, math.floor(most / size)))
  call(C.ln_tensor_empty, tensor.out(), about.dtype, about.device, 1, shape)
  return move(tensor.take(), births[base])
end

-- A forward pass may keep its weights, which spare the backward pass its exponentials, where no
-- other reduction of the matrix follows. Whether one does is taken from matrices of the same size
-- before: the first time costs a product that would have been shared.
local followed = {} -- [size] = true

local function size_of(base) return ("%d %d %d"):format(base.N, base.M, base.q.shape[2]) end

---@class lunce.KeptTiles the tiles of one matrix, and who needs them
---@field struct cdata an ln_tiles
---@field values lunce.Tensor what holds them
---@field owner any of weights: what the backward pass that may read them names
local Kept = {}
Kept.__index = Kept

local function serves(kept, base)
  return kept and rawget(kept.values, "h") and joined.version(base.q) == kept.q_version
    and joined.version(base.k) == kept.k_version
end

--- One who needed the tiles is done; the last frees them.
function Kept:free()
  self.users = self.users - 1
  if self.users == 0 then self.values:free() end
end

--- What a forward pass over a matrix takes, or an order statistic: an ln_tiles, or nil for none.
---@param base lunce.Similarity without masks
---@param q lunce.Tensor its rows as the pass takes them; k likewise, or nil
---@param makes boolean whether to make room where there are none
---@param owner any what M.of_owner is to be given for these tiles
---@return cdata|nil
function M.of(base, q, k, makes, owner)
  local kept = base.tiles
  if serves(kept, base) then
    local struct = kept.struct
    if struct.holds == C.LN_TILES_WEIGHTS then followed[size_of(base)] = true end
    if struct.holds == C.LN_TILES_NOTHING then -- its first pass failed
      kept.owner, struct.alone = owner, owner ~= nil
    end
    return struct
  end
  if not makes then return nil end
  local values = room(base, q, k)
  if not values then return nil end
  local alone = owner ~= nil and not followed[size_of(base)]
  base.tiles = setmetatable({ values = values, users = 0, owner = owner,
    struct = ffi.new("ln_tiles", { values = values.h, holds = C.LN_TILES_NOTHING, alone = alone }),
    q_version = joined.version(base.q), k_version = joined.version(base.k) }, Kept)
  return base.tiles.struct
end

--- What the backward pass of a forward pass takes that was given this owner.
---@return cdata|nil
function M.of_owner(base, owner)
  local kept = base.tiles
  if not serves(kept, base) then return nil end
  local theirs = kept.struct.holds == C.LN_TILES_WEIGHTS and kept.owner ~= owner
  return not theirs and kept.struct or nil
end

--- Has a node's backward pass read the matrix's tiles. Returns what the node is to own beside its
--- tensors, or nil: with the tape the last such node frees the tiles.
---@return lunce.KeptTiles|nil
function M.need(base)
  local kept = base.tiles
  if not kept then return nil end
  kept.users = kept.users + 1
  return kept
end

--- Whether a backward pass over the matrix may come.
function M.backward_comes(base)
  return base.q.requires_grad or base.k.requires_grad
end

return M

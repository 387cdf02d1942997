-- The similarity algebra: a lazy N x M matrix of similarities between the rows of q and of k, masks
-- that compose, and the reductions that losses are made of. May not compute with elements: that is
-- the engine's work, and one line below chooses the engine. Invariant: a matrix is never changed;
-- a mask gives a new one, and nothing is computed before a reduction.
--
--   local S   = similarity.cosine(z)
--   local neg = S:without_self():without(positives)
--   local gap = neg:lse(link, tau) - link(S:at(positives), tau)
--
-- A link is a Lua function of s and parameters (see lunce.link). A parameter is a number or a
-- tensor: of one element; per row, (N) or (N,1); per column, (M) or (1,M), where N = M reads (N) as
-- per row. A tensor that a link captures instead must be (1), (N,1) or (1,M): broadcasting alone
-- would read (N) as columns. Reductions give gradients to q, k, parameters and captured tensors.
local autocast = require "lunce.autocast"
local lunce = require "lunce"
local describe = require("lunce.options").describe
local evt = require "lunce.evt"
local options = require("lunce.options").options
local raise = require("lunce.ffi").raise
local tensor = require "lunce.tensor"

local dense = require "lunce.similarity.dense"
local joined = require "lunce.similarity.joined"
local tiles = require "lunce.similarity.tiles"
local ENGINES = { dense = dense, fused = require "lunce.similarity.fused" }
local used = "fused"
local engine = ENGINES[used]

local M = { dense = dense }

---@class lunce.Similarity
---@field N integer rows
---@field M integer columns
---@field kind "cosine"|"dot"
---@field q lunce.Tensor (N,D)
---@field k lunce.Tensor (M,D); q itself for a matrix of one set with itself
---@field base Similarity the matrix that this one masks or transposes
---@field flipped boolean whether it is the base transposed
---@field masks table[] each { kind = , index|rows|columns = }: a candidate passes all of them
local Similarity = { __name = "similarity matrix" }
Similarity.__index = Similarity

local need_rows

local function described(x)
  return ("(%d,%d) %s on %s"):format(x.shape[1], x.shape[2], x.dtype, x.device)
end

-- The rows of a list of tensors, one after the other; they may lie apart where that is taken.
local function join_rows(list, what, apart)
  local parts = {}
  for i = 1, #list do
    local x = need_rows(list[i], what)
    local first = parts[1] or x
    if x.shape[2] ~= first.shape[2] or x.dtype ~= first.dtype or x.device ~= first.device then
      raise("%s: rows 1 are %s and rows %d %s; they differ in width, dtype or device", what,
        described(first), i, described(x))
    end
    parts[i] = x
  end
  if apart and used == "fused" then return joined.join(parts) end
  return lunce.cat(parts, 1)
end

-- x, which must be rows or a list of them; halves as float32 where autocasting is on.
function need_rows(x, what, apart)
  if type(x) == "table" and not getmetatable(x) and x[1] then return join_rows(x, what, apart) end
  if not lunce.is_tensor(x) or #x.shape ~= 2 then
    raise("%s: rows are a tensor (N,D), or a list of such; got %s", what,
      lunce.is_tensor(x) and ("(%s)"):format(table.concat(x.shape, ",")) or describe(x))
  end
  x = autocast.wide(x)
  if x.dtype ~= "float32" and x.dtype ~= "float64" then
    raise("%s: rows are float32 or float64; got %s", what, x.dtype)
  end
  return x
end

local function matrix(kind, q, k)
  local what = "similarity." .. kind
  local one_set = k == nil or k == q
  q = need_rows(q, what, one_set and kind == "cosine")
  k = one_set and q or need_rows(k, what)
  if q.shape[2] ~= k.shape[2] or q.dtype ~= k.dtype then
    raise("%s: q (%d,%d) %s and k (%d,%d) %s differ in width or dtype", what,
      q.shape[1], q.shape[2], q.dtype, k.shape[1], k.shape[2], k.dtype)
  end
  local S = setmetatable({ kind = kind, q = q, k = k, N = q.shape[1], M = k.shape[1], masks = {},
    flipped = false }, Similarity)
  S.base = S
  tiles.born(S)
  return S
end

--- Cosines of the rows of q with the rows of k (of q itself when absent); row norms are clamped
--- below at 1e-8. Of a list of tensors the rows follow each other; those of two are not copied on a
--- CUDA device.
---@param q lunce.Tensor|lunce.Tensor[] (N,D)
---@param k lunce.Tensor|lunce.Tensor[]|nil (M,D)
---@return lunce.Similarity
function M.cosine(q, k) return matrix("cosine", q, k) end

--- Dot products of the rows of q with the rows of k (of q itself when absent).
---@param q lunce.Tensor (N,D)
---@param k lunce.Tensor|nil (M,D)
---@return lunce.Similarity
function M.dot(q, k) return matrix("dot", q, k) end

local function masked(S, mask)
  local masks = {}
  for i, m in ipairs(S.masks) do masks[i] = m end
  masks[#masks + 1] = mask
  if S.flipped and (mask.kind == "without" or mask.kind == "triangle") then
    raise("%s: a transposed matrix takes without_self, same and different only", mask.kind)
  end
  return setmetatable({ kind = S.kind, q = S.q, k = S.k, N = S.N, M = S.M, masks = masks,
    base = S.base, flipped = S.flipped }, Similarity)
end

local function check_square(S, what)
  if S.N ~= S.M then raise("%s: takes a square matrix; this one is (%d,%d)", what, S.N, S.M) end
end

local function check_vector(x, length, what)
  if not lunce.is_tensor(x) or #x.shape ~= 1 or x.shape[1] ~= length then
    raise("%s: takes a tensor (%d); got %s", what, length,
      lunce.is_tensor(x) and ("(%s)"):format(table.concat(x.shape, ",")) or describe(x))
  end
end

local function check_index(x, S, what)
  check_vector(x, S.N, what)
  if x.dtype ~= "int64" then raise("%s: columns are int64; got %s", what, x.dtype) end
end

--- The transposed matrix: its reductions run over each column of this one, and can share its tiles
--- (similarity.together). Transpose before masking.
---@return Similarity
function Similarity:t()
  if #self.masks > 0 then raise("t: a matrix with masks is not transposed; mask what t() gives") end
  return setmetatable({ kind = self.kind, q = self.k, k = self.q, N = self.M, M = self.N,
    masks = {}, base = self.base, flipped = not self.flipped and self.q ~= self.k }, Similarity)
end

--- The name of the engine of the reductions, after setting it where one is given: "fused", or
--- "dense", the reference, which makes the whole matrix.
---@param name string|nil
---@return string
function M.engine(name)
  if name ~= nil then
    if not ENGINES[name] then
      raise('similarity.engine: %s; "fused" or "dense" is taken', describe(name))
    end
    used, engine = name, ENGINES[name]
  end
  return used
end

--- The most bytes of tiles that a matrix keeps from one pass for the next, after setting them where
--- given: what is kept is not computed again, forward or backward, and gives the same bits. 144 MB
--- unless set; 0 keeps none. Of a matrix of which less than half would fit, none are kept.
---@param bytes integer|nil
---@return integer
function M.tile_memory(bytes) return tiles.memory(bytes) end

--- The dtype of the tiles of float32 matrices on CUDA devices, for lse and sum and their gradients,
--- after setting it where one is given: "float32" (unless set), "tf32", "bfloat16" or "float16".
--- Rows and the gradients' weights are rounded to it; sums, links, results and entries (`at`) stay
--- in float32; links of halves take their functions from the device's special units (errors below
--- 1e-5). A gradient is made in the dtype of its forward pass. float16 is as precise as TF32,
--- but only for cosines: dot products, which may leave its range, take TF32 in its place.
--- topk and tail tell rows apart that a half does not: with either half they take cosines from rows
--- in two float16 parts, nearly as precise as float32; else, and of dot products, from float32.
--- Matrices on the CPU and of float64 are computed in full, whatever it is.
---@param name "float32"|"tf32"|"bfloat16"|"float16"|nil
---@return string
function M.tile_dtype(name) return tiles.dtype(name) end

--- Calls fn(...). The lse and sum of one matrix inside it, also of its masked and transposed
--- forms, share one computation of its tiles, forward and backward, whatever its size; their
--- results can be used when together returns. Without it, as with top-k and tails, they share what
--- tiles are kept (tile_memory).
---@param fn function
---@return any ... what fn returned
function M.together(fn, ...)
  return engine.together(tensor.need_function(fn, "similarity.together"), ...)
end

--- Leaves out each row's own column.
---@return lunce.Similarity
function Similarity:without_self()
  check_square(self, "without_self")
  return masked(self, { kind = "self" })
end

--- Leaves out one column of each row.
---@param index lunce.Tensor (N) int64, positions from 1
---@return lunce.Similarity
function Similarity:without(index)
  check_index(index, self, "without")
  return masked(self, { kind = "without", index = index })
end

-- Labels are compared as they are; as integers, fractions would not be.
local function check_labels(x, length, what)
  check_vector(x, length, what)
  if x.dtype:find "float" then raise("%s: labels are %s; integers are taken", what, x.dtype) end
end

local function by_labels(S, kind, rows, columns)
  if columns == nil then
    check_square(S, kind)
    columns = rows
  end
  check_labels(rows, S.N, kind)
  check_labels(columns, S.M, kind)
  return masked(S, { kind = kind, rows = rows, columns = columns })
end

--- Keeps the columns whose label is the row's.
---@param rows lunce.Tensor (N), integers
---@param columns lunce.Tensor|nil (M), integers; the rows' own when absent
---@return lunce.Similarity
function Similarity:same(rows, columns) return by_labels(self, "same", rows, columns) end

--- Keeps the columns whose label is not the row's.
---@param rows lunce.Tensor (N), integers
---@param columns lunce.Tensor|nil (M), integers; the rows' own when absent
---@return lunce.Similarity
function Similarity:different(rows, columns) return by_labels(self, "different", rows, columns) end

--- Keeps the columns past the row's own: each unordered pair once.
---@return lunce.Similarity
function Similarity:triangle()
  check_square(self, "triangle")
  return masked(self, { kind = "triangle" })
end

local function arrange_one(S, p, place)
  if type(p) == "number" then return p end
  if not lunce.is_tensor(p) then
    raise("link: parameter %d is %s; a number or a tensor is taken", place, describe(p))
  end
  local shape = p.shape
  if p:numel() == 1 then return p:reshape(1) end
  if #shape == 1 and shape[1] == S.N then return p:unsqueeze(2) end
  if #shape == 1 and shape[1] == S.M then return p:unsqueeze(1) end
  if #shape == 2 and (shape[1] == S.N and shape[2] == 1 or shape[1] == 1 and shape[2] == S.M) then
    return p
  end
  raise("link: parameter %d has shape (%s); one element, (%d), (%d,1), (%d) or (1,%d) is taken",
    place, table.concat(shape, ","), S.N, S.N, S.M, S.M)
end

-- The parameters of a link as numbers and tensors that broadcast against (N,M).
local function arrange(S, what, link, ...)
  if link ~= nil and type(link) ~= "function" then
    raise("%s: a link function is taken; got %s", what, describe(link))
  end
  local count = select("#", ...)
  if count > 0 and not link then raise("%s: parameters without a link function", what) end
  local parameters = {}
  for place = 1, count do
    parameters[place] = arrange_one(S, (select(place, ...)), place)
  end
  return parameters
end

--- log sum exp over each row's candidates of link(s, ...); of s itself without a link. A row
--- without candidates gives -inf and no gradient.
---@param link function|nil
---@return lunce.Tensor (N)
function Similarity:lse(link, ...)
  return engine.lse(self, link, arrange(self, "lse", link, ...))
end

--- The sum over each row's candidates of link(s, ...); 0 for a row without candidates.
---@param link function|nil
---@return lunce.Tensor (N)
function Similarity:sum(link, ...)
  return engine.sum(self, link, arrange(self, "sum", link, ...))
end

--- Each row's largest similarity and its column, the first of equals; -inf without candidates.
---@return lunce.Tensor values (N), differentiable
---@return lunce.Tensor columns (N) int64
function Similarity:max()
  if self.M == 0 then raise("max: the matrix (%d,0) has no columns", self.N) end
  local values, columns = self:topk(1)
  return values:select(2, 1), columns:select(2, 1)
end

--- Each row's k largest similarities, largest first, and their columns; where a row has fewer
--- candidates its last values are -inf.
---@param k integer 0 to M
---@return lunce.Tensor values (N,k), differentiable
---@return lunce.Tensor columns (N,k) int64
function Similarity:topk(k)
  if type(k) ~= "number" or k % 1 ~= 0 or k < 0 or k > self.M then
    raise("topk: k is %s; an integer from 0 to %d is taken", describe(k), self.M)
  end
  return engine.topk(self, k)
end

--- The number of candidates of each row.
---@return lunce.Tensor (N) int64
function Similarity:count() return engine.count(self) end

--- The entry of each row at one column, whatever the masks.
---@param index lunce.Tensor (N) int64, positions from 1
---@return lunce.Tensor (N)
function Similarity:at(index)
  check_index(index, self, "at")
  return engine.at(self, index)
end

--- The whole matrix, to look at; masked entries are -inf.
---@return lunce.Tensor (N,M)
function Similarity:dense() return engine.dense(self) end

-- The fewest candidates of a row and those of all rows, where shapes and the kind of the one mask
-- tell (an index leaves out one column of each row); nil where only the masks' values do.
local function known_counts(S)
  local mask, N = S.masks[1], S.N
  if not mask then return S.M, N * S.M end
  if #S.masks > 1 or mask.kind == "same" or mask.kind == "different" then return nil end
  if mask.kind == "triangle" then return 0, N * (N - 1) / 2 end
  return math.max(S.M - 1, 0), N * math.max(S.M - 1, 0)
end

local function pooled_tail(S, count)
  local k = math.min(math.max(1024, math.floor(0.05 * count)), count)
  if k < 10 then return nil end
  local fit = engine.pooled_tail(S, k)
  local result = { k = k, n = fit.n }
  for _, name in ipairs{ "beta_hat", "r2", "delta_aic" } do
    local value = fit[name]:select(1, 1)
    result[name] = tensor.state.step and value or value:item()
  end
  return result
end

local TAIL = { k = false, pooled = false, candidates = false }
local TAIL_FLAGS = { pooled = true }

--- The tail of shortfalls 1 - s of each row's candidates: order statistics and fits, without
--- gradient. With pooled = true, one fit over the candidates of all rows together (numbers; nil
--- when there are fewer than 10; in a captured step, tensors without dimensions).
---@param given table|nil k: points of a row's tail, by default evt.tail_size of the fewest
---  candidates; pooled; candidates: the fewest of a row where they are known, which are not counted
---  then; pooled, each row is taken to have so many. Without masks, or with one mask that is not of
---  labels, nothing is counted either: shapes tell. Else a captured step, where the host must know
---  them, takes candidates
---@return table|nil tail rho (N), the least shortfall, at least 1e-6; and evt.fit's fields
function Similarity:tail(given)
  local o = options(given, TAIL, "tail", TAIL_FLAGS)
  local fewest = o.candidates
  if fewest and (type(fewest) ~= "number" or fewest % 1 ~= 0 or fewest < 0 or fewest > self.M) then
    raise("tail: candidates are %s; an integer from 0 to %d, the columns, is taken",
      describe(fewest), self.M)
  end
  return lunce.no_grad(lunce.scope, function()
    local all = fewest and self.N * fewest
    if not fewest then fewest, all = known_counts(self) end
    if not fewest then
      tensor.no_capture("tail", "give it candidates = the fewest of a row, which are not counted")
    end
    if o.pooled then return pooled_tail(self, all or self:count():sum():item()) end
    fewest = self.N > 0 and (fewest or self:count():min():item()) or 0
    local k = o.k or evt.tail_size(fewest)
    if type(k) ~= "number" or k % 1 ~= 0 or k < 0 or k > fewest then
      raise("tail: k is %s; an integer from 0 to %d, the fewest candidates of a row, is taken",
        describe(k), fewest)
    end
    return engine.tail(self, k)
  end)
end

return M

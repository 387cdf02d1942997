-- The reference engine of the similarity algebra: every reduction makes the whole N x M matrix and
-- uses ordinary tensor operators, so it costs O(N M) memory. May not know what a link means.
-- Invariant: a masked entry contributes neither value nor gradient, whatever the link is there.
--
-- An engine is this set of functions of a similarity matrix: lse, sum, topk, pooled_topk, count,
-- at, dense. Links come with parameters that broadcast against (N,M).
local lunce = require "lunce"
local evt = require "lunce.evt"
local raise = require("lunce.ffi").raise

local M = {}

local LEAST_NORM = 1e-8
-- What a link sees at a masked entry: a value where logarithms, roots and powers are finite, since
-- a zero gradient times an infinite derivative would be NaN.
local HARMLESS = 0.5

local function normalised(x) return x / x:norm(2, 2, true):clamp(LEAST_NORM, math.huge) end

-- In the rows' dtype, also where products are autocast.
local function product(q, k) return lunce.autocast(false, lunce.matmul, q, k:t()) end

local function scores(S)
  if S.kind == "dot" then return product(S.q, S.k) end
  local q = normalised(S.q)
  local k = S.k == S.q and q or normalised(S.k)
  return product(q, k)
end

-- Rows (N,1) and columns (1,M) as positions.
local function positions(S)
  local o = { dtype = "int64", device = S.q.device }
  return lunce.arange(1, S.N, 1, o):unsqueeze(2), lunce.arange(1, S.M, 1, o):unsqueeze(1)
end

local function from_start(index, S)
  local columns = index + index:lt(0):to("int64") * (S.M + 1)
  if columns:numel() > 0 and (columns:min():item() < 1 or columns:max():item() > S.M) then
    raise("without: a column is outside 1 to %d", S.M)
  end
  return columns
end

-- Which entries each kind of mask drops: bool, broadcast against (N,M).
local DROPS = {
  self = function(S)
    local rows, columns = positions(S)
    return rows:eq(columns)
  end,
  triangle = function(S)
    local rows, columns = positions(S)
    return rows:ge(columns)
  end,
  without = function(S, mask)
    local _, columns = positions(S)
    return from_start(mask.index, S):unsqueeze(2):eq(columns)
  end,
  same = function(_, mask) return mask.rows:unsqueeze(2):ne(mask.columns:unsqueeze(1)) end,
  different = function(_, mask) return mask.rows:unsqueeze(2):eq(mask.columns:unsqueeze(1)) end,
}

local function dropped(S)
  local all
  for _, mask in ipairs(S.masks) do
    local drop = DROPS[mask.kind](S, mask)
    all = all and all:logical_or(drop) or drop
  end
  return all
end

-- link(s, ...) with `masked` at what the masks drop, and the mask.
local function linked(S, link, parameters, masked)
  local x, drop = scores(S), dropped(S)
  if link then
    if drop then x = x:masked_fill(drop, HARMLESS) end
    x = link(x, unpack(parameters))
    if type(x) == "number" then x = S.q:new_full({ S.N, S.M }, x) end
    if not lunce.is_tensor(x) or #x.shape ~= 2 or x.shape[1] ~= S.N or x.shape[2] ~= S.M then
      raise("link: the function must give one value for each s (%d,%d); got %s", S.N, S.M,
        lunce.is_tensor(x) and ("(%s)"):format(table.concat(x.shape, ",")) or type(x))
    end
    x = x:to(S.q.dtype) -- a comparison's
  end
  return drop and x:masked_fill(drop, masked) or x, drop
end

function M.lse(S, link, parameters)
  local x, drop = linked(S, link, parameters, -math.huge)
  local bare = drop and drop:all(2)
  if not bare or not bare:any():item() then return x:logsumexp(2) end
  -- exp(-inf - -inf) is NaN in the gradient of a row without candidates: it never gets there.
  return x:masked_fill(bare:unsqueeze(2), 0):logsumexp(2):masked_fill(bare, -math.huge)
end

function M.sum(S, link, parameters) return (linked(S, link, parameters, 0)):sum(2) end

function M.dense(S) return (linked(S, nil, nil, -math.huge)) end

function M.topk(S, k) return M.dense(S):topk(k, 2) end

--- The fits to the tail of k points of each row, and rho, its least shortfall.
function M.tail(S, k)
  local shortfalls = 1 - (M.topk(S, math.max(k, 1))):to("float64")
  local tail = evt.fit(shortfalls:narrow(2, 1, k))
  tail.rho = shortfalls:select(2, 1):clamp(1e-6, math.huge)
  return tail
end

--- The fit to the tail of the k largest candidates of all rows together.
function M.pooled_tail(S, k)
  return evt.fit(1 - M.dense(S):flatten():topk(k, 1):to("float64"))
end

function M.together(fn, ...) return fn(...) end

function M.count(S)
  local drop = dropped(S)
  if not drop then return lunce.full({ S.N }, S.M, { dtype = "int64", device = S.q.device }) end
  return drop:logical_not():expand(S.N, S.M):sum(2)
end

function M.at(S, index)
  local q, k = S.q, S.k:index_select(1, index)
  if S.kind == "cosine" then q, k = normalised(q), normalised(k) end
  return (q * k):sum(2)
end

return M

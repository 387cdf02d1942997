-- The fused engine of the similarity algebra: every reduction runs in tiles inside the runtime, in
-- memory that does not grow with N x M. The same set of functions as dense.lua, its reference.
-- May not compute with elements. Invariant: everything that a reduction reads is held by the node
-- that records it, from the forward to the backward call.
local ffi = require "ffi"
local lunce = require "lunce"
local autograd = require "lunce.autograd"
local dense = require "lunce.similarity.dense"
local evt = require "lunce.evt"
local lib = require "lunce.ffi"
local tensor = require "lunce.tensor"
local tiles = require "lunce.similarity.tiles"
local program = require "lunce.link.program"
local joined = require "lunce.similarity.joined"

local C, raise, call = lib.C, lib.raise, lib.call
local out, take, out2, take2 = tensor.out, tensor.take, tensor.out2, tensor.take2

local M = {}

-- ---- What the runtime takes ------------------------------------------------------------------

local function contiguous(x)
  return tensor.info(x).contiguous and x or x:detach():contiguous()
end

-- The rows of both sides of a matrix or of its base; k is nil where it is of one set with itself.
local function sides(S)
  local q = joined.read(S.q)
  return q, S.k ~= S.q and joined.read(S.k) or nil
end

local MASKS = { self = C.LN_MASK_SELF, without = C.LN_MASK_INDEX, same = C.LN_MASK_SAME,
  different = C.LN_MASK_DIFFERENT, triangle = C.LN_MASK_TRIANGLE }

local function labels(x, held)
  if not x then return nil end
  local list = contiguous(x:detach():to("int64"))
  held[#held + 1] = list
  return list.h
end

-- Indices on the CPU that have no negative positions, and the version of each that was looked at.
local from_start = setmetatable({}, { __mode = "k" })

-- What was made of indices on a device that outlive a step: { version =, M =, result = }.
local counted = setmetatable({}, { __mode = "k" })

-- An index with negative positions counted from the end; one on a device without a look at it. A
-- captured step finds another index in the same tensor every time.
local function positions(index, M_)
  local version, known = C.ln_tensor_version(index.h), counted[index]
  if from_start[index] == version then return index end
  local capturing = tensor.state.graph
  if known and known.version == version and known.M == M_ and not capturing then
    return known.result
  end
  local negative = index:lt(0)
  if index.device == "cpu" and not negative:any():item() then
    from_start[index] = version
    return index
  end
  local result = index + negative:to("int64") * (M_ + 1)
  if index.kept and index.device ~= "cpu" and not capturing then
    counted[index] = { version = version, M = M_, result = result:keep() }
  end
  return result
end

-- The masks as an `ln_mask` array and their number; `held` keeps what they point to.
local function masks(S, held)
  local array = ffi.new("ln_mask[?]", math.max(#S.masks, 1))
  for i, mask in ipairs(S.masks) do
    local rows, columns = mask.rows, mask.columns
    if mask.index then rows = positions(mask.index, S.M) end
    if S.flipped then rows, columns = columns, rows end
    array[i - 1].kind = MASKS[mask.kind]
    array[i - 1].row = labels(rows, held)
    array[i - 1].column = columns == rows and array[i - 1].row or labels(columns, held)
  end
  held[#held + 1] = array
  return array, #S.masks
end

-- Called with what a C call read, after it: until then the collector must not take it for dead.
local function was_read() end

-- The kind of a link's parameter by its shape.
local function kind_of(S)
  return function(x)
    local shape = x.shape
    if x:numel() == 1 then return C.LN_PARAMETER_SCALAR end
    local rows, columns = C.LN_PARAMETER_ROW, C.LN_PARAMETER_COLUMN
    if S.flipped then rows, columns = columns, rows end
    if #shape == 2 and shape[1] == S.N and shape[2] == 1 then return rows end
    if #shape == 2 and shape[1] == 1 and shape[2] == S.M then return columns end
    raise("link: a tensor (%s) for a matrix (%d,%d); (1), (%d,1) for the rows or (1,%d) for the"
      .. " columns is taken", table.concat(shape, ","), S.N, S.M, S.N, S.M)
  end
end

local function parameter_array(traced, slopes, step_of, S, held)
  local array = ffi.new("ln_parameter[?]", math.max(#traced.parameters, 1))
  for i, p in ipairs(traced.parameters) do
    local value = contiguous(p.tensor:detach():to(S.q.dtype))
    held[#held + 1] = value
    array[i - 1].kind, array[i - 1].value = p.kind, value.h
    array[i - 1].slope = slopes[i] and step_of[slopes[i]] or -1
  end
  held[#held + 1] = array
  return array
end

-- Fills an `ln_reduction` with a traced link; `held` keeps everything that it points to.
local function fill(r, S, kind, traced, held)
  local slope, slopes = program.slopes(traced)
  local steps, count, step_of = program.emit{ traced.value, slope, unpack(slopes) }
  r.kind, r.by_column, r.n_steps, r.steps = kind, S.flipped, count, steps
  r.value, r.slope = step_of[traced.value], step_of[slope]
  r.n_parameters = #traced.parameters
  r.parameters = parameter_array(traced, slopes, step_of, S, held)
  r.masks, r.n_masks = masks(S, held)
  held[#held + 1] = steps
end

-- ---- Plans: reductions of one matrix that share its tiles ------------------------------------

-- A plan's entries: { S =, kind =, traced =, y = a deferred tensor, taped = whether the tape was on
-- when it was asked for }, all of one matrix.

-- A part's rule leaves its gradient with the plan's node; what it returns only says that it came.
local part_rule = autograd.rule("similarity", function(node, dy)
  local whole = node[1]
  whole.dy[node.place] = contiguous(dy):detach():keep()
  return lunce.zeros(1)
end)

local function cotangents(node)
  local dys, ys = ffi.new("const ln_tensor *[?]", node.n), ffi.new("const ln_tensor *[?]", node.n)
  for i = 1, node.n do
    node.dy[i] = node.dy[i] or lunce.zeros_like(node.ys[i]):keep()
    dys[i - 1], ys[i - 1] = node.dy[i].h, node.ys[i].h
  end
  return dys, ys
end

-- The gradients of q, of k where it is another tensor, and of the parameters, in the order of the
-- node's inputs.
local plan_rule = autograd.rule("similarity", function(node)
  local gradients, first = {}, node.k and 2 or 1
  local dparameters = ffi.new("ln_tensor *[?]", math.max(#node.parameters, 1))
  local dys, ys = cotangents(node)
  call(C.ln_similarity_backward, node[1] and out() or nil, node.k and node[2] and out2() or nil,
    dparameters, dys, ys, node.q.h, node.k and node.k.h, node.cosine, node.tile_dtype, node.n,
    node.reductions, tiles.of_owner(node.base, node.held))
  gradients[1] = node[1] and take() or false
  if node.k then gradients[2] = node[2] and take2() or false end
  for i, p in ipairs(node.parameters) do
    local handle = dparameters[i - 1]
    gradients[first + i] = handle ~= nil
      and tensor.wrap(handle):reshape(p.tensor.shape):to(p.tensor.dtype) or false
  end
  for i = 1, node.n do
    node.dy[i]:free()
    node.dy[i] = nil
  end
  return gradients
end)

-- Those of a plan's entries that are for the tape, with their reductions and parameters.
local function taped(plan, reductions)
  local chosen, of_chosen, parameters = {}, ffi.new("ln_reduction[?]", #plan), {}
  for i, entry in ipairs(plan) do
    if entry.taped then
      of_chosen[#chosen] = reductions[i - 1]
      chosen[#chosen + 1] = entry
      for _, p in ipairs(entry.traced.parameters) do parameters[#parameters + 1] = p end
    end
  end
  return chosen, of_chosen, parameters
end

local function record_plan(plan, q, k, tile_dtype, reductions, held)
  local base = plan[1].S.base
  local chosen, of_chosen, parameters = taped(plan, reductions)
  local inputs = { base.q }
  if k then inputs[2] = base.k end
  for _, p in ipairs(parameters) do inputs[#inputs + 1] = p.tensor end
  local wanted = false
  for i = 1, #inputs do wanted = wanted or inputs[i].requires_grad end
  if not (chosen[1] and wanted) then return end
  local node = autograd.save(autograd.node(plan_rule, inputs), q, k)
  node.q, node.k, node.cosine, node.n = q, k, base.kind == "cosine", #chosen
  node.reductions, node.held, node.parameters = of_chosen, held, parameters
  node.base, node.tile_dtype, node.dy, node.ys = base, tile_dtype, {}, {}
  for i, entry in ipairs(chosen) do
    autograd.record_part(entry.y, part_rule, node).place = i
    node.ys[i] = entry.y:detach()
  end
  local read = {} -- masks and parameters
  for _, x in ipairs(held) do
    if tensor.is_tensor(x) then read[#read + 1] = x end
  end
  autograd.watch(node, read)
  local private = { unpack(node.ys) }
  private[#private + 1] = tiles.need(base)
  autograd.own(node, unpack(private))
end

-- Computes a plan's entries in one pass and settles their tensors.
local function run(plan)
  local base = plan[1].S.base
  local q, k = sides(base)
  local reductions, held, makes = ffi.new("ln_reduction[?]", #plan), {}, false
  for i, entry in ipairs(plan) do
    fill(reductions[i - 1], entry.S, entry.kind, entry.traced, held)
    makes = makes or entry.taped and tiles.backward_comes(base)
  end
  local results = ffi.new("ln_tensor *[?]", #plan)
  local tile_dtype = tiles.dtype_number() -- also the backward pass's
  call(C.ln_similarity_forward, results, q.h, k and k.h, base.kind == "cosine", tile_dtype, #plan,
    reductions, tiles.of(base, q, k, makes, held))
  for i, entry in ipairs(plan) do tensor.settle(entry.y, results[i - 1]) end
  record_plan(plan, q, k, tile_dtype, reductions, held)
end

local group = false -- the plans of the innermost together, in order and by matrix

-- Of the rows of a matrix: another number after each change in place.
local function version_of(base)
  return joined.version(base.q) + joined.version(base.k)
end

local function reduce(S, kind, link, arguments)
  local entry = { S = S, kind = kind, y = tensor.defer(), taped = autograd.tape.on,
    traced = program.trace(link, arguments, kind_of(S)) }
  if not group then
    run{ entry }
    return entry.y
  end
  local plan = group[S.base]
  if not plan or #plan == C.LN_MAX_REDUCTIONS then
    plan = { version = version_of(S.base) }
    group[S.base] = plan
    group[#group + 1] = plan
  end
  plan[#plan + 1] = entry
  return entry.y
end

local function finish(outer, ok, ...)
  local plans = group
  group = outer
  if not ok then error((...), 0) end
  for _, plan in ipairs(plans) do
    if plan.version ~= version_of(plan[1].S.base) then
      raise("similarity.together: rows were changed in place after a reduction of them")
    end
    run(plan)
  end
  return ...
end

--- Calls fn(...); the lse and sum of one matrix inside it share one computation of its tiles,
--- forward and backward. Their results can be used when it returns.
function M.together(fn, ...)
  local outer = group
  group = {}
  return finish(outer, pcall(fn, ...))
end

function M.lse(S, link, arguments) return reduce(S, C.LN_REDUCE_LSE, link, arguments) end

function M.sum(S, link, arguments) return reduce(S, C.LN_REDUCE_SUM, link, arguments) end

-- ---- Entries and order statistics ------------------------------------------------------------

-- The gradients are added to what has come for q and k already: few rows' entries are no reason for
-- tensors of their own.
local at_rule = autograd.rule("similarity.at", function(node, dy)
  local g = contiguous(dy:reshape(node.columns.shape))
  local to_q = autograd.gathered(node[1])
  local to_k = node.k and autograd.gathered(node[2])
  local dq = node[1] and (to_q and tensor.into(to_q) or out()) or nil
  local dk = node.k and node[2] and (to_k and tensor.into2(to_k) or out2()) or nil
  call(C.ln_similarity_at_backward, dq, dk, g.h, node.q.h, node.k and node.k.h, node.cosine,
    node.columns.h)
  return dq and not to_q and take() or nil, dk and not to_k and take2() or nil
end)

-- Records that y (N,K), or (N) for one column, holds the entries at columns (N,K).
local function record_entries(y, S, q, k, columns)
  if autograd.tape.on and (S.q.requires_grad or S.k.requires_grad) then
    local node = autograd.save(autograd.record(y, at_rule, S.q, k and S.k), q, columns, k)
    node.q, node.k, node.columns, node.cosine = q, k, columns, S.kind == "cosine"
  end
  return y
end

function M.at(S, index)
  local q, k = sides(S)
  local columns = contiguous(positions(index, S.M):unsqueeze(2))
  call(C.ln_similarity_at, out(), q.h, k and k.h, S.kind == "cosine", columns.h)
  local y = lunce.no_grad(function(entries) return entries:select(2, 1) end, take())
  return record_entries(y, S, q, k, columns)
end

-- The tiles of an order statistic, whose rows are the base's.
local function shared_tiles(S, q, k)
  if S.flipped then return nil end
  return tiles.of(S.base, q, k, tiles.backward_comes(S.base))
end

--- Values without candidates are -inf and pass no gradient.
function M.topk(S, k_largest)
  local q, k = sides(S)
  local held = {}
  local array, n = masks(S, held)
  call(C.ln_similarity_topk, out(), out2(), q.h, k and k.h, S.kind == "cosine",
    tiles.dtype_number(), k_largest, n, array, shared_tiles(S, q, k))
  was_read(held)
  local values, columns = take(), take2()
  local missing = values:eq(-math.huge)
  record_entries(values, S, q, k, columns)
  if values.device ~= "cpu" or missing:any():item() then
    values = values:masked_fill(missing, -math.huge)
  end
  return values, columns
end

-- The fits that C made, (5,R): rho, then slope and SSE of both lines.
local function judge(fits, k)
  local tail = evt.judge(fits:select(1, 2), fits:select(1, 3), fits:select(1, 4),
    fits:select(1, 5), k)
  tail.rho = fits:select(1, 1)
  return tail
end

--- The fits to the tail of k points of each row, and rho, its least shortfall.
function M.tail(S, points)
  local q, k = sides(S)
  local held = {}
  local array, n = masks(S, held)
  local used = math.max(points, 1)
  call(C.ln_similarity_tail, out(), q.h, k and k.h, S.kind == "cosine", tiles.dtype_number(), used,
    evt.burnt(used), n, array, shared_tiles(S, q, k))
  was_read(held)
  return judge(take():t():contiguous(), points)
end

--- The fit to the tail of the k largest candidates of all rows together.
function M.pooled_tail(S, points)
  local q, k = sides(S)
  local held = {}
  local array, n = masks(S, held)
  call(C.ln_similarity_pooled_tail, out(), q.h, k and k.h, S.kind == "cosine",
    tiles.dtype_number(), points, evt.burnt(points), n, array)
  was_read(held)
  return judge(take():unsqueeze(2), points)
end

--- The whole matrix: dense by nature.
M.dense = dense.dense

function M.count(S)
  local held = {}
  local array, n = masks(S, held)
  call(C.ln_similarity_count, out(), joined.device(S.q), S.N, S.M, n, array)
  was_read(held)
  return take()
end

return M

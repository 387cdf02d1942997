-- The tape: what was computed from what, and the walk that brings gradients back. Holds no rule
-- of an operator; those stand beside the operators in ops/. Invariants: a node's sequence number
-- is above those of the nodes it depends on, so falling numbers are a topological order; a rule
-- runs with recording and autocasting off; a gradient is written in place only where nothing else
-- sees its storage.
--
-- An operator records itself so, after its forward call gave y:
--   if tape.on and x.requires_grad then save(record(y, exp_rule, x), y) end
-- where exp_rule = rule("exp", function(node, dy) return dy * node.x end) returns a gradient, or
-- nil, for each input given to record, of the input's shape and dtype. Whatever else a rule
-- creates is freed when it returns.
local lib = require "lunce.ffi"
local tensor = require "lunce.tensor"
local describe, options = require("lunce.options").describe, require("lunce.options").options

local C, raise, call = lib.C, lib.raise, lib.call
local Tensor, need, state = tensor.Tensor, tensor.need, tensor.state

local M = {}

-- on: operators record themselves; anomaly: every output and every gradient is checked; low: the
-- dtype that products are cast to, or false (autocast.lua).
local tape = { on = true, anomaly = false, low = false }
M.tape = tape

local names = {} -- by rule

--- Declares a backward rule under the operator's name. Returns fn.
function M.rule(name, fn)
  names[fn] = name
  return fn
end

-- ---- Recording -------------------------------------------------------------------------------

local sequence = 0

-- Where x's gradient goes: the node that produced x, or x itself where it is a leaf.
local function edge(x)
  return x and x.requires_grad and (x.node or x) or false
end

local function attach(y, rule, node)
  sequence = sequence + 1
  node.rule, node.seq = rule, sequence
  y.node, y.requires_grad = node, true
  return node
end

--- Records that y was computed from tensors a, b, c (or nil). Returns the node: node[i] is false
--- where input i wants no gradient, and a rule may keep in it what it needs.
function M.record(y, rule, a, b, c)
  if tape.anomaly then M.check_output(names[rule], y, { a, b, c }) end
  return attach(y, rule,
    { edge(a), edge(b), edge(c), rule = false, seq = 0, grad = false, used = false })
end

--- The same for a list of inputs; the rule returns a list of gradients.
function M.record_list(y, rule, inputs)
  if tape.anomaly then M.check_output(names[rule], y, inputs) end
  local node = { grad = false, used = false, list = true }
  for i = 1, #inputs do node[i] = edge(inputs[i]) end
  return attach(y, rule, node)
end

--- A node of its own, of which several results will be parts: record_part hangs each under it.
function M.node(rule, inputs)
  sequence = sequence + 1
  local node = { grad = false, used = false, list = true, rule = rule, seq = sequence }
  for i = 1, #inputs do node[i] = edge(inputs[i]) end
  return node
end

--- Records y as a part of `whole`, a node made by M.node: the rule hands it dy and returns a
--- gradient for it, which the whole's rule is given as the sum over the parts.
function M.record_part(y, rule, whole)
  if tape.anomaly then M.check_output(names[whole.rule], y, {}) end
  return attach(y, rule, { whole, rule = false, seq = 0, grad = false, used = false })
end

--- Keeps x (and y and z) for the rule, as node.x, node.y and node.z, guarded against in-place
--- changes.
function M.save(node, x, y, z)
  node.x, node.x_version = x, C.ln_tensor_version(x.h)
  if y then node.y, node.y_version = y, C.ln_tensor_version(y.h) end
  if z then node.z, node.z_version = z, C.ln_tensor_version(z.h) end
  return node
end

--- Guards a list of tensors that the rule reads against in-place changes.
function M.watch(node, list)
  node.watched, node.versions = list, {}
  for i, x in ipairs(list) do node.versions[i] = C.ln_tensor_version(x.h) end
end

--- Gives the node tensors that nobody else holds, to be freed when the tape unwinds.
function M.own(node, ...)
  node.private = { ... }
  return node
end

--- Refuses an in-place change of x by src (a tensor or anything else) that the tape would not see.
function M.guard(x, what, src)
  need(x, what, 1)
  if not tape.on then return end
  if x.requires_grad then
    raise("%s: in-place change of a tensor that requires a gradient; do it under lunce.no_grad, or"
      .. " make a new tensor", what)
  end
  if getmetatable(src) == Tensor and src.requires_grad then
    raise("%s: the source requires a gradient, which in-place operators do not record; detach it"
      .. " or make a new tensor", what)
  end
end

local function recorded_as(what, on, fn, ...)
  tensor.need_function(fn, what)
  local was = tape.on
  tape.on = on
  return was, pcall(fn, ...)
end

local function restore(was, ok, ...)
  tape.on = was
  if not ok then error((...), 0) end
  return ...
end

--- Calls fn(...) without recording; returns what it returns.
function M.no_grad(fn, ...)
  return restore(recorded_as("no_grad", false, fn, ...))
end

--- Calls fn(...) with recording, inside a no_grad.
function M.enable_grad(fn, ...)
  return restore(recorded_as("enable_grad", true, fn, ...))
end

---@return boolean
function M.is_grad_enabled()
  return tape.on
end

-- ---- Anomalies -------------------------------------------------------------------------------

local function has_nan(t)
  return t:isnan():any():item()
end

local function is_finite(t)
  return t:isfinite():all():item()
end

--- Raises where y is not finite and no input explains it: NaN where none of them has a NaN,
--- infinity where all are finite. An operator that was handed the infinity (masked_fill) is named
--- by its caller as `given`.
function M.check_output(name, y, inputs)
  if is_finite(y) then return end
  local nan, finite = has_nan(y), true
  for _, x in pairs(inputs) do
    if x and x.dtype:find "float" then
      if nan and has_nan(x) then return end
      finite = finite and is_finite(x)
    end
  end
  if nan or (finite and name ~= "masked_fill" and name ~= "where") then
    raise("detect_anomaly: %s gave %s from inputs without one", name,
      nan and "a NaN" or "an infinity")
  end
end

local function check_gradient(name, d, dy)
  if not is_finite(d) and is_finite(dy) then
    raise("detect_anomaly: the backward of %s gave %s", name,
      has_nan(d) and "a NaN" or "an infinity")
  end
end

--- Checks every recorded output and every gradient for NaN and infinity, and raises naming the
--- first operator that produced one. Slow; for finding a fault.
---@param on boolean
function M.detect_anomaly(on)
  tape.anomaly = tensor.need_boolean(on, "detect_anomaly", "argument 1")
end

-- ---- The walk back ---------------------------------------------------------------------------

-- One call of backward. `users` counts the readers of a gradient tensor that the walk owns; `parts`
-- are those that share a storage with one another only, each its own elements; `sink` holds the
-- slots of lunce.grad by edge; `created` is the scope of the rule that runs.
local Walk = {}
local walking -- the innermost
Walk.__index = Walk

-- The nodes that root depends on, by falling sequence number.
local function order(root)
  local by_seq, seqs, stack, top = {}, {}, { root }, 1
  while top > 0 do
    local node = stack[top]
    top = top - 1
    if not by_seq[node.seq] then
      if node.used then
        raise("backward: the tape of %s was used already and is freed; give the first backward"
          .. " { retain_graph = true } to use it twice", names[node.rule])
      end
      by_seq[node.seq] = node
      seqs[#seqs + 1] = node.seq
      for i = 1, #node do
        local e = node[i]
        if e and getmetatable(e) ~= Tensor then
          top = top + 1
          stack[top] = e
        end
      end
    end
  end
  table.sort(seqs)
  local nodes = {}
  for i = #seqs, 1, -1 do nodes[#nodes + 1] = by_seq[seqs[i]] end
  return nodes
end

-- One reader of g is done.
function Walk:release(g)
  local n = self.users[g]
  if not n then return end -- the caller's own
  if n > 1 then
    self.users[g] = n - 1
  else
    self.users[g] = nil
    g:free()
  end
end

-- Only one reader sees the elements of g, and each has its own place.
function Walk:exclusive(g)
  if self.users[g] ~= 1 then return false end
  local about = tensor.info(g)
  return about.holders == 1 and (about.contiguous or about.channels_last)
end

--- What a rule may add the gradient of its input e to, returning none: what has come for e already,
--- where nothing else reads it; else nil.
---@param e table|false node[i]
---@return lunce.Tensor|nil
function M.gathered(e)
  local g = not tape.anomaly and e and getmetatable(e) ~= Tensor and e.grad
  return g and walking:exclusive(g) and g or nil
end

local function add_into(sum, g)
  call(C.ln_axpby, sum.h, 1, g.h, 1)
end

-- Adds g, of which one use is handed over, to what has come for a node or a slot.
function Walk:accumulate(node, g)
  local held = node.grad
  if not held then
    node.grad = g
  elseif self:exclusive(held) then
    add_into(held, g)
    self:release(g)
  elseif self:exclusive(g) then
    add_into(g, held)
    self:release(held)
    node.grad = g
  else
    node.grad = held + g
    self.users[node.grad] = 1
    self:release(held)
    self:release(g)
  end
end

-- The same for t.grad, which outlives the walk.
function Walk:deposit(t, g)
  local held = t.grad
  if state.graph then state.graph.leaves[t] = true end
  if held then
    add_into(held, g)
    self:release(g)
  elseif self:exclusive(g) or self.parts[g] then
    self.users[g] = nil
    t.grad = g:keep()
  else
    t.grad = g:clone():keep()
    self:release(g)
  end
end

function Walk:send(e, g)
  local slot = self.sink and self.sink[e]
  if getmetatable(e) ~= Tensor then
    self:accumulate(e, g)
  elseif slot then
    self:accumulate(slot, g)
  elseif self.sink then
    self:release(g)
  else
    self:deposit(e, g)
  end
end

-- Counts a gradient that a rule returned, before any of them is handed on, so that a tensor
-- returned twice is seen as such. One that the rule did not create stays its owner's.
function Walk:admit(node, e, d, dy)
  if not (e and d) then return end
  if tape.anomaly then check_gradient(names[node.rule], d, dy) end
  local users = self.users
  if users[d] then
    users[d] = users[d] + 1
  elseif self:made(d) then
    users[d] = 1
  end
end

function Walk:made(d)
  local created = self.created
  for i = created.n, 1, -1 do
    if created[i] == d then return true end
  end
  return false
end

local function has_changed(list, versions)
  for i, x in ipairs(list) do
    if C.ln_tensor_version(x.h) ~= versions[i] then return true end
  end
  return false
end

local function check_saved(node)
  local x, y, z = node.x, node.y, node.z
  if (node.watched and has_changed(node.watched, node.versions))
    or (x and C.ln_tensor_version(x.h) ~= node.x_version)
    or (y and C.ln_tensor_version(y.h) ~= node.y_version)
    or (z and C.ln_tensor_version(z.h) ~= node.z_version) then
    raise("backward: a tensor that %s saved for its gradient was changed in place afterwards",
      names[node.rule])
  end
end

-- A lasting node keeps nothing and serves every tape that it is in.
local function forget(node)
  if node.lasting then return end
  node.used = true
  node.x, node.y, node.z, node.watched = nil, nil, nil, nil
  for i = 1, #node do node[i] = false end
  if node.private then
    for _, t in ipairs(node.private) do t:free() end
    node.private = nil
  end
end

-- Frees what a rule left behind: all that was created but the gradients.
function Walk:sweep()
  local created, users = self.created, self.users
  for i = 1, created.n do
    local t = created[i]
    if not users[t] and not t.kept then t:free() end
    created[i] = nil
  end
  created.n = 0
end

-- Those who asked for the gradient of a tensor that is not a leaf.
function Walk:report(node, dy)
  local slot = self.sink and self.sink[node]
  local holder = not self.sink and node.holder
  local n = self.users[dy]
  if n and (slot or holder) then self.users[dy] = n + 1 end
  if slot then
    slot.grad = dy
  elseif holder then
    self:deposit(holder, dy)
  end
end

function Walk:step(node)
  local dy = node.grad
  self:report(node, dy)
  check_saved(node)
  if node.list then
    local ours = node.splits and self:exclusive(dy)
    local ds = node.rule(node, dy)
    for i = 1, #node do
      self:admit(node, node[i], ds[i], dy)
      if ours and ds[i] then self.parts[ds[i]] = tensor.info(ds[i]).contiguous end
    end
    self:sweep()
    self:release(dy)
    for i = 1, #node do
      if node[i] and ds[i] then self:send(node[i], ds[i]) end
    end
  else
    local a, b, c = node[1], node[2], node[3]
    local da, db, dc = node.rule(node, dy)
    self:admit(node, a, da, dy)
    self:admit(node, b, db, dy)
    self:admit(node, c, dc, dy)
    self:sweep()
    self:release(dy)
    if a and da then self:send(a, da) end
    if b and db then self:send(b, db) end
    if c and dc then self:send(c, dc) end
  end
end

function Walk:run(root, g, retain)
  self:send(root, g)
  for _, node in ipairs(self.nodes) do
    if node.grad then self:step(node) end
    node.grad = false
    if not retain then forget(node) end
  end
end

-- After success or failure: of all that the walk created, only what it was asked for is left.
function Walk:finish(ok)
  for _, node in ipairs(self.nodes) do node.grad = false end
  self:sweep()
  for _, slot in pairs(ok and self.sink or {}) do
    local g = slot.grad
    if g and self:exclusive(g) then
      self.users[g] = nil
      tensor.adopt(g)
    elseif g then
      slot.grad = g:clone()
    end
  end
  for g in pairs(self.users) do g:free() end
end

local function ones_like(y)
  local about = tensor.info(y)
  call(C.ln_tensor_empty, tensor.out(), about.dtype, about.device, about.ndim, about.shape)
  local g = tensor.take()
  call(C.ln_fill, g.h, 1)
  return g
end

local function check_cotangent(y, g, what)
  if not y.requires_grad then
    raise("%s: the tensor needs no gradient: nothing it was computed from requires one, or it was"
      .. " made under no_grad or detached", what)
  end
  if g == nil then
    if y:numel() ~= 1 then
      raise("%s: a tensor of %d elements needs a cotangent of its shape", what, y:numel())
    end
    return
  end
  need(g, what, 2)
  local same = g.dtype == y.dtype and #g.shape == #y.shape
  for i = 1, same and #y.shape or 0 do same = same and g.shape[i] == y.shape[i] end
  if not same then
    raise("%s: the cotangent is (%s) %s; the tensor is (%s) %s", what,
      table.concat(g.shape, ","), g.dtype, table.concat(y.shape, ","), y.dtype)
  end
end

local function walk(y, cotangent, retain, sink)
  local root = y.node or y
  local self = setmetatable({ users = {}, parts = {}, created = { n = 0 }, sink = sink,
    nodes = y.node and order(root) or {} }, Walk)
  local outer_scope, was_on, was_low, outer = state.scope, tape.on, tape.low, walking
  state.scope, tape.on, tape.low, walking = self.created, false, false, self
  local ok, message = pcall(function()
    local g = cotangent
    if not g then
      g = ones_like(y)
      self.users[g] = 1
    end
    self:run(root, g, retain)
  end)
  state.scope, tape.on, tape.low, walking = outer_scope, was_on, was_low, outer
  self:finish(ok)
  if not ok then error(message, 0) end
end

local RETAIN, RETAIN_FLAGS = { retain_graph = false }, { retain_graph = true }

--- Adds the gradients of y to the `grad` of the leaves it depends on, and frees the tape.
---@param y lunce.Tensor
---@param cotangent lunce.Tensor|nil dL/dy, of y's shape; 1 where y has one element
---@param given { retain_graph: boolean }|nil
function M.backward(y, cotangent, given)
  need(y, "backward", 1)
  if given == nil and type(cotangent) == "table" and not tensor.is_tensor(cotangent) then
    cotangent, given = nil, cotangent
  end
  local set = options(given, RETAIN, "backward", RETAIN_FLAGS)
  check_cotangent(y, cotangent, "backward")
  walk(y, cotangent, set.retain_graph)
end

-- What gradients are asked for, as a list of tensors that require one.
local function wanted(xs)
  if tensor.is_tensor(xs) then xs = { xs } end
  if type(xs) ~= "table" or getmetatable(xs) or #xs == 0 then
    raise("grad: argument 2 is %s; a tensor or a list of at least one tensor is taken",
      describe(xs))
  end
  for i = 1, #xs do
    if not tensor.is_tensor(xs[i]) then
      raise("grad: element %d of the list is %s; a tensor is taken", i, describe(xs[i]))
    end
    if not xs[i].requires_grad then raise("grad: tensor %d does not require a gradient", i) end
  end
  return xs
end

--- The gradients of y with respect to each tensor of xs, in their order, leaving `grad` alone.
---@param y lunce.Tensor
---@param xs lunce.Tensor[]
---@param cotangent lunce.Tensor|nil
---@param given { retain_graph: boolean }|nil
---@return lunce.Tensor[]
function M.grad(y, xs, cotangent, given)
  need(y, "grad", 1)
  xs = wanted(xs)
  local set = options(given, RETAIN, "grad", RETAIN_FLAGS)
  check_cotangent(y, cotangent, "grad")
  local sink, result = {}, {}
  for _, x in ipairs(xs) do sink[x.node or x] = { grad = false } end
  walk(y, cotangent, set.retain_graph, sink)
  for i, x in ipairs(xs) do
    local g = sink[x.node or x].grad
    if not g then raise("grad: the result does not depend on tensor %d", i) end
    result[i] = g
  end
  return result
end

return M

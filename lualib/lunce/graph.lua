-- lunce.graph: a step of work on a CUDA device, captured as a CUDA graph and done again at a call,
-- without Lua and without a launch for each kernel. Holds no operator; who has numbers on the host
-- that change from step to step (random numbers, optimisers) takes them from the capture.
-- Invariants: every call makes one step, as the function would; a step that cannot be captured
-- fails at the user's line, and the capture with it, before anything of it was done.
local ffi = require "ffi"
local autograd = require "lunce.autograd"
local create = require "lunce.ops.create"
local lib = require "lunce.ffi"
local option = require "lunce.options"
local random = require "lunce.random"
local scope = require "lunce.scope"
local tensor = require "lunce.tensor"

local C, raise, check, call = lib.C, lib.raise, lib.check, lib.call
local describe, state = option.describe, tensor.state

-- ---- A capture: what a step's function meets as tensor.state.graph ---------------------------

---@class lunce.Capture
---@field before function[] called before each replay: they bring numbers on the device up to date
---@field leaves table<lunce.Tensor, boolean> those that got a gradient
---@field own table what others have of their own in this capture, by what it belongs to
local Capture = {}
Capture.__index = Capture

local NUMBERS = 1024

-- What is written before a replay lies outside of the graph's memory, which the replay uses anew.
local function new_capture(device)
  local address = create.zeros(2, { dtype = "int64", device = device }):keep()
  local numbers = create.zeros(NUMBERS, { dtype = "float64", device = device }):keep()
  return setmetatable({ before = {}, leaves = {}, own = {}, draws = 0, device = device,
    address = address, parts = { address:select(1, 1):keep(), address:select(1, 2):keep() },
    room = numbers, used = 0 }, Capture)
end

--- Room for numbers that a function of `before` writes: (count) float64.
---@param count integer
---@return lunce.Tensor
function Capture:numbers(count)
  self.used = self.used + count
  if self.used > NUMBERS then
    raise("graph: the optimisers of a captured step have more than %d numbers; a group has up to 6",
      NUMBERS)
  end
  return self.room:narrow(1, self.used - count + 1, count):keep()
end

--- The address of a draw into t: its number in the step, and where the replay's seed and first
--- stream lie.
---@return integer seed
---@return integer stream
---@return cdata address
function Capture:draw(t)
  if t.device == "cpu" then
    raise("random: numbers drawn on the cpu inside of a captured step (lunce.graph) would not be"
      .. " drawn again; draw them on the device, or before the step")
  end
  self.draws = self.draws + 1
  return 0, self.draws - 1, self.address.h
end

-- The draws of the next replay have the addresses that they would have without a capture.
local function address_draws(self)
  if self.draws == 0 then return end
  local now = random.state()
  self.parts[1]:fill_(now.seed)
  self.parts[2]:fill_(now.stream)
  random.set_state { seed = now.seed, stream = now.stream + self.draws }
end

-- Gradients that were captured but never computed.
local function drop_gradients(self)
  for t in pairs(self.leaves) do
    if t.grad then t.grad:free() end
    t.grad = nil
  end
end

-- What leaves have as gradients after each replay; `handed` is what they were given.
local function hold_gradients(self)
  self.gradients, self.handed = {}, {}
  for t in pairs(self.leaves) do
    if t.grad then
      self.gradients[t], self.handed[t] = t.grad:detach():keep(), t.grad
    end
  end
end

local function hand_gradients(self)
  for t, g in pairs(self.gradients) do
    local handed = self.handed[t]
    if t.grad ~= handed or not rawget(handed, "h") then
      self.handed[t] = g:detach():keep()
      t.grad = self.handed[t]
    end
  end
end

-- ---- Arguments and results -------------------------------------------------------------------

local function pack(...) return { n = select("#", ...), ... } end

local function text(x)
  return ("(%s) %s on %s"):format(table.concat(x.shape, ","), x.dtype, x.device)
end

local function check_inputs(self, inputs)
  for i = 1, inputs.n do
    local x = inputs[i]
    if not tensor.is_tensor(x) then
      raise("graph: argument %d of the step is %s; tensors are taken, for what else Lua knows is"
        .. " captured as it is", i, describe(x))
    end
    if x.device ~= self.device then
      raise("graph: argument %d of the step is %s; tensors on %s are taken", i, text(x),
        self.device)
    end
    if x.requires_grad then
      raise("graph: argument %d of the step requires a gradient, which would stay inside; detach"
        .. " it, or make it a tensor that the function knows", i)
    end
  end
end

-- What differs between the arguments and those that the step was captured with.
local function check_alike(inputs, captured)
  if inputs.n ~= #captured then
    raise("graph: %d arguments; the step was captured with %d", inputs.n, #captured)
  end
  for i, x in ipairs(captured) do
    if text(x) ~= text(inputs[i]) then
      raise("graph: argument %d is %s; the step was captured with %s: give it batches of one shape"
        .. " (a loader with drop_last = true does), or call its function itself", i,
        text(inputs[i]), text(x))
    end
  end
end

local function check_results(self, results)
  for i = 1, results.n do
    local y = results[i]
    if not tensor.is_tensor(y) or y.device ~= self.device then
      raise("graph: result %d of the step is %s; tensors on %s are taken, whose values are there"
        .. " after every call", i, tensor.is_tensor(y) and text(y) or describe(y), self.device)
    end
    results[i] = y:detach()
  end
  return results
end

-- ---- Steps -----------------------------------------------------------------------------------

---@class lunce.CapturedStep
---@field captured boolean whether calls are replays
---@field left_out boolean whether a GradScaler left out the step of this call
local Step = { __name = "captured step", captured = false }
Step.__index = Step

local function leave(self, ok, ...)
  state.step = false
  if not ok then error((...), 0) end
  return check_results(self, pack(...))
end

-- The function's results, off the tape.
local function run(self, ...)
  state.step = self
  return leave(self, pcall(scope, self.fn, ...))
end

local box = ffi.new "ln_graph *[1]"

-- Records the function and does nothing.
local function record(self, inputs)
  local capture, copies = new_capture(self.device), {}
  for i = 1, inputs.n do copies[i] = inputs[i]:clone():keep() end
  local drawn = random.state()
  check(C.ln_graph_begin(tensor.device(self.device, "graph")))
  state.graph = capture
  local ok, results = pcall(run, self, unpack(copies))
  state.graph = false
  random.set_state(drawn)
  if ok then
    for i = 1, results.n do results[i]:keep() end
    box[0] = nil
    local status = C.ln_graph_end(box)
    if status == C.LN_OK then
      capture.handle = ffi.gc(box[0], C.ln_graph_release)
      capture.inputs, capture.results = copies, results
      hold_gradients(capture)
      self.capture, self.captured = capture, true
      return
    end
    drop_gradients(capture)
    check(status)
  end
  C.ln_graph_abandon()
  drop_gradients(capture)
  error(results, 0)
end

local function replay(self, inputs)
  local capture = self.capture
  check_alike(inputs, capture.inputs)
  for i, copy in ipairs(capture.inputs) do copy:copy_(inputs[i]) end
  for _, refresh in ipairs(capture.before) do refresh() end
  address_draws(capture)
  check(C.ln_graph_launch(capture.handle))
  hand_gradients(capture)
  local results = {}
  for i = 1, capture.results.n do results[i] = capture.results[i]:clone() end
  return unpack(results, 1, capture.results.n)
end

function Step:__call(...)
  if state.graph then
    raise("graph: a captured step inside of another; call the function that it was made of")
  end
  local inputs = pack(...)
  check_inputs(self, inputs)
  if not self.captured and self.calls < self.warmup then
    self.left_out = false
    local results = run(self, ...)
    if not self.left_out then self.calls = self.calls + 1 end
    return unpack(results, 1, results.n)
  end
  if not self.captured then record(self, inputs) end
  return autograd.no_grad(replay, self, inputs)
end

--- Forgets what was captured: the next calls warm up and capture anew.
function Step:reset()
  self.capture, self.captured, self.calls = nil, false, 0
end

local defaults = { warmup = 2, device = "cuda" }
local model = ffi.new "const char *[1]"

--- A step that replays fn, a function of CUDA tensors that goes forward, backward and makes the
--- optimiser's step, and returns tensors. Called like fn, it makes one step at each call: as fn at
--- the first `warmup` calls (of whose steps a GradScaler left none out), in which states are made
--- and kernels loaded; then fn is captured, and from there on the device does what was captured,
--- with these arguments (copied), parameters, states, learning rates and random numbers as they are
--- at the call. It gives new tensors, off the tape. Bits are those of fn, except where fn looks at
--- values: a similarity with tensors among the link's parameters (a loss.beta_state's shape is one
--- there), or of dot products, takes running maxima.
---
---   local step = lunce.graph(function(x)
---     optimiser:zero_grad()
---     local value = criterion(encoder(x))
---     value:backward()
---     optimiser:step()
---     return value
---   end)
---   for batch in loader:epoch(1) do
---     optimiser:schedule(factor(n))
---     total = total + step(batch.x[1])
---   end
---
--- Lua runs no more: what fn does with Lua's numbers and tables happens once. What waits for the
--- device inside (item, a print, copies to or from the CPU) is an error that names it. What else
--- would be numbers is tensors there: clip_grad_norm's norm, what a GradScaler's unscale and step
--- tell, a pooled tail, a beta_state's beta; a number of its own for every call, the momentum of a
--- momentum encoder say, is an argument without dimensions. A GradScaler's scale, Adam's count
--- under it, a beta_state and the place in a loss.queue lie on the device then; who reads them
--- outside waits for it. Tensors are freed as by lunce.scope. Its memory stays its own until it and
--- what was made in it (gradients too) are collected.
---@param fn function
---@param given { warmup: integer, device: string }|nil warmup: 2, at least 1; device: "cuda"
---@return lunce.CapturedStep
return function(fn, given)
  tensor.need_function(fn, "graph")
  local set = option.options(given, defaults, "graph")
  if tensor.need_integer(set.warmup, "graph", "warmup") < 1 then
    raise("graph: warmup is %d; at least 1 is taken", set.warmup)
  end
  local number = tensor.device(set.device, "graph")
  if number == C.LN_CPU then raise "graph: the cpu captures nothing; a cuda device does" end
  call(C.ln_cuda_name, model, number) -- fails where there is no such device
  return setmetatable({ fn = fn, warmup = set.warmup, calls = 0,
    device = "cuda:" .. number - C.LN_CUDA }, Step)
end

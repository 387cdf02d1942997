-- loss.check: what a researcher's own loss does. Its gradient against central differences, float32
-- against float64, its symmetries, the engines of the similarity against each other, memory and
-- time beside nt_xent, and pictures of its link. Judges no loss by its value. Invariant: it changes
-- neither the inputs nor their gradients.
local lunce = require "lunce"
local arguments = require "lunce.loss.arguments"
local clock = require("lunce.progress").clock
local options = require("lunce.options").options
local plot = require "lunce.plot"
local raise = require("lunce.ffi").raise
local similarity = require "lunce.similarity"

local STEP = 1e-5      -- of central differences, in root mean squares of the input
local GRADIENT = 1e-5  -- allowed distance from them, relative to their norm: what STEP leaves
local ROUNDING = 1e-14 -- of a loss in float64, relative: it bounds what a difference can tell
local ENGINES = 1e-9   -- allowed relative distance between engines, in float64
local SAME = 1e-9      -- a relative difference up to it is rounding
local LEAST = 1e-300   -- keeps 0/0 from a relative distance

-- A timing takes at least so many rounds and seconds: beside other work single calls say little.
local ROUNDS, SECONDS = 9, 0.2

-- ---- Calling the loss ------------------------------------------------------------------------

---@class lunce.LossCase
---@field f function the loss
---@field inputs lunce.Tensor[]
---@field reached boolean[] by input: whether the loss has a gradient there

-- A case's inputs anew, those of floating point in a dtype and the reached ones as leaves; and the
-- leaves.
local function leaves_of(case, dtype)
  local all, leaves = {}, {}
  for i, x in ipairs(case.inputs) do
    all[i] = x:detach()
    if x.dtype:find "float" then all[i] = all[i]:to(dtype):contiguous():clone() end
    if case.reached[i] then leaves[#leaves + 1] = all[i]:requires_grad_() end
  end
  return all, leaves
end

local function value_of(f, all)
  local value = f(unpack(all))
  if not lunce.is_tensor(value) or value:numel() ~= 1 then
    raise("check: the loss gave %s; it must give a tensor of one element",
      arguments.describe(value))
  end
  return value
end

-- The loss of other inputs, in float64, as a number.
local function value_at(f, inputs)
  return lunce.no_grad(lunce.scope, function()
    return value_of(f, (leaves_of({ inputs = inputs, reached = {} }, "float64"))):item()
  end)
end

-- The loss as a number, and the gradients of all leaves in one float64 tensor.
local function evaluate(case, dtype)
  return lunce.scope(function()
    local all, leaves = leaves_of(case, dtype)
    local value, flat = value_of(case.f, all), {}
    for i, g in ipairs(lunce.grad(value, leaves)) do flat[i] = g:to("float64"):flatten() end
    return value:item(), lunce.cat(flat, 1)
  end)
end

-- A case with what its gradient reaches.
local function case_of(f, inputs)
  local case = { f = f, inputs = inputs, reached = {} }
  for i, x in ipairs(inputs) do case.reached[i] = x.dtype:find "float" ~= nil end
  lunce.scope(function()
    local all = leaves_of(case, "float64")
    local value = value_of(f, all)
    if not value.requires_grad then raise("check: the loss has no gradient at any input") end
    value:backward()
    for i, x in ipairs(all) do case.reached[i] = x.grad ~= nil end
  end)
  return case
end

local function distance(a, b)
  return math.abs(a - b) / math.max(math.abs(a), math.abs(b), LEAST)
end

-- What rounding alone may leave where the case's gradient is zero, as a norm.
local function rounding_of(case, value)
  if not (math.abs(value) < math.huge) then return 0 end
  local square = 0
  for i, x in ipairs(case.inputs) do
    if case.reached[i] and x:numel() > 0 then
      local size = math.max(x:detach():to("float64"):square():mean():sqrt():item(), 1e-3)
      square = square + x:numel() * (ROUNDING * value / size) ^ 2
    end
  end
  return math.sqrt(square)
end

-- Relative; one of `rounding` is a difference of ENGINES.
local function distance_of_gradients(a, b, rounding)
  return (a - b):norm():item() / math.max(b:norm():item(), rounding / ENGINES, LEAST)
end

-- Differences tell nothing about a loss that changes by itself.
local function check_repeat(case, value)
  local again = value_at(case.f, case.inputs)
  if distance(value, again) > SAME then
    raise("check: the loss is %.9g, and of the same inputs %.9g the next time; give what it draws "
      .. "a seed, and state that it changes no part in the check", value, again)
  end
end

-- ---- Gradient --------------------------------------------------------------------------------

-- The central difference of the loss at one element, which is left as it was but for rounding.
local function slope(f, all, element, step)
  local function moved(by)
    return lunce.no_grad(lunce.scope, function()
      element:add_(by)
      return value_of(f, all):item()
    end)
  end
  local above, below = moved(step), moved(-2 * step)
  lunce.no_grad(element.add_, element, step)
  return (above - below) / (2 * step)
end

-- Adds to the report how far the gradient of input i, a list, is from differences at up to
-- `samples` of its elements. The report sums squares: of the errors, of the differences, and of
-- what rounding alone may make of the errors.
local function compare(report, f, all, i, gradient, samples)
  local flat = all[i]:detach():flatten()
  local step = STEP * math.max(flat:square():mean():sqrt():item(), 1e-3)
  local order = lunce.randperm(#gradient, { seed = i }):tolist()
  for place = 1, math.min(samples, #order) do
    local j = order[place]
    local expected, found = slope(f, all, flat:narrow(1, j, 1), step), gradient[j]
    local off = math.abs(found - expected)
    report.square, report.norm = report.square + off ^ 2, report.norm + expected ^ 2
    report.noise = report.noise + (ROUNDING * report.value / step) ^ 2
    report.elements = report.elements + 1
    if not (off <= report.largest) then
      report.largest = off
      report.worst = ("element %d of input %d: the tape gives %.6g, differences give %.6g"):format(
        j, i, found, expected)
    end
  end
end

local function check_gradient(case, value, gradient, samples)
  local all, first = leaves_of(case, "float64"), 1
  local report = { value = value, elements = 0, square = 0, norm = 0, noise = 0, largest = -1,
    without = {} }
  for i, x in ipairs(all) do
    if case.reached[i] then
      compare(report, case.f, all, i, gradient:narrow(1, first, x:numel()):tolist(), samples)
      first = first + x:numel()
    elseif x.dtype:find "float" then
      table.insert(report.without, i)
    end
  end
  report.error = math.sqrt(report.square / math.max(report.norm, report.noise, LEAST))
  report.passed = report.error <= GRADIENT or report.square <= report.noise
  return report
end

-- ---- Symmetries and engines ------------------------------------------------------------------

local function same_kind(a, b)
  return a.dtype == b.dtype and table.concat(a.shape, ",") == table.concat(b.shape, ",")
end

-- How much the loss differs when the first two inputs change places; nil where they cannot.
local function check_exchange(case, value)
  local a, b = case.inputs[1], case.inputs[2]
  if not b or not same_kind(a, b) then return nil end
  return distance(value, value_at(case.f, { b, a, unpack(case.inputs, 3) }))
end

-- How much it differs when the samples, the rows of all inputs that have as many, change places.
local function check_order(case, value)
  local N, moved = case.inputs[1].shape[1], {}
  local order = lunce.randperm(N, { seed = 0 })
  for i, x in ipairs(case.inputs) do
    moved[i] = x.shape[1] == N and x:detach():index_select(1, order) or x
  end
  return distance(value, value_at(case.f, moved))
end

-- The engine in use against the reference; nil where the reference is in use.
local function check_engines(case, value, gradient)
  local used = similarity.engine()
  if used == "dense" then return nil end
  similarity.engine "dense"
  local ok, dense_value, dense_gradient = pcall(evaluate, case, "float64")
  similarity.engine(used)
  if not ok then error(dense_value, 0) end
  local off = math.max(distance(value, dense_value),
    distance_of_gradients(gradient, dense_gradient, rounding_of(case, value)))
  return { error = off, passed = off <= ENGINES }
end

-- ---- Cost ------------------------------------------------------------------------------------

-- nt_xent of two views with as many rows as the inputs.
local function baseline(inputs)
  local first, second = inputs[1], inputs[2]
  local rows, D = first.shape[1], first:numel() / math.max(first.shape[1], 1)
  local N = second and same_kind(first, second) and rows or math.max(math.floor(rows / 2), 1)
  return { f = lunce.loss.nt_xent, reached = { true, true },
    inputs = { lunce.randn(N, D, { seed = 1 }), lunce.randn(N, D, { seed = 2 }) } }
end

-- A forward and backward in float32 as a function.
local function step_of(case)
  local all, leaves = leaves_of(case, "float32")
  return function()
    lunce.scope(function() lunce.grad(value_of(case.f, all), leaves) end)
  end
end

local function peak_of(step)
  collectgarbage() -- what dies meanwhile would count for less
  local before = lunce.memory().live_bytes
  lunce.reset_peak_memory()
  step()
  return lunce.memory().peak_bytes - before
end

-- The median seconds of each step, measured in turn so that other work slows all alike.
local function medians(steps)
  local times, start = {}, clock()
  for i = 1, #steps do times[i] = {} end
  repeat
    for i, step in ipairs(steps) do
      local begin = clock()
      step()
      table.insert(times[i], clock() - begin)
    end
  until #times[1] >= ROUNDS and clock() - start >= SECONDS
  for i, list in ipairs(times) do
    table.sort(list)
    times[i] = list[math.ceil(#list / 2)]
  end
  return times
end

-- Bytes above the inputs, and seconds, of the loss and of nt_xent on as many rows.
local function measure(case)
  local steps, costs = { step_of(case), step_of(baseline(case.inputs)) }, {}
  for i, step in ipairs(steps) do
    step() -- what is made once is no cost of a call
    costs[i] = { bytes = peak_of(step) }
  end
  for i, seconds in ipairs(medians(steps)) do costs[i].seconds = seconds end
  return costs[1], costs[2]
end

-- ---- Pictures --------------------------------------------------------------------------------

-- A link's logit over the similarities, and how much a candidate there weighs in the gradient of an
-- lse, exp(f(s)) f'(s), in units of exp(f(0)).
local function curves(f, parameters)
  local s = lunce.linspace(-0.999, 0.999, 401, { dtype = "float64" }):requires_grad_()
  local y = f(s, unpack(parameters))
  local slopes = lunce.grad(y:sum(), { s })[1]
  y = y:detach()
  return s:tolist(), y:tolist(), ((y - y[201]):exp() * slopes):tolist()
end

local function softmax(s) return s / 0.5 end

local function draw(path, link, parameters)
  local stem, kind = path:match "^(.*)(%.%w+)$"
  if not stem then raise("check: picture is %q; a name in .svg or .png is taken", path) end
  local logits, weights = {}, {}
  for i, curve in ipairs{ { "this link", link, parameters }, { "s / 0.5", softmax, {} } } do
    local s, y, weight = curves(curve[2], curve[3])
    logits[i] = { name = curve[1], x = s, y = y }
    weights[i] = { name = curve[1], x = s, y = weight }
  end
  local paths = { stem .. "-logit" .. kind, stem .. "-weight" .. kind }
  local function lines(...)
    local ok, message = plot.lines(...)
    if not ok then raise("check: %s", message) end
  end
  lines(paths[1], logits, { title = "Logit of a candidate", x = "similarity s", y = "f(s)" })
  lines(paths[2], weights, { title = "Weight of a candidate in the gradient",
    x = "similarity s", y = "exp(f(s) - f(0)) f'(s)", log_y = true })
  return paths
end

-- ---- The report ------------------------------------------------------------------------------

---@class lunce.LossReport
---@field passed boolean the gradient is right, and the engines agree
---@field inputs string their shapes
---@field gradient table value (of the loss), error (relative), elements, worst, passed; without:
---  inputs that have none
---@field float32 table loss, gradient: relative distances from float64
---@field exchange number|nil relative difference when the first two inputs change places
---@field order number relative difference when the samples do
---@field engines table|nil error, passed; nil where the reference is in use
---@field cost table bytes, seconds
---@field nt_xent table bytes, seconds
---@field pictures string[]|nil
local Report = { __name = "loss report" }
Report.__index = Report

function Report:__tostring()
  local lines = {}
  local function add(name, verdict, ...)
    lines[#lines + 1] = ("%-10s %-9s "):format(name, verdict) .. string.format(...)
  end
  local function judged(passed) return passed and "ok" or "WRONG" end
  local function invariant(off) return off <= SAME and "yes" or "no" end
  local gradient, float32 = self.gradient, self.float32
  add("loss", ("%.6g"):format(gradient.value), "inputs %s", self.inputs)
  add("gradient", judged(gradient.passed), "off by %.2g of central differences, %d elements",
    gradient.error, gradient.elements)
  if not gradient.passed then
    add("", "", "%s", gradient.worst)
    add("", "", "differences also move what passes no gradient by intention (detach, no_grad,")
    add("", "", "tail): to check a loss that has such, give it that as an input")
  end
  if gradient.without[1] then
    add("", "", "none at input %s", table.concat(gradient.without, ", "))
  end
  add("float32", "", "loss off by %.2g, gradient by %.2g of float64's", float32.loss,
    float32.gradient)
  if self.exchange then
    add("exchange", invariant(self.exchange), "the loss differs by %.2g when the views change "
      .. "places", self.exchange)
  end
  add("order", invariant(self.order), "the loss differs by %.2g when the samples change places",
    self.order)
  if self.engines then
    add("engines", judged(self.engines.passed), "fused is off by %.2g of dense", self.engines.error)
  else
    add("engines", "skipped", "the dense engine, which is the reference, is in use")
  end
  add("memory", ("%.2f MB"):format(self.cost.bytes / 1e6), "nt_xent %.2f MB",
    self.nt_xent.bytes / 1e6)
  add("time", ("%.2f ms"):format(self.cost.seconds * 1e3), "nt_xent %.2f ms",
    self.nt_xent.seconds * 1e3)
  if self.pictures then add("pictures", "", "%s", table.concat(self.pictures, ", ")) end
  return table.concat(lines, "\n")
end

-- ---- The call --------------------------------------------------------------------------------

local DEFAULTS = { samples = 16, link = false, parameters = {}, picture = "" }

-- The inputs and the options of a call; without inputs, two noisy views of the same samples.
local function read(f, ...)
  if type(f) ~= "function" and not (getmetatable(f) or {}).__call then
    raise("check: f is %s; a function of tensors is taken", arguments.describe(f))
  end
  local inputs = { ... }
  for i = 1, select("#", ...) do
    if inputs[i] == nil then raise("check: input %d is nil; a tensor is taken", i) end
  end
  local given = #inputs > 0 and not lunce.is_tensor(inputs[#inputs]) and table.remove(inputs) or nil
  local o = options(given, DEFAULTS, "check")
  for i, x in ipairs(inputs) do
    if not lunce.is_tensor(x) or #x.shape == 0 then
      raise("check: input %d is %s; a tensor is taken", i, arguments.describe(x))
    end
  end
  if o.samples < 1 or o.samples % 1 ~= 0 then
    raise("check: samples is %s; a positive integer is taken", tostring(o.samples))
  end
  if o.picture ~= "" and type(o.link) ~= "function" then
    raise("check: a picture is of a link; link is %s", arguments.describe(o.link))
  end
  if not inputs[1] then
    local z = lunce.randn(128, 64, { seed = 1 })
    inputs = { z, z + 0.7 * lunce.randn(128, 64, { seed = 2 }) }
  end
  return inputs, o
end

--- Checks a loss f(...) that gives a tensor of one element, the same for the same inputs. These are
--- the tensors that follow f (rows, labels, a queue); without any, two noisy views (128,64). What
--- passes no gradient by intention, as a tail's statistics, has to be among them. Options, a table
--- at the end: samples (16), how many elements of each input have their gradient compared; link, a
--- function of s, whose logit and weight in the gradient are drawn with parameters, a list of
--- numbers, into two files named after picture ("mine.svg" gives mine-logit.svg and
--- mine-weight.svg).
---@param f fun(...: lunce.Tensor): lunce.Tensor
---@param ... any
---@return lunce.LossReport prints itself
return function(f, ...)
  local inputs, o = read(f, ...)
  local case = case_of(f, inputs)
  local value, gradient = evaluate(case, "float64")
  check_repeat(case, value)
  local value32, gradient32 = evaluate(case, "float32")
  local shapes = {}
  for i, x in ipairs(inputs) do shapes[i] = ("(%s)"):format(table.concat(x.shape, ",")) end
  local report = setmetatable({
    inputs = table.concat(shapes, ", "),
    gradient = check_gradient(case, value, gradient, o.samples),
    float32 = { loss = distance(value32, value),
      gradient = distance_of_gradients(gradient32, gradient, rounding_of(case, value)) },
    exchange = check_exchange(case, value),
    order = check_order(case, value),
    engines = check_engines(case, value, gradient),
    pictures = o.picture ~= "" and draw(o.picture, o.link, o.parameters) or nil,
  }, Report)
  report.cost, report.nt_xent = measure(case)
  report.passed = report.gradient.passed and (not report.engines or report.engines.passed)
  return report
end

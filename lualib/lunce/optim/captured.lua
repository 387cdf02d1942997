-- Optimisers inside of a captured step (lunce.graph): the numbers that change from step to step, a
-- learning rate and what Adam makes of its count, lie on the device and are written before each
-- replay. Where a GradScaler may leave the step out only the device knows the count, and makes them
-- itself. Holds no update rule. Invariants: a replay makes the step that the optimiser would make
-- then; what was captured as it was and has changed since is an error.
local numbers_of = require "lunce.numbers"
local raise = require("lunce.ffi").raise

local M = {}

-- ---- What must be as it was captured ---------------------------------------------------------

-- The options of a group that are captured as they are: all but the learning rate.
local function fixed(group, rule)
  local values = {}
  for name in pairs(rule.defaults) do
    local value = group[name]
    if type(value) == "table" then value = table.concat(value, ",") end
    if name ~= "lr" then values[name] = value end
  end
  return values
end

local function check_fixed(row, rule)
  for name, value in pairs(fixed(row.group, rule)) do
    if value ~= row.fixed[name] then
      raise("%s: option %s was changed after the step was captured; reset the step (step:reset())"
        .. " to capture it anew", rule.name, name)
    end
  end
end

-- What tells how many steps a state has seen: a number, or where a device counts, its metatable.
local function count_of(state) return rawget(state, "step") or getmetatable(state) or 0 end

-- The states of a row's parameters are those that were captured, at the same number of steps.
local function check_states(row, rule)
  local first = count_of(row.states[1])
  for i, state in ipairs(row.states) do
    for key, t in pairs(row.tensors[i]) do
      if state[key] ~= t or count_of(state) ~= first then
        raise("%s: its state was loaded, or parameters were stepped alone, after the step was"
          .. " captured; reset the step (step:reset()) to capture it anew", rule.name)
      end
    end
  end
end

-- ---- Before a replay -------------------------------------------------------------------------

-- Hands the count of steps to the device.
local function hand_count(row)
  local count, states = row.count, row.states
  if getmetatable(states[1]) ~= count.read or rawget(states[1], "step") then
    count.numbers:set { step = states[1].step }
  end
  for _, state in ipairs(states) do
    state.step = nil
    setmetatable(state, count.read)
  end
end

local function write(optimiser, row)
  local rule, lr = optimiser.rule, row.group.lr * optimiser.factor
  if row.count then
    hand_count(row)
    row.lr:fill_(lr)
    return
  end
  for i, value in ipairs(rule.numbers(row.group, lr, row.states[1])) do
    row.places[i]:fill_(value)
  end
  if not row.made then row.places[#row.places]:fill_(1) end
  for _, state in ipairs(row.states) do
    if state.step then state.step = state.step + 1 end
  end
end

local function refresh(optimiser, rows)
  for _, row in ipairs(rows) do
    check_fixed(row, optimiser.rule)
    check_states(row, optimiser.rule)
  end
  for _, row in ipairs(rows) do write(optimiser, row) end
end

-- ---- While it is captured --------------------------------------------------------------------

-- A count on the device, with the metatable of the states whose `step` it is: they have it as long
-- as they have anything.
local function new_count(rule)
  local count = { numbers = numbers_of.new({ step = 0 }, rule.name) }
  count.read = { __index = function(state, key)
    if key == "step" and next(state) ~= nil then return count.numbers:values().step end
  end }
  return count
end

-- Has the device make the row's numbers of its learning rate and count, and count.
local function count_there(row, rule, capture)
  row.lr = capture:numbers(1):select(1, 1):keep()
  local step, made = row.count.numbers:captured(capture).step, row.places[#row.places]
  for i, value in ipairs(rule.numbers_there(row.group, row.lr, step + 1)) do
    row.places[i]:copy_(value)
  end
  step:add_(made)
end

local function new_row(rule, group, capture, made, count)
  local numbers, places = capture:numbers(#rule.numbers(group, 0, {}) + 1), {}
  for i = 1, numbers:numel() do places[i] = numbers:select(1, i):keep() end
  local row = { group = group, fixed = fixed(group, rule), states = {}, tensors = {},
    places = places, numbers = numbers, made = made }
  if made then places[#places]:copy_(made) end
  if made and rule.numbers_there then
    row.count = count or new_count(rule)
    count_there(row, rule, capture)
  end
  return row
end

local function add_state(row, state, rule)
  local tensors = {}
  for key, kind in pairs(rule.state) do
    if kind == "tensor" then tensors[key] = rawget(state, key) end
  end
  row.states[#row.states + 1], row.tensors[#row.tensors + 1] = state, tensors
end

--- For one step of an optimiser in a capture: a function of a group and of a parameter's state that
--- gives the tensor on the device with the numbers of the parameter's update.
---@param optimiser lunce.Optimiser
---@param capture lunce.Capture
---@param made lunce.Tensor|nil bool without dimensions: whether the step is made; nil: it is
---@return fun(group: table, state: table): lunce.Tensor
function M.numbers(optimiser, capture, made)
  local rule, rows, by_key = optimiser.rule, {}, {}
  capture.before[#capture.before + 1] = function() refresh(optimiser, rows) end
  return function(group, state)
    local of_group, count = by_key[group] or {}, capture.own[state]
    if count and not made then
      raise("%s: in a captured step a step that is always made cannot follow a GradScaler's",
        rule.name)
    end
    by_key[group] = of_group
    local key = count or count_of(state)
    local row = of_group[key]
    if not row then
      row = new_row(rule, group, capture, made, count)
      of_group[key], rows[#rows + 1] = row, row
    end
    capture.own[state] = row.count
    add_state(row, state, rule)
    return row.numbers
  end
end

--- Refuses a parameter's first step where it is captured: each replay would be the first again.
---@param name string the rule
---@param numbers lunce.Tensor|nil what M.numbers gave
function M.check_first(name, numbers)
  if numbers then
    raise("%s: a parameter's first step cannot be a part of a captured step (lunce.graph): let it"
      .. " have a gradient at the calls before, of which there are as many as option warmup", name)
  end
end

return M

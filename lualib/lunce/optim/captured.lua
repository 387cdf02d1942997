-- Optimisers inside of a captured step (lunce.graph): the numbers that change from step to step, a
-- learning rate and what Adam makes of its count, lie on the device and are written before each
-- replay. Holds no update rule. Invariants: a replay makes the step that the optimiser would make
-- then; what was captured as it was and has changed since is an error.
local raise = require("lunce.ffi").raise

local M = {}

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

-- The states of a row's parameters are those that were captured, at the same number of steps.
local function check_states(row, rule)
  local first = row.states[1].step
  for i, state in ipairs(row.states) do
    for key, t in pairs(row.tensors[i]) do
      if state[key] ~= t or state.step ~= first then
        raise("%s: its state was loaded, or parameters were stepped alone, after the step was"
          .. " captured; reset the step (step:reset()) to capture it anew", rule.name)
      end
    end
  end
end

local function refresh(optimiser, rows)
  local rule = optimiser.rule
  for _, row in ipairs(rows) do
    check_fixed(row, rule)
    check_states(row, rule)
    local values = rule.numbers(row.group, row.group.lr * optimiser.factor, row.states[1])
    for i, place in ipairs(row.places) do place:fill_(values[i]) end
    for _, state in ipairs(row.states) do
      if state.step then state.step = state.step + 1 end
    end
  end
end

local function new_row(rule, group, numbers)
  local places = {}
  for i = 1, numbers:numel() do places[i] = numbers:select(1, i):keep() end
  return { group = group, fixed = fixed(group, rule), states = {}, tensors = {}, places = places,
    numbers = numbers }
end

--- For one step of an optimiser in a capture: a function of a group and of a parameter's state that
--- gives the tensor on the device with the numbers of the parameter's update.
---@param optimiser lunce.Optimiser
---@param capture lunce.Capture
---@return fun(group: table, state: table): lunce.Tensor
function M.numbers(optimiser, capture)
  local rule, rows, by_key = optimiser.rule, {}, {}
  capture.before[#capture.before + 1] = function() refresh(optimiser, rows) end
  return function(group, state)
    local of_group = by_key[group] or {}
    by_key[group] = of_group
    local row = of_group[state.step or 0]
    if not row then
      row = new_row(rule, group, capture:numbers(#rule.numbers(group, 0, state)))
      of_group[state.step or 0], rows[#rows + 1] = row, row
    end
    local tensors = {}
    for key, kind in pairs(rule.state) do
      if kind == "tensor" then tensors[key] = state[key] end
    end
    row.states[#row.states + 1], row.tensors[#row.tensors + 1] = state, tensors
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

-- What the update rules share: parameter groups, state per parameter, saving. Holds no rule.
-- Invariants: a parameter is in one group only; its state is made at its first step and outlives
-- every scope; a step touches only parameters that have a gradient.
local captured = require "lunce.optim.captured"
local describe = require("lunce.options").describe
local lunce = require "lunce"
local options = require("lunce.options").options
local tensor = require "lunce.tensor"
local raise = require("lunce.ffi").raise

local is_tensor = tensor.is_tensor

local M = {}

---@class lunce.Optimiser
---@field groups table[] each with `params` and the rule's options, free to change between steps
---@field factor number what every learning rate is multiplied by; set by schedule
local Optimiser = {}
Optimiser.__index = Optimiser

-- ---- Groups ----------------------------------------------------------------------------------

local function check_params(params, seen, what)
  if type(params) ~= "table" or getmetatable(params) then
    raise("%s: parameters are %s; a list is taken, such as m:parameters()", what, describe(params))
  end
  if #params == 0 then raise("%s: the list of parameters is empty", what) end
  for i, p in ipairs(params) do
    if not is_tensor(p) then raise("%s: parameter %d is %s", what, i, describe(p)) end
    if not p.is_leaf then
      raise("%s: parameter %d was computed from others; only leaf tensors are trained", what, i)
    end
    if seen[p] then raise("%s: parameter %d of shape (%s) is given twice", what, i,
      table.concat(p.shape, ",")) end
    seen[p] = true
  end
end

local function new_group(given, defaults, rule, seen)
  local known = { params = false }
  for name, value in pairs(defaults) do known[name] = value end
  local group = {}
  for name, value in pairs(options(given, known, rule.name, rule.flags)) do
    local is_list = type(value) == "table" and not getmetatable(value)
    group[name] = is_list and { unpack(value) } or value
  end
  check_params(group.params or nil, seen, rule.name)
  rule.check(group)
  return group
end

--- Raises unless low <= group[name] < high.
function M.check_range(group, name, low, high, what)
  local value = group[name]
  if type(value) ~= "number" or not (value >= low and value < high) then
    local range = high == math.huge and ("a number of at least %g"):format(low)
      or ("a number from %g to below %g"):format(low, high)
    raise("%s: option %s is %s; %s is taken", what, name,
      value == false and "missing" or describe(value), range)
  end
end

--- Makes the constructor of an update rule.
---@param rule { name: string, defaults: table, check: function, state: table, update: function }
---  flags: the defaults of false that are booleans, where there are any;
---  state: kind of each entry of a parameter's state, "tensor" (of its shape) or "number";
---  update(p, g, state, group, lr, numbers) makes one step, filling `state`, a table that starts
---  empty; numbers: in a captured step, the tensor with what `numbers(group, lr, state)` gives, a
---  list, at each replay, and 1, or 0 where nothing is to change; a rule whose numbers depend on
---  state.step also has numbers_there(group, lr, step), which gives them of tensors on the device
---@return fun(params: table, opts?: table): lunce.Optimiser
function M.new(rule)
  return function(params, opts)
    local defaults = options(opts, rule.defaults, rule.name, rule.flags)
    if type(params) ~= "table" or getmetatable(params) or type(params[1]) ~= "table"
      or is_tensor(params[1]) then
      params = { { params = params } }
    end
    local self = setmetatable({ rule = rule, groups = {}, state = {}, factor = 1 }, Optimiser)
    local seen = {}
    for i, given in ipairs(params) do self.groups[i] = new_group(given, defaults, rule, seen) end
    return self
  end
end

---@return boolean
function M.is_optimiser(x) return getmetatable(x) == Optimiser end

-- ---- Stepping --------------------------------------------------------------------------------

-- made: nil; or, in a captured step, whether it is, a bool tensor.
local function make_step(self, made)
  local capture = tensor.state.graph
  local numbers = capture and captured.numbers(self, capture, made) or nil
  lunce.no_grad(lunce.scope, function()
    for _, group in ipairs(self.groups) do
      M.check_range(group, "lr", 0, math.huge, self.rule.name)
      for _, p in ipairs(group.params) do
        if p.grad then
          local state = self.state[p] or {}
          self.state[p] = state
          self.rule.update(p, p.grad, state, group, group.lr * self.factor,
            numbers and numbers(group, state))
        end
      end
    end
  end)
end

--- One update of every parameter that has a gradient.
function Optimiser:step() make_step(self) end

--- In a captured step: the optimiser's step, which changes nothing where made is false.
---@param optimiser lunce.Optimiser
---@param made lunce.Tensor bool without dimensions, on the device
function M.step_where(optimiser, made) make_step(optimiser, made) end

--- Drops the parameters' gradients and gives their memory back at once.
function Optimiser:zero_grad()
  for _, group in ipairs(self.groups) do
    for _, p in ipairs(group.params) do
      if p.grad then p.grad:free() end
      p.grad = nil
    end
  end
end

--- Multiplies the learning rate of every group by factor until the next call: with a schedule,
--- opt:schedule(f(step)).
---@param factor number
function Optimiser:schedule(factor)
  tensor.no_capture("schedule", "call it before the step, whose Lua code runs once only")
  if type(factor) ~= "number" or not (factor >= 0 and factor < math.huge) then
    raise("schedule: the factor is %s; a number of at least 0 is taken", describe(factor))
  end
  self.factor = factor
end

-- ---- Saving ----------------------------------------------------------------------------------

-- Calls visit(name, holder, key, kind, p) for all that a state is made of: the factor, the options
-- of groups ("groups.1.lr") and the entries of parameters, counted through the groups from 1
-- ("state.3.momentum_buffer"), present or not; p is the entry's parameter and n its number.
local function each_entry(self, visit)
  visit("factor", self, "factor", "number")
  local n = 0
  for i, group in ipairs(self.groups) do
    for key in pairs(self.rule.defaults) do
      visit(("groups.%d.%s"):format(i, key), group, key, type(group[key]))
    end
    for _, p in ipairs(group.params) do
      n = n + 1
      self.state[p] = self.state[p] or {}
      for key, kind in pairs(self.rule.state) do
        visit(("state.%d.%s"):format(n, key), self.state[p], key, kind, p, n)
      end
    end
  end
end

local function to_tensor(value) return lunce.tensor(value, { dtype = "float64" }) end

--- All that the next steps depend on but the parameters, as tensors by name, ready to be saved.
--- Numbers are float64 of no dimensions. Tensors share their elements with the optimiser.
---@return table<string, lunce.Tensor>
function Optimiser:state_dict()
  local state = {}
  each_entry(self, function(name, holder, key, kind)
    local value = holder[key]
    if value == nil then return end
    if kind == "tensor" then state[name] = value:detach()
    elseif kind == "boolean" then state[name] = to_tensor(value and 1 or 0)
    else state[name] = to_tensor(value) end
  end)
  return state
end

-- What a saved tensor becomes in memory; a fault in words where it cannot.
local function from_tensor(given, kind, present, p)
  if not is_tensor(given) then return nil, "is " .. describe(given) .. ", not a tensor" end
  local shape = table.concat(given.shape, ",")
  if kind == "tensor" then
    if shape ~= table.concat(p.shape, ",") then
      return nil, ("has shape (%s), its parameter (%s)"):format(shape,
        table.concat(p.shape, ","))
    end
    return given:to { dtype = p.dtype, device = p.device }:clone():keep()
  end
  local expected = kind == "table" and tostring(#present) or ""
  if shape ~= expected then return nil, ("has shape (%s), not (%s)"):format(shape, expected) end
  if kind == "table" then return given:tolist() end
  if kind == "boolean" then return given:item() ~= 0 end
  return given:item()
end

-- Whether anything was saved of parameter n.
local function has_state(state, rule, n)
  for key in pairs(rule.state) do
    if state[("state.%d.%s"):format(n, key)] ~= nil then return true end
  end
  return false
end

--- Takes up a state that state_dict gave, of an optimiser with the same rule and groups. A name
--- missing or unexpected, or a shape that does not fit, is an error; then nothing was changed.
---@param state table<string, lunce.Tensor>
function Optimiser:load_state_dict(state)
  local what, known, taken, faults = self.rule.name .. ": load_state_dict", {}, {}, {}
  if type(state) ~= "table" or getmetatable(state) then
    raise("%s: %s; a table of tensors by name is taken", what, describe(state))
  end
  each_entry(self, function(name, holder, key, kind, p, n)
    known[name] = true
    local given, value, fault = state[name], nil, nil
    if given ~= nil then
      value, fault = from_tensor(given, kind, holder[key], p)
    elseif not p or has_state(state, self.rule, n) then
      fault = "is missing"
    end
    if fault then faults[#faults + 1] = name .. " " .. fault end
    taken[#taken + 1] = { holder, key, value }
  end)
  for name in pairs(state) do
    if not known[name] then faults[#faults + 1] = tostring(name) .. " is unexpected" end
  end
  table.sort(faults)
  if #faults > 0 then raise("%s: %s", what, table.concat(faults, "; ")) end
  for _, entry in ipairs(taken) do entry[1][entry[2]] = entry[3] end
end

return M

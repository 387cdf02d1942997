-- Loss scaling (Micikevicius et al., arXiv 1710.03740): float16 holds nothing below 6e-8, so the
-- loss is multiplied by a scale before backward and the gradients are divided by it before the
-- step. The scale falls where a gradient overflows, whose step is left out, and rises after a time
-- without. In a captured step (lunce.graph) the device decides, and has the scale. Holds no
-- optimiser. Invariant: between two updates an optimiser's gradients are unscaled at most once and
-- its step is made at most once.
local lunce = require "lunce"
local new_numbers = require("lunce.numbers").new
local optimiser = require "lunce.optim.optimiser"
local option = require "lunce.options"
local tensor = require "lunce.tensor"
local raise = require("lunce.ffi").raise

local describe, is_tensor = option.describe, lunce.is_tensor

---@class lunce.GradScaler
---@field enabled boolean
local Scaler = { __name = "gradient scaler" }
Scaler.__index = Scaler

-- Below it a scale is no normal float32: no loss is so large that such a scale would help it.
local LEAST, MOST = 2 ^ -126, 2 ^ 127

-- What was done since the last update, by optimiser; a capture has its own.
local function seen_of(self)
  local capture = tensor.state.graph
  if not capture then return self.seen end
  capture.own[self] = capture.own[self] or {}
  return capture.own[self]
end

-- The scale: a number or, where a step is captured, a tensor.
local function scale_of(self)
  local capture = tensor.state.graph
  return capture and self.moving:captured(capture).scale or self.moving:values().scale
end

-- What a scaler's numbers are: the test of each, and the words for what passes it.
local NUMBERS = {
  scale = { function(x) return x >= LEAST and x <= MOST end, "a number above 0" },
  growth_factor = { function(x) return x > 1 and x < math.huge end, "a number above 1" },
  backoff_factor = { function(x) return x > 0 and x < 1 end, "a number between 0 and 1" },
  growth_interval = { function(x) return x >= 1 and x % 1 == 0 end, "a whole number above 0" },
  growth_tracker = { function(x) return x >= 0 and x % 1 == 0 end, "a whole number" },
}

-- ---- The loop: scale, unscale, step, update --------------------------------------------------

--- The loss times the scale, in float32 where the loss is a half: call its backward.
---@param loss lunce.Tensor
---@return lunce.Tensor
function Scaler:scale(loss)
  if not is_tensor(loss) then
    raise("scale: argument 1 is %s; a tensor, the loss, is taken", describe(loss))
  end
  if not self.enabled then return loss end
  if loss.dtype == "float16" or loss.dtype == "bfloat16" then loss = loss:to("float32") end
  local scale = scale_of(self)
  -- A copy, as update changes the scale and backward reads it.
  return loss * (is_tensor(scale) and scale:clone():to(loss.dtype) or scale)
end

local function check_optimiser(given, what)
  if not optimiser.is_optimiser(given) then
    raise("%s: argument 1 is %s; an optimiser is taken", what, describe(given))
  end
end

-- The gradients of an optimiser's parameters.
local function gradients_of(given, what)
  local gradients, n = {}, 0
  for _, group in ipairs(given.groups) do
    for _, p in ipairs(group.params) do
      n = n + 1
      if p.grad and p.grad.dtype == "float16" then
        raise("%s: the gradient of parameter %d is float16, too narrow for it without the scale;"
          .. " keep parameters in float32 and use lunce.autocast", what, n)
      end
      gradients[#gradients + 1] = p.grad
    end
  end
  if #gradients == 0 then
    raise("%s: no parameter of the optimiser has a gradient; call scale(loss):backward() before",
      what)
  end
  return gradients
end

-- Divides the gradients by the scale. Whether they are finite, a bool tensor: the largest size in
-- each gradient tells of all its elements.
local function divide(gradients, scale)
  local factor, flags = 1 / scale, {}
  for _, g in ipairs(gradients) do
    g:mul_(is_tensor(factor) and factor:to(g.dtype) or factor)
    if g:numel() > 0 then
      flags[#flags + 1] = g:norm(math.huge):isfinite():to(gradients[1].device)
    end
  end
  if #flags == 0 then return lunce.ones({}, { dtype = "bool", device = gradients[1].device }) end
  return lunce.stack(flags):all()
end

-- Unscales the optimiser's gradients; its entry among those seen since the last update. Whether
-- they are finite is the one number that crosses from the device, but where a step is captured.
local function unscaled(self, given, what)
  local gradients = gradients_of(given, what)
  local flag = lunce.autocast(false, lunce.no_grad, lunce.scope, divide, gradients, scale_of(self))
  local entry = { flag = flag:keep(), stepped = false }
  if not tensor.state.graph then entry.finite = flag:item() end
  if not tensor.state.step then flag:free() end
  seen_of(self)[given] = entry
  return entry
end

-- What the caller is told.
local function told(entry)
  if tensor.state.step then return entry.flag end
  return entry.finite
end

--- Divides the gradients of the optimiser's parameters by the scale, so that they can be looked at
--- or clipped before step, which does it otherwise. Returns whether all are finite: clip_grad_norm
--- refuses others. In a captured step that is a bool tensor (and clip_grad_norm refuses none).
---@param given lunce.Optimiser
---@return boolean|lunce.Tensor
function Scaler:unscale(given)
  check_optimiser(given, "unscale")
  if not self.enabled then return true end
  local entry = seen_of(self)[given]
  if entry then
    raise("unscale: called after %s for this optimiser; update comes before",
      entry.stepped and "step" or "another unscale")
  end
  return told(unscaled(self, given, "unscale"))
end

-- The step where it is to be made; a captured step whose first calls left it out has more of them.
local function step_if(given, entry)
  if tensor.state.graph then
    optimiser.step_where(given, entry.flag)
  elseif entry.finite then
    given:step()
  elseif tensor.state.step then
    tensor.state.step.left_out = true
  end
end

--- The optimiser's step, unless a gradient is infinite or NaN. Returns whether it was made; in a
--- captured step a bool tensor. There the device makes Adam's powers of beta, to 2 ulp of float64.
---@param given lunce.Optimiser
---@return boolean|lunce.Tensor
function Scaler:step(given)
  check_optimiser(given, "step")
  if not self.enabled then
    given:step()
    return true
  end
  local entry = seen_of(self)[given]
  if entry and entry.stepped then
    raise("step: called twice for this optimiser; update comes before")
  end
  entry = entry or unscaled(self, given, "step")
  step_if(given, entry)
  entry.stepped = true
  return told(entry)
end

local function update_here(self, seen)
  local finite, now, rule = true, self.moving:values(), self.rule
  for _, entry in pairs(seen) do finite = finite and entry.finite end
  if not finite then
    local scale = now.scale * rule.backoff_factor
    if scale < LEAST then
      raise("update: gradients are infinite or NaN at every scale down to %g; "
        .. "lunce.detect_anomaly(true) names the operator that makes them", now.scale)
    end
    self.moving:set { scale = scale, growth_tracker = 0 }
  elseif now.growth_tracker + 1 < rule.growth_interval then
    self.moving:set { growth_tracker = now.growth_tracker + 1 }
  else
    self.moving:set { scale = math.min(now.scale * rule.growth_factor, MOST), growth_tracker = 0 }
  end
end

-- The same arithmetic on the device, which cannot raise: there the scale stays at the last one.
local function update_there(self, seen, now)
  local finite, rule = nil, self.rule
  for _, entry in pairs(seen) do
    finite = finite and finite:logical_and(entry.flag) or entry.flag
  end
  local lower = now.scale * rule.backoff_factor
  lower = lunce.where(lower:lt(LEAST), now.scale, lower)
  local count = now.growth_tracker + 1
  local grows = count:ge(rule.growth_interval)
  local higher = lunce.where(grows, (now.scale * rule.growth_factor):clamp(0, MOST), now.scale)
  now.scale:copy_(lunce.where(finite, higher, lower))
  now.growth_tracker:copy_(lunce.where(finite:logical_and(grows:logical_not()), count, 0))
end

--- Ends an iteration, after the steps of all optimisers: the scale falls by backoff_factor where a
--- gradient was not finite, and rises by growth_factor after growth_interval updates running where
--- all were. Gradients that are not finite at any scale are an error; in a captured step the scale
--- then stays below 2^-125, and get_scale tells.
function Scaler:update()
  if not self.enabled then return end
  local capture, seen = tensor.state.graph, seen_of(self)
  if not next(seen) then
    raise("update: no optimiser was unscaled or stepped since the last update; what is a part of a"
      .. " captured step has its update there")
  end
  if capture then
    capture.own[self] = nil
    lunce.no_grad(lunce.scope, update_there, self, seen, self.moving:captured(capture))
  else
    self.seen = {}
    update_here(self, seen)
  end
end

--- What the next loss is multiplied by, which is waited for where a captured step has changed it; 1
--- where the scaler is not enabled.
---@return number
function Scaler:get_scale() return self.enabled and self.moving:values().scale or 1 end

-- ---- Saving ----------------------------------------------------------------------------------

--- The scale and what moves it as float64 tensors without dimensions, ready to be saved.
---@return table<string, lunce.Tensor>
function Scaler:state_dict()
  local state = {}
  for _, numbers in ipairs { self.rule, self.moving:values() } do
    for name, value in pairs(numbers) do
      state[name] = lunce.tensor(value, { dtype = "float64" })
    end
  end
  return state
end

-- The number that a saved tensor is; a fault in words where it is none that a scaler takes.
local function number_of(given, name)
  if not is_tensor(given) or #given.shape > 0 then
    return nil, ("%s is %s; a tensor without dimensions is taken"):format(name,
      is_tensor(given) and ("(%s)"):format(table.concat(given.shape, ",")) or describe(given))
  end
  local value = given:item()
  if NUMBERS[name][1](value) then return value end
  return nil, ("%s is %g; %s is taken"):format(name, value, NUMBERS[name][2])
end

-- Takes up numbers of all names: those that stay, and those that move.
local function take_up(self, numbers)
  self.moving:set { scale = numbers.scale, growth_tracker = numbers.growth_tracker }
  self.rule = {}
  for name, value in pairs(numbers) do
    if name ~= "scale" and name ~= "growth_tracker" then self.rule[name] = value end
  end
  self.seen = {}
end

--- Takes up a state that state_dict gave. What was captured has the factors and the interval of
--- then. A name missing or unexpected, or a value that does not fit, is an error; then nothing was
--- changed.
---@param state table<string, lunce.Tensor>
function Scaler:load_state_dict(state)
  self.moving:need_host()
  if type(state) ~= "table" or getmetatable(state) then
    raise("GradScaler: load_state_dict: %s; a table of tensors by name is taken", describe(state))
  end
  local numbers, faults = {}, {}
  for name in pairs(NUMBERS) do
    numbers[name], faults[#faults + 1] = number_of(state[name], name)
  end
  for name in pairs(state) do
    if not NUMBERS[name] then faults[#faults + 1] = tostring(name) .. " is unexpected" end
  end
  table.sort(faults)
  if #faults > 0 then
    raise("GradScaler: load_state_dict: %s", table.concat(faults, "; "))
  end
  take_up(self, numbers)
end

-- ---- Making ----------------------------------------------------------------------------------

local defaults = { init_scale = 65536, growth_factor = 2, backoff_factor = 0.5,
  growth_interval = 2000, enabled = true }

---@class lunce.GradScalerOptions
---@field init_scale? number 65536
---@field growth_factor? number 2
---@field backoff_factor? number 0.5
---@field growth_interval? integer 2000
---@field enabled? boolean true; otherwise the losses and steps are as without a scaler

--- A gradient scaler as torch.amp.GradScaler. One iteration of training:
---
---   local loss = lunce.autocast("float16", forward, batch)
---   scaler:scale(loss):backward()
---   if scaler:unscale(optimiser) then clip_grad_norm(parameters, 1) end -- where it is wanted
---   scaler:step(optimiser)
---   scaler:update()
---
--- All four calls may be a part of a captured step (lunce.graph), whole: then the device decides,
--- and the scale and Adam's count of steps are brought home when they are asked for, by get_scale
--- and state_dict between the step's calls.
---@param opts? lunce.GradScalerOptions
---@return lunce.GradScaler
return function(opts)
  opts = option.options(opts, defaults, "GradScaler")
  local numbers = { scale = opts.init_scale, growth_factor = opts.growth_factor,
    backoff_factor = opts.backoff_factor, growth_interval = opts.growth_interval,
    growth_tracker = 0 }
  for name, value in pairs(numbers) do
    if not NUMBERS[name][1](value) then
      raise("GradScaler: option %s is %g; %s is taken", name == "scale" and "init_scale" or name,
        value, NUMBERS[name][2])
    end
  end
  local self = setmetatable({ enabled = opts.enabled,
    moving = new_numbers({ scale = 1, growth_tracker = 0 }, "GradScaler") }, Scaler)
  take_up(self, numbers)
  return self
end

-- Loss scaling (Micikevicius et al., arXiv 1710.03740): float16 holds nothing below 6e-8, so the
-- loss is multiplied by a scale before backward and the gradients are divided by it before the
-- step. The scale falls where a gradient overflows, whose step is left out, and rises after a time
-- without. Holds no optimiser. Invariant: between two updates an optimiser's gradients are unscaled
-- at most once and its step is made at most once.
local lunce = require "lunce"
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

-- The scale, and whether a step is made, are decided on the host.
local function check_capture(what)
  tensor.no_capture(what, "a GradScaler decides on the host; bfloat16 needs none")
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
  check_capture("scale")
  if loss.dtype == "float16" or loss.dtype == "bfloat16" then loss = loss:to("float32") end
  return loss * self.numbers.scale
end

-- The gradients of an optimiser's parameters.
local function gradients_of(given, what)
  if not optimiser.is_optimiser(given) then
    raise("%s: argument 1 is %s; an optimiser is taken", what, describe(given))
  end
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

-- Multiplies the gradients by a factor. Whether they are finite is the one number that crosses from
-- the device: the largest size in each gradient tells of all its elements.
local function multiply(gradients, factor)
  local flags = {}
  for _, g in ipairs(gradients) do
    g:mul_(factor)
    if g:numel() > 0 then
      flags[#flags + 1] = g:norm(math.huge):isfinite():to(gradients[1].device)
    end
  end
  return #flags == 0 or lunce.stack(flags):all():item()
end

-- Unscales the optimiser's gradients; its entry among those seen since the last update.
local function unscaled(self, given, what)
  local gradients = gradients_of(given, what)
  local finite = lunce.autocast(false, lunce.no_grad, lunce.scope, multiply, gradients,
    1 / self.numbers.scale)
  local entry = { finite = finite, stepped = false }
  self.seen[given] = entry
  return entry
end

--- Divides the gradients of the optimiser's parameters by the scale, so that they can be looked at
--- or clipped before step, which does it otherwise. Returns whether all are finite: clip_grad_norm
--- refuses others.
---@param given lunce.Optimiser
---@return boolean
function Scaler:unscale(given)
  if not self.enabled then return true end
  check_capture("unscale")
  local entry = self.seen[given]
  if entry then
    raise("unscale: called after %s for this optimiser; update comes before",
      entry.stepped and "step" or "another unscale")
  end
  return unscaled(self, given, "unscale").finite
end

--- The optimiser's step, unless a gradient is infinite or NaN. Returns whether it was made.
---@param given lunce.Optimiser
---@return boolean
function Scaler:step(given)
  if not self.enabled then
    given:step()
    return true
  end
  check_capture("step")
  local entry = self.seen[given]
  if entry and entry.stepped then
    raise("step: called twice for this optimiser; update comes before")
  end
  entry = entry or unscaled(self, given, "step")
  if entry.finite then given:step() end
  entry.stepped = true
  return entry.finite
end

--- Ends an iteration, after the steps of all optimisers: the scale falls by backoff_factor where a
--- gradient was not finite, and rises by growth_factor after growth_interval updates running where
--- all were.
function Scaler:update()
  if not self.enabled then return end
  check_capture("update")
  if not next(self.seen) then
    raise("update: no optimiser was unscaled or stepped since the last update")
  end
  local numbers, finite = self.numbers, true
  for _, entry in pairs(self.seen) do finite = finite and entry.finite end
  self.seen = {}
  if not finite then
    local scale = numbers.scale * numbers.backoff_factor
    if scale < LEAST then
      raise("update: gradients are infinite or NaN at every scale down to %g; "
        .. "lunce.detect_anomaly(true) names the operator that makes them", numbers.scale)
    end
    numbers.scale, numbers.growth_tracker = scale, 0
    return
  end
  numbers.growth_tracker = numbers.growth_tracker + 1
  if numbers.growth_tracker >= numbers.growth_interval then
    numbers.scale = math.min(numbers.scale * numbers.growth_factor, MOST)
    numbers.growth_tracker = 0
  end
end

--- What the next loss is multiplied by; 1 where the scaler is not enabled.
---@return number
function Scaler:get_scale() return self.enabled and self.numbers.scale or 1 end

-- ---- Saving ----------------------------------------------------------------------------------

--- The scale and what moves it as float64 tensors without dimensions, ready to be saved.
---@return table<string, lunce.Tensor>
function Scaler:state_dict()
  local state = {}
  for name, value in pairs(self.numbers) do
    state[name] = lunce.tensor(value, { dtype = "float64" })
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

--- Takes up a state that state_dict gave. A name missing or unexpected, or a value that does not
--- fit, is an error; then nothing was changed.
---@param state table<string, lunce.Tensor>
function Scaler:load_state_dict(state)
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
  self.numbers, self.seen = numbers, {}
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
  return setmetatable({ numbers = numbers, seen = {}, enabled = opts.enabled }, Scaler)
end

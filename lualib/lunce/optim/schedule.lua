-- Learning-rate schedules: pure functions of the number of updates made so far (0 before the
-- first) that give the factor for opt:schedule. Holds no state, so a resume needs none.
--
--   local factor = schedule.chain { { 10, schedule.warmup { steps = 10 } },
--                                   { 90, schedule.cosine { steps = 90 } } }
--   for step = 1, 100 do
--     opt:schedule(factor(step - 1))
local check_range = require("lunce.optim.optimiser").check_range
local describe = require("lunce.options").describe
local options = require("lunce.options").options
local need_number = require("lunce.tensor").need_number
local raise = require("lunce.ffi").raise

local M = {}

local function checked(given, defaults, what)
  local set = options(given, defaults, what)
  if set.steps ~= nil then check_range(set, "steps", 1, math.huge, what) end
  return set
end

--- The same factor always.
---@param opts? { factor: number }
function M.constant(opts)
  local set = checked(opts, { factor = 1 }, "schedule.constant")
  return function() return set.factor end
end

--- Half a cosine from 1 at step 0 to `floor` at step `steps` and after.
---@param opts { steps: integer, floor: number? }
function M.cosine(opts)
  local set = checked(opts, { steps = false, floor = 0 }, "schedule.cosine")
  return function(step)
    need_number(step, "schedule.cosine", "the step")
    local t = math.min(step / set.steps, 1)
    return set.floor + (1 - set.floor) * (1 + math.cos(math.pi * t)) / 2
  end
end

--- A line up to 1: 1 / steps for the first update, 1 for update `steps` and those after.
---@param opts { steps: integer }
function M.warmup(opts)
  local set = checked(opts, { steps = false }, "schedule.warmup")
  return function(step)
    return math.min((need_number(step, "schedule.warmup", "the step") + 1) / set.steps, 1)
  end
end

local function check_milestones(list)
  local is_list = type(list) == "table" and not getmetatable(list) and #list > 0
  for i = 1, is_list and #list or 0 do is_list = is_list and type(list[i]) == "number" end
  if not is_list then
    raise("schedule.step: option milestones is %s; a list of numbers is taken", describe(list))
  end
end

--- Multiplied by gamma after every step_size updates, or at each of the milestones.
---@param opts { step_size: integer?, milestones: integer[]?, gamma: number? }
function M.step(opts)
  local set = options(opts, { step_size = false, milestones = false, gamma = 0.1 },
    "schedule.step")
  if (set.step_size == false) == (set.milestones == false) then
    raise("schedule.step: one of step_size and milestones is taken")
  end
  if set.step_size then check_range(set, "step_size", 1, math.huge, "schedule.step") end
  if set.milestones then check_milestones(set.milestones) end
  return function(step)
    need_number(step, "schedule.step", "the step")
    if set.step_size then return set.gamma ^ math.floor(step / set.step_size) end
    local passed = 0
    for _, milestone in ipairs(set.milestones) do
      if step >= milestone then passed = passed + 1 end
    end
    return set.gamma ^ passed
  end
end

--- Schedules one after the other, each { steps, schedule } counting from 0 anew; the last goes on.
---@param parts { [1]: integer, [2]: fun(step: integer): number }[]
function M.chain(parts)
  if type(parts) ~= "table" or #parts == 0 then
    raise("schedule.chain: %s; a list of { steps, schedule } is taken", describe(parts))
  end
  for i = 1, #parts do
    local part = parts[i]
    if type(part) ~= "table" or type(part[1]) ~= "number" or type(part[2]) ~= "function" then
      raise("schedule.chain: part %d is not { steps, schedule }", i)
    end
  end
  return function(step)
    need_number(step, "schedule.chain", "the step")
    local i = 1
    while i < #parts and step >= parts[i][1] do
      step = step - parts[i][1]
      i = i + 1
    end
    return parts[i][2](step)
  end
end

return M

-- Adam (arXiv 1412.6980) and AdamW (arXiv 1711.05101), as torch.optim has them.
local C = require("lunce.ffi").C
local captured = require "lunce.optim.captured"
local ffi = require "ffi"
local call = require("lunce.ffi").call
local lunce = require "lunce"
local optimiser = require "lunce.optim.optimiser"
local raise = require("lunce.ffi").raise

local check_range = optimiser.check_range
local numbers_box = ffi.new "double[3]"

local function check(group, name)
  check_range(group, "lr", 0, math.huge, name)
  check_range(group, "eps", 0, math.huge, name)
  check_range(group, "weight_decay", 0, math.huge, name)
  if #group.betas ~= 2 then raise("%s: option betas has %d numbers; 2 are taken", name,
    #group.betas) end
  for i = 1, 2 do check_range(group.betas, i, 0, 1, name .. " betas") end
end

-- m and v are the moving averages of g and g^2; p moves by -lr m' / (sqrt(v') + eps), where m' and
-- v' are corrected for their start at zero. weight_decay adds to the gradient or, decoupled,
-- shrinks p by lr weight_decay before the step.
local function rule(name, weight_decay, decoupled)
  return optimiser.new {
    name = name,
    defaults = { lr = 1e-3, betas = { 0.9, 0.999 }, eps = 1e-8, weight_decay = weight_decay },
    state = { exp_avg = "tensor", exp_avg_sq = "tensor", step = "number" },
    check = function(group) check(group, name) end,
    numbers = function(group, lr, state)
      C.ln_adam_numbers(numbers_box, lr, group.betas[1], group.betas[2], group.weight_decay,
        (state.step or 0) + 1, decoupled)
      return { numbers_box[0], numbers_box[1], numbers_box[2] }
    end,
    numbers_there = function(group, lr, step)
      local function correction(beta) return 1 - beta ^ step end
      local decay = decoupled and group.weight_decay or 0
      return { 1 - lr * decay, lr / correction(group.betas[1]), correction(group.betas[2]) }
    end,
    update = function(p, g, state, group, lr, numbers)
      if not state.exp_avg then -- all or nothing: memory may run out between the two
        captured.check_first(name, numbers)
        local m, v = lunce.zeros_like(p):keep(), lunce.zeros_like(p):keep()
        state.exp_avg, state.exp_avg_sq, state.step = m, v, 0
      end
      call(C.ln_adam_step, p.h, g.h, state.exp_avg.h, state.exp_avg_sq.h, lr, group.betas[1],
        group.betas[2], group.eps, group.weight_decay, numbers and 1 or state.step + 1, decoupled,
        numbers and numbers.h)
      if not numbers then state.step = state.step + 1 end -- else each replay counts
    end,
  }
end

---@class lunce.AdamOptions
---@field lr? number 0.001
---@field betas? number[] { 0.9, 0.999 }
---@field eps? number 1e-8
---@field weight_decay? number 0 in Adam, 0.01 in AdamW

return {
  ---@type fun(params: table, opts?: lunce.AdamOptions): lunce.Optimiser
  Adam = rule("Adam", 0, false),
  ---@type fun(params: table, opts?: lunce.AdamOptions): lunce.Optimiser
  AdamW = rule("AdamW", 0.01, true),
}

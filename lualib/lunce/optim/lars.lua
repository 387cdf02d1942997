-- Layer-wise adaptive rate scaling (You et al., arXiv 1708.03888), in the form of contrastive
-- learning code: the whole update is scaled to a fraction of the parameter's norm.
local C = require("lunce.ffi").C
local captured = require "lunce.optim.captured"
local call = require("lunce.ffi").call
local lunce = require "lunce"
local optimiser = require "lunce.optim.optimiser"

local check_range = optimiser.check_range

-- u |p| eta / |u|, or u itself where one of the norms is zero; 0-d tensors, so that nothing waits
-- for a device.
local function adapt(u, p, eta)
  local p_norm, u_norm = p:norm(), u:norm()
  local rate = p_norm * eta / u_norm
  return u * lunce.where(p_norm:gt(0):logical_and(u_norm:gt(0)), rate, lunce.ones_like(rate))
end

---@class lunce.LarsOptions
---@field lr number
---@field momentum? number 0.9
---@field weight_decay? number 0
---@field eta? number 0.001, the trust coefficient
---@field exclude_bias_and_norm? boolean true

--- u = g + weight_decay p, scaled by eta |p| / |u|, goes into a buffer that decays by momentum; p
--- moves by -lr times the buffer. Parameters of fewer than two dimensions (biases and
--- normalisation) take neither decay nor scaling unless exclude_bias_and_norm is false.
---@type fun(params: table, opts: lunce.LarsOptions): lunce.Optimiser
return optimiser.new {
  name = "LARS",
  defaults = { lr = false, momentum = 0.9, weight_decay = 0, eta = 1e-3,
    exclude_bias_and_norm = true },
  state = { momentum_buffer = "tensor" },
  check = function(group)
    check_range(group, "lr", 0, math.huge, "LARS")
    check_range(group, "momentum", 0, math.huge, "LARS")
    check_range(group, "weight_decay", 0, math.huge, "LARS")
    check_range(group, "eta", 0, math.huge, "LARS")
  end,
  numbers = function(_, lr) return { lr } end,
  update = function(p, g, state, group, lr, numbers)
    local u = g
    if #p.shape >= 2 or not group.exclude_bias_and_norm then
      u = adapt(g + p * group.weight_decay, p, group.eta)
    end
    local first = not state.momentum_buffer
    if first then captured.check_first("LARS", numbers) end
    local buffer = first and lunce.zeros_like(p):keep() or state.momentum_buffer
    call(C.ln_sgd_step, p.h, u.h, buffer.h, lr, group.momentum, 0, 0, false, first,
      numbers and numbers.h)
    state.momentum_buffer = buffer
  end,
}

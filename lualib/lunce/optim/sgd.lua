-- Stochastic gradient descent with momentum, as torch.optim.SGD.
local C = require("lunce.ffi").C
local captured = require "lunce.optim.captured"
local call = require("lunce.ffi").call
local lunce = require "lunce"
local optimiser = require "lunce.optim.optimiser"
local raise = require("lunce.ffi").raise

local check_range = optimiser.check_range

---@class lunce.SgdOptions
---@field lr number
---@field momentum? number 0
---@field dampening? number 0
---@field weight_decay? number 0
---@field nesterov? boolean false

--- g + weight_decay p goes into a buffer that decays by momentum and takes in 1 - dampening of it
--- (all of it at first); p moves by -lr times the buffer, or with nesterov by
--- -lr (g + momentum buffer).
---@type fun(params: table, opts: lunce.SgdOptions): lunce.Optimiser
return optimiser.new {
  name = "SGD",
  defaults = { lr = false, momentum = 0, dampening = 0, weight_decay = 0, nesterov = false },
  flags = { nesterov = true },
  state = { momentum_buffer = "tensor" },
  check = function(group)
    check_range(group, "lr", 0, math.huge, "SGD")
    check_range(group, "momentum", 0, math.huge, "SGD")
    check_range(group, "weight_decay", 0, math.huge, "SGD")
    if group.nesterov and (group.momentum == 0 or group.dampening ~= 0) then
      raise("SGD: nesterov takes a momentum above 0 and no dampening")
    end
  end,
  numbers = function(_, lr) return { lr } end,
  update = function(p, g, state, group, lr, numbers)
    local first = group.momentum ~= 0 and not state.momentum_buffer
    if first then captured.check_first("SGD", numbers) end
    local buffer = first and lunce.zeros_like(p):keep() or state.momentum_buffer
    call(C.ln_sgd_step, p.h, g.h, buffer and buffer.h, lr, group.momentum, group.dampening,
      group.weight_decay, group.nesterov, first, numbers and numbers.h)
    state.momentum_buffer = buffer
  end,
}

-- lunce.loss: one loss a file, loaded when first named. A loss is a function of tensors and an
-- options table that gives a scalar tensor (and, where it says so, a table of statistics). Holds no
-- loss and no state.
--
--   nt_xent, weince                                two views (N,D) each
--   weibit, soft, gate, hard_select, soft_select, top_m          ablations of WEINCE, likewise
--   soft_target_infonce, soft_target_cross_entropy               logits and soft targets
--
-- beta_state{...} is the moving Weibull shape of a run (evt.moving_beta).
local raise = require("lunce.ffi").raise

local M = {}

local FILES = {
  nt_xent = true, weince = true, weibit = true, soft = true, gate = true, hard_select = true,
  soft_select = true, top_m = true, soft_target_infonce = true, soft_target_cross_entropy = true,
}

--- The moving Weibull shape beta_t of a training run: state that its checkpoint must hold.
---@param options table|nil as for evt.moving_beta
---@return lunce.MovingBeta
function M.beta_state(options) return require("lunce.evt").moving_beta(options) end

return setmetatable(M, {
  __index = function(self, name)
    if not FILES[name] then raise("lunce.loss has no loss %q", tostring(name)) end
    local loss = require("lunce.loss." .. name)
    rawset(self, name, loss)
    return loss
  end,
})

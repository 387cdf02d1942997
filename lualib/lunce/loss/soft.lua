-- Soft: a fixed mixture of NT-Xent and Weibit, an ablation of WEINCE. Holds no state.
local check = require "lunce.loss.check"
local options = require("lunce.options").options
local raise = require("lunce.ffi").raise
local views = require "lunce.loss.views"

local DEFAULTS = { tau = false, beta = false, mix = 0.5 }

--- (1 - mix) NT-Xent + mix Weibit of two views.
---@param z_i lunce.Tensor (N,D)
---@param z_j lunce.Tensor (N,D)
---@param given table|nil tau (0.5), beta (4): numbers or tensors of one element; mix: 0 to 1
---@return lunce.Tensor scalar
return function(z_i, z_j, given)
  local o = options(given, DEFAULTS, "soft")
  if not (o.mix >= 0 and o.mix <= 1) then raise("soft: mix is %g; 0 to 1 is taken", o.mix) end
  local tau = check.positive(o.tau or 0.5, "tau", "soft")
  local beta = check.positive(o.beta or 4, "beta", "soft")
  local pair = views.pair(z_i, z_j, "soft")
  local softmax = views.contrast(pair, views.softmax, tau)
  local weibit = views.contrast(pair, views.shortfall, beta)
  return ((1 - o.mix) * softmax + o.mix * weibit):mean()
end

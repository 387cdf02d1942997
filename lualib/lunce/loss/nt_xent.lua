-- NT-Xent, the InfoNCE loss of two views: mean over anchors of log sum exp of s/tau over positive
-- and negatives, minus the positive's s/tau. Holds no state.
local check = require "lunce.loss.check"
local options = require("lunce.options").options
local views = require "lunce.loss.views"

local DEFAULTS = { tau = false }

--- NT-Xent of two views.
---@param z_i lunce.Tensor (N,D)
---@param z_j lunce.Tensor (N,D)
---@param given table|nil tau: temperature, a number (0.5) or a tensor of one element
---@return lunce.Tensor scalar
return function(z_i, z_j, given)
  local o = options(given, DEFAULTS, "nt_xent")
  local tau = check.positive(o.tau or 0.5, "tau", "nt_xent")
  return views.contrast(views.pair(z_i, z_j, "nt_xent"), views.softmax, tau):mean()
end

-- Top-M: InfoNCE over the positive and the M hardest negatives alone, in either link; the terms
-- that WEINCE can add. Holds no state.
local check = require "lunce.loss.check"
local options = require("lunce.options").options
local raise = require("lunce.ffi").raise
local views = require "lunce.loss.views"

local DEFAULTS = { link = "softmax", m = 50, tau = false, beta = false }

--- InfoNCE of two views over the positive and the m hardest negatives; gradients flow through the
--- chosen entries.
---@param z_i lunce.Tensor (N,D)
---@param z_j lunce.Tensor (N,D)
---@param given table|nil link: "softmax" with tau (0.5), or "weibit" with beta (4); m
---@return lunce.Tensor scalar
return function(z_i, z_j, given)
  local o = options(given, DEFAULTS, "top_m")
  local pair = views.pair(z_i, z_j, "top_m")
  if o.link == "softmax" then
    local tau = check.positive(o.tau or 0.5, "tau", "top_m")
    return views.contrast_hardest(pair, o.m, views.softmax, tau):mean()
  elseif o.link == "weibit" then
    local beta = check.positive(o.beta or 4, "beta", "top_m")
    return views.contrast_hardest(pair, o.m, views.shortfall, beta):mean()
  end
  raise('top_m: link is %q; "softmax" or "weibit" is taken', o.link)
end

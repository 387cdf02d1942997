-- Weibit: InfoNCE of two views with the Weibull link w(s; beta) in place of s/tau. Holds no state
-- of its own: a moving shape is the caller's, in options.
local options = require("lunce.options").options
local views = require "lunce.loss.views"

local DEFAULTS = { beta = false, beta_t = 4, shrink_c = 100, r2_min = 0.2, state = false }

--- Weibit of two views.
---@param z_i lunce.Tensor (N,D)
---@param z_j lunce.Tensor (N,D)
---@param given table|nil beta: a number (4), a tensor of one element, "anchor" (each anchor's
---  shape, shrunk towards beta_t with weight shrink_c, ignoring fits of R2 < r2_min) or "batch";
---  state: a loss.beta_state, which gives beta_t and is updated by this batch
---@return lunce.Tensor scalar
return function(z_i, z_j, given)
  local o = options(given, DEFAULTS, "weibit")
  local pair = views.pair(z_i, z_j, "weibit")
  -- The released code cuts the tail's size to an integer here and rounds it elsewhere.
  local K = 2 * pair.N - 2
  local tail = o.beta == "anchor"
    and pair.negatives:tail{ k = math.min(math.max(32, math.floor(0.10 * K)), K) }
  local beta = views.shape(pair, tail, o.beta or 4, o)
  return views.contrast(pair, views.shortfall, beta):mean()
end

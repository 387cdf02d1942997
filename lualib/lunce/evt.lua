-- Extreme-value statistics of a tail of shortfalls d = 1 - s: fits, gates, shrinkage and the moving
-- Weibull shape, which captured steps (lunce.graph) move on the device. Every function takes and
-- gives tensors without a gradient (fits run in float64) or plain numbers. May not know of
-- similarity matrices or losses.
-- Invariant: a tail too short to fit gives zeros (shape 0, R2 0, dAIC 0), never NaN.
local lunce = require "lunce"
local new_numbers = require("lunce.numbers").new
local describe, options = require("lunce.options").describe, require("lunce.options").options
local raise = require("lunce.ffi").raise
local tensor = require "lunce.tensor"

local M = {}

local need, need_count, need_number = tensor.need, tensor.need_count, tensor.need_number
local running = tensor.state

local LEAST_SHORTFALL = 1e-6
local LEAST_SUM = 1e-12  -- below it a sum of squares is rounding
local WRONG_SIGN = 1e6   -- added to the residual of a fit whose slope has the wrong sign

-- x, which must be a number (no NaN) or a tensor.
local function need_value(x, what, name)
  if not lunce.is_tensor(x) and (type(x) ~= "number" or x ~= x) then
    raise("%s: %s is %s; a number or a tensor is taken", what, name, describe(x))
  end
  return x
end

-- Refuses bounds that no value lies between.
local function check_bounds(o, what)
  if o.lo > o.hi then raise("%s: option lo is %g, above hi, %g", what, o.lo, o.hi) end
end

--- x rounded to the nearest integer, halves to the even one.
---@param x number
---@return integer
function M.round(x)
  local low = math.floor(need_number(x, "evt.round", "argument 1"))
  if x - low > 0.5 or (x - low == 0.5 and low % 2 == 1) then return low + 1 end
  return low
end

--- How many of a row's K candidates make its tail: 10 % of them, at least 32, at most all.
---@param K integer
---@return integer
function M.tail_size(K)
  need_count(K, "evt.tail_size", "the number of candidates")
  return math.min(math.max(32, M.round(0.10 * K)), K)
end

-- Ordinary least squares of y (1,n) on x (R,n) along each row; sums of squares (R,1). Measured from
-- the first point, for equal points must be at no distance from their mean.
local function least_squares(x, y)
  x = x - x:narrow(2, 1, 1)
  local dx, dy = x - x:mean(2, true), y - y:mean(2, true)
  local slope = (dx * dy):sum(2, true) / dx:square():sum(2, true):clamp(LEAST_SUM, math.huge)
  return slope:squeeze(2), (dy - slope * dx):square():sum(2)
end

local function no_fit(rows, k, n, device)
  local function zeros() return lunce.zeros(rows, { dtype = "float64", device = device }) end
  return { beta_hat = zeros(), r2 = zeros(), delta_aic = zeros(), k = k, n = n }
end

-- log F of the points kept.
local function log_ranks(k, burnt, device)
  return (lunce.arange(burnt + 1, k, 1, { dtype = "float64", device = device }) / (k + 1)):log()
end

--- How many of a tail's k points are left out of its fits.
---@param k integer
---@return integer
function M.burnt(k)
  return math.max(1, math.floor(need_count(k, "evt.burnt", "the number of points") / 20))
end

--- What the two lines of a tail of k points say: the Weibull shape, R2 and dAIC.
---@param slope_w Tensor (R) float64
---@param sse_w Tensor (R)
---@param slope_g Tensor (R)
---@param sse_g Tensor (R)
---@param k integer
---@return table fit as M.fit gives it
function M.judge(slope_w, sse_w, slope_g, sse_g, k)
  need(slope_w, "evt.judge", 1)
  need(sse_w, "evt.judge", 2)
  need(slope_g, "evt.judge", 3)
  need(sse_g, "evt.judge", 4)
  local burnt, device = M.burnt(k), slope_w.device
  local n = k - burnt
  if n < 2 then return no_fit(slope_w.shape[1], k, n, device) end
  local log_F = log_ranks(k, burnt, device)
  local sst = (log_F - log_F:mean()):square():sum()
  sse_w, sse_g = sse_w:clamp(LEAST_SUM, math.huge), sse_g:clamp(LEAST_SUM, math.huge)
  local r2 = (1 - sse_w / sst):clamp(0, 1)
  sse_w = sse_w + slope_w:le(0):to("float64") * WRONG_SIGN
  sse_g = sse_g + slope_g:ge(0):to("float64") * WRONG_SIGN
  return { beta_hat = slope_w:clamp(0, math.huge), r2 = r2, k = k, n = n,
    delta_aic = n * (sse_g:log() - sse_w:log()) }
end

--- Least-squares fits of a Weibull tail and of a Gumbel proxy to each row's smallest shortfalls.
--- With F_r = r/(k+1), x = log d_r, after the first max(1, floor(k/20)) points: Weibull
--- log F = slope x + c, Gumbel log(-log F) = slope x + c;
--- dAIC = n (log(SSE_G/n) - log(SSE_W/n)), positive in favour of the Weibull tail.
---@param shortfalls lunce.Tensor (R,k) or (k), ascending
---@return table fit beta_hat, r2, delta_aic: (R) float64; k, n: points given and used
function M.fit(shortfalls)
  local d = need(shortfalls, "evt.fit", 1):detach():to("float64")
  if #d.shape == 1 then d = d:unsqueeze(1) end
  if #d.shape ~= 2 then raise("evt.fit: shortfalls (R,k) or (k); got %d dimensions", #d.shape) end
  local rows, k = d.shape[1], d.shape[2]
  local burnt = M.burnt(k)
  local n = k - burnt
  if n < 2 or rows == 0 then return no_fit(rows, k, n, d.device) end

  local x = d:narrow(2, burnt + 1, n):clamp(LEAST_SHORTFALL, math.huge):log()
  local log_F = log_ranks(k, burnt, d.device):unsqueeze(1)
  local slope_w, sse_w = least_squares(x, log_F)
  local slope_g, sse_g = least_squares(x, (-log_F):log())
  return M.judge(slope_w, sse_w, slope_g, sse_g, k)
end

--- The value at the nearest rank of quantile q: position round(q (R-1)) + 1 of the sorted values.
---@param values lunce.Tensor (R)
---@param q number 0 to 1
---@return lunce.Tensor scalar
function M.quantile(values, q)
  local shape = need(values, "evt.quantile", 1).shape
  if #shape ~= 1 or shape[1] == 0 then
    raise("evt.quantile: values (%s); (R) with at least one is taken", table.concat(shape, ","))
  end
  if type(q) ~= "number" or not (q >= 0 and q <= 1) then
    raise("evt.quantile: q is %s; 0 to 1 is taken", describe(q))
  end
  local sorted = values:detach():sort(1)
  return sorted:select(1, M.round(q * (values.shape[1] - 1)) + 1)
end

--- Evidence that a row's nearest candidate is extreme: sigmoid(kappa (log rho0 - log rho)).
---@param rho lunce.Tensor (R) least shortfalls
---@param rho0 lunce.Tensor|number
---@param kappa number
---@return lunce.Tensor (R)
function M.rho_gate(rho, rho0, kappa)
  need(rho, "evt.rho_gate", 1)
  need_value(kappa, "evt.rho_gate", "kappa")
  if not lunce.is_tensor(rho0) and not (type(rho0) == "number" and rho0 > 0) then
    raise("evt.rho_gate: rho0 is %s; a number above 0 or a tensor is taken", describe(rho0))
  end
  local log_rho0 = type(rho0) == "number" and math.log(rho0) or rho0:log()
  return (kappa * (log_rho0 - rho:log())):sigmoid()
end

--- Evidence that a row's tail is Weibull: sigmoid(kappa (dAIC - margin)).
---@param delta_aic lunce.Tensor (R)
---@return lunce.Tensor (R)
function M.aic_gate(delta_aic, margin, kappa)
  need(delta_aic, "evt.aic_gate", 1)
  need_value(margin, "evt.aic_gate", "the margin")
  need_value(kappa, "evt.aic_gate", "kappa")
  return (kappa * (delta_aic - margin)):sigmoid()
end

local SHRINK = { beta_t = false, c = 100, r2_min = 0.2, lo = 0.5, hi = 16 }

--- Each row's shape drawn towards beta_t where its fit is weak: w beta_hat + (1-w) beta_t within
--- [lo, hi], w = n R2 / (n R2 + c), and w = 0 where R2 < r2_min or there is no positive shape.
---@param fit table as evt.fit gives
---@param given table|nil beta_t (4; a number or a tensor without dimensions), c, r2_min, lo, hi
---@return lunce.Tensor (R) float64
function M.shrink(fit, given)
  local o = options(given, SHRINK, "evt.shrink")
  local beta_t = o.beta_t or 4
  if type(beta_t) ~= "number" and not lunce.is_tensor(beta_t) then
    raise("evt.shrink: option beta_t is %s; a number or a tensor is taken", describe(beta_t))
  end
  check_bounds(o, "evt.shrink")
  if type(fit) ~= "table" or type(fit.n) ~= "number" or not lunce.is_tensor(fit.r2)
    or not lunce.is_tensor(fit.beta_hat) then
    raise("evt.shrink: argument 1 is %s; a fit with n, r2 and beta_hat, as evt.fit gives, is taken",
      describe(fit))
  end
  local evidence = fit.n * fit.r2
  local usable = fit.r2:ge(o.r2_min):logical_and(fit.beta_hat:gt(0)):to("float64")
  local w = usable * evidence / (evidence + o.c)
  return (w * fit.beta_hat + (1 - w) * beta_t):clamp(o.lo, o.hi)
end

---@class lunce.MovingBeta
---@field beta number|lunce.Tensor the shape; in a captured step float64 without dimensions
---@field fitted boolean whether a trusted fit has been seen; not told in a captured step
local Moving = { __name = "moving shape" }

-- Where a step is captured, the numbers on the device; else nil.
local function there(state)
  return running.graph and state.numbers:captured(running.graph)
end

local function shape(state)
  if running.graph then return there(state).beta:clone() end
  local beta = state.numbers:values().beta
  if not running.step then return beta end
  return lunce.full({}, beta, { dtype = "float64", device = running.step.device })
end

function Moving.__index(state, key)
  if key == "beta" then return shape(state) end
  if key == "fitted" then return state.numbers:values().fitted == 1 end
  return Moving[key]
end

local MOVING = { beta = 4, momentum = 0.9, lo = 0.5, hi = 16, r2_min = 0.85 }

--- The moving Weibull shape beta_t of a training run: state that its checkpoint must hold.
---@param given table|nil beta (the start), momentum, lo, hi, r2_min
---@return lunce.MovingBeta
function M.moving_beta(given)
  local o = options(given, MOVING, "evt.moving_beta")
  check_bounds(o, "evt.moving_beta")
  if not (o.momentum >= 0 and o.momentum <= 1) then
    raise("evt.moving_beta: option momentum is %g; 0 to 1 is taken", o.momentum)
  end
  if not (o.beta > 0 and o.beta < math.huge) then
    raise("evt.moving_beta: option beta is %g; a number above 0 is taken", o.beta)
  end
  local numbers = new_numbers({ beta = o.beta, fitted = 0 }, "beta_state")
  return setmetatable({ numbers = numbers, rule = o }, Moving)
end

local function number_of(x) return lunce.is_tensor(x) and x:item() or x end

-- A pooled fit, which may be absent.
local function check_pooled(fit)
  local function is_one(x)
    return type(x) == "number" or lunce.is_tensor(x) and x:numel() == 1
  end
  if fit ~= nil and not (type(fit) == "table" and is_one(fit.r2) and is_one(fit.beta_hat)) then
    raise("moving_beta:update: %s; a pooled fit with r2 and beta_hat of one element, as"
      .. " tail{ pooled = true } gives it, or nil is taken", describe(fit))
  end
end

local function update_here(state, fit)
  local rule, r2, beta_hat = state.rule, number_of(fit.r2), number_of(fit.beta_hat)
  if not (r2 >= rule.r2_min and beta_hat > 0) then return end
  local beta = math.min(math.max(beta_hat, rule.lo), rule.hi)
  local old = state.numbers:values().beta
  state.numbers:set { beta = rule.momentum * old + (1 - rule.momentum) * beta, fitted = 1 }
end

-- The same arithmetic, in the same order, on the device.
local function update_there(state, fit)
  if not (lunce.is_tensor(fit.r2) and lunce.is_tensor(fit.beta_hat)) then
    raise("moving_beta:update: in a captured step r2 and beta_hat are tensors on its device, as"
      .. " tail{ pooled = true } gives them there")
  end
  local rule, now = state.rule, there(state)
  local trusted = fit.r2:ge(rule.r2_min):logical_and(fit.beta_hat:gt(0))
  local beta = fit.beta_hat:clamp(rule.lo, rule.hi)
  local moved = now.beta * rule.momentum + beta * (1 - rule.momentum)
  now.beta:copy_(lunce.where(trusted, moved, now.beta))
  now.fitted:copy_(lunce.where(trusted, 1, now.fitted))
end

--- Moves beta towards a pooled fit that is trusted (R2 >= r2_min, positive shape), and no other.
---@param fit table|nil as tail{ pooled = true } gives; nil where there was none
---@return number|lunce.Tensor beta
function Moving:update(fit)
  check_pooled(fit)
  if fit then
    lunce.no_grad(lunce.scope, running.graph and update_there or update_here, self, fit)
  end
  return self.beta
end

--- x, or zeros where no trusted fit has been seen.
---@param x lunce.Tensor
---@return lunce.Tensor
function Moving:gate(x)
  need(x, "moving_beta:gate", 1)
  if running.graph then return x * there(self).fitted end
  return self.fitted and x or x * 0
end

--- The state as a float64 tensor (2): beta, and 1 once a trusted fit has been seen.
---@return table<string, lunce.Tensor>
function Moving:state_dict()
  local now = self.numbers:values()
  return { beta = lunce.tensor({ now.beta, now.fitted }, { dtype = "float64" }) }
end

---@param state table as state_dict gives
function Moving:load_state_dict(state)
  self.numbers:need_host()
  local values = type(state) == "table" and state.beta
  if not lunce.is_tensor(values) or values:numel() ~= 2 or #values.shape ~= 1
    or not values:isfinite():all():item() then
    raise("moving_beta:load_state_dict: takes { beta = a tensor (2) of finite numbers }, as"
      .. " state_dict gives")
  end
  self.numbers:set { beta = values[1]:item(), fitted = values[2]:item() == 1 and 1 or 0 }
end

-- The generalised Pareto log-likelihood of excesses x at theta = xi/sigma, maximised over xi, which
-- is mean log(1 + theta x) there (Grimshaw's profile); theta = 0 is the exponential law.
local function profile(x, theta)
  local n = x:numel()
  local xi = (x * theta):log1p():mean():item()
  local sigma = theta == 0 and x:mean():item() or xi / theta
  -- Past xi = -1 the likelihood grows without bound towards a point mass at the largest excess.
  return xi >= -1 and -n * (math.log(sigma) + 1 + xi) or -math.huge, xi, sigma
end

-- The place of the largest f within [lo, hi], where f rises and then falls: golden-section search.
local function maximise(f, lo, hi)
  local ratio = (math.sqrt(5) - 1) / 2
  local a, b = hi - ratio * (hi - lo), lo + ratio * (hi - lo)
  local fa, fb = f(a), f(b)
  while hi - lo > 1e-9 do
    if fa >= fb then
      hi, b, fb = b, a, fa
      a = hi - ratio * (hi - lo)
      fa = f(a)
    else
      lo, a, fa = a, b, fb
      b = lo + ratio * (hi - lo)
      fb = f(b)
    end
  end
  return fa >= fb and a or b
end

--- The generalised Pareto law of excesses over a threshold, by maximum likelihood with xi >= -1.
---@param excesses lunce.Tensor (n) positive
---@return table fit xi (shape: below 0 the tail has an end, 0 is exponential), sigma, loglik
function M.gpd_fit(excesses)
  local x = need(excesses, "evt.gpd_fit", 1):detach():to("float64")
  if #x.shape ~= 1 or x:numel() < 2 or not x:gt(0):all():item() then
    raise("evt.gpd_fit: takes two or more positive excesses in one dimension")
  end
  local largest = x:max():item()
  -- theta > -1/largest becomes u = log(1 + theta largest), which is free.
  local function at(u) return profile(x, (math.exp(u) - 1) / largest) end
  local best, best_u = -math.huge, 0
  for u = -16, 16, 0.5 do
    local value = at(u)
    if value > best then best, best_u = value, u end
  end
  local loglik, xi, sigma = at(maximise(at, best_u - 0.5, best_u + 0.5))
  return { xi = xi, sigma = sigma, loglik = loglik }
end

return M

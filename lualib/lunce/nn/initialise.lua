-- Initial values for parameters, under PyTorch's names, as `nn.init`. Every function fills its
-- tensor in place without recording, and returns it. Holds no generator: draws come from the one
-- that lunce.manual_seed sets, so a seed and an order of construction give the same network.
local describe = require("lunce.options").describe
local lunce = require "lunce"
local need = require("lunce.tensor").need
local need_number = require("lunce.tensor").need_number
local options = require("lunce.options").options
local raise = require("lunce.ffi").raise

local M = {}

---@param t lunce.Tensor
---@param value number
function M.constant_(t, value)
  need(t, "constant_", 1)
  lunce.no_grad(t.fill_, t, need_number(value, "constant_", "the value"))
  return t
end

function M.zeros_(t) return M.constant_(t, 0) end

function M.ones_(t) return M.constant_(t, 1) end

--- Uniform in [low, high).
function M.uniform_(t, low, high)
  need(t, "uniform_", 1)
  need_number(low, "uniform_", "the lower bound")
  need_number(high, "uniform_", "the upper bound")
  return lunce.no_grad(t.uniform_, t, low, high)
end

function M.normal_(t, mean, std)
  need(t, "normal_", 1)
  need_number(mean, "normal_", "the mean")
  need_number(std, "normal_", "the standard deviation")
  return lunce.no_grad(t.normal_, t, mean, std)
end

-- The probability that a standard normal value lies in [a, b].
local function normal_mass(a, b)
  local ends = lunce.tensor({ a / math.sqrt(2), b / math.sqrt(2) }, { dtype = "float64" })
  local below = ends:erf():tolist()
  return (below[2] - below[1]) / 2
end

-- Draws anew, until there are none, the values of t outside [low, high].
local function redraw(t, mean, std, low, high)
  local outside = t:lt(low):logical_or(t:gt(high))
  while outside:any():item() do
    t:copy_(lunce.where(outside, lunce.zeros_like(t):normal_(mean, std), t))
    outside = t:lt(low):logical_or(t:gt(high))
  end
end

--- Normal values within [low, high].
function M.trunc_normal_(t, mean, std, low, high)
  M.normal_(t, mean, std)
  need_number(low, "trunc_normal_", "the lower bound")
  need_number(high, "trunc_normal_", "the upper bound")
  local mass = normal_mass((low - mean) / std, (high - mean) / std)
  if mass ~= mass or mass < 0.01 then
    raise("trunc_normal_: [%g, %g] holds less than 1 %% of the normal values of mean %g and "
      .. "standard deviation %g", low, high, mean, std)
  end
  lunce.no_grad(lunce.scope, redraw, t, mean, std, low, high)
  return t
end

-- The inputs that reach one output of the weight t (out, in, ...) and the outputs of one input.
local function fans(t, what)
  local shape = need(t, what, 1).shape
  if #shape < 2 then
    raise("%s: a weight of 2 dimensions or more is taken; got (%s)", what, table.concat(shape, ","))
  end
  local field = 1
  for i = 3, #shape do field = field * shape[i] end
  return shape[2] * field, shape[1] * field
end

local gains = {
  linear = 1, conv2d = 1, sigmoid = 1, tanh = 5 / 3, relu = math.sqrt(2), selu = 3 / 4,
}

--- The factor that keeps the variance of activations through a nonlinearity; for "leaky_relu" of
--- the slope (0.01).
---@param nonlinearity string linear, conv2d, sigmoid, tanh, relu, leaky_relu or selu
---@param slope? number
function M.gain(nonlinearity, slope)
  if nonlinearity == "leaky_relu" then
    return math.sqrt(2 / (1 + need_number(slope or 0.01, "init.gain", "the slope") ^ 2))
  end
  if not gains[nonlinearity] then
    raise("init.gain: nonlinearity %s; one of conv2d, leaky_relu, linear, relu, selu, sigmoid, "
      .. "tanh is taken", describe(nonlinearity))
  end
  return gains[nonlinearity]
end

--- Uniform with standard deviation gain * sqrt(2 / (fan_in + fan_out)).
function M.xavier_uniform_(t, gain)
  local fan_in, fan_out = fans(t, "xavier_uniform_")
  need_number(gain or 1, "xavier_uniform_", "the gain")
  local bound = (gain or 1) * math.sqrt(6 / (fan_in + fan_out))
  return M.uniform_(t, -bound, bound)
end

function M.xavier_normal_(t, gain)
  local fan_in, fan_out = fans(t, "xavier_normal_")
  need_number(gain or 1, "xavier_normal_", "the gain")
  return M.normal_(t, 0, (gain or 1) * math.sqrt(2 / (fan_in + fan_out)))
end

local kaiming = { a = 0, mode = "fan_in", nonlinearity = "leaky_relu" }

local function kaiming_std(t, opts, what)
  opts = options(opts, kaiming, what)
  local fan_in, fan_out = fans(t, what)
  local fan = opts.mode == "fan_in" and fan_in or opts.mode == "fan_out" and fan_out
  if not fan then
    raise("%s: mode %s; fan_in or fan_out is taken", what, describe(opts.mode))
  end
  return M.gain(opts.nonlinearity, opts.a) / math.sqrt(fan)
end

--- Uniform with standard deviation gain / sqrt(fan).
---@param t lunce.Tensor
---@param opts? { a: number, mode: "fan_in"|"fan_out", nonlinearity: string } a: leaky_relu's slope
function M.kaiming_uniform_(t, opts)
  local bound = math.sqrt(3) * kaiming_std(t, opts, "kaiming_uniform_")
  return M.uniform_(t, -bound, bound)
end

function M.kaiming_normal_(t, opts)
  return M.normal_(t, 0, kaiming_std(t, opts, "kaiming_normal_"))
end

-- Rows made orthonormal one by one; the second projection removes what rounding left in the first.
local function orthonormal_rows(w)
  local q = lunce.zeros(w.shape, { dtype = w.dtype, device = w.device })
  for i = 1, w.shape[1] do
    local row = w[i]
    for _ = 1, 2 do row = row - q:t():matmul(q:matmul(row)) end
    q[i] = row / row:norm()
  end
  return q
end

--- A random matrix (rows, the rest) with orthonormal rows or columns, whichever are fewer.
function M.orthogonal_(t, gain)
  fans(t, "orthogonal_")
  need_number(gain or 1, "orthogonal_", "the gain")
  lunce.autocast(false, lunce.no_grad, lunce.scope, function()
    local flat = lunce.zeros_like(t):normal_(0, 1):flatten(2)
    local tall = flat.shape[1] > flat.shape[2]
    local q = orthonormal_rows(tall and flat:t():contiguous() or flat)
    t:copy_(((tall and q:t() or q) * (gain or 1)):reshape(t.shape))
  end)
  return t
end

return M

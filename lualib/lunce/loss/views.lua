-- What the losses over two views share: the similarity matrix of z = [z_i; z_j], the links, the
-- house form of InfoNCE, and the choice of the Weibull shape. Holds no loss and no state.
-- Invariant: row a's positive is row a + N (mod 2N); its negatives are all rows but these two.
local lunce = require "lunce"
local arguments = require "lunce.loss.arguments"
local describe = require("lunce.options").describe
local evt = require "lunce.evt"
local link = require "lunce.link"
local raise = require("lunce.ffi").raise
local similarity = require "lunce.similarity"
local tensor = require "lunce.tensor"

local M = {}

local CAP = 1 - 1e-6 -- a similarity past it counts as it, without a gradient

--- The letters of the formulas of losses over two views.
M.NOTATION = "s_ab is the cosine of rows a and b of z = [z_i; z_j]; p is the other view of a, n "
  .. "runs over all rows but a and p; the mean is over the 2N rows a"

--- The Weibull link in the formulas.
M.WEIBULL = "w(s; beta) = -beta log(1 - min(s, 1 - 1e-6))"

--- Options that several losses declare, by name.
M.options = {
  tau = { "tau", 0.5, "temperature", "positive" },
  margin = { "margin", 2, "the dAIC at which the evidence for a Weibull tail is even" },
  kappa_rho = { "kappa_rho", 10, "steepness of lambda's factor in rho" },
  kappa_aic = { "kappa_aic", 1, "steepness of lambda's factor in dAIC" },
  q = { "q", 0.2, "rho0 is this quantile of the anchors' rho" },
  evidence = { "evidence", "both", 'factors of lambda: "both", "rho" or "aic"' },
  beta_t = { "beta_t", 4, "the shape that anchors' shapes are drawn towards, without a state" },
  shrink_c = { "shrink_c", 100, "weight of beta_t against the points of a tail" },
  r2_min = { "r2_min", 0.2, "a fit of a lower R2 is ignored" },
  state = { "state", false, "a loss.beta_state, which gives beta_t and is updated by each batch" },
}

--- The Weibull link w(s; beta) = -beta log(1 - min(s, 1 - 1e-6)).
function M.shortfall(s, beta) return -beta * link.log(1 - link.min(s, CAP)) end

--- The softmax link s / tau.
function M.softmax(s, tau) return s / tau end

--- The mixture of both: (1 - lambda) s / tau + lambda w(s; beta).
function M.mixture(s, tau, lambda, beta)
  return (1 - lambda) * M.softmax(s, tau) + lambda * M.shortfall(s, beta)
end

-- What make(N, device) gives, which the next call of the same size is given again: every step of a
-- training loop asks for it. A captured step has its own.
local function remembered(make)
  local N, device, made
  return function(x)
    local n, place = x.shape[1], x.device
    if tensor.state.graph then return make(n, place) end
    if n ~= N or place ~= device then
      made = lunce.scope(make, n, place):keep()
      N, device = n, place
    end
    return made
  end
end

local function positions(N, device)
  return lunce.arange(1, N, 1, { dtype = "int64", device = device })
end

--- The positions of the rows of x: of a matrix (N,N), each row's own column.
---@param x lunce.Tensor (N,D)
---@return lunce.Tensor (N) int64
M.own = remembered(positions)

--- The row of [z_i; z_j] that is each row's positive.
---@param z_i lunce.Tensor (N,D)
---@return lunce.Tensor (2N) int64
M.partners = remembered(function(N, device)
  local first = positions(N, device)
  return lunce.cat({ first + N, first }, 1)
end)

---@class lunce.Views
---@field N integer pairs; there are 2N anchors
---@field candidates integer negatives of each
---@field negatives lunce.Similarity (2N,2N) each anchor's negatives
---@field positive lunce.Tensor (2N) each anchor's similarity to its positive
---@field what string the loss, for messages

--- The cosines of two views.
---@param z_i lunce.Tensor (N,D)
---@param z_j lunce.Tensor (N,D)
---@param what string the loss, for messages
---@return lunce.Views
function M.pair(z_i, z_j, what)
  arguments.pair(z_i, z_j, "z_i", "z_j", what)
  local N = z_i.shape[1]
  local positives = M.partners(z_i)
  local S = similarity.cosine{ z_i, z_j }
  return { N = N, candidates = 2 * N - 2, negatives = S:without_self():without(positives),
    positive = S:at(positives), what = what }
end

--- The cosine of each prediction with its target, which gets no gradient.
---@param p lunce.Tensor (N,D)
---@param z lunce.Tensor (N,D)
---@return lunce.Tensor (N)
function M.predicted(p, z, p_name, z_name, what)
  arguments.pair(p, z, p_name, z_name, what)
  return similarity.cosine(p, z:detach()):at(M.own(p))
end

--- log sum exp over positive and negatives minus the positive, each anchor. This form, softplus(lse
--- of negatives - positive), keeps its precision where the positive has nearly all probability.
---@param views lunce.Views
---@return lunce.Tensor (2N)
function M.contrast(views, f, ...)
  return (views.negatives:lse(f, ...) - f(views.positive, ...)):softplus()
end

--- The same over each anchor's m largest negatives (all of them if there are fewer than m).
---@param views lunce.Views
---@param m integer
---@return lunce.Tensor (2N)
function M.contrast_hardest(views, m, f, ...)
  if m % 1 ~= 0 or m < 1 then
    raise("%s: top_m is %g; a positive integer is taken", views.what, m)
  end
  local hardest = views.negatives:topk(math.min(m, 2 * views.N - 2))
  local rows = { ... }
  for i, p in ipairs(rows) do
    if lunce.is_tensor(p) and #p.shape == 1 and p:numel() > 1 then rows[i] = p:unsqueeze(2) end
  end
  return (f(hardest, unpack(rows)):logsumexp(2) - f(views.positive, ...)):softplus()
end

-- beta_t: the state's moving shape, brought up to date by this batch, or the option's number.
local function moving(views, o)
  if not o.state then return o.beta_t end
  if type(o.state) ~= "table" or not o.state.update then
    raise("%s: state is %s; a loss.beta_state is taken", views.what, describe(o.state))
  end
  return o.state:update(views.negatives:tail{ pooled = true, candidates = views.candidates })
end

--- The Weibull shape that an option asks for: a number, "batch" (beta_t) or "anchor" (each anchor's
--- fitted shape, shrunk towards beta_t).
---@param views lunce.Views
---@param tail table|nil the anchors' tail; fitted here when "anchor" needs it and there is none
---@param beta number|lunce.Tensor|"batch"|"anchor"
---@param o table options beta_t, shrink_c, r2_min, state
---@return number|lunce.Tensor
function M.shape(views, tail, beta, o)
  if beta == "batch" then
    if not o.state then
      raise('%s: beta = "batch" needs state, a loss.beta_state kept over the batches', views.what)
    end
    return moving(views, o)
  elseif beta == "anchor" then
    local shrunk = evt.shrink(tail or views.negatives:tail{ candidates = views.candidates },
      { beta_t = moving(views, o), c = o.shrink_c, r2_min = o.r2_min })
    return shrunk:to(views.positive.dtype)
  end
  return arguments.positive(beta, "beta", views.what)
end

local function evidence(views, o)
  local tail = views.negatives:tail{ candidates = views.candidates }
  tail.rho0 = evt.quantile(tail.rho, o.q)
  tail.lambda_rho = evt.rho_gate(tail.rho, tail.rho0, o.kappa_rho)
  tail.lambda_aic = evt.aic_gate(tail.delta_aic, o.margin, o.kappa_aic)
  if tail.n < 2 then
    tail.lambda = lunce.zeros_like(tail.rho)
  elseif o.evidence == "both" then
    tail.lambda = tail.lambda_rho * tail.lambda_aic
  elseif o.evidence == "rho" or o.evidence == "aic" then
    tail.lambda = tail["lambda_" .. o.evidence]
  else
    raise('%s: evidence is %q; "both", "rho" or "aic" is taken', views.what, o.evidence)
  end
  return tail.lambda:to(views.positive.dtype), tail
end

--- The evidence that each anchor's tail calls for the Weibull link; no gradient.
---@param views lunce.Views
---@param o table options q, kappa_rho, kappa_aic, margin, evidence ("both", "rho" or "aic")
---@return lunce.Tensor lambda (2N)
---@return table tail the anchors' tail with rho0, lambda_rho, lambda_aic and lambda added, float64
function M.evidence(views, o) return lunce.scope(evidence, views, o) end

return M

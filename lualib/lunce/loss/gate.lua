-- Gate: WEINCE's mixed link with a fixed gate on each anchor's nearest negative. Holds no state of
-- its own: a moving shape is the caller's, in options.
local define = require "lunce.loss.define"
local evt = require "lunce.evt"
local raise = require("lunce.ffi").raise
local views = require "lunce.loss.views"

return define({
  name = "gate",
  summary = "the mixed link with a gate on the nearest negative alone, an ablation of WEINCE",
  takes = { "z_i (N,D)", "z_j (N,D)" },
  gives = "statistics: lambda and rho, (2N) float64 without gradient; beta",
  formula = "weince's with lambda_a = sigmoid(scale (log rho0 - log rho_a))",
  source = "arXiv 2606.00262",
  options = {
    views.options.tau,
    { "beta", 4, 'shape: a number, a tensor of one element, or "batch" (beta_t of state; lambda '
      .. "stays 0 until it has seen a trusted fit)", "any" },
    { "rho0", 0.05, "the rho at which lambda is even" },
    { "scale", 5, "steepness of lambda" },
    views.options.state,
  },
}, function(z_i, z_j, o)
  if not (o.rho0 > 0) then raise("gate: rho0 is %g; a number above 0 is taken", o.rho0) end
  if o.beta == "anchor" then raise('gate: beta is a number, a tensor of one element or "batch"') end
  local pair = views.pair(z_i, z_j, "gate")
  local beta = views.shape(pair, nil, o.beta, o)
  local rho = pair.negatives:tail{ k = 0, candidates = pair.candidates }.rho
  local lambda = evt.rho_gate(rho, o.rho0, o.scale)
  if o.beta == "batch" then lambda = o.state:gate(lambda) end
  local function mixture(s, mix, shape) return views.mixture(s, o.tau, mix, shape) end
  local loss = views.contrast(pair, mixture, lambda:to(pair.positive.dtype), beta):mean()
  return loss, { lambda = lambda, rho = rho, beta = beta }
end)

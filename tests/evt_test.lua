-- Tail statistics against references, closed forms and samples of known law.
local json = require "cjson"
local lunce = require "lunce"
local evt = require "lunce.evt"
local safetensors = require("lunce.io").safetensors

local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local F64 = { dtype = "float64" }

describe("generalised Pareto fits:", function()
  local tensors, metadata =
    safetensors.load(here .. "reference/gpd-exceedances.safetensors")
  for name, expected in pairs(json.decode(metadata.mle)) do
    it(name .. " sample agrees with the reference's maximum likelihood", function()
      local fit = evt.gpd_fit(tensors[name])
      assert.near(expected.xi, fit.xi, 1e-4)
      assert.near(expected.sigma, fit.sigma, 1e-4 * expected.sigma)
      assert.near(expected.loglik, fit.loglik, 1e-8 * expected.loglik)
      -- The reference's optimiser stops a little before the maximum; ours may not stop earlier.
      assert.is_true(fit.loglik >= expected.loglik - 1e-6)
    end)
  end

  it("scales with its data", function()
    local x = tensors.heavy
    local one, ten = evt.gpd_fit(x), evt.gpd_fit(x:to("float64") * 10)
    assert.near(one.xi, ten.xi, 1e-6)
    assert.near(10 * one.sigma, ten.sigma, 1e-5 * ten.sigma)
  end)

  it("equal excesses give the steepest law allowed", function()
    assert.is_true(evt.gpd_fit(lunce.ones(10)).xi >= -1)
  end)

  it("refuses what is no excess", function()
    for _, x in ipairs{ lunce.zeros(3), lunce.tensor{ 1 }, lunce.ones(2, 2),
      lunce.tensor{ 1, 0 / 0, 2 } } do
      assert.has_error(function() evt.gpd_fit(x) end)
    end
  end)
end)

describe("tail fits:", function()
  it("a power-law tail is recovered exactly", function()
    -- d_r = (r/(k+1))^(1/beta) lies on the Weibull line with slope beta.
    local k, beta = 50, 3
    local d = (lunce.arange(1, k, 1, F64) / (k + 1)) ^ (1 / beta)
    local fit = evt.fit(d)
    assert.near(beta, fit.beta_hat:item(), 1e-9)
    assert.near(1, fit.r2:item(), 1e-12)
    assert.is_true(fit.delta_aic:item() > 100)
    assert.equal(48, fit.n)
  end)

  it("a Gumbel proxy's own tail speaks against Weibull", function()
    -- log(-log F) linear in log d with slope -1
    local k = 50
    local F = lunce.arange(1, k, 1, F64) / (k + 1)
    assert.is_true(evt.fit(1 / -F:log()).delta_aic:item() < -100)
  end)

  it("equal shortfalls have no shape", function()
    local fit = evt.fit(lunce.full({ 2, 30 }, 0.5, F64))
    for _, key in ipairs{ "beta_hat", "r2", "delta_aic" } do
      assert.is_true(fit[key]:isfinite():all():item())
    end
    assert.near(0, fit.beta_hat:max():item(), 1e-12)
  end)

  it("takes tensors", function()
    assert.has_error(function() evt.fit(3) end, "evt.fit: argument 1 is 3; a tensor is taken")
  end)

  it("two points or none are not fitted", function()
    for _, k in ipairs{ 0, 1, 2 } do
      local fit = evt.fit(lunce.full({ 3, 5 }, 0.5, F64):narrow(2, 1, k))
      assert.equal(0, fit.beta_hat:abs():sum():item())
      assert.equal(0, fit.delta_aic:abs():sum():item())
    end
  end)

  it("sizes round half to even", function()
    assert.equal(45, evt.tail_size(450))
    assert.equal(44, evt.tail_size(445))
    assert.equal(46, evt.tail_size(455))
    assert.equal(32, evt.tail_size(100))
    assert.equal(7, evt.tail_size(7))
    for x, expected in pairs{ [0.5] = 0, [1.5] = 2, [2.5] = 2, [2.4] = 2, [2.6] = 3 } do
      assert.equal(expected, evt.round(x))
    end
  end)
end)

describe("gates and shrinkage:", function()
  it("gates are one half at their thresholds and rise with the evidence", function()
    local rho = lunce.tensor({ 0.1, 0.05, 0.2 }, F64)
    local gate = evt.rho_gate(rho, 0.1, 10):tolist()
    assert.near(0.5, gate[1], 1e-12)
    assert.is_true(gate[2] > 0.99 and gate[3] < 0.01)
    assert.near(gate[2], evt.rho_gate(rho, lunce.tensor(0.1, F64), 10)[2]:item(), 1e-12)
    assert.near(0.5, evt.aic_gate(lunce.tensor({ 2 }, F64), 2, 1):item(), 1e-12)
  end)

  it("the quantile is the value at the nearest rank", function()
    local values = lunce.tensor({ 5, 1, 4, 2, 3, 6 }, F64)
    assert.equal(1, evt.quantile(values, 0):item())
    assert.equal(2, evt.quantile(values, 0.2):item())
    assert.equal(3, evt.quantile(values, 0.5):item()) -- round(2.5) is 2: the third value
    assert.equal(6, evt.quantile(values, 1):item())
  end)

  it("shrinks weak fits to beta_t, and ignores bad ones", function()
    local fit = { n = 100, r2 = lunce.tensor({ 1, 0.1, 1, 1 }, F64),
      beta_hat = lunce.tensor({ 8, 8, 0, 100 }, F64) }
    local shrunk = evt.shrink(fit, { beta_t = 4, c = 100, r2_min = 0.2 }):tolist()
    assert.near(6, shrunk[1], 1e-12)
    assert.near(4, shrunk[2], 1e-12)
    assert.near(4, shrunk[3], 1e-12)
    assert.near(16, shrunk[4], 1e-12)
    local four = lunce.full({}, 4, F64)
    assert.same(shrunk, evt.shrink(fit, { beta_t = four, c = 100, r2_min = 0.2 }):tolist())
    local ok, message = pcall(evt.shrink, fit, { beta_t = "4" })
    assert.is_false(ok)
    assert.matches('evt.shrink: option beta_t is "4"; a number or a tensor is taken', message, 1,
      true)
  end)
end)

-- link.show and the symbolic side of links: what the simplifier makes of products, sums and
-- derivatives, formulas and programs that compute what the link computes, bounds that the engine
-- shares, and refusals.
local lunce = require "lunce"
local link = require "lunce.link"
local similarity = require "lunce.similarity"
local views = require "lunce.loss.views"

local show = link.show
local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"

-- The text of f, of df/ds, or of df/d<name>.
local function formula(report, name)
  for _, x in ipairs(report.formulas) do
    if x.name == name then return x.text end
  end
end

describe("the simplifier", function()
  local function gives(text, f) assert.equal(text, formula(show(f), "f")) end

  it("gathers the numbers of products and quotients", function()
    gives("24 * s * tau", function(s, tau) return s * 2 * (tau * 3) * 4 end)
    gives("6 * s / tau", function(s, tau) return 2 * s / tau * 3 end)
    gives("0.5 * s / tau", function(s, tau) return s / (tau * 2) end)
    gives("3 / tau", function(_, tau) return 6 / (2 * tau) end)
    gives("-6 / s", function(s) return -(2 / s) * 3 end)
  end)

  it("keeps an epsilon beside a difference, which it guards in float32", function()
    gives("1 - s + 1e-08", function(s) return 1 - s + 1e-8 end)
  end)

  it("adds like terms", function()
    gives("2 * s", function(s) return s + s end)
    gives("5 * s", function(s) return 2 * s + s * 3 end)
    gives("0", function(s) return s * 2 - 2 * s end)
    gives("-s", function(s) return s - 2 * s end)
  end)

  it("loses signs that meet", function()
    gives("s * tau", function(s, tau) return -s * -tau end)
    gives("s / tau", function(s, tau) return -s / -tau end)
    gives("2 * (tau - s)", function(s, tau) return -((s - tau) * 2) end)
    gives("tau + 2 * s", function(s, tau) return tau - s * -2 end)
    gives("s - 1", function(s) return s - 1 end)
    gives("-2 - s", function(s) return -(s + 2) end)
  end)

  it("cancels what is divided and multiplied by", function()
    gives("s", function(s, tau) return s / tau * tau end)
    gives("s", function(s, tau) return tau * s / tau end)
    gives("s / tau", function(s, tau) return 1 / tau * s end)
    gives("tau", function(_, tau) return tau * tau / tau end)
    gives("scale * exp(s)", function(s, tau, scale) return tau * (scale * (link.exp(s) / tau)) end)
  end)

  it("gives short derivatives of the links of the losses", function()
    local shortfall = "le(s, 0.999999) / (1 - min(s, 0.999999))"
    for _, case in ipairs{
      { "2", views.softmax, 0.5 },
      { "1 / tau", views.softmax },
      { "4 * " .. shortfall, views.shortfall, 4 },
      { "(1 - lambda) / tau + lambda * beta * " .. shortfall, views.mixture },
      { "2 * t", function(s, t) return 2 * t * (s - 1) end },
      { "scale * sigmoid(bias + s * scale)",
        function(s, scale, bias) return link.softplus(scale * s + bias) end },
      { "sigmoid((s - margin) / width) / tau", function(s, tau, margin, width)
        return link.softplus((s - margin) / width) * width / tau
      end },
      { "2 * (1 - square(tanh(s / t))) / t", function(s, t) return link.tanh(s / t) * 2 end },
      { "3 * square(s)", function(s) return s * s * s end },
    } do
      assert.equal(case[1], formula(show(case[2], case[3]), "df/ds"))
    end
    local report = show(function(s, tau, margin, width)
      return link.softplus((s - margin) / width) * width / tau
    end)
    assert.equal("-sigmoid((s - margin) / width) / tau", formula(report, "df/dmargin"))
  end)
end)

-- ---- Formulas and programs compute -----------------------------------------------------------

-- The words of a formula on numbers, where a comparison is 1 or 0.
local words = setmetatable({
  where = function(c, a, b) return c ~= 0 and a or b end,
}, { __index = link })
for _, name in ipairs{ "lt", "le", "gt", "ge", "eq" } do
  words[name] = function(a, b) return link[name](a, b) and 1 or 0 end
end

-- Runs Lua text with s, a and b of a point.
local function compute(text, x)
  local scope = setmetatable({ s = x[1], a = x[2], b = x[3] }, { __index = words })
  return setfenv(assert(load(text)), scope)()
end

-- A random link as text; it stays inside its domains, and every word occurs.
local FORMS = { "(A + B)", "(A - B)", "A * B", "-A", "A / (square(B) + 1.5)", "(2 - A) / 0.7",
  "exp(clamp(A, -2, 2))", "expm1(tanh(A))", "log(abs(A) + 0.5)", "log(1 - min(tanh(A), 0.9))",
  "log1p(square(A))", "sqrt(square(A) + 0.3)", "sigmoid(A)", "softplus(A)", "max(A, B)",
  "min(A, B)", "where(gt(A, 0.1), A, B)", "where(le(A, B), 2 * B, -A)", "(square(A) + 0.7) ^ 1.5",
  "(sigmoid(A) + 0.2) ^ tanh(B)", "A * 3 * (1 / (softplus(B) + 1))", "relu(A + 0.05)" }
local LEAVES = { "s", "s", "a", "b", "2 * s", "s * a", "(s - b)" }

local function random_link(pick, depth)
  if depth == 0 then return LEAVES[pick(#LEAVES)] end
  local parts = { A = random_link(pick, depth - 1), B = random_link(pick, depth - 1) }
  return "(" .. FORMS[pick(#FORMS)]:gsub("%f[%w][AB]%f[%W]", parts) .. ")"
end

local POINTS = { { -0.83, 0.61, -0.37 }, { 0.17, -0.52, 1.13 }, { 0.71, 1.27, 0.29 } }
local PLACES = { ["df/ds"] = 1, ["df/da"] = 2, ["df/db"] = 3 }

-- f at a point, or its slope there by differences.
local function expected(f, name, x)
  local place = PLACES[name]
  if not place then return f(unpack(x)) end
  local above, below = { unpack(x) }, { unpack(x) }
  above[place], below[place] = x[place] + 1e-6, x[place] - 1e-6
  return (f(unpack(above)) - f(unpack(below))) / 2e-6
end

-- What a report says about f or a slope as Lua texts: its formula, and its program where it has a
-- step there.
local function texts(report, made)
  local program = table.concat(report.program, "\n"):gsub("df/d", "slope_")
  local name = made.name:gsub("df/d", "slope_")
  local has_step = ("\n" .. program):find("\n" .. name .. " = ", 1, true)
  return { made.text and "return " .. made.text, has_step and program .. " return " .. name }
end

describe("300 random links", function()
  local state = 11
  local function pick(n)
    state = (state * 1103515245 + 12345) % 2147483648
    return math.floor(state / 65536) % n + 1
  end

  it("have formulas and programs that give the link and its slopes", function()
    local compared = 0
    for i = 1, 300 do
      local source = "local s, a, b = ... return " .. random_link(pick, 1 + i % 3)
      local f = setfenv(assert(load(source)), setmetatable({}, { __index = link }))
      local report = show(f, "a", "b")
      assert.is_nil(report.refused)
      for _, made in ipairs(report.formulas) do
        for _, text in pairs(texts(report, made)) do
          for _, x in ipairs(text and POINTS or {}) do
            local want, found = expected(f, made.name, x), compute(text, x)
            -- Formulas show six digits of a number; differences are good to about as many.
            assert(math.abs(want - found) <= 1e-4 * math.max(1, math.abs(want)), text)
            compared = compared + 1
          end
        end
      end
    end
    assert.is_true(compared > 5000)
  end)
end)

-- ---- The report ------------------------------------------------------------------------------

describe("link.show", function()
  local function line(report, head)
    return ("\n" .. tostring(report)):match("\n  " .. head:gsub("%p", "%%%0") .. " +([^\n]*)")
  end

  it("prints formula, slopes, program and bounds", function()
    local tau = lunce.tensor({ 0.5 }):requires_grad_()
    assert.equal(table.concat({
      "link(s, tau)",
      "  f         s / tau",
      "  df/ds     1 / tau",
      "  df/dtau   -s / tau / tau",
      "  tau       scalar, 0.5",
      "  program   f = s / tau",
      "            df/ds = 1 / tau",
      "            t1 = f / tau",
      "            df/dtau = -t1",
      "            4 operations; 7 steps with s, numbers and parameters, of up to 256",
      "  bounds    f lies in [-2, 2] for s in [-1, 1]",
      "  lse       a fixed shift: f spreads over 4 in a row, of up to 80 (float64: 600)",
    }, "\n"), tostring(show(views.softmax, tau)))
  end)

  it("names parameters by the function's words, and says their kind", function()
    local bias = lunce.ones(1, 5)
    local f = function(s, tau, lambda, ...) return lambda * s / tau + bias + (...) end
    local report = show(f, 0.25, lunce.linspace(0.1, 0.9, 4), "gamma")
    assert.equal("link(s, tau = 0.25, lambda, gamma)", report.signature)
    assert.equal("gamma + 4 * s * lambda + bias", formula(report, "f"))
    assert.equal("per row, 0.1 to 0.9; wants no gradient, so df/dlambda is not run",
      line(report, "lambda"))
    assert.matches("^per column, 1; wants no gradient", line(report, "bias"))
    assert.equal("scalar, no value given", line(report, "gamma"))
    -- t1 is a step's name.
    assert.equal("s + p1", formula(show(function(s, t1) return s + t1 end), "f"))
  end)

  it("runs the slopes of parameters that want a gradient", function()
    local with = show(views.softmax, lunce.ones(1):requires_grad_())
    local without = show(views.softmax, lunce.ones(1))
    assert.equal(2, #with.program - #without.program)
    assert.equal(formula(with, "df/dtau"), formula(without, "df/dtau"))
  end)

  it("bounds f over ranges that are given", function()
    assert.equal("depend on tau: end the call with { tau = value } or { tau = { low, high } }",
      line(show(views.softmax), "bounds"))
    local report = show(views.softmax, { s = { -3, 2 }, tau = { 0.5, 1 } })
    assert.same({ -6, 4, 10 }, { report.low, report.high, report.spread })
    assert.equal("f lies in [-6, 4] for s in [-3, 2]", line(report, "bounds"))
    assert.is_nil(show(function(s, _) return s end).unknown)
  end)

  it("takes the widest row for the shift", function()
    local report = show(function(s, bias) return s + bias end, lunce.linspace(-500, 500, 11))
    assert.near(1002, report.high - report.low, 1e-3)
    assert.near(2, report.spread, 1e-3)
    assert.matches("^a fixed shift", line(report, "lse"))
    report = show(views.softmax, 0.02)
    assert.matches("^a running maximum: f spreads over 100 in a row", line(report, "lse"))
    assert.matches("over inf ", line(show(function(s) return link.exp(s * 1e4) end), "lse"))
  end)

  it("decides by the engine's own limits", function()
    local file = assert(io.open(here .. "../runtime/similarity.c"))
    local text = file:read "*a"
    file:close()
    local limits = ("up to %d (float64: %d)"):format(tonumber(text:match "SPREAD_FLOAT32 (%S+)"),
      tonumber(text:match "SPREAD_FLOAT64 (%S+)"))
    assert.is_truthy(line(show(views.softmax, 1), "lse"):find(limits, 1, true))
    local slack = tonumber(text:match "COSINE_SLACK (%S+)")
    assert.near(1 + slack, show(function(s) return s end).high, slack * 1e-3)
  end)

  it("shows a link that repeats itself by its program", function()
    local report = show(function(s)
      for _ = 1, 20 do s = s * s + s end
      return s
    end)
    assert.equal("long: see the program", line(report, "f"))
    assert.is_true(#tostring(report) < 10000)
  end)

  it("says why the engine refuses a link, where the engine does", function()
    local S = similarity.cosine(lunce.randn(6, 3, { seed = 1 }))
    for _, case in ipairs{
      { "link.where", function(s) return s < 0.5 and s or 0 end },
      { "link.exp", function(s) return math.exp(s) end },
      { "decides nothing", function(s) if link.gt(s, 0.5) then return s end return -s end },
      { "must give an expression", function() return "text" end },
      { "log's argument must stay above 0", function(s) return link.log(s) end },
      { "sqrt's argument must not fall below 0", function(s) return link.sqrt(1 - s) end },
      { "up to 256 are taken", function(s)
        for i = 1, 60 do s = s * link.exp(s + i) end
        return s
      end },
    } do
      local report = show(case[2])
      assert.matches(case[1], report.refused)
      assert.matches("\n  refused +.*" .. case[1], tostring(report))
      assert.is_false((pcall(function() return S:lse(case[2]) end)))
    end
    assert.is_nil(show(function(s) return link.sqrt(1.1 - s) end).refused)
  end)

  it("prints itself at the prompt", function()
    local name = os.tmpname()
    local file = assert(io.open(name, "w"))
    file:write("lunce.link.show(function(s, tau) return s / tau end)\n")
    file:close()
    local pipe = io.popen((os.getenv "LUNCE_PROGRAM" or here .. "../lunce") .. " -i <" .. name)
    local output = pipe:read "*a"
    pipe:close()
    os.remove(name)
    assert.matches("^link%(s, tau%)\n  f +s / tau\n", output)
  end)

  it("prints what the README shows", function()
    local file = assert(io.open(here .. "../README.md"))
    local code, output = file:read "*a":match
      "```lua\n([^`]-link%.show[^`]-)```\n\n```text\n(.-)\n```"
    file:close()
    local printed
    setfenv(assert(load(code)), setmetatable({ print = function(x) printed = tostring(x) end },
      { __index = _G }))()
    assert.equal(output, printed)
  end)

  it("refuses other arguments at the user's line", function()
    local function refused(pattern, ...)
      local given = { ... }
      local ok, message = pcall(function() return (show(unpack(given))) end)
      assert.is_false(ok)
      assert.matches("link_show_test.lua:%d+: .*" .. pattern, message)
    end
    refused("f is \"nt_xent\"; a function of s is taken", "nt_xent")
    refused("parameter 1 is true", views.softmax, true)
    refused("cannot be called \"s\"", views.softmax, "s")
    refused("unknown option tua; it takes s, tau", views.softmax, { tua = 1 })
    refused("tau is .*a number or { low, high } is taken", views.softmax, { tau = { 2, 1 } })
    refused("a tensor %(2,3%)", views.softmax, lunce.ones(2, 3))
  end)
end)

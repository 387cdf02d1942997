-- Links: what they mean where they are traced and on tensors, word by word, and the tracer: what it
-- simplifies and refuses. Random links are fused_test.lua's, formulas link_show_test.lua's.
local lunce = require "lunce"
local link = require "lunce.link"
local similarity = require "lunce.similarity"
local dense = require "lunce.similarity.dense"
local fused = require "lunce.similarity.fused"
local symbol = require "lunce.link.symbol"

local function leaf(n, d, seed) return lunce.randn(n, d, { seed = seed }):requires_grad_() end

describe("links", function()
  it("folds what tracing finds constant, by every word", function()
    local S = similarity.cosine(leaf(6, 3, 1))
    local one = { "abs", "square", "sqrt", "exp", "expm1", "log", "log1p", "tanh", "sigmoid",
      "softplus", "relu" }
    local function same(name, word)
      local function f(s) return s + word(s - s + 0.6) end
      local a, b = fused.sum(S, f, {}), dense.sum(S, f, {})
      assert.is_true((a - b):abs():max():item() <= 1e-5, name)
    end
    for _, name in ipairs(one) do
      same(name, link[name])
    end
    for _, name in ipairs{ "min", "max" } do
      same(name, function(c) return link[name](c, 0.5) + link[name](0.7, c) end)
    end
    for _, name in ipairs{ "lt", "le", "gt", "ge", "eq" } do
      same(name, function(c)
        return link.where(link[name](c, 0.5), c, 2) - link.where(link[name](0.7, c), 3, c)
      end)
    end
    same("clamp", function(c) return link.clamp(c, 0, 0.5) end)
    same("operators", function(c) return -c + c * c / 3 - c ^ 2 end)
  end)

  it("refuses what is neither a tensor nor a number, by every word of two", function()
    for _, name in ipairs{ "lt", "le", "gt", "ge", "eq", "min", "max" } do
      for _, pair in ipairs{ { "x", 2 }, { 2, "x" }, { true, 1 }, { {}, 1 } } do
        assert.has_error_match(function() link[name](pair[1], pair[2]) end,
          name .. ": a tensor or a number is taken; got ")
      end
    end
    assert.has_error_match(function() link.clamp("x", 0, 1) end, "clamp: a tensor or a number")
    assert.has_error_match(function() link.exp(similarity.cosine(leaf(2, 3, 1))) end,
      "exp: a tensor or a number is taken; got a similarity matrix")
  end)

  it("compares for equality", function()
    local S = similarity.cosine(leaf(40, 3, 1))
    local function f(s) return link.where(link.eq(link.max(s, 0.25), 0.25), 3, s) end
    local a, b = fused.sum(S, f, {}), dense.sum(S, f, {})
    assert.is_true((a - b):abs():max():item() <= 1e-4)
    assert.is_true(a:max():item() > 60) -- half the entries count as 3
  end)

  -- fused and dense give a link's sums and gradients to the bit, where every number is exact.
  local function agree(what, f, ...)
    local results = {}
    for i, engine in ipairs{ fused, dense } do
      local q = lunce.tensor({ { 0 }, { 1 }, { -1 }, { 0.5 } }, { dtype = "float64" })
      local p = lunce.tensor({ { 0 }, { 1 }, { 0.5 }, { 0.5 } }, { dtype = "float64" })
      q:requires_grad_()
      p:requires_grad_()
      local S = similarity.dot(q, lunce.ones(1, 1, { dtype = "float64" }))
      local y = engine.sum(S, f(p), { ... })
      if y.requires_grad then y:sum():backward() end
      results[i] = lunce.cat({ y:detach(), (q.grad or q * 0):flatten(),
        (p.grad or p * 0):flatten() }, 1):tolist()
    end
    assert.same(results[2], results[1], what)
  end

  it("has the tensors' gradient where equals meet and at zero", function()
    agree("relu", function() return link.relu end)
    agree("abs", function() return link.abs end)
    for _, word in ipairs{ "min", "max" } do
      local w = link[word]
      for _, bound in ipairs{ 0, 1 } do
        agree(word, function() return function(s) return w(s, bound) end end)
        agree(word, function() return function(s) return w(bound, s) end end)
        agree(word, function() return function(s, given) return w(given, s) end end, bound)
      end
      agree(word, function(p) return function(s) return 2 * w(s, p) end end)
      agree(word, function(p) return function(s) return 2 * w(p, s) end end)
    end
    agree("clamp", function() return function(s) return link.clamp(s, 0, 0.5) end end)
    agree("clamp", function(p) return function(s) return link.clamp(s, p - 0.5, p) end end)
    agree("clamp", function(p) return function(s) return link.clamp(s, p) end end)
  end)

  it("raises what reaches zero to a power that is learnt", function()
    local F64 = { dtype = "float64" }
    local q = lunce.tensor({ { 1, 0 }, { 0, 1 }, { -1, 0.5 }, { 0.6, 0.8 } }, F64)
    for words, f in pairs {
      ["relu"] = function(s, g) return link.relu(s) ^ g end,
      ["max"] = function(s, g) return link.max(s, 0) ^ g end,
      ["clamp"] = function(s, g) return (3 * link.clamp(s, 0, 1)) ^ g end,
      ["abs"] = function(s, g) return link.abs(s) ^ (g + 1) end,
      ["square"] = function(s, g) return (s * s) ^ g end,
    } do
      for _, exponent in ipairs { 1, 1.5, 2, 3 } do
        local got = {}
        for i, engine in ipairs { "fused", "dense" } do
          similarity.engine(engine)
          local z = q:clone():requires_grad_()
          local g = lunce.tensor({ exponent }, F64):requires_grad_()
          similarity.cosine(z):without_self():sum(f, g):sum():backward()
          got[i] = lunce.cat({ z.grad:flatten(), g.grad }, 1)
        end
        similarity.engine "fused"
        assert.is_true(got[1]:isfinite():all():item(), words)
        assert.near(0, (got[1] - got[2]):abs():max():item(), 1e-12, words)
      end
    end
  end)

  it("takes captured tensors on either side of every operator and word", function()
    agree("operators", function(p) return function(s) return p + s - (p - s) * (p * s) end end)
    agree("quotient", function(p)
      return function(s) return p / link.where(link.gt(s, 0), 2, 4) + s end
    end)
    agree("power", function(p) return function(s) return (p + 1) ^ (s - s + 2) end end)
    for _, name in ipairs{ "lt", "le", "gt", "ge", "eq" } do
      agree(name, function(p)
        return function(s) return link.where(link[name](p, s), p, s) + link[name](p, s) end
      end)
    end
    agree("condition", function(p)
      local positive = p:gt(0)
      return function(s) return link.where(positive, s, 0) end
    end)
  end)

  it("takes links that are a number or a comparison", function()
    agree("number", function() return function() return 2.5 end end)
    agree("comparison", function() return function(s) return link.gt(s, 0.25) end end)
    agree("both", function()
      return function(s) return link.where(link.gt(s, -0.5) * link.lt(s, 0.7), 1, 0) end
    end)
    agree("either", function()
      return function(s) return link.where(link.gt(s, -0.5) + link.lt(s, 0.7), 1, 0) end
    end)
  end)

  it("chooses between numbers in the dtype of what is compared", function()
    agree("numbers", function()
      return function(s) return s * link.where(link.gt(s, 0.25), 0.1, 0.7) end
    end)
    agree("numbers", function()
      return function(s) return s * link.where(link.gt(0.25, s), 0.1, 0.7) end
    end)
    local x = lunce.tensor{ 0, 1 }
    assert.equal("float32", link.where(link.gt(x, 0.5), 0.1, 0.7).dtype)
  end)
end)

describe("tracing", function()
  local function traced(f)
    local graph = symbol.graph(function() end)
    local s = symbol.similarity(graph)
    return f(s), s
  end

  it("simplifies as it goes", function()
    for text, f in pairs{
      ["log1p(-s)"] = function(s) return link.log(1 - s) end,
      ["softplus(s)"] = function(s) return link.log(1 + link.exp(s)) end,
      ["sigmoid(s)"] = function(s) return 1 / (1 + link.exp(-s)) end,
      ["6 * s"] = function(s) return s * 2 * 3 end,
      ["s"] = function(s) return s * 1 + 0 end,
      ["7"] = function(s) return s * 0 + 7 end,
      ["square(s)"] = function(s) return s * s end,
    } do
      assert.equal(text, tostring((traced(f))))
    end
  end)

  it("shares common expressions", function()
    local f = traced(function(s) return link.exp(s) * link.exp(s) + link.exp(s) end)
    local count = 0
    for i = 1, f.graph.count do
      if f.graph.nodes[i].op == "exp" then count = count + 1 end
    end
    assert.equal(1, count)
  end)

  local S = similarity.cosine(lunce.randn(6, 3, { seed = 1 }))
  local function refused(pattern, f, ...)
    local given = { ... }
    local ok, message = pcall(function() local y = S:lse(f, unpack(given)) return y end)
    assert.is_false(ok)
    assert.matches("link_test.lua:%d+:", message)
    assert.matches(pattern, message)
  end

  it("refuses what cannot be traced, with the way to write it", function()
    refused("link.where", function(s) return s < 0.5 and s or 0 end)
    refused("link.where", function(s) if link.gt(s, 0.5) then return s end return 0 * s end)
    refused("link.exp", function(s) return math.exp(s) end)
    refused("no \"sin\"", function(s) return s:sin() end)
    refused("must give an expression", function() return "text" end)
    refused("where's condition is 2 %* s; a comparison", function(s)
      return link.where(2 * s, 1, 0)
    end)
    refused("has no word \"ne\"; its words are abs, clamp", function(s) return link.ne(s, 0) end)
    refused("where: the condition is 1; a comparison", function(s) return link.where(1, s, 0) end)
    refused("where: the condition is a table", function(s) return link.where({}, s, 0) end)
    refused("clamp: a tensor or a number is taken; got \"x\"", function(s)
      return link.clamp(s, "x")
    end)
    refused("for a matrix", function(s) return s * lunce.ones(5) end)
    refused("parameter 1 has shape", function(s, t) return s * t end, lunce.ones(7))
    refused("log's argument", function(s) return link.log(s) end)
    local g = lunce.ones(1):requires_grad_()
    refused("%^ takes bases from %-1 to 1: .*the base must stay above 0.*relu%(x%) %^ y",
      function(s, y) return s ^ y end, g)
    refused("%^ takes bases from %-1e%-06 to 2:", function(s, y) return (1 - s) ^ y end, g)
    refused("%^ takes bases from 0 to 1 and exponents from %-0.5 to %-0.5: the base of a power",
      function(s, y) return y * link.relu(s) ^ -0.5 end, g)
    refused("divisor", function(s) return 1 / s end)
    refused("divisor", function(s, t) return s / t end, 0)
  end)
end)

-- Random sizes, masks, links and parameters on tiles of halves: rows whose halves are exact, so
-- that an entry which a mask gets wrong cannot hide behind rounding. Runs on a CUDA device, on the
-- host's stand-in for one, and on the CPU, where the dtype of tiles changes nothing.
-- LUNCE_TEST_CASES: how many.
local lunce = require "lunce"
local device = require("tests.on_device").name
local similarity, link = lunce.similarity, lunce.link

local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local with = dofile(here .. "with_tiles.lua")

local CASES = tonumber(os.getenv "LUNCE_TEST_CASES") or 24

-- n rows of d features, of which four are 1/2 or -1/2: similarities are multiples of 1/4.
local function exact_rows(random, n, d)
  local list = {}
  for i = 1, n do
    local row = {}
    for k = 1, d do row[k] = 0 end
    local left = 4
    while left > 0 do
      local k = random(1, d)
      if row[k] == 0 then
        row[k] = random(0, 1) - 0.5
        left = left - 1
      end
    end
    list[i] = row
  end
  return lunce.tensor(list, { dtype = "float64", device = "cpu" })
end

local LINKS = {
  function(s) return s / 0.1 end,
  function(s, a) return a * s * 4 end,
  function(s, a, r) return link.softplus(s + r) * a end,
  function(s, a, r, c) return link.tanh(s * r) + c * s - a end,
  function(s, a, r, c) return link.where(link.lt(s, c), s * r, a / (s + 3)) end,
}

local function labels(random, n)
  local list = {}
  for i = 1, n do list[i] = random(1, 3) end
  return lunce.tensor(list, { dtype = "int64", device = "cpu" })
end

local function draw(seed)
  math.randomseed(seed)
  local random = math.random
  local c = { seed = seed, n = random(1, 300), d = random(4, 40), symmetric = random(0, 1) == 1 }
  if random(1, 4) == 1 then c.d = random(41, 256) end
  c.m = c.symmetric and c.n or random(1, 300)
  c.q = exact_rows(random, c.n, c.d)
  c.k = not c.symmetric and exact_rows(random, c.m, c.d) or nil
  c.reduction = random(0, 1) == 1 and "lse" or "sum"
  c.link = random(1, #LINKS)
  c.transposed = random(1, 3) == 1
  c.self, c.triangle = c.symmetric and random(1, 2) == 1, c.symmetric and not c.transposed
    and random(1, 5) == 1
  local n, m = c.n, c.m
  if c.transposed then n, m = m, n end
  c.anchors, c.candidates = n, m
  c.rows, c.columns = labels(random, n), labels(random, m)
  c.same, c.different = random(1, 5) == 1, random(1, 5) == 1
  if not c.transposed and random(0, 1) == 1 then
    local list = {}
    for i = 1, n do list[i] = random(1, m) end
    c.without = lunce.tensor(list, { dtype = "int64", device = "cpu" })
  end
  return c
end

local function evaluate(c, dtype, where)
  local function leaf(x) return x:to(dtype):to(where):clone():requires_grad_() end
  local function drawn(shape)
    return leaf(lunce.rand(shape, { seed = c.seed, device = "cpu" }) + 0.5)
  end
  local q, k = leaf(c.q), c.k and leaf(c.k)
  local S = similarity.cosine(q, k)
  if c.transposed then S = S:t() end
  if c.self then S = S:without_self() end
  if c.triangle then S = S:triangle() end
  if c.without then S = S:without(c.without:to(where)) end
  if c.same then S = S:same(c.rows:to(where), c.columns:to(where)) end
  if c.different then S = S:different(c.rows:to(where), c.columns:to(where)) end
  local n = c.anchors
  local p = { drawn { 1 }, drawn { n, 1 }, drawn { 1, c.candidates } }
  local y = S[c.reduction](S, LINKS[c.link], unpack(p, 1, math.min(c.link - 1, 3)))
  y = y:masked_fill(y:eq(-math.huge), 0);
  (y * lunce.rand({ n }, { seed = c.seed + 1, device = "cpu" }):to(dtype):to(where)):sum()
    :backward()
  return y:detach(), { q = q.grad, k = k and k.grad, scalar = p[1].grad, row = p[2].grad,
    column = p[3].grad }
end

local function most(x) return x:numel() == 0 and 0 or x:abs():max():item() end

describe("tiles of halves", function()
  it("serve random sizes, masks, links and parameters", function()
    for seed = 1, CASES do
      local c = draw(seed)
      local y, g = evaluate(c, "float64", "cpu")
      local dtype = seed % 4 == 0 and "bfloat16" or "float16"
      local near_y, near_g = with(dtype, evaluate, c, "float32", device)
      local off = most(near_y:to("cpu"):double() - y) / math.max(1, most(y))
      local what = ("case %d, %s of link %d, (%d,%d) %s: "):format(seed, c.reduction, c.link, c.n,
        c.m, dtype)
      assert.is_true(off <= 2e-5, what .. off)
      for name, exact in pairs(g) do
        local near = near_g[name]:to("cpu"):double()
        off = (near - exact):norm():item() / math.max(1e-2, exact:norm():item())
        local bound = (name ~= "q" and name ~= "k") and 1e-4 or dtype == "float16" and 2e-3 or 1e-2
        assert.is_true(off <= bound, ("%s%s %.1e"):format(what, name, off))
      end
    end
  end)
end)

-- What a link costs when a process uses it first on a CUDA device. Holds no other measure. Run:
-- ./lunce tests/bench/first.lua. Prints "link_ms <what the first step took over the second>".
local lunce = require "lunce"
local clock = require("lunce.progress").clock
local link = lunce.link

local x = lunce.randn(64, 16, { seed = 1, device = "cuda" }):requires_grad_()

local function seconds(f)
  lunce.cuda.synchronize()
  local start = clock()
  lunce.scope(function()
    lunce.similarity.cosine(x):without_self():lse(f):sum():backward()
  end)
  lunce.cuda.synchronize()
  return clock() - start
end

-- Another link wakes what every step needs.
local function woken(s) return s / 0.5 end
local function new(s) return 3 * link.tanh(s) + link.log(2 - s) end

for _ = 1, 3 do seconds(woken) end
local first = seconds(new)
local second = math.min(seconds(new), seconds(new))
print(("link_ms %.3f"):format(math.max(0, first - second) * 1e3))

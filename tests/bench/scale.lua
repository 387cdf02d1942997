-- How a loss grows: time and memory of forward and backward at one number of rows, in a process of
-- its own, or (without a loss) a table of several. Holds no target.
--
--   ./lunce tests/bench/scale.lua                                 minutes: up to 65,536 rows
--   ./lunce tests/bench/scale.lua --loss=weince --rows=65536      one line: seconds, MB
--
-- Memory is the process's peak resident size less what it was with the inputs made, in the first
-- run; the gradients of the inputs are in it. Time is the least of two runs.
local lunce = require "lunce"
local clock = require("lunce.progress").clock

local args = lunce.args{ loss = "", rows = 65536, d = 128, most = 65536 }

-- A field of /proc/self/status, in MB.
local function status(field)
  local file = assert(io.open "/proc/self/status")
  local text = file:read "*a"
  file:close()
  return tonumber(text:match(field .. ":%s+(%d+)")) / 1024
end

local function reset_peak()
  local file = assert(io.open("/proc/self/clear_refs", "w"))
  file:write "5"
  file:close()
end

local function measure(name, R, d)
  local z_i = lunce.randn(R / 2, d, { seed = 1 }):requires_grad_()
  local z_j = lunce.randn(R / 2, d, { seed = 2 }):requires_grad_()
  local loss = lunce.loss[name]
  local function step(a, b)
    lunce.scope(function() (loss(a, b, { tau = 0.5 })):backward() end)
  end
  local small = lunce.randn(64, d, { seed = 3 }):requires_grad_()
  step(small, small:detach() + 0.1) -- what every step needs once, whatever its size
  reset_peak()
  local before, peak, best = status "VmRSS", nil, math.huge
  for _ = 1, 2 do
    z_i.grad, z_j.grad = nil, nil
    local start = clock()
    step(z_i, z_j)
    best = math.min(best, clock() - start)
    peak = peak or status "VmHWM"
  end
  return best, peak - before
end

if args.loss ~= "" then
  print(("%.4f %.1f"):format(measure(args.loss, args.rows, args.d)))
  return
end

local HEAD, ROW = "%-8s %8s %9s %8s %8s %13s", "%-8s %8d %9.3f %8s %8.1f %13.1f"
print(HEAD:format("loss", "rows", "seconds", "growth", "MB", "of gradients"))
for _, name in ipairs{ "nt_xent", "weince" } do
  local R, last = 8192, nil
  while R <= args.most do
    local command = "./lunce tests/bench/scale.lua --loss=%s --rows=%d --d=%d"
    local process = io.popen(command:format(name, R, args.d))
    local seconds, mb = process:read("*n", "*n")
    process:close()
    print(ROW:format(name, R, seconds, last and ("%.2f x"):format(seconds / last) or "", mb,
      R * args.d * 4 / 2 ^ 20))
    R, last = 2 * R, seconds
  end
end

-- How a loss grows: time and memory of forward and backward at one number of rows, in a process of
-- its own, or (without a loss) a table of several. Holds no target.
--
--   ./lunce tests/bench/scale.lua                                 minutes: up to 65,536 rows
--   ./lunce tests/bench/scale.lua --loss=weince --rows=65536      one line: seconds, MB
--   ./lunce tests/bench/scale.lua --device=cuda --tiles=float16   on a GPU: up to 1,048,576 rows
--
-- On the CPU memory is the process's peak resident size less what it was with the inputs made, in
-- the first run; on a device the most that its pool took beside them. The gradients of the inputs
-- are in it. Time is the least of two runs. --counted: where kernels are asked for but not run
-- (make memory-cuda), there is none.
local cuda = require "lunce.cuda"
local lunce = require "lunce"
local clock = require("lunce.progress").clock

local args = lunce.args{ loss = "", rows = 65536, d = 128, most = 0, device = "cpu",
  tiles = "float16", counted = false }
local on_cpu = args.device == "cpu"

-- A field of /proc/self/status, in MB.
local function status(field)
  local file = assert(io.open "/proc/self/status")
  local text = file:read "*a"
  file:close()
  return tonumber(text:match(field .. ":%s+(%d+)")) / 1024
end

-- MB in use from now on, and the most of it later.
local function begin()
  if not on_cpu then
    cuda.empty_cache()
    return lunce.memory(args.device).live_bytes / 2 ^ 20
  end
  local file = assert(io.open("/proc/self/clear_refs", "w"))
  file:write "5"
  file:close()
  return status "VmRSS"
end

local function most()
  if on_cpu then return status "VmHWM" end
  local memory = lunce.memory(args.device)
  return (memory.live_bytes + memory.cached_bytes) / 2 ^ 20
end

local function random(n, d, seed)
  return lunce.randn(n, d, { seed = seed, device = args.device }):requires_grad_()
end

local function measure(name, R, d)
  local z_i, z_j = random(R / 2, d, 1), random(R / 2, d, 2)
  local loss = lunce.loss[name]
  local function step(a, b)
    lunce.scope(function() (loss(a, b, { tau = 0.5 })):backward() end)
    if not on_cpu then cuda.synchronize() end
  end
  local small = random(64, d, 3)
  step(small, small:detach() + 0.1) -- what every step needs once, whatever its size
  small.grad = nil
  collectgarbage()
  local before, peak, best = begin(), nil, math.huge
  for _ = 1, 2 do
    z_i.grad, z_j.grad = nil, nil
    local start = clock()
    step(z_i, z_j)
    best = math.min(best, clock() - start)
    peak = peak or most()
  end
  return best, peak - before
end

if args.loss ~= "" then
  if not on_cpu then lunce.similarity.tile_dtype(args.tiles) end
  print(("%.4f %.1f"):format(measure(args.loss, args.rows, args.d)))
  return
end

local COMMAND = "./lunce tests/bench/scale.lua --loss=%s --rows=%d --d=%d --device=%s --tiles=%s"

local function ask(name, R)
  local process = io.popen(COMMAND:format(name, R, args.d, args.device, args.tiles))
  local seconds, mb = process:read("*n", "*n")
  process:close()
  return seconds, mb
end

local HEAD, ROW = "%-8s %8s %9s %8s %9s %13s", "%-8s %8d %9s %8s %9.1f %13.1f"
local last_rows = args.most > 0 and args.most or on_cpu and 65536 or 2 ^ 20
print(HEAD:format("loss", "rows", "seconds", "growth", "MB", "of gradients"))
for _, name in ipairs(args.counted and { "nt_xent" } or { "nt_xent", "weince" }) do
  local R, last = on_cpu and 8192 or 32768, nil
  while R <= last_rows do
    local seconds, mb = ask(name, R)
    local growth = last and ("%.2f x"):format(seconds / last) or ""
    print(ROW:format(name, R, args.counted and "-" or ("%.3f"):format(seconds),
      args.counted and "-" or growth, mb, R * args.d * 4 / 2 ^ 20))
    R, last = 2 * R, seconds
  end
end

-- The campaigns in full, and under valgrind, with the JIT on and off. Holds no campaign. Invariant:
-- every campaign ends in a line here, and the status is 0 only where none failed.
--
--   ./lunce tests/stress/run.lua                    about a quarter of an hour on two idle cores
--   ./lunce tests/stress/run.lua --only=valgrind    the campaigns whose name has this text
--
-- What a campaign wrote is left in build/stress/; the end of it is shown where it failed.
local lunce = require "lunce"
local clock = require("lunce.progress").clock

local args = lunce.args{ only = "", orders = 100000, closings = 20 }

local LOGS, SHOWN = "build/stress/", 4000 -- characters of a log
local JIT_OFF = "-e 'jit.off()'"
-- Small pieces of machine code, and room for all that the campaigns compile: valgrind translates a
-- piece anew whenever LuaJIT has written to it.
local JIT_ON = [[-e 'jit.opt.start("sizemcode=4", "maxmcode=16384", "maxtrace=8000")']]
local VALGRIND = "valgrind -q --error-exitcode=9 --leak-check=full --show-leak-kinds=definite "
  .. "--errors-for-leak-kinds=definite --suppressions=tests/stress/valgrind.supp "

local campaigns = {}

local function add(name, before, options, script)
  campaigns[#campaigns + 1] = { name = name,
    command = ("%s./lunce --threads=1 %s tests/stress/%s"):format(before, options, script),
    needs_valgrind = before == VALGRIND }
end

add("drop", "", "", "drop.lua --tensors=20000")
add("steps", "", "", "steps.lua --steps=10000")
add("steps, JIT off", "", JIT_OFF, "steps.lua --steps=10000")
add("exhaust", "", "", "exhaust.lua --limits=400")
add("orders", "", "", "orders.lua --orders=300000 --seed=2")
for _, mode in ipairs{ { "on", JIT_ON }, { "off", JIT_OFF } } do
  local where, options = ", valgrind, JIT " .. mode[1], mode[2]
  add("orders" .. where, VALGRIND, options, "orders.lua --orders=" .. args.orders)
  add("exhaust" .. where, VALGRIND, options, "exhaust.lua --limits=20")
  for seed = 1, args.closings do
    add("closing " .. seed .. where, VALGRIND, options,
      ("orders.lua --close --seed=%d --orders=%d"):format(seed, 5 * seed))
  end
end

-- Runs a campaign; gives whether it passed, and the end of what it wrote.
local function run(campaign)
  local path = LOGS .. campaign.name:gsub("%W+", "-") .. ".log"
  local passed = os.execute(("%s >%s 2>&1"):format(campaign.command, path)) == 0
  local log = assert(io.open(path))
  local text = log:read "*a"
  log:close()
  return passed, text:sub(-SHOWN)
end

assert(os.execute("mkdir -p " .. LOGS) == 0, "cannot make " .. LOGS)
local has_valgrind = os.execute "command -v valgrind >/dev/null" == 0
local passed, failed, skipped = 0, 0, 0
for _, campaign in ipairs(campaigns) do
  local wanted = campaign.name:find(args.only, 1, true)
  if wanted and campaign.needs_valgrind and not has_valgrind then
    skipped = skipped + 1
    print(campaign.name .. ": skipped: valgrind is not installed")
  elseif wanted then
    local start = clock()
    local ok, text = run(campaign)
    if ok then passed = passed + 1 else failed = failed + 1 end
    print(("%s: %s, %.0f s"):format(campaign.name, ok and "passed" or "failed", clock() - start))
    if not ok then print(text) end
    io.flush()
  end
end
print(("%d passed, %d failed, %d skipped"):format(passed, failed, skipped))
os.exit(failed > 0 and 1 or 0, true)

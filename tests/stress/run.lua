-- The campaigns in full, and under valgrind, with the JIT on and off. Holds no campaign. Invariant:
-- every campaign ends in one line here, and the status is 0 only where none failed.
--
--   ./lunce tests/stress/run.lua                    about ten minutes on two idle cores
--   ./lunce tests/stress/run.lua --only=valgrind    the campaigns whose name has this text
local lunce = require "lunce"
local clock = require("lunce.progress").clock

local args = lunce.args{ only = "", orders = 100000, closings = 40 }

local JIT_OFF = "-e 'jit.off()' "
-- Small pieces of machine code, and room for all that these campaigns compile: valgrind translates
-- a piece anew whenever LuaJIT has written to it.
local JIT_ON = [[-e 'jit.opt.start("sizemcode=4", "maxmcode=16384", "maxtrace=8000")' ]]
local VALGRIND = "valgrind -q --error-exitcode=9 --leak-check=full --show-leak-kinds=definite "
  .. "--errors-for-leak-kinds=definite --suppressions=tests/stress/valgrind.supp "

local function lunce_command(options, campaign)
  return "./lunce --threads=1 " .. options .. "tests/stress/" .. campaign
end

-- Name and command; "valgrind" in the name puts it under valgrind.
local campaigns = {
  { "drop", lunce_command("", "drop.lua --tensors=20000") },
  { "steps", lunce_command("", "steps.lua --steps=10000") },
  { "steps, JIT off", lunce_command(JIT_OFF, "steps.lua --steps=10000") },
  { "exhaust", lunce_command("", "exhaust.lua --limits=1000") },
  { "orders", lunce_command("", "orders.lua --orders=1000000 --seed=3") },
}
for mode, options in pairs{ on = JIT_ON, off = JIT_OFF } do
  local where = ", JIT " .. mode .. ", valgrind"
  campaigns[#campaigns + 1] = { "orders" .. where,
    lunce_command(options, ("orders.lua --orders=%d"):format(args.orders)) }
  campaigns[#campaigns + 1] = { "exhaust" .. where,
    lunce_command(options, "exhaust.lua --limits=20") }
  for seed = 1, args.closings / 2 do
    campaigns[#campaigns + 1] = { ("closing %d"):format(seed) .. where,
      lunce_command(options, ("orders.lua --close --seed=%d --orders=%d"):format(seed, 5 * seed)) }
  end
end

-- The output of a command, and its status.
local function capture(command)
  local pipe = io.popen("(" .. command .. ") 2>&1; echo status $?")
  local output, status = pipe:read("*a"):match "^(.-)status (%d+)\n$"
  pipe:close()
  return output, tonumber(status)
end

local has_valgrind = os.execute "command -v valgrind >/dev/null" == 0
local passed, failed, skipped = 0, 0, 0
for _, campaign in ipairs(campaigns) do
  local name, command = unpack(campaign)
  local guarded = name:find("valgrind", 1, true)
  local wanted = name:find(args.only, 1, true)
  if wanted and guarded and not has_valgrind then
    skipped = skipped + 1
    print(name .. ": skipped: valgrind is not installed")
  elseif wanted then
    local start = clock()
    local output, status = capture((guarded and VALGRIND or "") .. command)
    if status == 0 then passed = passed + 1 else failed = failed + 1 end
    print(("%s: %s, %.0f s"):format(name, status == 0 and "passed" or "FAILED", clock() - start))
    io.write((output:gsub("[^\n]+", "  %0")))
    io.flush()
  end
end
print(("%d passed, %d failed, %d skipped"):format(passed, failed, skipped))
os.exit(failed > 0 and 1 or 0, true)

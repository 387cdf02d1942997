-- What the sides of the bench's rows are made of: clocks around functions and commands, and
-- questions to servers. Holds no row. A side is a function that measures once, in its row's unit,
-- or returns nil and why it cannot.
local lunce = require "lunce"
local progress = require "lunce.progress"

local M = {}

--- Seconds a run of fn: on the wall, its temporaries freed, after a run that only warms the caches,
--- as the other sides have one.
function M.wall(runs, fn)
  lunce.scope(fn)
  local start = progress.clock()
  for _ = 1, runs do lunce.scope(fn) end
  return (progress.clock() - start) / runs
end

--- Seconds that a measure on a device fills.
---@param quick boolean
---@return number
function M.fill(quick) return quick and 0 or 0.1 end

local function device_wall(runs, fn)
  local start = progress.clock()
  for _ = 1, runs do lunce.scope(fn) end
  lunce.cuda.synchronize()
  return progress.clock() - start
end

--- Seconds a run of fn on a CUDA device: the mean of as many runs as fill `seconds`, after as long
--- without a measure, for a device that idles lowers its clock. peer_cuda.py does the same.
function M.device_wall(seconds, fn)
  device_wall(1, fn) -- compiles
  local spent, runs = 0, 0
  repeat
    spent, runs = spent + device_wall(1, fn), runs + 1
  until spent >= seconds
  runs = math.max(1, math.ceil(runs * seconds / spent))
  return device_wall(runs, fn) / runs
end

function M.command_wall(command)
  local start = progress.clock()
  assert(os.execute("exec " .. command) == 0, command .. " failed")
  return progress.clock() - start
end

--- The number that a command prints after `key`.
function M.printed(command, key)
  local pipe = io.popen(command .. " 2>/dev/null")
  local text = pipe:read "*a"
  pipe:close()
  return tonumber(text:match(key .. "([%d.]+)")) or error(command .. " printed no " .. key, 0)
end

--- A question to a server (run.lua), in `scale` of seconds or, with work, in work a second.
function M.asks(server, question, scale, work)
  return server and function()
    local seconds, reason = server:ask(question)
    if not seconds then return nil, reason end
    return work and work / seconds or seconds * scale
  end
end

return M

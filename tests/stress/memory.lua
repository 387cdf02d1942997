-- What the campaigns ask of memory: counts after a collection, and what the system says of the
-- process. Holds no campaign.
local lunce = require "lunce"

local M = {}

--- Live bytes and tensors once all that is dead was given back. Compiled traces refer to the
--- closures that they were compiled for, and so to tensors: they go first.
---@return { live_bytes: integer, tensors: integer }
function M.settled()
  jit.flush()
  collectgarbage()
  collectgarbage()
  local now = lunce.memory()
  return { live_bytes = now.live_bytes, tensors = now.tensors }
end

--- Raises where a collection leaves more than, or less than, `before`.
function M.same_as(before, what)
  local now = M.settled()
  if now.tensors ~= before.tensors or now.live_bytes ~= before.live_bytes then
    error(("%s: %d tensors of %d bytes became %d of %d"):format(what, before.tensors,
      before.live_bytes, now.tensors, now.live_bytes), 0)
  end
end

--- A figure of /proc/self/status in bytes: "VmHWM" is the most that was resident, "VmRSS" what is.
---@param key string
---@return number
function M.process(key)
  for line in io.lines "/proc/self/status" do
    local kilobytes = line:match("^" .. key .. ":%s*(%d+) kB")
    if kilobytes then return kilobytes * 1024 end
  end
  error("no " .. key .. " in /proc/self/status", 0)
end

--- Whether a sanitizer or valgrind, whose own memory is in the process's figures, runs this.
---@return boolean
function M.instrumented()
  for line in io.lines "/proc/self/maps" do
    if line:find "lib[at]san" or line:find "valgrind" then return true end
  end
  return false
end

return M

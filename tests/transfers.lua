-- What tests of copies to and from a device share. Holds no test.
local lunce = require "lunce"

local M = {}

local function kind(x) return ("(%s) %s"):format(table.concat(x.shape, ","), x.dtype) end

--- Raises where tensors are not the same, wherever they are.
function M.same(a, b)
  assert(kind(a) == kind(b), kind(a) .. " is not " .. kind(b))
  assert(a:to("cpu"):eq(b:to("cpu")):all():item(), "they differ in elements")
end

--- What is live on the CPU and on the device when everything that was asked for has been done.
function M.baseline()
  for _ = 1, 3 do collectgarbage() end
  lunce.zeros(1, { device = "cpu" }):free()
  lunce.cuda.empty_cache()
  return lunce.memory("cpu").live_bytes, lunce.memory("cuda").live_bytes
end

--- Runs Lua code in a process of the program; returns its status and what it prints.
function M.run(program, environment, code)
  local child = io.popen(("DEVICE= %s timeout 100 %s -e '%s' 2>&1; echo $?"):format(environment,
    program, code))
  local text, status = child:read "*a":match "^(.-)(%d+)\n$"
  child:close()
  return tonumber(status), text
end

return M

-- Who owns C's tensors. A finaliser for each would cost more than a small operator (350 ns), so a
-- tensor takes a slot: `owners` refers to it weakly, `slots` has its handle, and after a cycle of
-- the collector the handles without an owner go back to C. Invariants: a handle in a slot is
-- released exactly once; between reading t.h and the end of the C call that takes it, no tensor is
-- created, for that may sweep the slot of a t that is not used again.
local ffi = require "ffi"
local C = require("lunce.ffi").C

local M = {}

local owners = setmetatable({}, { __mode = "v" })
local all = ffi.gc(ffi.new "ln_handles", C.ln_handles_release)
local slots = ffi.new("ln_tensor *[?]", 0) -- what all.handle points to
local top = 0                              -- slots 0 to top - 1 have been used
local vacant, vacancies = {}, 0            -- a stack of those that are free again

local function grow()
  local capacity = math.max(1024, tonumber(all.capacity) * 2)
  local larger = ffi.new("ln_tensor *[?]", capacity)
  ffi.copy(larger, slots, top * ffi.sizeof "ln_tensor *")
  slots, all.handle, all.capacity = larger, larger, capacity
end

local function vacate(slot)
  slots[slot] = nil
  vacancies = vacancies + 1
  vacant[vacancies] = slot
end

-- An object that dies in the collector's next cycle, and tells of it.
local function watch()
  ffi.gc(ffi.cast("ln_handles *", all), C.ln_handles_mark)
end

local function address(handle)
  return tonumber(ffi.cast("uintptr_t", handle))
end

-- Releases the handles whose owners the collector found dead, but those that `used` has.
local function sweep(used)
  all.stale = false
  for slot = 0, top - 1 do
    local handle = slots[slot]
    if handle ~= nil and owners[slot] == nil and not (used and used[address(handle)]) then
      vacate(slot)
      C.ln_tensor_release(handle)
    end
  end
  watch()
end

--- Makes t the owner of its handle, t.h, which goes back to C when t dies.
function M.own(t)
  local slot = top
  if vacancies > 0 then
    slot = vacant[vacancies]
    vacancies = vacancies - 1
  else
    if top == all.capacity then grow() end
    top = top + 1
  end
  slots[slot], owners[slot], t.slot = t.h, t, slot
end

--- Gives t's handle back now.
function M.release(t)
  local handle, slot = t.h, t.slot
  t.h = nil
  if owners[slot] == t then
    owners[slot] = nil
    vacate(slot)
    C.ln_tensor_release(handle)
  end
end

--- Gives back what a finished cycle of the collector found dead.
function M.sweep()
  sweep()
end

-- The addresses of the handles among the arguments of a C call, also in its out-boxes.
local function handles_of(...)
  local used = {}
  for i = 1, select("#", ...) do
    local argument = select(i, ...)
    if ffi.istype("ln_tensor *[1]", argument) then argument = argument[0] end
    if ffi.istype("ln_tensor *", argument) then used[address(argument)] = true end
  end
  return used
end

--- Runs the collector and gives back what is dead, but handles among the arguments: those of a C
--- call that is to be repeated.
function M.collect(...)
  collectgarbage()
  sweep(handles_of(...))
  C.ln_memory_collected()
end

--- To be called after each creation: keeps dead tensors from piling up.
function M.relieve()
  if all.stale then sweep() end
  if C.ln_memory_pressure() then M.collect() end
end

watch()

return M

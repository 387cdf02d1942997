-- Numbers that captured steps (lunce.graph) change: on the host until one is replayed, from then on
-- in its capture's room on the device, and brought home where the host reads them. Holds no rule of
-- how they change. Invariant: one of the two places has what they are; both, where the host has
-- only read.
local no_capture = require("lunce.tensor").no_capture

---@class lunce.Numbers
---@field what string whose they are, for messages
---@field names string[] in the order of the room
---@field here table<string, number>|false what the host knows them to be
---@field there lunce.Tensor|false the room that has them
---@field written boolean whether the host has changed them since they were there
local Numbers = {}
Numbers.__index = Numbers

--- Refuses a captured step: what the host would read or write there is done once only, and not at
--- a replay.
function Numbers:need_host()
  no_capture(self.what, "its numbers are the device's there; read and load them between its calls")
end

--- The numbers as they are, which is waited for where a device has them. Not to be changed.
---@return table<string, number>
function Numbers:values()
  self:need_host()
  if not self.here then
    local home = {}
    for i, value in ipairs(self.there:tolist()) do home[self.names[i]] = value end
    self.here = home
  end
  return self.here
end

--- Changes those that are given.
---@param changed table<string, number>
function Numbers:set(changed)
  self:need_host()
  local values = {}
  for _, name in ipairs(self.names) do values[name] = changed[name] or self:values()[name] end
  self.here, self.written = values, true
end

-- Before a replay: the capture's room has the numbers, and the host will not know them.
local function move(self, room, places)
  if self.here and (self.written or self.there ~= room) then
    for name, place in pairs(places) do place:fill_(self.here[name]) end
  elseif self.there ~= room then
    room:copy_(self.there)
  end
  self.here, self.there, self.written = false, room, false
end

--- The numbers as a step that is captured reads them and writes them in place, by name: float64
--- without dimensions.
---@param capture lunce.Capture
---@return table<string, lunce.Tensor>
function Numbers:captured(capture)
  local places = capture.own[self]
  if places then return places end
  local room = capture:numbers(#self.names)
  places = {}
  for i, name in ipairs(self.names) do places[name] = room:select(1, i):keep() end
  capture.own[self] = places
  capture.before[#capture.before + 1] = function() move(self, room, places) end
  return places
end

return {
  --- Numbers that begin as these.
  ---@param values table<string, number>
  ---@param what string whose they are, for messages
  ---@return lunce.Numbers
  new = function(values, what)
    local names = {}
    for name in pairs(values) do names[#names + 1] = name end
    table.sort(names)
    return setmetatable({ what = what, names = names, here = values, there = false,
      written = true }, Numbers)
  end,
}

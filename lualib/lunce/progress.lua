-- A run's progress line and its clock. Writes only to the stream that it was given. Invariant: a
-- terminal shows one live line; anything else gets a plain line every few seconds, and the last.
--
--   local progress = require("lunce.progress").new(io.stderr, total)
--   progress:show(done, "loss %.3f", loss)
--   progress:finish()
local C, raise = require("lunce.ffi").C, require("lunce.ffi").raise
local describe = require("lunce.options").describe
local need_number = require("lunce.tensor").need_number

local M = {}
local Progress = { __name = "progress" }
Progress.__index = Progress

local LIVE, PLAIN = 0.1, 5 -- seconds between two lines

--- Seconds on a clock that never jumps; only differences mean something.
---@return number
function M.clock() return C.ln_clock() end

---@param stream file* io.stdout or io.stderr
---@param total number what `done` will be at the end
---@return table
function M.new(stream, total)
  if io.type(stream) ~= "file" and (type(stream) ~= "table" or not stream.write) then
    raise("progress.new: argument 1 is %s; an open file is taken", describe(stream))
  end
  need_number(total, "progress.new", "the total")
  return setmetatable({ stream = stream, total = total, start = C.ln_clock(), last = -math.huge,
    text = "", width = 0, live = C.ln_is_terminal(stream == io.stderr and 2 or 1) }, Progress)
end

---@return number seconds since the start
function Progress:seconds() return C.ln_clock() - self.start end

local function write(self)
  local text = self.text
  if self.live then
    -- Spaces wipe what a longer line before left.
    self.stream:write("\r", text, (" "):rep(self.width - #text))
    self.width = #text
  else
    self.stream:write(text, "\n")
  end
  self.stream:flush()
end

local function formatted(format, ...)
  local fits, text = pcall(string.format, format, ...)
  if not fits then raise("progress:show: the format does not fit: %s", text) end
  return text
end

--- Says how far the run is, in `total`'s unit, and what the format tells; writes it when due.
---@param done number
---@param format string as for string.format
function Progress:show(done, format, ...)
  need_number(done, "progress:show", "argument 1")
  if type(format) ~= "string" then
    raise("progress:show: argument 2 is %s; a format is taken", describe(format))
  end
  local seconds = self:seconds()
  if seconds - self.last < (self.live and LIVE or PLAIN) and done < self.total then return end
  self.last = seconds
  local left = done > 0 and seconds / done * (self.total - done) or 0
  self.text = ("%5.1f%%  %s  %.0f s, %.0f s left"):format(100 * done / math.max(self.total, 1),
    formatted(format, ...), seconds, left)
  write(self)
end

--- Ends the live line.
function Progress:finish()
  if self.live and self.width > 0 then self.stream:write("\n") end
end

return M

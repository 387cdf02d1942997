-- Figures by gnuplot, run as a process: lines and histograms as SVG or PNG files. Holds no data of
-- its own. Invariant: text reaches gnuplot only inside quotes, with its own quotes doubled, and
-- never the shell; a figure appears under its name whole or not at all.
--
--   local plot = require "lunce.plot"
--   plot.lines("loss.svg", { { name = "NT-Xent", y = losses } }, { x = "epoch", y = "loss" })
local describe, options = require("lunce.options").describe, require("lunce.options").options
local is_tensor = require("lunce.tensor").is_tensor
local raise = require("lunce.ffi").raise

local M = {}

local TERMINALS = {
  svg = "set terminal svg size %d,%d font 'sans,14' background '#ffffff'",
  png = "set terminal pngcairo size %d,%d font 'sans,11'",
}
local LARGEST = 65536 -- pixels of a side, bins

-- Told apart by people with any colour vision, and on paper.
local COLOURS = { "#0060a8", "#d05000", "#208040", "#8040a0", "#505050", "#b09000" }

local FLAGS = { log_y = true }
local DEFAULTS = { title = "", x = "", y = "", width = 720, height = 440, log_y = false,
  bins = 60, range = false }

local function quote(text) return "'" .. tostring(text):gsub("[%c]", " "):gsub("'", "''") .. "'" end

-- A shell word; only file names that we made or were given pass through here.
local function word(text) return "'" .. text:gsub("'", "'\\''") .. "'" end

-- A list of numbers, as one or as a tensor (n).
local function list(values, name, what)
  if is_tensor(values) then values = values:tolist() end
  if type(values) ~= "table" or getmetatable(values) then
    raise("%s: %s is %s; a list of numbers or a tensor (n) is taken", what, name,
      describe(values))
  end
  for i = 1, #values do
    if type(values[i]) ~= "number" then
      raise("%s: %s has %s at %d; numbers are taken", what, name, describe(values[i]), i)
    end
  end
  return values
end

local function number(v)
  return v == v and math.abs(v) < math.huge and ("%.9g"):format(v) or "NaN"
end

-- gnuplot's output must be a file; we give it a temporary one and rename it.
local function run(path, script, o)
  local kind = type(path) == "string" and path:match "%.(%w+)$"
  if not TERMINALS[kind] then
    raise("plot: %s; a name that ends in .svg or .png is taken",
      type(path) == "string" and path or describe(path))
  end
  for _, side in ipairs { "width", "height" } do
    if o[side] % 1 ~= 0 or o[side] < 1 or o[side] > LARGEST then
      raise("plot: option %s is %g; 1 to %d pixels are taken", side, o[side], LARGEST)
    end
  end
  local partial, source = path .. ".partial", os.tmpname()
  local file = assert(io.open(source, "w"))
  file:write(TERMINALS[kind]:format(o.width, o.height), "\nset encoding utf8\nset output ",
    quote(partial), "\n", script, "\nunset output\n")
  file:close()
  local pipe = io.popen("gnuplot " .. word(source) .. " 2>&1", "r")
  local message = pipe:read("*a")
  pipe:close()
  os.remove(source)
  local made = io.open(partial, "r")
  local whole = made and made:seek("end") > 0
  if made then made:close() end
  if not whole then
    os.remove(partial)
    return nil, "plot: " .. path .. " was not made: " .. message:gsub("%s+", " ")
  end
  assert(os.rename(partial, path))
  return true
end

local function frame(o)
  local parts = {
    "set datafile missing 'NaN'", "set border 3", "set tics nomirror",
    "set grid linetype 1 linecolor '#e4e4e4'", "set key outside top center horizontal noenhanced",
    "set title " .. quote(o.title) .. " noenhanced",
    "set xlabel " .. quote(o.x) .. " noenhanced", "set ylabel " .. quote(o.y) .. " noenhanced",
  }
  if o.log_y then parts[#parts + 1] = "set logscale y" end
  return parts
end

-- Data blocks and the plot command for series of points.
local function draw(parts, series, style)
  local plots = {}
  for i, s in ipairs(series) do
    parts[#parts + 1] = ("$series%d << END"):format(i)
    for j, y in ipairs(s.y) do
      parts[#parts + 1] = number(s.x and s.x[j] or j) .. " " .. number(y)
    end
    parts[#parts + 1] = "END"
    plots[i] = ("$series%d using 1:2 with %s linecolor '%s' title %s"):format(i, style,
      COLOURS[(i - 1) % #COLOURS + 1], quote(s.name or ""))
  end
  parts[#parts + 1] = "plot " .. table.concat(plots, ", ")
  return table.concat(parts, "\n")
end

local function check_series(series, key, what)
  if type(series) ~= "table" or #series == 0 then raise("%s: takes a list of series", what) end
  local result = {}
  for i, s in ipairs(series) do
    if type(s) ~= "table" or s[key] == nil then raise("%s: series %d has no %s", what, i, key) end
    local name = "series " .. i .. "'s "
    result[i] = { name = s.name, x = s.x and list(s.x, name .. "x", what),
      [key] = list(s[key], name .. key, what) }
    local points, places = #result[i][key], result[i].x and #result[i].x
    if points == 0 then raise("%s: series %d is empty", what, i) end
    if places and places ~= points then
      raise("%s: series %d has %d x for %d %s", what, i, places, points, key)
    end
  end
  return result
end

--- Draws lines into an SVG or PNG file.
---@param path string ends in .svg or .png
---@param series table[] each { name = , x = (positions when absent), y = }: lists or 1-D tensors
---@param given table|nil title, x, y (labels), width, height (pixels), log_y
---@return true|nil
---@return string|nil message where gnuplot is missing or fails
function M.lines(path, series, given)
  local o = options(given, DEFAULTS, "plot.lines", FLAGS)
  return run(path, draw(frame(o), check_series(series, "y", "plot.lines"), "lines linewidth 2"), o)
end

local function extent(series)
  local lo, hi = math.huge, -math.huge
  for _, s in ipairs(series) do
    for _, v in ipairs(s.values) do
      if math.abs(v) < math.huge then lo, hi = math.min(lo, v), math.max(hi, v) end
    end
  end
  if lo > hi then return 0, 1 end
  return lo, hi > lo and hi or lo + 1
end

-- The share of the values in each bin divided by the bin's width; values that are not finite, or
-- outside, are left out.
local function density(values, lo, hi, bins)
  local count, total, width = {}, 0, (hi - lo) / bins
  for i = 1, bins do count[i] = 0 end
  for _, v in ipairs(values) do
    if v >= lo and v <= hi then
      local i = math.min(math.floor((v - lo) / width) + 1, bins)
      count[i], total = count[i] + 1, total + 1
    end
  end
  local x, y = {}, {}
  for i = 1, bins do x[i], y[i] = lo + (i - 0.5) * width, count[i] / math.max(total, 1) / width end
  return x, y
end

local function range_of(range)
  local fits = type(range) == "table" and not getmetatable(range)
  local lo, hi = fits and range[1], fits and range[2]
  if type(lo) ~= "number" or type(hi) ~= "number" or not (lo < hi and hi - lo < math.huge) then
    raise("plot.histogram: option range is %s; { low, high } is taken", describe(range))
  end
  return lo, hi
end

--- Draws histograms, as densities over shared bins, into an SVG or PNG file.
---@param path string ends in .svg or .png
---@param series table[] each { name = , values = }: lists or 1-D tensors
---@param given table|nil title, x, y (labels), width, height, log_y, bins (60), range ({ lo, hi })
---@return true|nil
---@return string|nil message where gnuplot is missing or fails
function M.histogram(path, series, given)
  local o = options(given, DEFAULTS, "plot.histogram", FLAGS)
  local drawn = check_series(series, "values", "plot.histogram")
  local lo, hi = extent(drawn)
  if o.bins % 1 ~= 0 or o.bins < 1 or o.bins > LARGEST then
    raise("plot.histogram: option bins is %g; 1 to %d are taken", o.bins, LARGEST)
  end
  if o.range then lo, hi = range_of(o.range) end
  for _, s in ipairs(drawn) do s.x, s.y = density(s.values, lo, hi, o.bins) end
  return run(path, draw(frame(o), drawn, "histeps linewidth 2"), o)
end

return M

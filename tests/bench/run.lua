-- The bench: measures every row of rows.lua, side beside side, and prints one table. Holds no row.
-- Invariant: the sides of a row take turns, and a ratio is the median of the ratios of the rounds,
-- so that what else the machine does in the meantime touches both sides alike.
--
--   ./lunce tests/bench/run.lua                about four minutes on two idle cores
--   ./lunce tests/bench/run.lua --only=matmul  the rows whose name has this text
--
-- Writes the figures to --json as well. PyTorch's side is left out where --python has no torch, and
-- oneDNN's and memcpy's where there is no C compiler.
local lunce = require "lunce"
local clock = require("lunce.progress").clock
local json = require "cjson"

local args = lunce.args{ only = "", json = "build/bench/bench.json", python = "/usr/bin/python3" }

local BUILD = "build/bench/"
local LONGEST, FEWEST = 12, 2 -- seconds after which a row ends, and the rounds it has at least
local ORDER = { "copy", "memcpy", "oneDNN", "nt_xent" } -- what stands in the column beside lunce

-- ---- Servers: processes that answer a line with a number -------------------------------------

local Server = {}
Server.__index = Server

function Server:ask(question)
  self.to:write(question, "\n")
  self.to:flush()
  return tonumber(self.from:read "*l") or error("no answer to " .. question, 0)
end

-- Starts a command that says "ready"; nil where it does not.
local function serve(command, name)
  local fifo = BUILD .. name .. ".fifo"
  assert(os.execute(("rm -f %s; mkfifo %s"):format(fifo, fifo)) == 0, "no " .. fifo)
  local to = io.popen(("%s >%s 2>%s%s.log"):format(command, fifo, BUILD, name), "w")
  local from = assert(io.open(fifo))
  os.remove(fifo)
  local greeting = from:read "*l"
  if not greeting or not greeting:match "^ready" then
    from:close()
    to:close()
    return nil
  end
  return setmetatable({ to = to, from = from, greeting = greeting }, Server)
end

local function start_native(threads)
  local program = BUILD .. "native"
  if os.execute(("cc -O3 -fopenmp -o %s tests/bench/native.c -ldnnl 2>%s.log"):format(program,
    program)) ~= 0 then return nil end
  return serve(program .. " " .. threads, "native")
end

-- ---- Measuring -------------------------------------------------------------------------------

local function median(values)
  local sorted = { unpack(values) }
  table.sort(sorted)
  local n = #sorted
  return (sorted[math.floor((n + 1) / 2)] + sorted[math.ceil((n + 1) / 2)]) / 2
end

local function load_average()
  local file = io.open "/proc/loadavg"
  local text = file and file:read "*l" or "?"
  if file then file:close() end
  return text:match "^%S+" or "?"
end

-- lunce's figures over another side's, round by round.
local function ratio(figures, side)
  local ratios = {}
  for i, value in ipairs(figures.lunce) do ratios[i] = value / figures[side][i] end
  return median(ratios)
end

-- The number that the target bounds, nil where the side it is read against is missing.
local function reading(target, figures)
  if not target.of then return median(figures.lunce) end
  return figures[target.of] and ratio(figures, target.of)
end

-- The sides' figures of each round. The first calls, slower by caches and compilation, do not count
-- but where a side is a process, which warms itself.
local function take_turns(row, sides)
  local start, names, figures = clock(), {}, {}
  for side in pairs(sides) do
    names[#names + 1], figures[side] = side, {}
    if row.rounds > FEWEST then sides[side]() end
  end
  table.sort(names)
  for i = 1, row.rounds do
    if i > FEWEST and clock() - start > LONGEST then break end
    for _, side in ipairs(names) do
      os.execute "sleep 0.2" -- a side's threads spin for a while after its work
      figures[side][i] = sides[side]()
    end
  end
  return figures
end

-- { name, unit, load, rounds, median = { side = }, ratio = { side = }, reading, met }
local function measure(row, tools)
  local figures = take_turns(row, row.sides(tools))
  local result = { name = row.name, unit = row.unit, better = row.better, target = row.target,
    rounds = #figures.lunce, load = load_average(), median = {}, ratio = {} }
  for side, values in pairs(figures) do
    result.median[side] = median(values)
    if side ~= "lunce" then result.ratio[side] = ratio(figures, side) end
  end
  local target, value = row.target, row.target and reading(row.target, figures)
  if value then
    result.reading = value
    result.met = value <= (target.most or math.huge) and value >= (target.least or -math.huge)
  end
  return result
end

-- ---- The table -------------------------------------------------------------------------------

-- Three digits that mean something.
local function text_of(x)
  return x >= 100 and ("%.0f"):format(x) or ("%.3g"):format(x)
end

local function target_text(result)
  local target = result.target
  if not target then return "" end
  local bound = (target.most and "<= " or ">= ") .. text_of(target.most or target.least)
  return bound .. (target.of and " x " .. target.of or " " .. result.unit)
end

local function cells(result)
  local beside = ""
  for _, side in ipairs(ORDER) do
    if beside == "" and result.median[side] then
      beside = side .. " " .. text_of(result.median[side])
    end
  end
  local torch, torch_ratio = result.median.PyTorch, result.ratio.PyTorch
  local verdict = ""
  if result.target then
    verdict = result.met == nil and "not read" or result.met and "met" or "NOT"
  end
  return { result.name, result.unit, text_of(result.median.lunce), beside,
    torch and text_of(torch) or "-", torch and text_of(torch_ratio) .. " x" or "-",
    target_text(result), result.reading and text_of(result.reading) or "", verdict }
end

-- Fixed widths, for a row is printed as soon as it is measured.
local FORMAT = "%-25s %-8s %7s  %-13s %8s %8s   %-17s %6s  %s"

local function print_row(...)
  print((FORMAT:format(...):gsub("%s+$", "")))
  io.stdout:flush()
end

local function main()
  assert(os.execute("mkdir -p " .. BUILD) == 0, "no " .. BUILD)
  local threads = lunce.threads()
  local tools = { threads = threads, python = args.python, native = start_native(threads),
    torch = serve(args.python .. " tests/bench/peer.py " .. threads, "peer") }
  local torch = tools.torch and "PyTorch " .. tools.torch.greeting:match "^ready (.*)"
    or ("no PyTorch: %s has no torch (%speer.log)"):format(args.python, BUILD)
  print(("%d threads, %s, load average %s; %s%s"):format(threads, lunce.isa(), load_average(),
    torch, tools.native and "" or ("; no oneDNN beside: see %snative.log"):format(BUILD)))
  print_row("medians", "unit", "lunce", "beside", "PyTorch", "ratio", "target", "read", "")
  local results = {}
  local rows = dofile "tests/bench/rows.lua"
  for _, row in ipairs(dofile "tests/bench/similarity.lua") do rows[#rows + 1] = row end
  for _, row in ipairs(rows) do
    if row.name:find(args.only, 1, true) then
      results[#results + 1] = measure(row, tools)
      print_row(unpack(cells(results[#results])))
      collectgarbage()
    end
  end
  local file = assert(io.open(args.json, "w"))
  file:write(json.encode{ threads = threads, isa = lunce.isa(), torch = torch, rows = results },
    "\n")
  file:close()
  print("load average at the end " .. load_average() .. "; written to " .. args.json)
end

main()

-- The bench: measures every row of a table, side beside side, and prints them. Holds no row.
-- Invariant: the sides of a row take turns, and a ratio is the median of the ratios of the rounds,
-- so that what else the machine does in the meantime touches both sides alike.
--
--   ./lunce tests/bench/run.lua                about four minutes on two idle cores
--   ./lunce tests/bench/run.lua --only=matmul  the rows whose name has this text
--   DEVICE=cuda ./lunce tests/bench/run.lua    on the first GPU: rows_cuda.lua
--   DEVICE=cuda ./lunce tests/bench/run.lua --quick   tries the script, of sizes too small to tell
--
-- Writes the figures to --json as well, and those of a GPU, after each row, to --results:
-- tests/bench/results-<gpu>.md unless it is a trial or a part. PyTorch's side is left out where
-- --python has no torch, and oneDNN's and memcpy's where there is no C compiler.
local lunce = require "lunce"
local clock = require("lunce.progress").clock
local json = require "cjson"

local results_file = require "tests.bench.results"
local sides = require "tests.bench.sides"

local BUILD = "build/bench/"
local ON_GPU = (os.getenv "DEVICE" or "cpu"):match "^cuda" ~= nil
local args = lunce.args(ON_GPU
  and { only = "", json = BUILD .. "cuda.json", python = "python3", quick = false, results = "" }
  or { only = "", json = BUILD .. "bench.json", python = "/usr/bin/python3" })

local LONGEST, FEWEST = 12, 2 -- seconds after which a row ends, and the rounds it has at least
local ORDER = { "copy", "memcpy", "oneDNN", "nt_xent" } -- what stands in the column beside lunce

-- ---- Servers: processes that answer a line with a number -------------------------------------

local Server = {}
Server.__index = Server

-- A process that ends costs its own figures only.
function Server:ask(question)
  local answer
  if not self.ended then
    self.to:write(question, "\n")
    self.to:flush()
    answer = self.from:read "*l"
    self.ended = not answer
  end
  local reason = self.ended and "its process has ended" or answer:match "^none: (.*)"
  if reason then return nil, reason end
  return tonumber(answer) or error("no answer to " .. question, 0)
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

-- The sides' figures of each round, and why sides that have none are missing. The first calls,
-- slower by caches and compilation, do not count but where a side is a process, which warms itself.
local function take_turns(row, by_side)
  local start, names, figures, missing = clock(), {}, {}, {}
  local function take(side)
    if missing[side] then return end
    local value, reason = by_side[side]()
    if not value then missing[side], figures[side] = reason, nil end
    return value
  end
  for side in pairs(by_side) do names[#names + 1], figures[side] = side, {} end
  table.sort(names)
  for _, side in ipairs(row.rounds > FEWEST and names or {}) do take(side) end
  for i = 1, row.rounds do
    if i > FEWEST and clock() - start > LONGEST then break end
    for _, side in ipairs(names) do
      os.execute "sleep 0.2" -- a side's threads spin for a while after its work
      local value = take(side)
      if value then figures[side][i] = value end
    end
  end
  return figures, missing
end

-- { name, unit, load, rounds, median = { side = }, ratio = { side = }, missing = { side = reason },
-- reading, met }
local function measure(row, tools)
  local figures, missing = take_turns(row, row.sides(tools))
  local result = { name = row.name, unit = row.unit, better = row.better, target = row.target,
    rounds = #(figures.lunce or {}), load = load_average(), median = {}, ratio = {},
    missing = missing }
  for side, values in pairs(figures) do
    result.median[side] = median(values)
    if side ~= "lunce" and figures.lunce then result.ratio[side] = ratio(figures, side) end
  end
  local target = figures.lunce and row.target
  local value = target and reading(target, figures)
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
  local lunce_median = result.median.lunce
  return { result.name, result.unit, lunce_median and text_of(lunce_median) or "-", beside,
    torch and text_of(torch) or "-", torch_ratio and text_of(torch_ratio) .. " x" or "-",
    target_text(result), result.reading and text_of(result.reading) or "", verdict }
end

-- Fixed widths, for a row is printed as soon as it is measured.
local FORMAT = (ON_GPU and "%-38s" or "%-25s") .. " %-8s %7s  %-13s %8s %8s   %-17s %6s  %s"

local function print_row(...)
  print((FORMAT:format(...):gsub("%s+$", "")))
  io.stdout:flush()
end

local function print_result(result)
  print_row(unpack(cells(result)))
  for side, reason in pairs(result.missing) do
    print(("  %s: not measured: %s"):format(side, reason))
  end
end

-- ---- The CPU's rows and a GPU's --------------------------------------------------------------

local function cpu_rows()
  local rows = dofile "tests/bench/rows.lua"
  for _, row in ipairs(dofile "tests/bench/similarity.lua") do rows[#rows + 1] = row end
  return rows
end

local function cpu_tools(threads)
  return { threads = threads, python = args.python, native = start_native(threads),
    torch = serve(args.python .. " tests/bench/peer.py " .. threads, "peer") }
end

-- A trial takes PyTorch on the CPU where it has no device.
local function gpu_tools()
  local function peer(device)
    return serve(("%s tests/bench/peer_cuda.py %s %g"):format(args.python, device,
      sides.fill(args.quick)), "peer")
  end
  local torch, device = peer "cuda", "cuda"
  if not torch and args.quick then torch, device = peer "cpu", "cpu" end
  return { python = args.python, torch = torch, peer_device = device }
end

local function stop(why)
  io.stderr:write("bench: ", why, "\n")
  os.exit(1)
end

-- The device's model; ends the bench where it has nothing to measure.
local function gpu_model()
  local available, reason = lunce.cuda.is_available()
  if not available then stop(reason) end
  local model = lunce.cuda.get_device_name()
  if model == "cuda-host" and not args.quick then
    stop "kernels on the host are not measured; --quick tries the script"
  end
  return model
end

local NOTE = "Medians, the sides in turn. The ratio is lunce's figure over PyTorch's, the median "
  .. "over the rounds. A share is of the rate of a product of 8192 x 8192 in the same precision, "
  .. "the loss counted with 4 R^2 d operations for R rows (weince 5). Memory is what the pools of "
  .. "both took from the device, inputs included. PyTorch computes losses as dense matrices."
local TRIAL = "This is no measurement: sizes are too small, and the device may be the host."

-- Where results go and what their file says, but for the results.
local function gpu_run(rows, torch, model)
  local slug = results_file.slug(model)
  local path = "tests/bench/results-" .. slug .. ".md"
  local title, note = "lunce on " .. model, NOTE
  if args.quick then
    path, title, note = BUILD .. "quick.md", "A trial of the bench", TRIAL
  elseif args.only ~= "" then
    path = BUILD .. "part-" .. slug .. ".md"
  end
  if args.results ~= "" then path = args.results end
  return path, { title = title, note = note, head = results_file.head(model, torch), rows = rows,
    results = {} }
end

local function write_json(results, torch)
  local file = assert(io.open(args.json, "w"))
  file:write(json.encode{ threads = lunce.threads(), isa = lunce.isa(), torch = torch,
    rows = results }, "\n")
  file:close()
end

local function main()
  assert(os.execute("mkdir -p " .. BUILD) == 0, "no " .. BUILD)
  local threads, model = lunce.threads(), ON_GPU and gpu_model()
  local tools = ON_GPU and gpu_tools() or cpu_tools(threads)
  local torch = tools.torch and "PyTorch " .. tools.torch.greeting:match "^ready (.*)"
    or ("no PyTorch: %s has none for it (%speer.log)"):format(args.python, BUILD)
  print(("%s%d threads, %s, load average %s; %s%s"):format(model and model .. ", " or "", threads,
    lunce.isa(), load_average(), torch, (tools.native or ON_GPU) and ""
    or ("; no oneDNN beside: see %snative.log"):format(BUILD)))
  print_row("medians", "unit", "lunce", "beside", "PyTorch", "ratio", "target", "read", "")
  local rows = ON_GPU and assert(loadfile "tests/bench/rows_cuda.lua")(args.quick) or cpu_rows()
  local path, run, results = nil, nil, {}
  if ON_GPU then path, run = gpu_run(rows, torch, model) end
  for _, row in ipairs(rows) do
    if row.name:find(args.only, 1, true) then
      local result = measure(row, tools)
      results[#results + 1] = result
      print_result(result)
      if run then
        run.results[row] = result
        results_file.write(path, run, text_of)
      end
      collectgarbage()
    end
  end
  write_json(results, torch)
  print(("load average at the end %s; written to %s%s"):format(load_average(), args.json,
    path and " and " .. path or ""))
end

main()

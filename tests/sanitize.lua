-- Runs a reduced table of tests on a GPU under compute-sanitizer's tools, which slow kernels down
-- by ten and more. Holds no test. Invariant: what a tool reports is a failure, and so is a file in
-- which the filters find no test; the last line is the sum, and the status is 0 only where none
-- failed.
--
--   ./lunce tests/sanitize.lua                     every tool
--   ./lunce tests/sanitize.lua --tool=racecheck    one
--   ./lunce tests/sanitize.lua --options="--kernel-name kns=tile_kernel"
--
-- --sanitizer is the program, where neither PATH nor CUDA_HOME (/usr/local/cuda) has it.
local lunce = require "lunce"

local args = lunce.args{ tool = "", sanitizer = "", options = "" }

local REPORTED = 86 -- the status of a run in which a tool reported something

-- What reads, writes and shares memory in each way: whole files where they are small.
local OPERATORS = { "cuda", "^as on the CPU", "^an index out of range", "^random numbers" }
local INTEGERS = { "ops", "^on integers" }
local CHOICE = { "topk" }
local POINTS = { "fused", "few points" }
local PARTS = { "tile_rank", "of any size" }
local MASKS = { "similarity", "^masks", "^rows without candidates", "^the tail" }
local GRADIENTS = { "similarity", "^gradients" }
local LINKS = { "fused", "^random links" }
local KERNELS = { "epilogue" }
local LAYERS = { "nn", "^layers" }
local IMAGES = { "channels_last", "^batch_norm", "^pools" }
local CAPTURED = { "captured", "^sup_con", "^a moving shape", "^a GradScaler" }
local ASIDE = { "download", "^a download" }
local LOW = { "autocast", "^inside a region", "^gradients of float32 leaves" }
local FAMILY = { "family", "^gradients against central differences" }

-- In kernels of libraries racecheck and initcheck would report what those do on purpose.
local OURS = "--kernel-name kns=_kernel"

local TOOLS = {
  { "memcheck", "", OPERATORS, INTEGERS, CHOICE, POINTS, PARTS, MASKS, GRADIENTS, LINKS, KERNELS,
    LAYERS, IMAGES, LOW, FAMILY, CAPTURED, ASIDE },
  { "racecheck", OURS, OPERATORS, CHOICE, POINTS, MASKS, GRADIENTS, KERNELS, LAYERS, IMAGES },
  { "synccheck", "", OPERATORS, CHOICE, POINTS, MASKS, GRADIENTS, KERNELS, LAYERS, IMAGES },
  { "initcheck", OURS, INTEGERS, CHOICE, POINTS, PARTS, MASKS, GRADIENTS, KERNELS, LAYERS, IMAGES },
}

local function quote(s) return "'" .. s:gsub("'", [['\'']]) .. "'" end

local function stop(...)
  io.stderr:write("sanitize: ", (...):format(select(2, ...)), "\n")
  os.exit(1)
end

local function is_command(path)
  return os.execute("command -v " .. quote(path) .. " >/dev/null 2>&1") == 0
end

local function sanitizer()
  local home = os.getenv "CUDA_HOME" or "/usr/local/cuda"
  if args.sanitizer ~= "" then
    if not is_command(args.sanitizer) then stop("there is no %s", args.sanitizer) end
    return args.sanitizer
  end
  for _, path in ipairs { "compute-sanitizer", home .. "/bin/compute-sanitizer",
    home .. "/compute-sanitizer/compute-sanitizer" } do
    if is_command(path) then return path end
  end
  stop("compute-sanitizer is neither in PATH nor in %s; it comes with the CUDA toolkit "
    .. "(--sanitizer=path names another place)", home)
end

local function check_device(given)
  local available, reason = lunce.cuda.is_available()
  if not available then stop("%s", reason) end
  if lunce.cuda.get_device_name() == "cuda-host" and given == "" then
    stop("kernels run on the host here (LUNCE_CUDA), where compute-sanitizer sees none")
  end
end

local here = arg[0]:match("^(.*)/") or "."

-- The program with its options, as this process was started.
local function program()
  local words, first = {}, 0
  while arg[first - 1] do first = first - 1 end
  for i = first, -1 do words[#words + 1] = quote(arg[i]) end
  return table.concat(words, " ")
end

-- Passed, failed and skipped tests of a file under a tool, the file's output printed.
local function run(under, tests)
  local words = { "DEVICE=cuda", "LUNCE_TEST_UNDER=" .. quote(under),
    "LUNCE_TEST_SECONDS=" .. (os.getenv "LUNCE_TEST_SECONDS" or 3000), program(),
    quote(here .. "/run.lua") }
  for i = 2, #tests do words[#words + 1] = quote("--filter=" .. tests[i]) end
  words[#words + 1] = quote(("%s/%s_test.lua"):format(here, tests[1]))
  local child, last = io.popen(table.concat(words, " ")), ""
  for line in child:lines() do
    if line ~= "" then last = line end
    if not line:match "^%d+ passed, %d+ failed, %d+ skipped$" then print(line) end
  end
  child:close()
  local passed, failed, skipped = last:match "^(%d+) passed, (%d+) failed, (%d+) skipped$"
  if not passed then return 0, 1, 0 end
  if passed + failed == 0 then
    print("  failed: the filters find no test in it")
    failed = 1
  end
  return tonumber(passed), tonumber(failed), tonumber(skipped)
end

local function main()
  local command, sum, known = sanitizer(), { 0, 0, 0 }, false
  check_device(args.sanitizer)
  for _, tool in ipairs(TOOLS) do
    local name, options = tool[1], tool[2]
    if args.tool == "" or args.tool == name then
      known = true
      local under = ("%s --tool %s --error-exitcode %d %s %s"):format(quote(command), name,
        REPORTED, options, args.options)
      for i = 3, #tool do
        print(("%s: %s"):format(name, tool[i][1]))
        io.flush()
        for j, count in ipairs { run(under, tool[i]) } do sum[j] = sum[j] + count end
      end
    end
  end
  if not known then stop("no tool %s; memcheck, racecheck, synccheck or initcheck", args.tool) end
  print(("%d passed, %d failed, %d skipped"):format(unpack(sum)))
  os.exit(sum[2] > 0 and 1 or 0)
end

main()

-- Runs test files, each in a process of its own, and prints the totals. Holds no tests. Invariant:
-- a file that crashes, hangs or ends early counts as failed and is named; the last line is the sum.
--
--   ./lunce tests/run.lua [tests/tensor_test.lua ...]
--   ./lunce -e 'jit.off()' tests/run.lua       options of the program reach the children
--   ./lunce tests/run.lua --filter='^masks' tests/similarity_test.lua   options are busted's
--   DEVICE=cuda ./lunce tests/run.lua          the tests of operators, on a GPU
--
-- Without DEVICE, all tests run on the CPU, and then those of operators on the CUDA backend's
-- kernels too: on the host, by the shim of tests/cuda-host/, where that was built, two files at
-- once, of one thread each.
--
-- LUNCE_TEST_UNDER is a command that each file's process runs under; what it fails with counts.
-- One file through busted itself: busted --lua=luajit tests/tensor_test.lua
local SECONDS = tonumber(os.getenv "LUNCE_TEST_SECONDS" or 400) -- given to a file
local DEVICE = os.getenv "DEVICE" or ""
local UNDER = os.getenv "LUNCE_TEST_UNDER" or ""

-- Tests that on_device.lua can take to another device; whole networks are too slow for the host.
local ON_DEVICE = { "cuda", "channels_last", "upload", "tensor", "ops", "autograd", "autocast",
  "random", "nn", "optim", "grad_scaler", "graph", "captured", "similarity", "tile_dtype",
  "tile_rank", "tile_random", "mirror", "joined", "topk", "fused", "link", "family", "loss",
  "epilogue", "augment", "eval", "demo", "download" }
local ON_GPU = { "models" }

local function quote(s) return "'" .. s:gsub("'", [['\'']]) .. "'" end

-- ---- The child: one file through busted ------------------------------------------------------

-- busted's output: what failed, in full; what was skipped, with its reason; the counts.
local function output_handler(options)
  local busted = require "busted"
  local handler = require "busted.outputHandlers.base"()
  local counts = { passed = 0, failed = 0, skipped = 0 }

  local function report(kind, t)
    local message = t.message or "no reason given"
    if type(message) ~= "string" then message = require "pl.pretty".write(message) end
    local at = t.element and t.element.trace or t.trace or {}
    print(("  %s: %s (%s:%s)\n    %s"):format(kind, t.name, at.short_src or "?",
      at.currentline or "?", (message:gsub("\n", "\n    "))))
    io.flush()
  end

  function handler.test_end(_, _, status)
    if status == "success" then
      counts.passed = counts.passed + 1
    elseif status == "pending" then
      counts.skipped = counts.skipped + 1
      report("skipped", handler.pendings[#handler.pendings])
    end
    return nil, true
  end

  function handler.failed()
    counts.failed = counts.failed + 1
    report("failed", handler.failures[#handler.failures])
    return nil, true
  end

  function handler.broke()
    counts.failed = counts.failed + 1
    report("error", handler.errors[#handler.errors])
    return nil, true
  end

  function handler.suite_end()
    print(("%d passed, %d failed, %d skipped"):format(counts.passed, counts.failed,
      counts.skipped))
    io.flush()
    return nil, true
  end

  busted.subscribe({ "test", "end" }, handler.test_end, { predicate = handler.cancelOnPending })
  busted.subscribe({ "failure" }, handler.failed)
  busted.subscribe({ "error" }, handler.broke)
  busted.subscribe({ "suite", "end" }, handler.suite_end)
  handler.options = options
  return handler
end

-- given: busted's options and the file.
local function run_here(given)
  if DEVICE ~= "" then require "tests.on_device" end
  package.preload["busted.outputHandlers.lunce"] = function() return output_handler end
  rawset(_G, "arg", { [0] = "busted", "--output=lunce", "--lpath=", unpack(given) })
  pcall(require "busted.runner", { standalone = false })
end

-- ---- The parent ------------------------------------------------------------------------------

-- The program with its options, as this process was started, quoted for the shell.
local function command()
  local words, first = {}, 0
  while arg[first - 1] do first = first - 1 end
  for i = first, 0 do words[#words + 1] = quote(arg[i]) end
  return table.concat(words, " ")
end

-- timeout makes a process group, so that a hanging file ends with all it started, and hears of
-- Ctrl-C only through the trap.
local function start_file(file, environment, options)
  return io.popen(("trap 'kill $p' INT; t=$(date +%%s); %s timeout -k 5 %d %s %s --here %s%s 2>&1 &"
    .. " p=$!; wait $p; echo status $? $(($(date +%%s) - t))"):format(environment, SECONDS, UNDER,
    command(), options, quote(file)))
end

-- The counts of a file that was started, and its seconds.
local function finish_file(file, child)
  local counts, status, seconds
  for line in child:lines() do
    local passed, failed, skipped = line:match("^(%d+) passed, (%d+) failed, (%d+) skipped$")
    status, seconds = line:match("^status (%d+) (%d+)$")
    status = tonumber(status)
    if passed then
      counts = { tonumber(passed), tonumber(failed), tonumber(skipped) }
    elseif not status then
      print(line)
    end
  end
  child:close()
  if not counts or status ~= (counts[2] > 0 and 1 or 0) then
    counts = counts or { 0, 0, 0 }
    counts[2] = counts[2] + 1
    print(("  failed: %s ended with status %d%s"):format(file, status,
      status == 124 and " (timed out)" or status > 128 and " (signal " .. status - 128 .. ")"
      or ""))
  end
  return counts, tonumber(seconds)
end

local here = arg[0]:match("^(.*)/") or "."
local total = { 0, 0, 0 }

-- where: what is added to a file's name; environment: of its process; options: busted's; at_once:
-- how many run side by side, told in the files' order.
local function run_files(files, where, environment, options, at_once)
  local children = {}
  for n, file in ipairs(files) do
    for i = n, math.min(n + at_once - 1, #files) do
      children[i] = children[i] or start_file(files[i], environment, options)
    end
    local counts, seconds = finish_file(file, children[n])
    for i = 1, 3 do total[i] = total[i] + counts[i] end
    print(("%s%s: %d passed, %d failed, %d skipped, %d s"):format(file, where, counts[1],
      counts[2], counts[3], seconds or 0))
    io.flush()
  end
end

local function all_files()
  local files = {}
  for file in io.popen("ls " .. quote(here) .. "/*_test.lua"):lines() do
    files[#files + 1] = file
  end
  return files
end

local function device_files(on_gpu)
  local files = {}
  for _, list in ipairs { ON_DEVICE, on_gpu and ON_GPU or {} } do
    for _, name in ipairs(list) do files[#files + 1] = ("%s/%s_test.lua"):format(here, name) end
  end
  return files
end

local function run_on_host()
  local shim = here .. "/../build/tests/liblunce_cuda.so"
  local file = io.open(shim)
  if not file then
    print("  skipped: the CUDA backend on the host: it was not built (make cuda-host)")
    total[3] = total[3] + 1
    return
  end
  file:close()
  local environment = "OMP_NUM_THREADS=1 DEVICE=cuda LUNCE_CUDA=" .. quote(shim)
  run_files(device_files(), " with CUDA on the host", environment, "", 2)
  run_files({ here .. "/cuda_test.lua", here .. "/upload_test.lua",
    here .. "/similarity_test.lua", here .. "/tile_dtype_test.lua", here .. "/tile_rank_test.lua",
    here .. "/mirror_test.lua" }, " with CUDA on the host, threads in reverse",
    environment .. " LUNCE_CUDA_HOST_REVERSE=1", "", 2)
end

local function main(...)
  if ... == "--here" then return run_here { select(2, ...) } end
  local files, options = {}, ""
  for _, given in ipairs { ... } do
    if given:match "^%-" then
      options = options .. quote(given) .. " "
    else
      files[#files + 1] = given
    end
  end
  if DEVICE ~= "" then
    run_files(files[1] and files or device_files(true), " on " .. DEVICE, "", options, 1)
  else
    run_files(files[1] and files or all_files(), "", "", options, 1)
    if not files[1] and options == "" then run_on_host() end
  end
  print(("%d passed, %d failed, %d skipped"):format(unpack(total)))
  os.exit(total[2] > 0 and 1 or 0)
end

main(...)

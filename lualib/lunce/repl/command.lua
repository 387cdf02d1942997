-- The command line of the program: main.c calls this file with its functions and the arguments, and
-- exits with the number that it returns. Holds what options mean and where chunks come from; the
-- prompt is lunce.repl. Invariant: the library is not loaded before something asks for it, so that
-- the program starts at once.
local program, argv = ...

local USAGE = [=[
usage: lunce [options] [script [arguments]] [-i]
  script          run a Lua file; `-` reads it from standard input
  -e CODE         run CODE (may be repeated; before the script)
  -i              stay at the prompt afterwards
  --threads=N     carry CPU kernels on a team of N threads (default: the cores)
  -v, --version   print the version
  -h, --help      print this
  --              end of the options; a last -i then belongs to the script
Without a script or code: the prompt on a terminal, else a script from standard input.]=]

-- A batch runner tells by the status why a run ended: device_lost will not go away by trying again
-- in the same process, but may in a new one.
local EXIT = { ok = 0, failed = 1, usage = 2, device_lost = 3, interrupted = 130 }

-- A bad command line.
local function refuse(...)
  io.stderr:write("lunce: ", string.format(...), "\nlunce --help lists the options\n")
  os.exit(EXIT.usage)
end

-- Reads the options up to the script; returns them and the script's place in argv.
local function parse()
  local options, n = { code = {} }, 1
  while argv[n] and argv[n] ~= "-" and argv[n]:sub(1, 1) == "-" do
    local option = argv[n]
    n = n + 1
    if option == "--" then
      options.verbatim = true
      break
    elseif option == "-e" then
      options.code[#options.code + 1] = argv[n] or refuse("-e takes code")
      n = n + 1
    elseif option == "-i" then
      options.stay = true
    elseif option == "-v" or option == "--version" then
      options.version = true
    elseif option == "-h" or option == "--help" then
      options.help = true
    elseif option:match("^%-%-threads=") then
      options.threads = tonumber(option:match("=(%d+)$")) or refuse("%s: a number is taken", option)
    else
      refuse("unknown option %s", option)
    end
  end
  if argv[n] and n < #argv and argv[#argv] == "-i" and not options.verbatim then
    options.stay, argv[#argv] = true, nil
  end
  return options, n
end

-- Where modules are: lualib, then what a relocatable folder carries, then the system's.
local function set_paths()
  local carried = program.lualib:gsub("lualib$", "lib/lua")
  package.path = table.concat({ program.lualib .. "/?.lua", program.lualib .. "/?/init.lua",
    carried .. "/?.lua", carried .. "/?/init.lua", package.path }, ";")
  package.cpath = carried .. "/?.so;" .. package.cpath
end

-- Loads the library's binding as require would, then tells the program whom Ctrl-C reaches.
local function load_binding(name)
  local binding = assert(loadfile(program.lualib .. "/lunce/ffi.lua"))(name)
  local ffi = require "ffi"
  local function address(f) return tonumber(ffi.cast("uintptr_t", f)) end
  program.library_loaded(address(binding.C.ln_interrupt), address(binding.C.ln_interrupt_clear))
  return binding
end

-- Runs a loaded chunk; reports its failure and returns the exit status.
local function run(chunk, message, ...)
  if not chunk then
    io.stderr:write("lunce: ", message, "\n")
    return EXIT.failed
  end
  local ok, err, interrupted = program.call(chunk, ...)
  if ok then return EXIT.ok end
  io.stdout:flush()
  io.stderr:write("lunce: ", err, "\n")
  if interrupted then return EXIT.interrupted end
  local binding = package.loaded["lunce.ffi"]
  local loaded = type(binding) == "table" -- else its own loading failed
  return loaded and binding.C.ln_device_lost() and EXIT.device_lost or EXIT.failed
end

local function run_script(globals, path, ...)
  globals.guard(path and "@" .. path or "=stdin", "script")
  local chunk, message = loadfile(path, "t")
  if message == "attempt to load chunk with wrong mode" then
    message = (path or "standard input") .. " is bytecode; only Lua text is run"
  end
  return run(chunk, message, ...)
end

local function main()
  local options, n = parse()
  if options.help then print(USAGE) return EXIT.ok end
  if options.version then
    print(("lunce %s, %s"):format(program.version, jit.version))
    return EXIT.ok
  end
  local arguments = {}
  for i = 0, #argv do arguments[i - n] = argv[i] end
  rawset(_G, "arg", arguments)
  set_paths()
  package.preload["lunce.ffi"] = load_binding
  local globals = require "lunce.repl.globals"

  local status = EXIT.ok
  if options.threads then
    status = run(function() require("lunce").threads(options.threads) end)
  end
  globals.guard("=(command line)", "console")
  for _, code in ipairs(options.code) do
    if status == EXIT.ok then status = run(load(code, "=(command line)", "t")) end
  end
  local script = argv[n]
  if script and status == EXIT.ok then
    status = run_script(globals, script ~= "-" and script or nil, unpack(argv, n + 1))
  end
  local idle = not script and not options.code[1]
  if options.stay or idle and program.stdin_is_terminal then
    require("lunce.repl").run(program)
    return EXIT.ok
  elseif idle and status == EXIT.ok then
    return run_script(globals)
  end
  return status
end

return main()

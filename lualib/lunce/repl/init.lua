-- The prompt: reads an entry, runs it, prints its values, and goes on whatever happened. Holds the
-- dialogue only: lines come from the program's editor (or plain standard input), lunce.repl.show
-- puts values into words. Invariant: an entry runs with the JIT off, so that Ctrl-C stops any loop
-- typed here, and inside program.call, so that nothing it does ends the session.
local globals = require "lunce.repl.globals"
local show = require "lunce.repl.show"

local M = {}

local CHUNK = "=prompt"

-- Where the history is kept; nil without a home.
local function history_path()
  local state = os.getenv("XDG_STATE_HOME")
  local home = os.getenv("HOME")
  if state and state:sub(1, 1) == "/" then return state .. "/lunce/history" end
  return home and home .. "/.local/state/lunce/history"
end

-- Compiles an entry, as an expression where it is one. The values of an expression pass through a
-- call, for a tail call would hide the entry's own line from error messages.
-- Returns the chunk, or nil, the message and whether more lines may complete it.
local function compile(entry)
  local as_expression, expression_error = load("return " .. entry, CHUNK, "t")
  if as_expression then
    local call = "return (...)(" .. entry:gsub("[%s;]+$", "")
    return load(call .. ")", CHUNK, "t") or load(call .. "\n)", CHUNK, "t") -- after a comment
  end
  local chunk, message = load(entry, CHUNK, "t")
  local incomplete = message and (message .. expression_error):find("near '<eof>'", 1, true)
  return chunk, message, incomplete ~= nil
end

local function values(...) return ... end

-- Runs one complete entry and prints its values, unless it ends in a semicolon.
local function evaluate(program, chunk, muted)
  local function report(ok, ...)
    if ok then return select("#", ...), { ... } end
    local message, interrupted = ...
    io.stdout:flush()
    io.stderr:write(interrupted and "interrupted" or message, "\n")
    return 0
  end
  jit.off(chunk, true)
  local n, results = report(program.call(chunk, values))
  for i = 1, muted and 0 or n do
    local written, text = report(program.call(show, results[i]))
    if written > 0 then print(text[1]) end
  end
end

-- A reader of lines: read(prompt) -> the line, or nil and "end" | "interrupted".
local function reader(program)
  if not program.terminal then
    return function() return io.read("*l"), "end" end
  end
  local history = history_path()
  return function(prompt) return program.editor.edit(prompt, history) end
end

-- Reads lines until they make a whole entry. Returns it with its chunk or with the message of its
-- mistake; or nil and why there is none.
local function read_entry(read)
  local entry, why = read("> ")
  while entry do
    local chunk, message, incomplete = compile(entry)
    if not incomplete then return entry, chunk, message end
    local line
    line, why = read("... ")
    entry = line and entry .. "\n" .. line
  end
  return nil, why
end

-- Reads and runs one entry. Returns true at the end of the input.
local function turn(program, read)
  local entry, chunk, message = read_entry(read)
  if not entry then
    if program.terminal then print() end
    return chunk == "end"
  end
  if program.terminal and entry:find("%S") then program.editor.remember(entry) end
  if chunk then
    evaluate(program, chunk, entry:find(";%s*$"))
  else
    io.stderr:write(message, "\n")
  end
  io.stdout:flush()
end

--- Runs the dialogue until the end of the input.
---@param program table what main.c offers: call, dialogue, editor, terminal, version
function M.run(program)
  globals.guard(CHUNK, "console")
  local read = reader(program)
  if program.terminal then
    print(("lunce %s on %s. Ctrl-D leaves."):format(program.version, jit.version))
  end
  program.dialogue(function() return turn(program, read) end)
end

return M

-- lunce.args: a script's parameters, declared with defaults and read from the command line. Holds
-- no parameter of any script. Invariant: every value has its default's type; a key that is not
-- declared is an error.
local raise = require("lunce.ffi").raise
local describe = require("lunce.options").describe

local function names_of(defaults)
  local names = {}
  for name in pairs(defaults) do names[#names + 1] = name end
  table.sort(names)
  return names
end

-- Insertions, deletions and substitutions between two words.
local function distance(a, b)
  local before = {}
  for j = 0, #b do before[j] = j end
  for i = 1, #a do
    local now = { [0] = i }
    for j = 1, #b do
      local same = a:byte(i) == b:byte(j)
      now[j] = math.min(before[j] + 1, now[j - 1] + 1, before[j - 1] + (same and 0 or 1))
    end
    before = now
  end
  return before[#b]
end

local function nearest(name, names)
  local best, best_distance
  for _, known in ipairs(names) do
    local d = distance(name, known)
    if not best or d < best_distance then best, best_distance = known, d end
  end
  return best
end

local function unknown(name, defaults)
  local names = names_of(defaults)
  if #names == 0 then raise("args: unknown option --%s; the script takes none", name) end
  raise("args: unknown option --%s; did you mean --%s? The script takes --%s", name,
    nearest(name, names), table.concat(names, ", --"))
end

local booleans = { ["true"] = true, ["false"] = false, yes = true, no = false, ["1"] = true,
  ["0"] = false }

-- The text given for an option as a value of its default's type.
local function typed(name, text, default)
  if type(default) == "string" then return text end
  local value
  if type(default) == "number" then
    value = tonumber(text)
  else
    value = booleans[text]
  end
  if value == nil then
    raise("args: --%s=%s; a %s is taken (default %s)", name, text, type(default),
      tostring(default))
  end
  return value
end

local function print_help(defaults)
  print(("usage: %s [--option=value ...]"):format(rawget(_G, "arg") and arg[0] or "script"))
  for _, name in ipairs(names_of(defaults)) do
    local default = defaults[name]
    local form = type(default) == "boolean" and ("--%s, --no-%s"):format(name, name)
      or ("--%s=<%s>"):format(name, type(default))
    print(("  %-32s default %s"):format(form, tostring(default)))
  end
end

-- One argument: its option's name and text, or nil as text where it stands in the next argument.
local function split(argument, defaults)
  local name, text = argument:match "^%-%-([^=]+)=(.*)$"
  name = (name or argument:match "^%-%-(.+)$" or ""):gsub("-", "_")
  if name == "" then
    raise("args: %s is not an option; --name=value is taken", describe(argument))
  end
  if defaults[name] == nil and not text then
    local negated = name:match "^no_(.+)$"
    if negated and type(defaults[negated]) == "boolean" then return negated, "false" end
  end
  if defaults[name] == nil then unknown(name, defaults) end
  if not text and type(defaults[name]) == "boolean" then return name, "true" end
  return name, text
end

--- The script's parameters: the defaults, changed by --name=value, --name value, --flag and
--- --no-flag. --help prints them and ends the program.
---@generic T: table
---@param defaults T numbers, strings and booleans
---@param argv string[]|nil the global `arg` where not given
---@return T
local function args(defaults, argv)
  if type(defaults) ~= "table" then
    raise("args: defaults are %s; a table { name = default } is taken", describe(defaults))
  end
  local result = {}
  for name, default in pairs(defaults) do
    local kind = type(default)
    if type(name) ~= "string" or (kind ~= "number" and kind ~= "string" and kind ~= "boolean") then
      raise("args: default %s = %s; a number, a string or a boolean is taken", tostring(name),
        describe(default))
    end
    result[name] = default
  end
  argv = argv or rawget(_G, "arg") or {}
  if type(argv) ~= "table" or getmetatable(argv) then
    raise("args: arguments are %s; a list of strings is taken", describe(argv))
  end
  for i = 1, #argv do
    if type(argv[i]) ~= "string" then
      raise("args: argument %d is %s; a string is taken", i, describe(argv[i]))
    end
  end
  local i = 1
  while i <= #argv do
    if argv[i] == "--help" and defaults.help == nil then
      print_help(defaults)
      os.exit(0, true)
    end
    local name, text = split(argv[i], defaults)
    if text == nil then
      i = i + 1
      text = argv[i]
      if text == nil then raise("args: --%s has no value", name) end
    end
    result[name] = typed(name, text, defaults[name])
    i = i + 1
  end
  return result
end

return args

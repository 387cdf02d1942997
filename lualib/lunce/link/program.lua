-- Link programs: a Lua link function traced on a symbol, with its derivatives, as the list of steps
-- that the runtime verifies and its backends run. Knows no matrix engine. Invariant: a program's
-- steps are in the order of their ids, each after its operands.
local ffi = require "ffi"
local lib = require "lunce.ffi"
local tensor = require "lunce.tensor"
local symbol = require "lunce.link.symbol"

local C, raise = lib.C, lib.raise

local M = {}

local OPS = { s = C.LN_LINK_S, number = C.LN_LINK_NUMBER, parameter = C.LN_LINK_PARAMETER }
for _, name in ipairs { "neg", "abs", "square", "sqrt", "exp", "expm1", "log", "log1p", "tanh",
  "sigmoid", "softplus", "add", "sub", "mul", "div", "pow", "min", "max", "lt", "le", "gt", "ge",
  "eq", "where" } do
  OPS[name] = C["LN_LINK_" .. name:upper()]
end
OPS.relu = C.LN_LINK_MAX -- its second operand is 0

-- Lua's own messages for what a symbol cannot do, and how to write it.
local HINTS = {
  { "attempt to compare", "write link.where(link.lt(s, x), a, b), or link.min, link.max,"
    .. " link.clamp: Lua's < cannot see inside a symbol" },
  { "bad argument #%d+ to '.-' %(number expected, got table%)",
    "Lua's math functions compute with numbers only; write link.exp, link.log, ..." },
  { "attempt to index .- userdata", "a call into C cannot be traced" },
  { "cannot convert 'table'", "a call into C cannot be traced; use the words of lunce.link" },
}

local function explain(message)
  if type(message) ~= "string" then return message end
  for _, hint in ipairs(HINTS) do
    if message:find(hint[1]) then return message .. "\n  link: " .. hint[2] end
  end
  return message
end

-- A comparison that no operation read was meant for `if`, `and` or `or`, which take every symbol
-- for true.
local function check_comparisons(graph, value)
  for i = 1, graph.count do
    local node = graph.nodes[i]
    if symbol.COMPARISONS[node.op] and not node.read and node ~= value then
      raise("link: the comparison %s decides nothing: `if`, `and` and `or` take a symbol for true;"
        .. " write link.where(condition, a, b)", tostring(node))
    end
  end
end

---@class lunce.LinkProgram
---@field value lunce.Symbol f
---@field graph table
---@field parameters table[] { tensor =, kind =, symbol = } in their order

--- Traces f(s, ...) on a symbol.
---@param f function|nil s itself when absent
---@param arguments any[] numbers and tensors
---@param kind_of fun(x: lunce.Tensor): integer|nil the ln_parameter_kind of a tensor's shape
---@return lunce.LinkProgram
function M.trace(f, arguments, kind_of)
  local parameters, by_tensor, graph = {}, {}, nil
  local function capture(x)
    if not tensor.is_tensor(x) then return nil end
    if by_tensor[x] then return by_tensor[x] end
    local kind = kind_of(x)
    local place = #parameters
    local leaf = symbol.parameter(graph, place, "p" .. place + 1)
    parameters[place + 1] = { tensor = x, kind = kind, symbol = leaf }
    by_tensor[x] = leaf
    return leaf
  end
  graph = symbol.graph(capture)
  local s = symbol.similarity(graph)
  local given = {}
  for i, x in ipairs(arguments) do
    given[i] = type(x) == "number" and symbol.constant(graph, x) or capture(x)
  end
  local value = s
  if f then
    local ok, result = pcall(f, s, unpack(given, 1, #arguments))
    if not ok then
      result = explain(result)
      if type(result) ~= "string" or result:find "^[^\n]-:%d+: " then error(result, 0) end
      raise("%s", result)
    end
    if type(result) == "number" then result = symbol.constant(graph, result) end
    if not symbol.is_symbol(result) then
      raise("link: the function gives %s; it must give an expression of s",
        require("lunce.options").describe(result))
    end
    value = result
    check_comparisons(graph, value)
  end
  return { value = value, graph = graph, parameters = parameters, s = s }
end

--- The derivative of the program with respect to s, and to each parameter that wants a gradient;
--- false for the others.
---@return lunce.Symbol slope
---@return (lunce.Symbol|false)[]
function M.slopes(program)
  local of_parameters = {}
  for i, p in ipairs(program.parameters) do
    of_parameters[i] = p.tensor.requires_grad and symbol.derivative(program.value, p.symbol)
      or false
  end
  return symbol.derivative(program.value, program.s), of_parameters
end

local function collect(node, seen, list)
  if seen[node] then return end
  seen[node] = true
  for i = 1, 3 do
    if node[i] then collect(node[i], seen, list) end
  end
  list[#list + 1] = node
end

--- The steps of these nodes and all that they need, as an `ln_link_step` array, their number, and
--- the step of each node.
---@param roots (lunce.Symbol|false)[]
function M.emit(roots)
  local seen, list, step_of = {}, {}, {}
  for _, root in ipairs(roots) do
    if root then collect(root, seen, list) end
  end
  if #list > C.LN_LINK_STEPS then
    raise("link: the function and its derivatives take %d steps; up to %d are taken", #list,
      tonumber(C.LN_LINK_STEPS))
  end
  local steps = ffi.new("ln_link_step[?]", #list)
  for i, node in ipairs(list) do
    local step = steps[i - 1]
    step.op = OPS[node.op]
    step.a = node.parameter or (node[1] and step_of[node[1]]) or 0
    step.b = node[2] and step_of[node[2]] or 0
    step.c = node[3] and step_of[node[3]] or 0
    step.number = node.number or 0
    step_of[node] = i - 1
  end
  return steps, #list, step_of
end

return M

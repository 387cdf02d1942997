-- link.show: what the engine makes of a link function: its formula and derivatives, the program
-- that runs in the tiles, its bounds, and whether an lse over it needs a running maximum. Runs no
-- reduction and knows no matrix. Invariant: the steps that are shown are those that the engine gets
-- for these parameters; a parameter without a value counts as one that wants its gradient.
local ffi = require "ffi"
local lib = require "lunce.ffi"
local lunce = require "lunce"
local describe = require("lunce.options").describe
local options = require("lunce.options").options
local program = require "lunce.link.program"
local symbol = require "lunce.link.symbol"

local C, raise = lib.C, lib.raise

-- As runtime/similarity.c decides it: how far f may spread under a fixed shift, and how far
-- rounding lets a cosine leave [-1, 1].
local SPREAD = { float32 = 80, float64 = 600 }
local SLACK = 1e-6

-- A formula of more symbols than this is left to the program, which shares what it repeats.
local LONGEST = 120

local KINDS = { [C.LN_PARAMETER_SCALAR] = "scalar", [C.LN_PARAMETER_ROW] = "per row",
  [C.LN_PARAMETER_COLUMN] = "per column" }

-- ---- Parameters ------------------------------------------------------------------------------

local function kind_of(x)
  local shape = x.shape
  if x:numel() == 1 then return C.LN_PARAMETER_SCALAR end
  if #shape == 2 and shape[2] == 1 then return C.LN_PARAMETER_ROW end
  if #shape == 2 and shape[1] == 1 then return C.LN_PARAMETER_COLUMN end
  raise("link: a tensor (%s); (1), (N,1) for the rows or (1,M) for the columns is taken",
    table.concat(shape, ","))
end

-- The names of a function's own parameters after s; none that would read as something else.
local function own_names(f)
  local names, used = {}, { s = true, f = true }
  for i = 1, debug.getinfo(f, "u").nparams - 1 do
    local name = debug.getlocal(f, i + 1)
    if used[name] or name:match "^[pt]%d+$" then name = "p" .. i end
    names[i], used[name] = name, true
  end
  return names
end

-- The name by which a function knows a tensor that it captures.
local function captured_name(f, x)
  for i = 1, debug.getinfo(f, "u").nups do
    local name, value = debug.getupvalue(f, i)
    if value == x then return name end
  end
end

-- The arguments as trace takes them, the name of each tensor, and the signature. A parameter that
-- is absent or a name gets a tensor to stand for it, which `symbolic` holds.
local function arrange(f, given, count)
  local own, names, symbolic, arguments, signature = own_names(f), {}, {}, {}, { "s" }
  for i = 1, math.max(count, #own) do
    local x, name = given[i], own[i] or "p" .. i
    if type(x) == "string" then
      if not x:match "^[%a_][%w_]*$" or x == "s" then
        raise("link.show: a parameter cannot be called %q; a word other than s is taken", x)
      end
      x, name = nil, x
    end
    if x == nil then
      x = lunce.zeros(1)
      symbolic[x] = name
    elseif lunce.is_tensor(x) then
      if #x.shape == 1 and x:numel() > 1 then x = x:unsqueeze(2) end
      kind_of(x)
    elseif type(x) ~= "number" then
      raise("link.show: parameter %d is %s; a number, a tensor or a name is taken", i, describe(x))
    end
    signature[i + 1] = type(x) == "number" and ("%s = %.6g"):format(name, x) or name
    arguments[i] = x
    if type(x) ~= "number" then names[x] = name end
  end
  return arguments, names, symbolic, "link(" .. table.concat(signature, ", ") .. ")"
end

-- ---- Bounds ----------------------------------------------------------------------------------

local function interval(x, name)
  if type(x) == "number" then return { x, x } end
  if type(x) == "table" and type(x[1]) == "number" and type(x[2]) == "number" and x[1] <= x[2] then
    return x
  end
  raise("link.show: %s is %s; a number or { low, high } is taken", name, describe(x))
end

-- The intervals that the caller gives: of s, and of parameters without a value by their names.
local function given_intervals(given, symbolic)
  local known, intervals = { s = false }, {}
  for _, name in pairs(symbolic) do known[name] = false end
  for name, x in pairs(options(given, known, "link.show")) do
    intervals[name] = x and interval(x, name)
  end
  intervals.s = intervals.s or { -1 - SLACK, 1 + SLACK }
  return intervals
end

-- A parameter as the report has it.
local function parameter_of(p, symbolic, intervals)
  local name = symbolic[p.tensor]
  local made = { name = p.symbol.name, kind = KINDS[p.kind], symbol = p.symbol,
    wanted = name ~= nil or p.tensor.requires_grad }
  if name then
    made.interval = intervals[name] or false
    return made
  end
  made.values = p.tensor:detach():to("float64"):flatten():tolist()
  local low, high = math.huge, -math.huge
  for _, v in ipairs(made.values) do low, high = math.min(low, v), math.max(high, v) end
  made.interval = { low, high }
  return made
end

-- Reads the bounds of f into the report: over all rows, and the widest of a row, whose own
-- parameters are known. Sets `refused` instead where a step leaves its domain, or `unknown`, names,
-- where a parameter that is read has no value.
local function bound(report, made, s)
  local P, rows = report.parameters, 1
  local low, high = ffi.new("double[?]", 1 + #P), ffi.new("double[?]", 1 + #P)
  local lows, highs = ffi.new("double[?]", made.count), ffi.new("double[?]", made.count)
  low[0], high[0] = s[1], s[2]
  for i, p in ipairs(P) do
    if p.interval then low[i], high[i] = p.interval[1], p.interval[2] end
    if p.kind == "per row" then rows = #p.values end
    if made.step_of[p.symbol] and not p.interval then
      report.unknown = report.unknown or {}
      table.insert(report.unknown, p.name)
    end
  end
  if report.unknown then return end
  local bounds = { low = math.huge, high = -math.huge, spread = 0 }
  for row = 1, rows do
    for i, p in ipairs(P) do
      if p.kind == "per row" then low[i], high[i] = p.values[row], p.values[row] end
    end
    if C.ln_link_bounds(lows, highs, made.count, made.steps, low, high) ~= C.LN_OK then
      report.refused = ffi.string(C.ln_error())
      return
    end
    local from, to = lows[made.value], highs[made.value]
    local finite = to - from < math.huge -- false for NaN
    bounds.low, bounds.high = math.min(bounds.low, from), math.max(bounds.high, to)
    bounds.spread = finite and math.max(bounds.spread, to - from) or math.huge
  end
  report.low, report.high, report.spread = bounds.low, bounds.high, bounds.spread
end

-- ---- In words --------------------------------------------------------------------------------

-- A node's formula; nil where it repeats so much of itself that nobody would read it.
local function formula(node)
  local sizes = {}
  local function size(x)
    if sizes[x] then return sizes[x] end
    local sum = 1
    for i = 1, 3 do sum = sum + (x[i] and size(x[i]) or 0) end
    sizes[x] = sum
    return sum
  end
  return size(node) <= LONGEST and symbol.text(node) or nil
end

-- The operations in the order in which the engine gets them, each as "name = expression". Roots
-- have their names, the others t1, t2, ...
local function listing(step_of, roots)
  local order, names, lines, nameless = {}, {}, {}, 0
  local root_names = {}
  for _, root in ipairs(roots) do
    root_names[root.node] = root_names[root.node] or root.name
  end
  for node, step in pairs(step_of) do order[#order + 1] = { node, step } end
  table.sort(order, function(a, b) return a[2] < b[2] end)
  for _, entry in ipairs(order) do
    local node = entry[1]
    if node[1] then
      if not root_names[node] then nameless = nameless + 1 end
      local name = root_names[node] or "t" .. nameless
      lines[#lines + 1] = name .. " = " .. symbol.text(node, names)
      names[node] = name
    end
  end
  return lines
end

---@class lunce.LinkReport
---@field signature string
---@field refused string|nil why the engine refuses the link, and how to write it
---@field formulas table[] { name =, text = }: f, df/ds and the derivative by each parameter; the
---  text is absent where it would be too long to read
---@field parameters table[] { name =, kind =, interval = (false: unknown), wanted = }
---@field program string[] the operations, "name = expression"
---@field steps integer the operations with the s, numbers and parameters that they read
---@field unknown string[]|nil the parameters whose values the bounds lack
---@field s number[] the interval of s
---@field low number|nil a lower bound of f
---@field high number|nil an upper bound of f
---@field spread number|nil the largest distance of the bounds in a row
local Report = { __name = "link report" }
Report.__index = Report

local function values_text(p)
  if not p.interval then return "no value given" end
  if p.interval[1] == p.interval[2] then return ("%.6g"):format(p.interval[1]) end
  return ("%.4g to %.4g"):format(p.interval[1], p.interval[2])
end

-- A bound to about five digits of the spread, so that the slack of a cosine does not show.
local function bound_text(x, spread)
  if spread > 0 and spread < math.huge then
    local unit = 10 ^ (math.floor(math.log10(spread)) - 5)
    x = math.floor(x / unit + 0.5) * unit
  end
  return ("%.4g"):format(x + 0) -- no -0
end

local function shift_text(spread)
  local shift, limit = "a running maximum", "a fixed shift takes"
  if spread <= SPREAD.float32 then shift, limit = "a fixed shift", "of" end
  return ("%s: f spreads over %.4g in a row, %s up to %d (float64: %d)"):format(shift, spread,
    limit, SPREAD.float32, SPREAD.float64)
end

local function add_bounds(add, report)
  if report.unknown then
    add("bounds", "depend on %s: end the call with { %s = value } or { %s = { low, high } }",
      table.concat(report.unknown, ", "), report.unknown[1], report.unknown[1])
  elseif report.low then
    local spread = report.high - report.low
    add("bounds", "f lies in [%s, %s] for s in [%.4g, %.4g]", bound_text(report.low, spread),
      bound_text(report.high, spread), report.s[1], report.s[2])
    add("lse", "%s", shift_text(report.spread))
  end
end

local function add_program(add, report)
  for i, line in ipairs(report.program) do add(i == 1 and "program" or "", "%s", line) end
  if not report.steps then return end
  local count = #report.program
  add(count == 0 and "program" or "", "%d operation%s; %d steps with s, numbers and parameters, of "
    .. "up to %d", count, count == 1 and "" or "s", report.steps, tonumber(C.LN_LINK_STEPS))
end

function Report:__tostring()
  local lines, width = { self.signature }, 8
  for _, x in ipairs(self.formulas) do width = math.max(width, #x.name) end
  for _, p in ipairs(self.parameters) do width = math.max(width, #p.name) end
  local function add(head, format, ...)
    local text = format:format(...):gsub("\n%s*", "\n" .. (" "):rep(width + 4))
    lines[#lines + 1] = ("  %-" .. width .. "s  "):format(head) .. text
  end
  for _, x in ipairs(self.formulas) do add(x.name, "%s", x.text or "long: see the program") end
  for _, p in ipairs(self.parameters) do
    add(p.name, "%s, %s%s", p.kind, values_text(p), p.wanted and ""
      or ("; wants no gradient, so df/d%s is not run"):format(p.name))
  end
  add_program(add, self)
  add_bounds(add, self)
  if self.refused then
    add("refused", "%s", (self.refused:gsub("^link: ", ""):gsub("\n *link: ", "\n")))
  end
  return table.concat(lines, "\n")
end

-- ---- The call --------------------------------------------------------------------------------

-- Fills the report of a traced link.
local function fill(report, traced, symbolic, intervals)
  local slope = symbol.derivative(traced.value, traced.s)
  local roots = { { name = "f", node = traced.value }, { name = "df/ds", node = slope } }
  for i, root in ipairs(roots) do
    report.formulas[i] = { name = root.name, text = formula(root.node) }
  end
  for i, p in ipairs(traced.parameters) do
    local made = parameter_of(p, symbolic, intervals)
    local root = { name = "df/d" .. made.name, node = symbol.derivative(traced.value, p.symbol) }
    report.parameters[i] = made
    report.formulas[#report.formulas + 1] = { name = root.name, text = formula(root.node) }
    if made.wanted then roots[#roots + 1] = root end
  end
  local nodes = {}
  for i, root in ipairs(roots) do nodes[i] = root.node end
  local ok, steps, count, step_of = pcall(program.emit, nodes)
  if not ok then
    report.refused = steps
    return report
  end
  report.program, report.steps = listing(step_of, roots), count
  bound(report, { steps = steps, count = count, step_of = step_of,
    value = step_of[traced.value] }, intervals.s)
  return report
end

--- What the engine makes of a link f(s, ...): a report that prints itself, as the prompt does. The
--- parameters follow f as for a reduction (numbers, tensors); one that is absent, or whose name is
--- given instead, stands for any scalar. A table at the end says where s and these lie, for the
--- bounds: { s = { -4, 4 }, tau = 0.5, scale = { 1, 100 } }; s lies in [-1, 1] unless given.
---@param f function
---@param ... any
---@return lunce.LinkReport
return function(f, ...)
  if type(f) ~= "function" then
    raise("link.show: f is %s; a function of s is taken", describe(f))
  end
  local given, count, last = { ... }, select("#", ...), nil
  if type(given[count]) == "table" and not lunce.is_tensor(given[count]) then
    last, count = given[count], count - 1
    given[count + 1] = nil
  end
  local arguments, names, symbolic, signature = arrange(f, given, count)
  local intervals = given_intervals(last, symbolic)
  local report = setmetatable({ signature = signature, s = intervals.s, formulas = {},
    parameters = {}, program = {} }, Report)
  local ok, traced = pcall(program.trace, f, arguments, kind_of)
  if not ok then
    report.refused = traced
    return report
  end
  for _, p in ipairs(traced.parameters) do
    p.symbol.name = names[p.tensor] or captured_name(f, p.tensor) or p.symbol.name
  end
  return fill(report, traced, symbolic, intervals)
end

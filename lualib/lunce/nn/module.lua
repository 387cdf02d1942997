-- What every layer and network is: a callable table of parameters, buffers and other modules.
-- Holds the protocol and no layer. Invariant: what is declared keeps its place, so that every list
-- of parameters comes in the order of declaration, under the names PyTorch gives.
--
-- A module of one's own:
--
--   local Gated = nn.module("Gated", {
--     init = function(self, features)
--       self.value = nn.Linear(features, features)
--       self.gate = nn.Linear(features, features)
--       self.scale = lunce.ones(1):requires_grad_()
--     end,
--     forward = function(self, x) return self.value(x) * self.gate(x):sigmoid() * self.scale end,
--   })
--   local y = Gated(128)(x)
--
-- Assigning a field declares it: a module is a child, a leaf tensor that requires a gradient is a
-- parameter; self:register_buffer(name, tensor) declares state that no gradient reaches. All else
-- is an ordinary value. One field a statement: Lua does not say in which order a, b = x, y assigns.
-- Names join the fields with dots, "layer1.0.conv1.weight"; children in positions 1, 2, ... are
-- named "0", "1", ..., so that checkpoints pass to and from PyTorch.
local lib = require "lunce.ffi"
local lunce = require "lunce"
local describe = require("lunce.options").describe
local options = require("lunce.options").options
local is_tensor = require("lunce.tensor").is_tensor
local need_boolean = require("lunce.tensor").need_boolean

local raise = lib.raise

local M = {}

-- What a module keeps, under keys that no field can take: values by field; "module", "parameter"
-- or "buffer" by declared field; the declared fields in order.
local FIELDS, KINDS, ORDER = {}, {}, {}

---@class lunce.Module
---@field training boolean whether batch statistics and dropout are in force
---@field forward fun(self, ...): any
local Module = {}

---@return boolean
function M.is_module(x)
  local metatable = getmetatable(x)
  return type(metatable) == "table" and metatable.is_module == true
end

-- ---- Declaring -------------------------------------------------------------------------------

local function declare(self, key, value, kind)
  local kinds = rawget(self, KINDS)
  if kinds[key] == nil then
    local order = rawget(self, ORDER)
    order[#order + 1] = key
  end
  kinds[key] = kind
  if kind == "parameter" or kind == "buffer" then value:keep() end
end

-- A parameter that is replaced by a frozen tensor stays a parameter, and a buffer a buffer.
local function kind_of(value, former)
  if M.is_module(value) then return "module" end
  if not is_tensor(value) or not value.is_leaf then return nil end
  return former ~= "module" and former or value.requires_grad and "parameter" or nil
end

local function assign(self, key, value)
  local former = rawget(self, KINDS)[key]
  local kind = kind_of(value, former)
  if kind then declare(self, key, value, kind) end
  if former and not kind and value ~= nil then
    raise("%s: field %s is a %s; %s cannot take its place", getmetatable(self).__name,
      tostring(key), former, describe(value))
  end
  rawget(self, FIELDS)[key] = value
end

--- Declares tensor as a buffer: saved, loaded and moved with the module, never trained.
---@param name string
---@param tensor lunce.Tensor
function Module:register_buffer(name, tensor)
  if type(name) ~= "string" then
    raise("register_buffer: the name is %s; a string is taken", describe(name))
  end
  if not is_tensor(tensor) then
    raise("register_buffer: %s is %s; a tensor is taken", tostring(name), describe(tensor))
  end
  declare(self, name, tensor, "buffer")
  rawget(self, FIELDS)[name] = tensor
end

--- Makes a kind of module: the result is its constructor, called with what `init` takes.
---@param name string as it prints
---@param methods table `forward`, `init` where there is state, `describe` (its settings, to print)
---@return fun(...): lunce.Module
function M.module(name, methods)
  if type(name) ~= "string" or type(methods) ~= "table"
    or type(methods.forward) ~= "function" then
    raise("nn.module: a name and a table of methods with `forward` are taken")
  end
  local class = {
    __name = name,
    __newindex = assign,
    __call = function(self, ...) return self:forward(...) end,
    __tostring = function(self) return self:text "" end,
    is_module = true,
  }
  function class.__index(self, key)
    local value = rawget(self, FIELDS)[key]
    if value == nil then value = methods[key] end
    if value == nil then value = Module[key] end
    return value
  end
  return function(...)
    local self = setmetatable({ [FIELDS] = { training = true }, [KINDS] = {}, [ORDER] = {} }, class)
    if methods.init then methods.init(self, ...) end
    return self
  end
end

-- ---- Walking ---------------------------------------------------------------------------------

local function name_of(key) return type(key) == "number" and tostring(key - 1) or tostring(key) end

-- Lists self and the modules under it, parents first, as { path, module }.
local function modules_of(self, path, list)
  list[#list + 1] = { path, self }
  local fields, kinds = rawget(self, FIELDS), rawget(self, KINDS)
  for _, key in ipairs(rawget(self, ORDER)) do
    if kinds[key] == "module" and fields[key] ~= nil then
      modules_of(fields[key], (path == "" and "" or path .. ".") .. name_of(key), list)
    end
  end
  return list
end

-- Lists the tensors of a kind as { name, tensor, module, key }; a shared one under each name.
local function tensors_of(self, kind)
  local list = {}
  for _, entry in ipairs(modules_of(self, "", {})) do
    local path, module = entry[1], entry[2]
    local fields, kinds = rawget(module, FIELDS), rawget(module, KINDS)
    for _, key in ipairs(rawget(module, ORDER)) do
      if kinds[key] == kind and fields[key] ~= nil then
        local name = (path == "" and "" or path .. ".") .. name_of(key)
        list[#list + 1] = { name, fields[key], module, key }
      end
    end
  end
  return list
end

-- The entries of a list without those whose value came before.
local function distinct(list)
  local seen, result = {}, {}
  for _, entry in ipairs(list) do
    if not seen[entry[2]] then
      seen[entry[2]] = true
      result[#result + 1] = entry
    end
  end
  return result
end

local function iterate(list)
  local i = 0
  return function()
    i = i + 1
    if list[i] then return list[i][1], list[i][2] end
  end
end

--- for path, module in m:named_modules(): m itself, named "", and all under it, parents first.
function Module:named_modules() return iterate(distinct(modules_of(self, "", {}))) end

--- for name, tensor in m:named_parameters(), each tensor once.
function Module:named_parameters() return iterate(distinct(tensors_of(self, "parameter"))) end

--- for name, tensor in m:named_buffers(), each tensor once.
function Module:named_buffers() return iterate(distinct(tensors_of(self, "buffer"))) end

--- The parameters in the order of declaration: what an optimiser takes.
---@return lunce.Tensor[]
function Module:parameters()
  local list = {}
  for _, p in self:named_parameters() do list[#list + 1] = p end
  return list
end

-- ---- State -----------------------------------------------------------------------------------

local function state_of(self)
  local list = tensors_of(self, "parameter")
  for _, entry in ipairs(tensors_of(self, "buffer")) do list[#list + 1] = entry end
  return list
end

--- The parameters and buffers by name. They share their elements with the module: clone what must
--- not follow its training.
---@return table<string, lunce.Tensor>
function Module:state_dict()
  local state = {}
  for _, entry in ipairs(state_of(self)) do state[entry[1]] = entry[2]:detach() end
  return state
end

local function shape_text(t) return "(" .. table.concat(t.shape, ",") .. ")" end

-- What keeps state from being loaded into the entries, three sorted lists of texts.
local function differences(entries, state)
  local missing, unexpected, unfit, known = {}, {}, {}, {}
  for _, entry in ipairs(entries) do
    local name, tensor = entry[1], entry[2]
    local given = state[name]
    known[name] = true
    if given == nil then
      missing[#missing + 1] = name
    elseif not is_tensor(given) then
      unfit[#unfit + 1] = ("%s is %s, not a tensor"):format(name, describe(given))
    elseif shape_text(given) ~= shape_text(tensor) then
      unfit[#unfit + 1] = ("%s has shape %s, given %s"):format(name, shape_text(tensor),
        shape_text(given))
    end
  end
  for name in pairs(state) do
    if not known[name] then unexpected[#unexpected + 1] = tostring(name) end
  end
  table.sort(unexpected)
  return missing, unexpected, unfit
end

local load_defaults = { strict = true }

--- Copies tensors by name into the parameters and buffers, casting and moving them as needed. A
--- shape that does not fit is an error, and so is a name missing or unexpected unless
--- { strict = false }; then nothing was changed.
---@param state table<string, lunce.Tensor>
---@param opts? { strict: boolean }
---@return string[] missing, string[] unexpected
function Module:load_state_dict(state, opts)
  opts = options(opts, load_defaults, "load_state_dict")
  if type(state) ~= "table" or getmetatable(state) then
    raise("load_state_dict: argument 1 is %s; a table of tensors by name is taken", describe(state))
  end
  local entries = state_of(self)
  local missing, unexpected, unfit = differences(entries, state)
  local faults = {}
  local function add(what, list)
    if #list > 0 then faults[#faults + 1] = what .. table.concat(list, ", ") end
  end
  if opts.strict then
    add("missing ", missing)
    add("unexpected ", unexpected)
  end
  add("", unfit)
  if #faults > 0 then raise("load_state_dict: %s", table.concat(faults, "; ")) end
  lunce.no_grad(function()
    for _, entry in ipairs(entries) do
      local given = state[entry[1]]
      if given then entry[2]:copy_(given) end
    end
  end)
  return missing, unexpected
end

-- ---- Modes, gradients, placement -------------------------------------------------------------

--- Puts the module and all under it in training mode, or out of it with train(false).
---@return lunce.Module self
function Module:train(mode)
  if mode == nil then mode = true end
  need_boolean(mode, "train", "the mode")
  for _, module in self:named_modules() do module.training = mode end
  return self
end

--- Running statistics instead of the batch's, no dropout.
---@return lunce.Module self
function Module:eval() return self:train(false) end

--- Whether the parameters are trained; m:requires_grad_(false) freezes them.
---@return lunce.Module self
function Module:requires_grad_(mode)
  if mode == nil then mode = true end
  need_boolean(mode, "requires_grad_", "the mark")
  for _, p in self:named_parameters() do p:requires_grad_(mode) end
  return self
end

--- Drops the parameters' gradients and gives their memory back at once.
function Module:zero_grad()
  for _, p in self:named_parameters() do M.drop_grad(p) end
end

--- Drops p's gradient and gives its memory back at once.
function M.drop_grad(p)
  local grad = p.grad
  if grad then
    p.grad = nil
    grad:free()
  end
end

-- t as Module:to asks for: a dtype concerns floating-point tensors only, a memory format those of
-- four dimensions.
local function moved(t, target)
  local floating = t.dtype:find "float"
  if type(target) == "table" then
    local own = {}
    for name, value in pairs(target) do own[name] = value end
    if not floating then own.dtype = nil end
    if t.ndim ~= 4 then own.memory_format = nil end
    return t:to(own)
  end
  if floating then return t:to(target) end
  return (target == "cpu" or target:find "^cuda") and t:to(target) or t
end

--- Changes the dtype of floating-point parameters and buffers, the device of all, or the memory
--- format of those of four dimensions, as t:to does: { memory_format = "channels_last" } makes
--- convolutions give channels-last tensors. They become new tensors: make optimisers afterwards.
---@param target string|{ dtype: string?, device: string?, memory_format: string? }
---@return lunce.Module self
function Module:to(target)
  local new = {}
  for _, entry in ipairs(state_of(self)) do
    local old, module, key = entry[2], entry[3], entry[4]
    new[old] = new[old] or lunce.no_grad(moved, old, target):requires_grad_(old.requires_grad)
    module[key] = new[old]
  end
  return self
end

-- ---- Printing --------------------------------------------------------------------------------

--- The settings of a layer as they print between its parentheses.
function Module.describe() return "" end

--- The module as an indented tree; what tostring gives.
function Module:text(indent)
  local head = getmetatable(self).__name .. "(" .. self:describe()
  local fields, kinds, lines = rawget(self, FIELDS), rawget(self, KINDS), {}
  for _, key in ipairs(rawget(self, ORDER)) do
    if kinds[key] == "module" and fields[key] ~= nil then
      lines[#lines + 1] = ("%s  (%s): %s\n"):format(indent, name_of(key),
        fields[key]:text(indent .. "  "))
    end
  end
  if #lines == 0 then return head .. ")" end
  return head .. "\n" .. table.concat(lines) .. indent .. ")"
end

return M

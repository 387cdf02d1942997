-- lunce.eval: what a frozen encoder is worth. Features of a data set, the k-nearest-neighbour vote,
-- the linear probe (each a file, loaded when first named) and a table to print them in. May not
-- train an encoder. Invariant: no gradient reaches the encoder, and its mode is as it was.
local lunce = require "lunce"
local describe = require("lunce.options").describe
local raise = require("lunce.ffi").raise
local tensor = require "lunce.tensor"

local M = {}

local FILES = { knn = "knn", linear_probe = "probe" }

--- The encoder's outputs over one epoch of a loader (its first view), in evaluation mode.
---@param encoder function|table a module, or a function of a batch (B,C,H,W)
---@param loader table yields batches with x[1] and y; give it shuffle = false for the set's order
---@return lunce.Tensor features (N,D)
---@return lunce.Tensor|nil labels (N) int64; nil where the set has none
function M.features(encoder, loader)
  tensor.need_function(encoder, "eval.features")
  if type(loader) ~= "table" or type(loader.epoch) ~= "function" then
    raise("eval.features: argument 2 is %s; a loader is taken", describe(loader))
  end
  local module = type(encoder) == "table" and encoder.eval and encoder
  local training = module and module.training
  if module then module:eval() end
  local features, labels = {}, {}
  local ok, message = pcall(lunce.no_grad, function()
    for batch in loader:epoch(1) do
      features[#features + 1] = lunce.scope(function()
        local y = encoder(batch.x[1])
        if not lunce.is_tensor(y) or #y.shape < 2 then
          raise("eval.features: the encoder gave %s; a tensor (B,...) is taken",
            lunce.is_tensor(y) and ("(%s)"):format(table.concat(y.shape, ",")) or describe(y))
        end
        return y:flatten(2)
      end)
      labels[#labels + 1] = batch.y
    end
  end)
  if training then module:train() end
  if not ok then error(message, 0) end
  if #features == 0 then raise("eval.features: the loader gave no batch") end
  return lunce.cat(features, 1), labels[1] and lunce.cat(labels, 1)
end

local function cell(value)
  if type(value) ~= "number" then return value == nil and "" or tostring(value) end
  return value % 1 == 0 and ("%d"):format(value) or ("%.4f"):format(value)
end

local function check_list(x, name)
  if type(x) ~= "table" or getmetatable(x) then
    raise("eval.table: %s is %s; a list is taken", name, describe(x))
  end
end

--- Rows under a heading as aligned text, numbers to the right.
---@param heading string[]
---@param rows table[] each a list of strings and numbers; false or nil leaves a cell empty
---@return string
function M.table(heading, rows)
  check_list(heading, "the heading")
  check_list(rows, "the rows")
  for i, text in ipairs(heading) do
    if type(text) ~= "string" then
      raise("eval.table: column %d is %s; a string is taken", i, describe(text))
    end
  end
  for i, row in ipairs(rows) do check_list(row, "row " .. i) end
  local lines, widths = { heading }, {}
  for _, row in ipairs(rows) do
    local line = {}
    for i = 1, #heading do line[i] = cell(row[i] or nil) end
    lines[#lines + 1] = line
  end
  for _, line in ipairs(lines) do
    for i, text in ipairs(line) do widths[i] = math.max(widths[i] or 0, #text) end
  end
  for n, line in ipairs(lines) do
    local padded = {}
    for i, text in ipairs(line) do
      padded[i] = ("%" .. (i == 1 and "-" or "") .. widths[i] .. "s"):format(text)
    end
    lines[n] = table.concat(padded, "  "):gsub("%s+$", "")
  end
  return table.concat(lines, "\n")
end

return setmetatable(M, {
  __index = function(self, name)
    if not FILES[name] then raise("lunce.eval has no %q", tostring(name)) end
    local fn = require("lunce.eval." .. FILES[name])
    rawset(self, name, fn)
    return fn
  end,
})

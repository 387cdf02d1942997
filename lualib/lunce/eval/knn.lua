-- The k-nearest-neighbour vote on frozen features, wherever they lie. Holds no state. Invariant:
-- memory is that of a chunk of queries against the bank, whatever the number of queries.
local lunce = require "lunce"
local options = require("lunce.options").options
local raise = require("lunce.ffi").raise
local similarity = require "lunce.similarity"

local DEFAULTS = { k = 50, temperature = 0.1, recall = { 1, 2, 5, 10, 20, 50 }, chunk = 1024 }

local function check(bank, bank_labels, queries, labels, o)
  for i, name in ipairs{ "bank", "queries" } do
    local x, y = i == 1 and bank or queries, i == 1 and bank_labels or labels
    if not lunce.is_tensor(x) or not lunce.is_tensor(y) or #x.shape ~= 2 or #y.shape ~= 1
      or x.shape[1] ~= y.shape[1] or y.dtype ~= "int64" then
      raise("eval.knn: %s are a tensor (N,D) and int64 labels (N)", name)
    end
    if x.device ~= bank.device or y.device ~= bank.device then
      raise("eval.knn: bank, queries and their labels lie on one device; of the %s some lie on %s,"
        .. " the bank on %s", name, x.device ~= bank.device and x.device or y.device, bank.device)
    end
  end
  if not (o.temperature > 0) then
    raise("eval.knn: temperature is %g; a number above 0 is taken", o.temperature)
  end
  for _, k in ipairs{ o.k, o.chunk, unpack(o.recall) } do
    if type(k) ~= "number" or k < 1 or k % 1 ~= 0 then
      raise("eval.knn: k, recall and chunk are positive integers; got %s", tostring(k))
    end
  end
end

-- The labels of each query's nearest rows, nearest first, and their cosines: (Q,depth).
local function neighbours(bank, bank_labels, queries, depth)
  local cosines, rows = similarity.cosine(queries, bank):topk(depth)
  return bank_labels:index_select(1, rows:flatten()):reshape(queries.shape[1], depth), cosines
end

-- exp(s/T) up to a factor that all votes of a query share, so that no T overflows.
local function vote(found, cosines, k, temperature, classes)
  local s = cosines:narrow(2, 1, k)
  local weights = ((s - s:narrow(2, 1, 1)) / temperature):exp()
  local votes = lunce.zeros(found.shape[1], classes,
    { dtype = weights.dtype, device = weights.device })
  return votes:scatter_add(2, found:narrow(2, 1, k), weights):argmax(2)
end

--- Classifies queries by a vote of their k nearest bank rows by cosine, weighted with exp(s/T), and
--- measures how often one of the k nearest has the query's class.
---@param bank lunce.Tensor (N,D); the others lie on its device
---@param bank_labels lunce.Tensor (N) int64, from 1
---@param queries lunce.Tensor (Q,D)
---@param labels lunce.Tensor (Q) int64
---@param given table|nil k (50), temperature (0.1), recall (a list of k), chunk (queries at a time)
---@return table result accuracy, predicted (Q) int64, recall[k]; a k past N counts as N
return function(bank, bank_labels, queries, labels, given)
  local o = options(given, DEFAULTS, "eval.knn")
  check(bank, bank_labels, queries, labels, o)
  local N, Q = bank.shape[1], queries.shape[1]
  if N == 0 or Q == 0 then raise("eval.knn: the bank or the queries are empty") end
  local classes, depth = bank_labels:max():item(), o.k
  for _, k in ipairs(o.recall) do depth = math.max(depth, k) end
  depth = math.min(depth, N)

  local predicted, hits = {}, {}
  for first = 1, Q, o.chunk do
    local n = math.min(o.chunk, Q - first + 1)
    predicted[#predicted + 1] = lunce.scope(lunce.no_grad, function()
      local found, cosines = neighbours(bank, bank_labels, queries:narrow(1, first, n), depth)
      local right = found:eq(labels:narrow(1, first, n):unsqueeze(2))
      for _, k in ipairs(o.recall) do
        local hit = right:narrow(2, 1, math.min(k, depth)):any(2)
        hits[k] = (hits[k] or 0) + hit:sum():item()
      end
      return vote(found, cosines, math.min(o.k, depth), o.temperature, classes)
    end)
  end
  local result = { predicted = lunce.cat(predicted, 1), recall = {} }
  for k, count in pairs(hits) do result.recall[k] = count / Q end
  result.accuracy = result.predicted:eq(labels):sum():item() / Q
  return result
end

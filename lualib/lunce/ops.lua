-- The operators by name: what lunce.<name> and t:<name>() find, and the Lua operators on tensors.
-- Holds no operator itself; the families in ops/ do, each forward call beside its backward rule.
local lib = require "lunce.ffi"
local tensor = require "lunce.tensor"

local raise = lib.raise
local Tensor, methods = tensor.Tensor, tensor.methods

local M = {}

for _, family in ipairs { "create", "value", "view", "elementwise", "reduce", "select", "product",
  "network", "inplace" } do
  for name, operator in pairs(require("lunce.ops." .. family)) do
    M[name] = operator
    methods[name] = operator
  end
end

Tensor.__add, Tensor.__sub, Tensor.__mul, Tensor.__div = M.add, M.sub, M.mul, M.div
Tensor.__pow, Tensor.__unm = M.pow, M.neg

local function no_comparison()
  raise("tensors are not compared by < <= > >=, which give one boolean; use t:lt(x), t:le(x),"
    .. " t:gt(x) or t:ge(x)")
end
Tensor.__lt, Tensor.__le = no_comparison, no_comparison

function Tensor.__concat()
  raise("a tensor is not joined to a string by ..; use tostring(t), or lunce.cat for tensors")
end

function Tensor.__tostring(t) return require("lunce.print")(t) end

return M

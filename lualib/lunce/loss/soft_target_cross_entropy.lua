-- Cross-entropy against soft labels, the baseline of soft target InfoNCE. Holds no state.
local check = require "lunce.loss.check"
local options = require("lunce.options").options
local raise = require("lunce.ffi").raise

local DEFAULTS = { temperature = false }

--- mean_i of - sum_c y_ic log softmax(logits/temperature)_ic. No gradient to targets.
---@param logits lunce.Tensor (N,C)
---@param targets lunce.Tensor (N,C)
---@param given table|nil temperature: a number (1) or a tensor of one element
---@return lunce.Tensor scalar
return function(logits, targets, given)
  local o = options(given, DEFAULTS, "soft_target_cross_entropy")
  local temperature = check.positive(o.temperature or 1, "temperature", "soft_target_cross_entropy")
  local a = check.rows(logits, "logits", "soft_target_cross_entropy").shape
  local b = check.rows(targets, "targets", "soft_target_cross_entropy").shape
  if a[1] ~= b[1] or a[2] ~= b[2] then
    raise("soft_target_cross_entropy: logits (%d,%d) and targets (%d,%d) differ", a[1], a[2], b[1],
      b[2])
  end
  local log_p = (logits / temperature):log_softmax(2)
  return -(targets:detach():to(log_p.dtype) * log_p):sum(2):mean()
end

-- Cross-entropy against soft labels, the baseline of soft target InfoNCE. Holds no state.
local arguments = require "lunce.loss.arguments"
local define = require "lunce.loss.define"
local raise = require("lunce.ffi").raise

return define({
  name = "soft_target_cross_entropy",
  summary = "cross-entropy against soft labels",
  takes = { "logits (N,C)", "targets (N,C)" },
  formula = "mean_i -sum_c y_ic log softmax(f/temperature)_ic",
  where = "f are the logits, y the targets, without gradient",
  source = "arXiv 2404.14076, a baseline",
  options = { { "temperature", 1, "temperature", "positive" } },
}, function(logits, targets, o)
  local a = arguments.rows(logits, "logits", "soft_target_cross_entropy").shape
  local b = arguments.rows(targets, "targets", "soft_target_cross_entropy").shape
  if a[1] ~= b[1] or a[2] ~= b[2] then
    raise("soft_target_cross_entropy: logits (%d,%d) and targets (%d,%d) differ", a[1], a[2], b[1],
      b[2])
  end
  local log_p = (logits / o.temperature):log_softmax(2)
  return -(targets:detach():to(log_p.dtype) * log_p):sum(2):mean()
end)

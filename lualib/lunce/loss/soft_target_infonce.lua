-- Soft target InfoNCE: InfoNCE between samples and soft labels, the score of a label being its
-- inner product with the noise-corrected logits. Holds no state.
local lunce = require "lunce"
local arguments = require "lunce.loss.arguments"
local define = require "lunce.loss.define"
local raise = require("lunce.ffi").raise
local similarity = require "lunce.similarity"

local function check_shapes(logits, targets, o)
  arguments.rows(logits, "logits", "soft_target_infonce")
  arguments.rows(targets, "targets", "soft_target_infonce")
  local N, C, M = logits.shape[1], logits.shape[2], targets.shape[1]
  if targets.shape[2] ~= C then
    raise("soft_target_infonce: logits (%d,%d) and targets (%d,%d) differ in classes", N, C, M,
      targets.shape[2])
  end
  if o.offset % 1 ~= 0 or o.offset < 0 or o.offset + N > M then
    raise("soft_target_infonce: the %d own targets after offset %g are not within the %d given", N,
      o.offset, M)
  end
  if o.noise and (not lunce.is_tensor(o.noise) or #o.noise.shape ~= 1 or o.noise.shape[1] ~= C) then
    raise("soft_target_infonce: noise is a tensor (%d) of class probabilities", C)
  end
end

return define({
  name = "soft_target_infonce",
  summary = "InfoNCE between samples and soft labels",
  takes = { "logits (N,C)", "targets (M,C)" },
  formula = "mean_i log sum_m exp S_im - S_i,i+offset\nS_im = sum_c v_ic y_mc, "
    .. "v = f/temperature - log noise",
  where = "f are the logits, y the targets, M >= N rows that sum to 1; no gradient to targets "
    .. "or noise",
  source = "arXiv 2404.14076",
  options = {
    { "noise", false, "(C), the class prior; uniform when absent" },
    { "temperature", 1, "temperature", "positive" },
    { "offset", 0, "how many of the M targets precede the own ones" },
  },
}, function(logits, targets, o)
  check_shapes(logits, targets, o)
  local v = logits / o.temperature
  -- A uniform prior adds the same number to all scores of a row: rows of targets sum to 1.
  if o.noise then v = v - o.noise:detach():to(v.dtype):log() end
  local S = similarity.dot(v, targets:detach():to(v.dtype))
  local own = lunce.arange(1 + o.offset, logits.shape[1] + o.offset, 1,
    { dtype = "int64", device = logits.device })
  return (S:without(own):lse() - S:at(own)):softplus():mean()
end)

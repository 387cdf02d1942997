-- MoCo: InfoNCE of queries against a queue of earlier keys. Holds no state: the queue is the
-- caller's (loss.queue), and so is the encoder that makes the keys.
local arguments = require "lunce.loss.arguments"
local define = require "lunce.loss.define"
local raise = require("lunce.ffi").raise
local similarity = require "lunce.similarity"
local views = require "lunce.loss.views"

return define({
  name = "moco",
  summary = "InfoNCE of queries against a queue of earlier keys",
  takes = { "q (N,D)", "k (N,D)", "queue (K,D)" },
  formula = "mean_a log(exp(s_a/tau) + sum_b exp(s_ab/tau)) - s_a/tau",
  where = "s_a is the cosine of q_a and k_a, s_ab that of q_a and row b of queue; "
    .. "no gradient to k or queue",
  source = "He et al. 2020, arXiv 1911.05722, eq. 1",
  options = { { "tau", 0.07, "temperature", "positive" } },
}, function(q, k, queue, o)
  arguments.pair(q, k, "q", "k", "moco")
  local D = arguments.rows(queue, "queue", "moco").shape[2]
  if D ~= q.shape[2] or queue.dtype ~= q.dtype then
    raise("moco: queue (%d,%d) %s and q (%d,%d) %s differ in width or dtype", queue.shape[1], D,
      queue.dtype, q.shape[1], q.shape[2], q.dtype)
  end
  local positive = similarity.cosine(q, k:detach()):at(views.own(q))
  local negatives = similarity.cosine(q, queue:detach()):lse(views.softmax, o.tau)
  return (negatives - views.softmax(positive, o.tau)):softplus():mean()
end)

-- SupCon: the contrastive loss of labelled rows, all rows of a label being positives of each other.
-- Holds no state.
local lunce = require "lunce"
local arguments = require "lunce.loss.arguments"
local define = require "lunce.loss.define"
local raise = require("lunce.ffi").raise
local similarity = require "lunce.similarity"
local views = require "lunce.loss.views"

return define({
  name = "sup_con",
  summary = "supervised contrastive loss of labelled rows",
  takes = { "z (R,D)", "labels (R)" },
  formula = "mean_a log sum_{b != a} exp(s_ab/tau) - mean_p s_ap/tau",
  where = "s_ab is the cosine of rows a and b; p runs over the other rows of a's label; rows a "
    .. "that have none are left out. Two views: z = cat{z_i, z_j}, labels = cat{labels, labels}",
  source = "Khosla et al. 2020, arXiv 2004.11362, eq. 2",
  options = { { "tau", 0.1, "temperature", "positive" } },
}, function(z, labels, o)
  local R = arguments.rows(z, "z", "sup_con").shape[1]
  if not lunce.is_tensor(labels) or #labels.shape ~= 1 or labels.shape[1] ~= R then
    raise("sup_con: labels is a tensor (%d); got %s", R, arguments.describe(labels))
  end
  local S = similarity.cosine(z)
  local positives = S:same(labels):without_self()
  local all, sum = similarity.together(function()
    return S:without_self():lse(views.softmax, o.tau), positives:sum(views.softmax, o.tau)
  end)
  local count = positives:count()
  local alone = count:eq(0)
  local terms = (all - sum / count:clamp(1, R):to(z.dtype)):masked_fill(alone, 0)
  return terms:sum() / (R - alone:sum()):clamp(1, math.huge):to(z.dtype)
end)

-- Update rules, schedules and clipping: what `lunce.optim` is. Holds none of them itself.
local adam = require "lunce.optim.adam"
local clip = require "lunce.optim.clip"

return {
  SGD = require "lunce.optim.sgd",
  Adam = adam.Adam,
  AdamW = adam.AdamW,
  LARS = require "lunce.optim.lars",
  schedule = require "lunce.optim.schedule",
  clip_grad_norm = clip.clip_grad_norm,
  clip_grad_value = clip.clip_grad_value,
}

-- What `lunce.optim` is: update rules, schedules, clipping, loss scaling. Holds none itself.
local adam = require "lunce.optim.adam"
local clip = require "lunce.optim.clip"

return {
  SGD = require "lunce.optim.sgd",
  Adam = adam.Adam,
  AdamW = adam.AdamW,
  LARS = require "lunce.optim.lars",
  GradScaler = require "lunce.optim.grad_scaler",
  schedule = require "lunce.optim.schedule",
  clip_grad_norm = clip.clip_grad_norm,
  clip_grad_value = clip.clip_grad_value,
}

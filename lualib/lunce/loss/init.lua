-- lunce.loss: one loss a file, loaded when first named. A loss is a function of tensors and an
-- options table that gives a scalar tensor (and, where it says so, a table of statistics), and
-- prints its formula, source and options. Holds no loss and no state. A loss of the user's own may
-- be put here by its name: lunce.loss.mine = function(z_i, z_j) ... end.
--
--   loss.describe "weince"       what it is, in words; loss.describe() lists them all, one a line
--   loss.check(f)                what a researcher's own loss does (lunce.loss.check)
--   loss.beta_state{...}         the moving Weibull shape of a run (evt.moving_beta)
--   loss.queue(size, D)          the queue of keys of a run (lunce.loss.queue)
local raise = require("lunce.ffi").raise

local M = {}

local NAMES = {
  -- Two views (N,D) each; after weince its ablations.
  "nt_xent", "weince", "weibit", "soft", "gate", "hard_select", "soft_select", "top_m", "dcl",
  "debiased", "hcl", "clip", "siglip", "alignment", "barlow_twins", "vicreg",
  -- One set of rows, with labels or without; a queue; predictions.
  "sup_con", "uniformity", "moco", "simsiam", "byol",
  -- Logits and soft targets.
  "soft_target_infonce", "soft_target_cross_entropy",
}

local FILES = { check = true, queue = true }
for _, name in ipairs(NAMES) do FILES[name] = true end

--- The names of the losses.
---@return string[]
function M.names() return { unpack(NAMES) } end

local function list()
  local lines = {}
  for i, name in ipairs(NAMES) do lines[i] = ("%-26s %s"):format(name, M[name].summary) end
  return table.concat(lines, "\n")
end

--- A loss in words: arguments, formula, source and options with their defaults. Without a name, all
--- losses with what each is.
---@param name string|nil
---@return string
function M.describe(name)
  if name == nil then return list() end
  local loss = M[name]
  if type(loss) ~= "table" or not loss.formula then
    raise("loss.describe: %s has no description; loss.describe() lists the losses", tostring(name))
  end
  return tostring(loss)
end

--- The moving Weibull shape beta_t of a training run: state that its checkpoint must hold.
---@param options table|nil as for evt.moving_beta
---@return lunce.MovingBeta
function M.beta_state(options) return require("lunce.evt").moving_beta(options) end

return setmetatable(M, {
  __tostring = list,
  __index = function(self, name)
    if not FILES[name] then
      raise("lunce.loss has no loss %q; loss.describe() lists them", tostring(name))
    end
    local loss = require("lunce.loss." .. name)
    rawset(self, name, loss)
    return loss
  end,
})

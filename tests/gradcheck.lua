-- Central differences against the tape, for tests: one function, and the layouts that an operator's
-- inputs may come in. Holds no expectation about any operator.
local lunce = require "lunce"

local M = {}

local STEP, ATOL, RTOL = 1e-6, 1e-5, 1e-3

-- sum(f(inputs) * weights): one number whose gradient has no symmetry to hide a mistake.
local function scalar(f, inputs, weights)
  local y = f(unpack(inputs))
  weights.w = weights.w or lunce.rand(y.shape, { dtype = "float64", seed = 11 }) + 0.5
  return (y:to("float64") * weights.w):sum()
end

local function flat(t) return t:detach():contiguous():flatten():tolist() end

--- Compares the tape's gradient of f with central differences in float64 (step 1e-6, atol 1e-5,
--- rtol 1e-3). leaves: float64 tensors; view(i, leaf) is what f is given. Returns nil, or what
--- differs.
---@param f function of as many tensors as there are leaves
---@param leaves table
---@param view fun(i: integer, leaf: table): table
function M.compare(f, leaves, view)
  local weights = {}
  local function value()
    local inputs = {}
    for i, leaf in ipairs(leaves) do inputs[i] = view(i, leaf) end
    return scalar(f, inputs, weights)
  end
  for _, leaf in ipairs(leaves) do leaf:requires_grad_() end
  local y = value()
  y:backward()
  for i, leaf in ipairs(leaves) do
    local got = leaf.grad and flat(leaf.grad) or {}
    local at = flat(leaf)
    for j = 1, #at do
      local function moved(by)
        local values = {}
        for n = 1, #at do values[n] = at[n] end
        values[j] = at[j] + by
        return lunce.no_grad(function()
          leaf:copy_(lunce.tensor(values, { dtype = "float64" }):reshape(leaf.shape))
          return value():item()
        end)
      end
      local expected = (moved(STEP) - moved(-STEP)) / (2 * STEP)
      moved(0)
      local given = got[j] or 0
      if not (math.abs(given - expected) <= ATOL + RTOL * math.abs(expected)) then
        return ("input %d, element %d: the tape gives %.9g, differences give %.9g"):format(i, j,
          given, expected)
      end
    end
  end
end

local function leaf_like(shape, seed, low, high)
  return lunce.rand(shape, { dtype = "float64", seed = seed }) * (high - low) + low
end

local function with(shape, place, extent)
  local changed = {}
  for i, n in ipairs(shape) do changed[i] = n end
  changed[place] = extent
  return changed
end

--- By name: how to make a leaf of which `view` shows an input of the wanted shape.
M.layouts = {
  contiguous = {
    leaf = function(shape) return shape end,
    view = function(x) return x end,
  },
  transposed = {
    leaf = function(shape)
      if #shape < 2 then return shape end
      local swapped = with(shape, #shape, shape[#shape - 1])
      swapped[#shape - 1] = shape[#shape]
      return swapped
    end,
    view = function(x) return #x.shape < 2 and x or x:transpose(-1, -2) end,
  },
  sliced = {
    leaf = function(shape)
      return #shape == 0 and shape or with(shape, #shape, 2 * shape[#shape] + 1)
    end,
    view = function(x)
      local n = #x.shape
      return n == 0 and x or x:slice(n, 2, x.shape[n], 2)
    end,
  },
  expanded = {
    leaf = function(shape) return #shape == 0 and shape or with(shape, 1, 1) end,
    view = function(x, shape) return #shape == 0 and x or x:expand(unpack(shape)) end,
  },
}

--- Checks f in every layout; `shapes` are its inputs' shapes, values lie in [low, high]. Returns a
--- list of messages.
---@param f function
---@param shapes integer[][]
---@param low number
---@param high number
---@param skip table|nil layouts by name that f does not admit
function M.all_layouts(f, shapes, low, high, skip)
  local faults = {}
  for name, layout in pairs(M.layouts) do
    if not (skip and skip[name]) then
      local leaves = {}
      for i, shape in ipairs(shapes) do
        leaves[i] = leaf_like(layout.leaf(shape), 100 + i, low, high)
      end
      local fault = M.compare(f, leaves,
        function(i, leaf) return layout.view(leaf, shapes[i]) end)
      if fault then faults[#faults + 1] = name .. ": " .. fault end
    end
  end
  return faults
end

M.leaf_like = leaf_like

return M

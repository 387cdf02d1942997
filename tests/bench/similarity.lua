-- What the bench measures of the similarity engine: rows as rows.lua has them. Holds no table.
-- A loss's figure is the wall time of forward and backward; its rate counts 4 R^2 d operations for
-- R rows, what a symmetric matrix takes when its tiles are computed twice.
local lunce = require "lunce"
local progress = require "lunce.progress"

local loss, similarity = lunce.loss, lunce.similarity
local two = require "lunce.loss.views"

local function views(R, d)
  return lunce.randn(R / 2, d, { seed = 1 }):requires_grad_(),
    lunce.randn(R / 2, d, { seed = 2 }):requires_grad_()
end

local function median(values)
  table.sort(values)
  return values[math.ceil(#values / 2)]
end

-- Steps of a measure, of either side: small ones are over before a program that has paused is at
-- its speed, and a few of them are a moment of a noisy machine.
local function steps_of(R) return R > 4096 and 3 or R > 1024 and 25 or 200 end

-- As an optimiser's zero_grad does, and PyTorch's side.
local function drop_gradients(...)
  for _, leaf in ipairs{ ... } do
    if leaf.grad then leaf.grad:free() end
    leaf.grad = nil
  end
end

-- The median over a few rounds of what `figure` makes of the seconds that a step of each
-- fn(z_i, z_j) takes, forward and backward: the steps of a round follow each other, so that they
-- meet the same machine.
local function over_rounds(fns, R, d, figure)
  local z_i, z_j = views(R, d)
  local figures = {}
  for i = 1, steps_of(R) do
    local seconds = {}
    for f, fn in ipairs(fns) do
      local start = progress.clock()
      drop_gradients(z_i, z_j)
      lunce.scope(function() (fn(z_i, z_j)):backward() end)
      seconds[f] = progress.clock() - start
    end
    figures[i] = figure(unpack(seconds))
  end
  return median(figures)
end

local function step_seconds(fn, R, d)
  return over_rounds({ fn }, R, d, function(seconds) return seconds end)
end

local function nt_xent(z_i, z_j) return loss.nt_xent(z_i, z_j, { tau = 0.5 }) end

local function peer(tools, R, d)
  return tools.torch and function()
    return tools.torch:ask(("nt_xent %d %d %d"):format(R, d, steps_of(R))) * 1e3
  end
end

local function time_row(R, d)
  return { name = ("nt_xent %d x %d"):format(R, d), unit = "ms", better = "less", rounds = 5,
    target = { most = 0.2, of = "PyTorch" },
    sides = function(tools)
      return { lunce = function() return step_seconds(nt_xent, R, d) * 1e3 end,
        PyTorch = peer(tools, R, d) }
    end }
end

local function rate_row(R, d, least)
  return { name = ("its rate, %d x %d"):format(R, d), unit = "GFLOP/s", better = "more", rounds = 5,
    target = { least = least, of = "oneDNN" },
    sides = function(tools)
      return { lunce = function() return 4e-9 * R * R * d / step_seconds(nt_xent, R, d) end,
        oneDNN = tools.native and function()
          return 2e-9 * 4096 * 4096 * 128 / tools.native:ask "sgemm 4096 4096 128 3"
        end }
    end }
end

-- A loss beside nt_xent at the same rows.
local function beside_row(name, fn, most)
  local R, d = 8192, 128
  return { name = name, unit = "ms", better = "less", rounds = 5,
    target = { most = most, of = "nt_xent" },
    sides = function()
      return { lunce = function() return step_seconds(fn, R, d) * 1e3 end,
        nt_xent = function() return step_seconds(nt_xent, R, d) * 1e3 end }
    end }
end

-- ---- What a link costs -----------------------------------------------------------------------

-- The same tiles without a link.
local function bare(z_i, z_j)
  return similarity.cosine(lunce.cat({ z_i, z_j }, 1)):without_self():sum():mean()
end

-- WEINCE's link, of weights that are given.
local function mixture(lambda)
  return function(z_i, z_j)
    local S = similarity.cosine(lunce.cat({ z_i, z_j }, 1)):without_self()
    return S:lse(function(s, mix) return two.mixture(s, 0.5, mix, 1) end, lambda):mean()
  end
end

-- What fn takes over the bare tiles, in percent of what a step of `of` takes.
local function link_row(name, fn, of, most)
  local R, d = 8192, 128
  return { name = name, unit = "%", better = "less", rounds = 9, target = { most = most },
    sides = function()
      return { lunce = function()
        return over_rounds({ fn, bare, of }, R, d, function(with, without, whole)
          return 100 * (with - without) / whole
        end)
      end }
    end }
end

local function weince(z_i, z_j) return (loss.weince(z_i, z_j, { tau = 0.5 })) end

-- Of any loss over two views, or over all rows with labels.
local function named(name) return function(z_i, z_j) return (loss[name](z_i, z_j)) end end

local labels = lunce.randint(1, 100, { 8192 }, { seed = 3 })
local function sup_con(z_i, z_j) return loss.sup_con(lunce.cat({ z_i, z_j }, 1), labels) end

return {
  time_row(512, 128), time_row(2048, 128), time_row(8192, 128),
  rate_row(8192, 128, 0.6), rate_row(8192, 512, 0.75),
  beside_row("weince", weince, 1.6),
  beside_row("hcl", named "hcl", 1.5), beside_row("sup_con", sup_con, 1.5),
  beside_row("clip", named "clip", 1.5), beside_row("siglip", named "siglip", 1.5),
  link_row("nt_xent's link", nt_xent, nt_xent, 8),
  link_row("weince's link", mixture(lunce.rand(8192, 1, { seed = 4 })), weince, 20),
}

-- What the bench measures: the rows of its table, with the targets. Holds no table and no order of
-- measuring; that is run.lua. Invariant: the sides of a row do the same work, and each call of a
-- side measures it once, in the row's unit.
--
-- A row: name; unit; better, "less" or "more"; rounds, how often each side is measured; target,
-- { most = or least =, of = side }, bounds lunce's figure, or its ratio to that of the side named;
-- sides(tools) gives { lunce = function, [other side] = function }, without what is not there.
local lunce = require "lunce"
local sides = require "tests.bench.sides"

local LARGE = 2 ^ 24 -- float32 elements: 64 MB
local BUILD = "build/bench/"
local wall, command_wall, printed, asks = sides.wall, sides.command_wall, sides.printed, sides.asks

-- ---- Sides -----------------------------------------------------------------------------------

-- 100,000 additions of one element: the processor's time, for one thread does all the work and
-- others may be busy. The results are dropped, so that the collector's part is in it.
local function small_add(requires_grad)
  local x, y = lunce.tensor({ 1.5 }, { requires_grad = requires_grad }), lunce.tensor{ 2 }
  return function()
    local start, z = os.clock(), nil
    for _ = 1, 1e5 do z = x + y end
    assert(z:item() == 3.5)
    return (os.clock() - start) / 1e5 * 1e9
  end
end

local function add_row(name, question, requires_grad, most)
  return { name = name, unit = "ns", better = "less", rounds = 9, target = { most = most },
    sides = function(tools)
      return { lunce = small_add(requires_grad), PyTorch = asks(tools.torch, question, 1e9) }
    end }
end

-- GB touched a second, of an operator on large arrays that reads and writes `arrays` of them.
local function large_row(name, run, arrays, question, target)
  return { name = name, unit = "GB/s", better = "more", rounds = 9, target = target,
    sides = function(tools)
      local x, y = lunce.ones(LARGE), lunce.ones(LARGE)
      local function rate(fn, n) return function() return 4e-9 * n * LARGE / wall(3, fn) end end
      local result = { lunce = rate(function() run(x, y) end, arrays),
        PyTorch = asks(tools.torch, question .. (" %d 3"):format(LARGE), 1, 4e-9 * arrays * LARGE),
        memcpy = asks(tools.native, ("copy %d 3"):format(4 * LARGE), 1, 8e-9 * LARGE) }
      if target then result.copy = rate(function() x:clone() end, 2) end
      return result
    end }
end

local function matmul_row(n, m, k, runs)
  return { name = ("matmul %d x %d x %d"):format(n, m, k), unit = "GFLOP/s", better = "more",
    rounds = 9, target = { least = 0.9, of = "oneDNN" },
    sides = function(tools)
      local x, y, gflop = lunce.ones(n, k), lunce.ones(k, m), 2e-9 * n * m * k
      local numbers = (" %d %d %d %d"):format(n, m, k, runs)
      return { lunce = function() return gflop / wall(runs, function() x:mm(y) end) end,
        oneDNN = asks(tools.native, "sgemm" .. numbers, 1, gflop),
        PyTorch = asks(tools.torch, "matmul" .. numbers, 1, gflop) }
    end }
end

-- A script of tests/bench and its peer, each a process that prints its own figure.
local function resnet_row(name, unit, key, steps, rounds, most)
  return { name = name, unit = unit, better = "less", rounds = rounds,
    target = most and { most = most, of = "PyTorch" },
    sides = function(tools)
      local ours = ("./lunce --threads=%d tests/bench/peak.lua tests/bench/resnet18.lua %d"):format(
        tools.threads, steps)
      local peers = ("%s tests/bench/peak.py tests/bench/resnet18.py %d %d"):format(tools.python,
        tools.threads, steps)
      return { lunce = function() return printed(ours, key) end,
        PyTorch = tools.torch and function() return printed(peers, key) end }
    end }
end

-- ---- Rows ------------------------------------------------------------------------------------

return {
  { name = "start of lunce -e ''", unit = "ms", better = "less", rounds = 15,
    target = { most = 20 },
    sides = function()
      return { lunce = function() return command_wall "./lunce -e ''" * 1e3 end }
    end },
  { name = "start with the library", unit = "ms", better = "less", rounds = 5,
    sides = function(tools)
      return { lunce = function() return command_wall [[./lunce -e 'require "lunce"']] * 1e3 end,
        PyTorch = tools.torch and function()
          return command_wall(tools.python .. " -c 'import torch'") * 1e3
        end }
    end },
  add_row("add of one element", "add 100000", false, 300),
  add_row("the same on the tape", "add_tape 100000", true, 2000),
  large_row("copy of 64 MB", function(x) return x:clone() end, 2, "large_copy"),
  large_row("add over 64 MB", function(x, y) return x + y end, 3, "large_add",
    { least = 0.8, of = "copy" }),
  large_row("exp over 64 MB", function(x) return x:exp() end, 2, "large_exp",
    { least = 0.8, of = "copy" }),
  matmul_row(512, 512, 512, 20),
  matmul_row(1024, 1024, 1024, 5),
  matmul_row(2048, 2048, 2048, 1),
  matmul_row(4096, 4096, 128, 3),
  resnet_row("ResNet-18 step, batch 64", "ms", "resnet18_step_ms ", 3, 2, 1.1),
  resnet_row("its peak memory", "MB", "peak_mb ", 1, 1),
  { name = "the demo's epoch", unit = "s", better = "less", rounds = 2,
    target = { most = 1, of = "PyTorch" },
    sides = function(tools)
      local epochs = 12
      local function epoch(command)
        return function() return printed(command, "seconds=") / epochs end
      end
      return { lunce = epoch(("./lunce --threads=%d scripts/simclr.lua --epochs=%d --out=%ssimclr")
          :format(tools.threads, epochs, BUILD)),
        PyTorch = tools.torch and epoch(("%s tests/bench/simclr_digits.py %d"):format(tools.python,
          epochs)) }
    end },
}

-- Kernels as PTX, which the host interprets: what a device executes, and no GPU at hand does. NVRTC
-- makes it of those that are compiled at run time, nvcc of the others. A few of the tests of these
-- kernels run so, in processes of their own; `make ptx` runs all of them. Needs the host's stand-in
-- for a device, and CUDA's compilers.
local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local program = os.getenv "LUNCE_PROGRAM" or here .. "../lunce"
local built = here .. "../build/tests/"
local PTX = ("DEVICE=cuda LUNCE_CUDA='%sliblunce_cuda.so' LUNCE_CUDA_HOST_PTX"):format(built)

-- What a command prints, and its status.
local function run(command)
  local child = io.popen(command .. " 2>&1; echo $?")
  local text, status = child:read "*a":match "^(.-)(%d+)\n$"
  child:close()
  return text, tonumber(status)
end

local function is_built()
  local file = io.open(built .. "ptx-check")
  if file then file:close() end
  return file ~= nil
end

-- Runs tests of { environment, file, filter } with kernels as PTX.
local function expect_passes(which, tests)
  for _, some in ipairs(tests) do
    local text = run(("%s=%s %s %s %srun.lua %s %s%s_test.lua"):format(PTX, which, some[1], program,
      here, some[3] and "--filter='" .. some[3] .. "'" or "", here, some[2]))
    local passed, failed = text:match "(%d+) passed, (%d+) failed, %d+ skipped\n$"
    assert.is_true(passed and tonumber(passed) > 0 and failed == "0", text)
  end
end

describe("the interpreter of PTX", function()
  it("knows instructions by their documentation, and reports what a device would not", function()
    if not is_built() then return pending "the CUDA backend on the host was not built" end
    local text, status = run(built .. "ptx-check")
    assert.equal(0, status, text)
  end)

  -- Of both dtypes of halves: sums, running maxima, both halves of a symmetric matrix, gradients;
  -- functions of links; multiplications, which are counted; kernels in float32 and float64.
  local SOME = {
    { "LUNCE_TEST_CASES=5", "tile_random" },
    { "", "epilogue", "halves" },
    { "", "mirror", "takes the tiles" },
    { "", "fused", "ends of their ranges" },
    { "", "fused", "running maximum" },
  }

  it("runs the kernels of a link", function()
    if not is_built() then return pending "the CUDA backend on the host was not built" end
    local reason, status = run(PTX .. "=links " .. program .. [[ -e '
      local lunce = require "lunce"
      local x = lunce.ones({ 2, 2 }, { device = "cuda" })
      print(lunce.similarity.dot(x):sum(function(s) return s end))']])
    if status ~= 0 and reason:match "asks for NVRTC" then
      return pending(reason:match "asks for (NVRTC: [^\n]*)")
    end
    assert.equal(0, status, reason)
    expect_passes("links", SOME)
  end)

  -- Selection and sorting, order statistics, norms, pools, sums: what has barriers and shuffles.
  local FILES = {
    "conv", "elementwise", "norm", "pool", "random", "rank", "reduce", "sort", "tile",
  }
  local OTHERS = {
    { "", "topk", "best of float32" },
    { "", "topk", "takes a long line" },
    { "", "tile_rank", "rows of any size" },
    { "", "nn" },
  }

  it("runs the kernels that are no link's", function()
    if not is_built() then return pending "the CUDA backend on the host was not built" end
    if select(2, run "command -v ${NVCC-nvcc}") ~= 0 then return pending "there is no nvcc" end
    local names = {}
    for i, name in ipairs(FILES) do names[i] = "build/tests/ptx/" .. name .. ".ptx" end
    local make = "cd '" .. here .. "/..' && MAKEFLAGS= make -s -j2 "
    local text, status = run(make .. table.concat(names, " "))
    assert.equal(0, status, text)
    expect_passes("1", OTHERS)
  end)
end)

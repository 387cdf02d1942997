-- The rows of a list of tensors as one matrix: the same bits as after a copy, whatever is asked of
-- it, and no copy on a CUDA device; in-place changes, other engines, and what is refused. Runs on
-- the CPU, which copies, on a CUDA device, and on the host's stand-in for one, which can also count
-- what a million rows would take.
local lunce = require "lunce"
local lib = require "lunce.ffi"
local tensor = require "lunce.tensor"
local device = require("tests.on_device").name
local similarity = lunce.similarity

local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local with = dofile(here .. "with_tiles.lua")
local program = os.getenv "LUNCE_PROGRAM" or here .. "../lunce"
local shim = (os.getenv "LUNCE_CUDA" or ""):match "^(.*/tests/)liblunce_cuda%.so$"
local CUDA = device ~= "cpu"

local function equal(x, y) return x:eq(y):all():item() end

local function lies_apart(x) return rawget(x, "joined") ~= nil end

-- Two parts of different lengths, neither of whole blocks.
local A, B, D = 150, 83, 20
local N = A + B

local function parts(dtype)
  return lunce.randn(A, D, { seed = 1 }):to(dtype):to(device):requires_grad_(),
    lunce.randn(B, D, { seed = 2 }):to(dtype):to(device):requires_grad_()
end

local function far(n) return lunce.arange(n, 1, -1, { dtype = "int64", device = device }) end

-- All that a matrix gives, and the gradients of it.
local function everything(kind, make, dtype)
  local a, b = parts(dtype)
  local S = similarity[kind](make(a, b))
  local most = kind == "dot" and 0.01 or 5
  local y = S:without_self():lse(function(s) return most * s end)
  local sum = S:triangle():sum(function(s) return s * s end)
  local at = S:at(far(N))
  local values, columns = S:topk(4)
  local tail = S:without_self():tail{ k = 40 };
  (y - at + sum + values:sum(2)):sum():backward()
  return { y = y, sum = sum, at = at, values = values, columns = columns, rho = tail.rho,
    beta = tail.beta_hat, da = a.grad, db = b.grad, rows = S.q, count = S:triangle():count() }, S
end

local function together(a, b) return lunce.cat({ a, b }, 1) end
local function list(a, b) return { a, b } end

describe("rows of a list", function()
  for _, case in ipairs{ { "cosine", "float32", "float32" }, { "cosine", "float32", "float16" },
    { "cosine", "float64", "float32" }, { "dot", "float32", "float32" } } do
    local kind, dtype, tiles = unpack(case)
    it(("give the bits of a copy: %s of %s, tiles of %s"):format(kind, dtype, tiles), function()
      local wanted = with(tiles, everything, kind, together, dtype)
      local got, S = with(tiles, everything, kind, list, dtype)
      assert.equal(CUDA and kind == "cosine", lies_apart(S.q))
      for name, x in pairs(wanted) do assert.is_true(equal(got[name], x), name) end
    end)
  end

  it("may be one tensor, or three", function()
    local a, b = parts "float32"
    local one, three = similarity.cosine{ a }, similarity.cosine{ a, b, a }
    assert.equal(a, one.q)
    assert.same({ N + A, D }, three.q.shape)
    assert.is_true(equal(three.q, lunce.cat({ a, b, a }, 1)))
  end)

  it("are copied where they are not contiguous, beside other rows, and by the reference", function()
    local a, b = parts "float32"
    local narrow, other = a:narrow(2, 1, 8), b:narrow(2, 1, 8):contiguous()
    assert.is_false(lies_apart(similarity.cosine{ narrow, other }.q))
    assert.is_false(lies_apart(similarity.cosine({ a, b }, b).q))
    similarity.engine "dense"
    local S = similarity.cosine{ a, b }
    similarity.engine "fused"
    assert.is_false(lies_apart(S.q))
  end)

  it("serve the reference where it is chosen later", function()
    local a, b = parts "float64"
    local S = similarity.cosine{ a, b }
    local fused = S:lse(function(s) return s end)
    similarity.engine "dense"
    local dense = S:lse(function(s) return s end)
    similarity.engine "fused"
    assert.is_true((fused - dense):abs():max():item() < 1e-12)
  end)

  it("outlive the scope in which they are first used", function()
    local a, b = parts "float32"
    local S = similarity.cosine{ a, b }
    local first = lunce.scope(function() return S.q:sum():item() end)
    assert.equal(first, S.q:sum():item())
    local inner
    lunce.scope(function() inner = similarity.cosine{ a, b }.q end)
    if CUDA then assert.same({ N, D }, inner.shape) end
  end)

  it("do not disturb the results that are under way where they are first used", function()
    local a, b = parts "float32"
    local q, y = similarity.cosine{ a, b }.q, lunce.zeros(N, D, { device = device })
    lunce.no_grad(y.add_, y, q)
    assert.is_true(equal(y, together(a, b)))
  end)

  it("that change before the backward pass are refused", function()
    for _, which in ipairs{ 1, 2 } do
      local given = { parts "float32" }
      local y = similarity.cosine(given):lse(function(s) return s end):sum()
      lunce.no_grad(given[which].zero_, given[which])
      local ok, message = pcall(y.backward, y)
      assert.equal(not CUDA, ok) -- a copy does not change
      if CUDA then assert(message:find "changed in place afterwards", message) end
    end
  end)

  it("that change inside together are refused", function()
    local a, b = parts "float32"
    local ok, message = pcall(similarity.together, function()
      local y = similarity.cosine{ a, b }:lse(function(s) return s end)
      lunce.no_grad(b.zero_, b)
      return y
    end)
    assert.equal(not CUDA, ok)
    if CUDA then assert(message:find "rows were changed in place", message) end
  end)

  it("name what does not fit", function()
    local a = lunce.zeros(2, 3, { device = device })
    local other = lunce.zeros(2, 4, { device = device })
    local cases = {
      ["(2,4) float32 on " .. tostring(a.device) .. "; they differ in width"] = { a, other },
      ["rows 2 (2,3) float64"] = { a, a:double() },
      ["a list of such; got 4"] = { a, 4 },
      ["a list of such; got a table"] = {},
    }
    for message, given in pairs(cases) do
      local ok, text = pcall(similarity.cosine, given)
      assert.is_false(ok)
      assert(text:find(message, 1, true), text)
    end
  end)
end)

if not CUDA then return end

describe("joined rows of C", function()
  local function join(a, b)
    lib.call(lib.C.ln_tensor_join, tensor.out(), a.h, b.h)
    return tensor.take()
  end

  it("keep both parts, and are a tensor no more when released", function()
    local handles, live = lunce.memory(device).tensors, lunce.memory(device).live_bytes
    local a, b = lunce.zeros(3, 4, { device = device }), lunce.zeros(2, 4, { device = device })
    local joined = join(a, b)
    assert.same({ 5, 4 }, joined.shape)
    a:free()
    b:free()
    assert.is_true(lunce.memory(device).live_bytes > live)
    joined:free()
    assert.equal(live, lunce.memory(device).live_bytes)
    assert.equal(handles, lunce.memory(device).tensors)
  end)

  it("are refused by every other operator, and as one side of two", function()
    local a, b = lunce.ones(3, 4, { device = device }), lunce.ones(2, 4, { device = device })
    local joined = join(a, b)
    for _, name in ipairs{ "sum", "exp", "t", "clone", "detach", "zero_" } do
      local ok, message = pcall(joined[name], joined)
      assert.is_false(ok, name)
      assert(message:find("joined rows", 1, true), message)
    end
    assert.has_error(function() return joined:to "cpu" end)
    local C, out = lib.C, tensor.out
    assert.error_matches(function()
      lib.call(C.ln_similarity_at, out(), joined.h, a.h, true, far(5):unsqueeze(2).h)
    end, "joined rows are taken where k is NULL")
    assert.error_matches(function()
      lib.call(C.ln_tensor_join, out(), joined.h, a.h)
    end, "joined rows")
  end)

  it("are contiguous and alike", function()
    local a = lunce.zeros(3, 4, { device = device })
    for _, b in ipairs{ a:t(), lunce.zeros(3, 5, { device = device }), a:double(), a:flatten() } do
      assert.error_matches(function() join(a, b) end, "join: rows 2 are")
    end
    local x = lunce.zeros(1, 2, { device = "cpu" })
    assert.error_matches(function() join(x, x) end, "on the CPU")
  end)
end)

if not shim then return end

-- In a process where kernels are asked for and not run, nor interpreted. Its status and what it
-- prints.
local function dry(environment, code)
  local command = "env -u LUNCE_CUDA_HOST_PTX LUNCE_CUDA_HOST_DRY=1 %s %s -e '%s' 2>&1; echo $?"
  local child = io.popen(command:format(environment, program, code))
  local text, status = child:read "*a":match "^(.-)(%d+)\n$"
  child:close()
  return tonumber(status), text
end

describe("what a step of nt_xent asks of a device:", function()
  it("no copy of its views: a fifth of its inputs beside gradients", function()
    local _, text = dry("", [[
      local lunce = require "lunce"
      local gpu = { device = "cuda" }
      local z_i = lunce.zeros(2 ^ 16, 128, gpu):requires_grad_()
      local z_j = lunce.zeros(2 ^ 16, 128, gpu):requires_grad_()
      local inputs = lunce.memory("cuda").live_bytes
      lunce.scope(function() lunce.loss.nt_xent(z_i, z_j, { tau = 0.5 }):backward() end)
      print(lunce.memory("cuda").peak_bytes / inputs - 2)]])
    local beside = tonumber(text)
    assert(beside and beside > 0 and beside < 0.2, text)
  end)

  -- The first makes indices that others find: 43 and 35 when this was written.
  it("no more than 45 launches each", function()
    local code = [[
      local lunce = require "lunce"
      lunce.similarity.tile_dtype "float16"
      local gpu = { device = "cuda" }
      local z_i = lunce.zeros(32, 16, gpu):requires_grad_()
      local z_j = lunce.zeros(32, 16, gpu):requires_grad_()
      for _ = 1, 2 do
        z_i.grad, z_j.grad = nil, nil
        lunce.scope(function() lunce.loss.nt_xent(z_i, z_j, { tau = 0.5 }):backward() end)
      end
      lunce.cuda.synchronize()]]
    assert.equal(0, (dry("LUNCE_CUDA_HOST_FAULT=91", code)))
    assert.equal(3, (dry("LUNCE_CUDA_HOST_FAULT=60", code))) -- it does launch
  end)
end)

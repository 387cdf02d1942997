-- Random orders of what can happen to tensors: created, viewed, computed from, written, freed,
-- dropped, collected, in scopes that end or fail, on the tape, in coroutines, and at last the state
-- closed with whatever is alive. Holds no knowledge of how tensors are owned. Invariant: every
-- element of a live tensor is what was written, every freed tensor refuses its use, and at the end
-- nothing is left. Meant for valgrind and the sanitizers too (run.lua).
--
--   ./lunce tests/stress/orders.lua --orders=100000 --seed=1
--   ./lunce tests/stress/orders.lua --orders=200 --close    closes the state in the 200th
local lunce = require "lunce"
local info = require("lunce.tensor").info
local memory = dofile(debug.getinfo(1, "S").source:match "^@(.*/)" .. "memory.lua")

local args = lunce.args({ orders = 100000, seed = 1, close = false }, { ... })

local random = math.random
local MOST_ALIVE, DEEPEST = 24, 3

-- What must be whole, in no order: entries { t =, root =, depth = }. A root stands for a storage:
-- all its elements are root.mark, and root.t is a tensor that covers them. depth is that of the
-- scope which the tensor belongs to, 0 for none.
local alive, depth, orders = {}, 0, 0

local function add(t, root)
  local entry = { t = t, root = root, depth = depth }
  alive[#alive + 1] = entry
  return entry
end

local function add_root(t, mark)
  return add(t, { mark = mark, t = t })
end

local function pick()
  return alive[random(math.max(#alive, 1))]
end

local function remove(i)
  local entry = alive[i]
  alive[i] = alive[#alive]
  alive[#alive] = nil
  return entry
end

local function take()
  return #alive > 0 and remove(random(#alive)) or nil
end

-- ---- Checks ----------------------------------------------------------------------------------

local function check(entry)
  local t, mark = entry.t, entry.root.mark
  if t:numel() == 0 then return end
  local low, high = t:min():item(), t:max():item()
  if low ~= mark or high ~= mark then
    error(("elements from %g to %g where %g was written"):format(low, high, mark), 0)
  end
end

local function check_freed(t)
  local ok, message = pcall(t.sum, t)
  if ok or not message:find("was freed", 1, true) then
    error("a freed tensor could be used: " .. tostring(message), 0)
  end
end

-- ---- What happens to tensors -----------------------------------------------------------------

local function random_shape()
  if random(50) == 1 then return { 128, 128 } end
  local shape = {}
  for i = 1, random(0, 3) do shape[i] = random(0, 5) end
  return shape
end

local function create()
  local mark = random(1000)
  add_root(lunce.full(random_shape(), mark), mark)
end

local views = {
  function(t) return t:narrow(1, 1, random(t:size(1))) end,
  function(t) return t[random(t:size(1))] end,
  function(t) return t:transpose(1, -1) end,
  function(t) return t:flatten() end,
  function(t) return t:unsqueeze(1):expand(3, unpack(t.shape)) end,
  function(t) return t:detach() end,
  function(t) return t:reshape(-1, t:size(1)):diagonal(0, 1, 2) end,
}

local function view()
  local entry = pick()
  if not entry or entry.t:dim() == 0 or entry.t:dim() > 5 or entry.t:numel() == 0 then return end
  local t = views[random(#views)](entry.t)
  if t == entry.t then return end -- flat already
  if info(t).storage == info(entry.t).storage then
    add(t, entry.root)
  else
    add_root(t, entry.root.mark) -- no view existed
  end
end

local function compute()
  local entry, mark = pick(), random(1000)
  if entry then add_root(entry.t - entry.root.mark + mark, mark) end
end

local function write()
  local entry = pick()
  if not entry or entry.t ~= entry.root.t then return end
  entry.root.mark = random(1000)
  entry.t:fill_(entry.root.mark)
end

local function free()
  local entry = take()
  if not entry then return end
  entry.t:free()
  check_freed(entry.t)
  entry.t:free()
end

-- A tape, walked back or dropped.
local function differentiate()
  local entry = pick()
  if not entry then return end
  local x = entry.t:detach():requires_grad_()
  local y = (x * x + entry.t):sum()
  if random(2) == 1 then return end
  y:backward()
  add_root(x.grad, 2 * entry.root.mark).depth = 0 -- gradients outlive scopes
end

-- A coroutine that never ends holds the tensor.
local function suspend()
  local entry = take()
  coroutine.wrap(function()
    local t = entry and entry.t:unsqueeze(1)
    coroutine.yield()
    return t
  end)()
end

-- Dtypes that no product takes.
local function fail()
  local entry = pick()
  if entry then assert(not pcall(lunce.matmul, entry.t, lunce.eye(2, { dtype = "int64" }))) end
end

local function collect()
  if random(20) == 1 then collectgarbage() else collectgarbage("step", random(100)) end
end

local function check_one()
  local entry = pick()
  if entry then check(entry) end
end

-- ---- Scopes ----------------------------------------------------------------------------------

-- After a scope: what it returned is the outer scope's, the rest of what was created in it free.
local function leave(returned)
  depth = depth - 1
  for i = #alive, 1, -1 do
    local entry = alive[i]
    if entry.depth > depth then
      entry.depth = depth
      if not returned[entry.t] then check_freed(remove(i).t) end
    end
  end
end

local order

local function scope()
  if depth == DEEPEST then return end
  local returned, fails = {}, random(3) == 1
  depth = depth + 1
  local ok, result = pcall(lunce.scope, function()
    for _ = 1, random(3) do order() end
    for _, entry in ipairs(alive) do
      if entry.depth == depth and random(4) == 1 then
        entry.t:keep()
        entry.depth = 0
      elseif entry.depth == depth and not fails and random(4) == 1 then
        returned[entry.t] = { entry.t }
      end
    end
    if fails then error("on purpose", 0) end
    return returned
  end)
  if ok == fails or fails and result ~= "on purpose" then error(result, 0) end
  leave(returned)
end

-- ---- Orders ----------------------------------------------------------------------------------

local happenings = { create, create, create, view, view, view, compute, write, free, take, take,
  differentiate, suspend, fail, collect, check_one, scope }

function order()
  orders = orders + 1
  for _ = 1, random(8) do happenings[random(#happenings)]() end
  while #alive > MOST_ALIVE do
    if random(2) == 1 then free() else take() end
  end
  if args.close and orders >= args.orders then os.exit(0, true) end
end

local function run()
  while orders < args.orders do order() end
  for _, entry in ipairs(alive) do check(entry) end
  alive = {}
end

math.randomseed(args.seed)
local before = memory.settled()
coroutine.wrap(run)() -- on a stack of its own, for what a stack has forgotten it may still refer to
memory.same_as(before, "orders")
print(("orders: %d, seed %d: nothing broken, nothing left"):format(orders, args.seed))

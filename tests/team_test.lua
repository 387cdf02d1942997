-- Where the threads of a team may run.
local lunce = require "lunce"

local function text_of(path)
  local file = io.open(path)
  local text = file and file:read "*a"
  if file then file:close() end
  return text
end

-- What the system says of the processors that each thread of this process may run on, by thread.
local function allowed_processors()
  local allowed = {}
  for id in io.popen("ls /proc/" .. text_of("/proc/self/stat"):match "^%d+" .. "/task"):lines() do
    local status = text_of("/proc/self/task/" .. id .. "/status")
    if status then allowed[tonumber(id)] = status:match "Cpus_allowed_list:%s*(%S+)" end
  end
  return allowed
end

local function count(list)
  local n = 0
  for first, last in list:gmatch "(%d+)%-?(%d*)" do
    n = n + (tonumber(last) or tonumber(first)) - tonumber(first) + 1
  end
  return n
end

describe("a team", function()
  local starter = tonumber(text_of("/proc/self/stat"):match "^%d+")
  local processors = count(allowed_processors()[starter])

  local function run()
    local z = lunce.randn(2048, 64, { seed = 1 })
    lunce.similarity.cosine(z):without_self():lse(function(s) return s / 0.1 end)
  end

  it("keeps its helpers off the processor of the thread that starts it", function()
    lunce.threads(processors)
    run()
    local allowed = allowed_processors()
    local helpers = 0
    for id, list in pairs(allowed) do
      if id ~= starter and count(list) == processors - 1 then helpers = helpers + 1 end
    end
    assert.is_true(helpers >= processors - 1)
  end)

  it("leaves the thread that starts it and its children free", function()
    run()
    assert.are.equal(processors, count(allowed_processors()[starter]))
    local child = io.popen("grep Cpus_allowed_list /proc/self/status"):read "*a"
    assert.are.equal(processors, count(child:match ":%s*(%S+)"))
  end)

  it("keeps off nothing where it is larger than the processors", function()
    lunce.threads(processors + 1)
    run()
    for _, list in pairs(allowed_processors()) do assert.are.equal(processors, count(list)) end
    lunce.threads(processors)
  end)
end)

-- The README's Lua is run as it is printed.
local here = debug.getinfo(1, "S").source:match "^@(.*/)" or "./"
local program = os.getenv "LUNCE_PROGRAM" or here .. "../lunce"

describe("the README", function()
  local file = assert(io.open(here .. "../README.md"))
  local text = file:read "*a"
  file:close()
  local count = 0
  for code in text:gmatch "```lua\n(.-)```" do
    count = count + 1
    it("runs its example " .. count, function()
      local name = os.tmpname()
      local script = assert(io.open(name, "w"))
      script:write(code)
      script:close()
      local pipe = io.popen(program .. " " .. name .. " 2>&1; echo status $?")
      local output = pipe:read "*a"
      pipe:close()
      os.remove(name)
      assert.matches("status 0\n$", output)
      assert.matches("%d", output:gsub("status %d+\n$", ""))
    end)
  end

  it("has examples", function() assert.is_true(count >= 2) end)
end)

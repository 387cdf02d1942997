-- Figures: what gnuplot makes of them, hostile text, and bad input; and the progress line.
local plot = require "lunce.plot"
local progress = require "lunce.progress"

local function read(path)
  local file = io.open(path, "rb")
  local text = file and file:read "*a"
  if file then file:close() end
  return text
end

describe("figures:", function()
  local base = os.tmpname()
  local series = { { name = "a's \"loss\"", y = { 3, 2, 1 } },
    { name = "b", x = { 1, 2 }, y = { 1, 0 / 0 } } }
  after_each(function()
    for _, kind in ipairs{ ".svg", ".png", ".svg.partial", ".png.partial" } do
      os.remove(base .. kind)
    end
  end)
  teardown(function() os.remove(base) end)

  it("lines as SVG and PNG", function()
    assert.is_true(plot.lines(base .. ".svg", series, { title = "t", x = "epoch", y = "loss" }))
    assert.is_truthy(read(base .. ".svg"):match "<svg.*</svg>")
    assert.is_true(plot.lines(base .. ".png", series, { log_y = true }))
    assert.equal("\137PNG", read(base .. ".png"):sub(1, 4))
    assert.is_nil(read(base .. ".png.partial"))
  end)

  it("histograms, of values that may not be finite", function()
    local values = { { name = "v", values = { 1, 2, 2, 3, -math.huge, 0 / 0 } } }
    assert.is_true(plot.histogram(base .. ".svg", values, { bins = 3 }))
    assert.is_true(plot.histogram(base .. ".svg", values, { bins = 3, range = { 0, 4 } }))
    assert.is_true(plot.histogram(base .. ".svg", { { values = { 1 } } }))
  end)

  it("text is text, never a command", function()
    local trap = base .. "-trap"
    local evil = ("x'; system('touch %s') #`touch %s`\n!touch %s"):format(trap, trap, trap)
    assert.is_true(plot.lines(base .. ".svg", { { name = evil, y = { 1, 2 } } },
      { title = evil, x = evil, y = evil }))
    assert.is_nil(read(trap))
  end)

  it("a place that cannot be written is nil and a message", function()
    local made, message = plot.lines("/nonexistent/a.svg", series)
    assert.is_nil(made)
    assert.is_truthy(message:match "a.svg was not made: .*%S")
  end)

  it("bad input", function()
    local function refused(pattern, fn)
      local ok, message = pcall(fn)
      assert.is_false(ok)
      assert(message:match("plot_test.lua:%d+: .*" .. pattern), message)
    end
    refused("ends in .svg or .png", function() plot.lines("a.pdf", series) end)
    refused("takes a list of series", function() plot.lines("a.svg", {}) end)
    refused("series 1 has no y", function() plot.lines("a.svg", { { values = { 1 } } }) end)
    refused("series 1 is empty", function() plot.histogram("a.svg", { { values = {} } }) end)
    refused("series 1 has 1 x for 2 y", function()
      plot.lines("a.svg", { { x = { 1 }, y = { 1, 2 } } })
    end)
    refused("unknown option titel", function() plot.lines("a.svg", series, { titel = "" }) end)
  end)
end)

describe("progress:", function()
  local function stream()
    local lines = {}
    return { lines = lines, flush = function() end,
      write = function(_, ...) lines[#lines + 1] = table.concat{ ... } end }
  end

  it("to a file: the first and the last line, not each", function()
    local out = stream()
    local line = progress.new(out, 100)
    line.live = false
    for i = 1, 100 do line:show(i, "loss %.2f", 1 / i) end
    line:finish()
    assert.equal(2, #out.lines)
    assert.is_truthy(out.lines[2]:match "^100.0%%  loss 0.01  %d+ s, 0 s left\n$")
  end)

  it("to a terminal: one line, wiped by the next", function()
    local out = stream()
    local line = progress.new(out, 2)
    line.live = true
    line:show(2, "a long line")
    line:show(2, "short")
    line:finish()
    assert.equal("\r", out.lines[1]:sub(1, 1))
    assert.equal(#out.lines[1], #out.lines[2])
    assert.equal("\n", out.lines[3])
  end)
end)

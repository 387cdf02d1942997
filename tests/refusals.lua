-- Checks of errors: that a call raises, at the line of the test's file, and what the message says.
-- Holds no test.
--
--   local refuses, raises = dofile(here .. "refusals.lua")("nn_test.lua")
--   refuses(function() nn.Linear(0, 1) end, "nn.Linear", "0")
--   raises("nn.Linear", nn.Linear, 0, 1)

local function texts_in(message, ...)
  for _, text in ipairs { ... } do
    assert(message:find(text, 1, true), message .. "\n  lacks: " .. text)
  end
end

-- What is called from here directly has this file for its caller.
local HERE = "refusals%.lua:%d+: "

return function(file)
  local at_caller = file:gsub("%p", "%%%0") .. ":%d+: "

  local function message_of(fn, ...)
    local ok, message = pcall(fn, ...)
    assert(not ok, "nothing was raised")
    assert(message:match(at_caller) or message:match(HERE), "not at the caller's line: " .. message)
    return message
  end

  local function refuses(fn, ...) texts_in(message_of(fn), ...) end
  local function raises(text, fn, ...) texts_in(message_of(fn, ...), text) end
  return refuses, raises
end

-- Checks and prints the sizes and rates that layers are made with. Holds no tensor.
local describe = require("lunce.options").describe
local raise = require("lunce.ffi").raise

local M = {}

local function is_whole(n, lowest) return type(n) == "number" and n % 1 == 0 and n >= lowest end

--- n, which must be a whole number of at least 1; `what: name` is what the message calls it.
function M.positive(n, what, name)
  if not is_whole(n, 1) then
    raise("%s: %s is %s; a whole number of at least 1 is taken", what, name, describe(n))
  end
  return n
end

--- { height, width } from a number or such a pair, each at least `lowest`.
function M.pair(x, what, name, lowest)
  if is_whole(x, lowest) then return { x, x } end
  if type(x) == "table" and #x == 2 and is_whole(x[1], lowest) and is_whole(x[2], lowest) then
    return { x[1], x[2] }
  end
  raise("%s: %s is %s; a whole number of at least %d or a pair { height, width } is taken", what,
    name, describe(x), lowest)
end

--- n, which must divide both a and b.
function M.divisor(n, what, name, a, b)
  M.positive(n, what, name)
  if a % n ~= 0 or b % n ~= 0 then
    raise("%s: %s is %d; it must divide both %d and %d channels", what, name, n, a, b)
  end
  return n
end

--- p, which must lie in [0, 1].
function M.probability(p, what, name)
  if not (type(p) == "number" and p >= 0 and p <= 1) then
    raise("%s: %s is %s; a number from 0 to 1 is taken", what, name, describe(p))
  end
  return p
end

--- "3" or "3x5".
function M.text(pair)
  return pair[1] == pair[2] and tostring(pair[1]) or pair[1] .. "x" .. pair[2]
end

return M

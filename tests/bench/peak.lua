-- Runs a script and tells the most memory that the process held: ./lunce tests/bench/peak.lua
-- script.lua arguments. Prints, after the script's output, "peak_mb <megabytes>". peak.py is its
-- peer for Python scripts.
local script = table.remove(arg, 1)
rawset(arg, 0, script)
assert(loadfile(script))(unpack(arg))
for line in io.lines "/proc/self/status" do
  local kilobytes = line:match "^VmHWM:%s*(%d+) kB"
  if kilobytes then print(("peak_mb %.1f"):format(kilobytes / 1024)) end
end

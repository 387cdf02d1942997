-- luacheck's settings: LuaJIT's globals, and those of busted in the tests. Lengths are .ci/check's;
-- `not (x > y)` is allowed (581), because it is true of NaN.
std = "luajit"
max_line_length = false
ignore = { "581" }
exclude_files = { "build" }
files["tests/*_test.lua"] = { std = "+busted" }

-- The program as its user meets it: command line, exit statuses, error positions, strict globals,
-- Ctrl-C and the prompt, plain and on a terminal. Every case starts the program anew.
local PROGRAM = os.getenv "LUNCE_PROGRAM" or "./lunce"

local function quote(s) return "'" .. s:gsub("'", [['\'']]) .. "'" end

local function read(path)
  local file = assert(io.open(path, "rb"))
  local text = file:read("*a")
  file:close()
  return text
end

local folder -- of this file's temporaries

local function write(name, text)
  local path = folder .. "/" .. name
  local file = assert(io.open(path, "wb"))
  file:write(text)
  file:close()
  return path
end

-- Runs a shell command; returns its output, its errors and its exit status.
local function shell(command)
  os.execute(("{ %s ; } >%s/out 2>%s/err; echo $? >%s/status"):format(command, folder, folder,
    folder))
  return read(folder .. "/out"), read(folder .. "/err"), tonumber(read(folder .. "/status"))
end

local function lunce(arguments, input)
  return shell(("timeout --foreground 60 %s %s <%s"):format(PROGRAM, arguments,
    input and quote(write("input", input)) or "/dev/null"))
end

-- Sends SIGINT to the program once it has printed "ready", and again after `again` seconds.
local function interrupt(code, again)
  local log = folder .. "/log"
  os.remove(log)
  return shell(([[%s %s >%s & pid=$!
    until grep -qs ready %s || ! kill -0 $pid; do sleep 0.02; done
    kill -INT $pid
    %s
    wait $pid; status=$?; cat %s; (exit $status)]]):format(PROGRAM,
    quote(write("interrupted.lua", code)), log, log,
    again and ("sleep %g; kill -INT $pid"):format(again) or "", log))
end

-- Types into the program on a terminal. Each step waits for a text to appear, then sends keys.
-- Returns what the terminal showed and the exit status.
local function type_in(steps)
  local screen = folder .. "/screen"
  local feed = {}
  for _, step in ipairs(steps) do
    feed[#feed + 1] = ("n=0; until grep -qF %s %s 2>/dev/null || [ $n = 500 ]; do sleep 0.02; "
      .. "n=$((n + 1)); done; sleep 0.1; printf %s"):format(quote(step[1]), screen,
      quote(step[2]))
  end
  os.remove(screen)
  local _, _, status = shell(("(%s) | XDG_STATE_HOME=%s/state TERM=xterm SHELL=/bin/sh "
    .. "timeout --foreground 60 script -qefc %s %s"):format(table.concat(feed, "\n"), folder,
    quote("exec " .. PROGRAM), screen))
  return read(screen), status
end

describe("program:", function()
  setup(function()
    folder = os.tmpname()
    os.remove(folder)
    assert(os.execute("mkdir " .. folder) == 0)
  end)
  teardown(function() os.execute("rm -r " .. folder) end)

  describe("the command line", function()
    it("runs a script with its arguments", function()
      local script = write("arguments.lua", "print(..., arg[0], arg[2], #arg)")
      local out, err, status = lunce(script .. " one -x")
      assert.equal("one\t" .. "-x\t" .. script .. "\t-x\t2\n", out:gsub("one\t", "one\t-x\t", 1))
      assert.equal("", err)
      assert.equal(0, status)
    end)

    it("runs code, more than once, before the script", function()
      local script = write("after.lua", "io.write 'script'")
      assert.equal("1 2 script", (lunce("-e 'n = 1 io.write(n, \" \")' "
        .. "-e 'io.write(n + 1, \" \")' " .. script)))
    end)

    it("runs standard input for - and where there is no terminal", function()
      assert.equal("in a\n", (lunce("- a", "print('in ' .. ...)")))
      assert.equal("piped\n", (lunce("", "print 'piped'")))
    end)

    it("prints the version and the options", function()
      assert.matches("^lunce %d+%.%d+%.%d+", (lunce("--version")))
      assert.equal((lunce("-v")), (lunce("--version")))
      assert.matches("^usage: lunce", (lunce("--help")))
    end)

    it("refuses what it does not know with status 2", function()
      for _, arguments in ipairs{ "--fast", "-e", "--threads=many", "--threads=" } do
        local out, err, status = lunce(arguments)
        assert.equal("", out)
        assert.matches("^lunce: .*" .. arguments:gsub("%p", "%%%0"), err)
        assert.equal(2, status)
      end
    end)

    it("sets the team of threads", function()
      assert.equal("3\n", (lunce("--threads=3 -e 'print(lunce.threads())'")))
      local _, err, status = lunce("--threads=0 -e ''")
      assert.matches("threads", err)
      assert.equal(1, status)
    end)

    it("does not load the library until it is asked for", function()
      local out = lunce([[-e 'print(io.open("/proc/self/maps"):read("*a"):match "liblunce")']])
      assert.equal("nil\n", out)
    end)

    it("finds lualib beside itself, installed and from any folder", function()
      for _, place in ipairs{ { "lunce", "lualib" }, { "bin/lunce", "share/lunce/lualib" },
        { "build/lunce", "lualib" } } do
        local root, link = folder .. "/root", folder .. "/link"
        local command = [[mkdir -p ROOT/bin ROOT/build ROOT/share/lunce &&
          cp -L LUNCE ROOT/BINARY &&
          cp -R lualib ROOT/LUALIB && cd / && ln -s ROOT/BINARY LINK &&
          LD_LIBRARY_PATH=$OLDPWD/lib LINK -e 'print(package.path)'; rm -r ROOT LINK]]
        local out, err = shell((command:gsub("%f[%u]%u%u+%f[^%u]", { ROOT = root, LINK = link,
          LUNCE = PROGRAM, BINARY = place[1], LUALIB = place[2] })))
        assert.equal("", err)
        assert.equal(root .. "/" .. place[2] .. "/?.lua", out:match("^[^;]*"))
      end
    end)
  end)

  describe("a failing script", function()
    it("says where, gives a traceback and status 1", function()
      local script = write("fails.lua",
        "local function f()\n  error 'boom'\nend\nprint 'so far'\nf()")
      local out, err, status = lunce(script)
      assert.equal("so far\n", out)
      assert.equal(("lunce: %s:2: boom\nstack traceback:\n\t[C]: in function 'error'\n"
        .. "\t%s:2: in function 'f'\n\t%s:5: in main chunk\n"):format(script, script, script), err)
      assert.equal(1, status)
    end)

    it("may throw any value", function()
      local _, err, status = lunce("-e 'error(setmetatable({}, "
        .. "{ __tostring = function() return \"a table\" end }))'")
      assert.matches("^lunce: a table\n", err)
      assert.equal(1, status)
      assert.matches("^lunce: %(error object is a nil value%)", (select(2, lunce("-e 'error()'"))))
    end)

    it("of a library without its files names the file", function()
      local _, err, status = shell(("mkdir %s/bare && cp -L %s %s/bare && cp -R lualib %s/bare && "
        .. "LD_LIBRARY_PATH=$PWD/lib %s/bare/lunce -e 'require \"lunce\"'"):format(folder, PROGRAM,
        folder, folder, folder))
      assert.matches("^lunce: lunce: ln%.h was not found", err)
      assert.is_nil(err:find("attempt to", 1, true))
      assert.equal(1, status)
    end)

    it("may be absent, a folder or not Lua", function()
      local _, err, status = lunce(folder .. "/none.lua")
      assert.matches("^lunce: cannot open .*/none%.lua: No such file", err)
      assert.equal(1, status)
      assert.matches("^lunce: cannot read ", (select(2, lunce(folder))))
      local script = write("syntax.lua", "local x =\n= 1")
      assert.matches("^lunce: .*syntax%.lua:2: unexpected symbol", (select(2, lunce(script))))
    end)

    it("may not be bytecode", function()
      local script = write("code.luac", string.dump(function() return 1 end))
      for _, arguments in ipairs{ quote(script), "- <" .. quote(script) } do
        local _, err, status = shell(PROGRAM .. " " .. arguments)
        assert.matches("is bytecode; only Lua text is run\n$", err)
        assert.equal(1, status)
      end
    end)
  end)

  describe("globals", function()
    it("are declared or an error that names them", function()
      for code, message in pairs{
        ["print(tau)"] = "1: undeclared global 'tau'",
        ["tau = 1"] = "1: assignment to undeclared global 'tau'; declare it: local tau",
        ["local function f()\n tau = 1\nend\nf()"] = "2: assignment to undeclared global 'tau'",
        ["lunce.zeros(1)"] = "1: undeclared global 'lunce'",
      } do
        local script = write("globals.lua", code)
        local _, err, status = lunce(script)
        assert.equal("lunce: " .. script .. ":" .. message,
          err:sub(1, #"lunce: " + #script + 1 + #message))
        assert.equal(1, status)
      end
    end)

    it("of a console are made by its main chunks only", function()
      assert.equal("2\n", (lunce("-e 'n = 1' -e 'n = n + 1 print(n)'")))
      local _, err = lunce("-e 'local function f() n = 1 end f()'")
      assert.matches("assignment to undeclared global 'n'", err)
    end)

    it("keep Lua's rules in modules", function()
      write("probe.lua", "made_here = 1 return { utf8 = utf8 }")
      local out = lunce(([[-e 'package.path = "%s/?.lua"' -e 'print(require("probe").utf8)' \
        -e 'print(made_here)']]):format(folder))
      assert.equal("nil\n1\n", out)
    end)
  end)

  describe("Ctrl-C", function()
    it("stops Lua code with status 130", function()
      local _, err, status = interrupt [[
        jit.off() print "ready" io.stdout:flush() while true do end]]
      assert.matches("^lunce: interrupted\nstack traceback:", err)
      assert.equal(130, status)
    end)

    it("is not swallowed by pcall, whose clean-up still runs", function()
      local out, err, status = interrupt([[
        jit.off()
        local function work() print "ready" io.stdout:flush() while true do end end
        print(pcall(work))
        for _ = 1, 100 do print "clean" end
        while true do pcall(work) end]])
      assert.matches("^lunce: interrupted", err)
      assert.matches("false\tinterrupted\n" .. ("clean\n"):rep(100), out)
      assert.equal(130, status)
    end)

    it("stops compiled code at the library's next operator", function()
      local _, err, status = interrupt([[
        local lunce = require "lunce"
        local x = lunce.zeros(1000)
        print "ready" io.stdout:flush()
        while true do x = x + 1 end]])
      assert.matches("^lunce: .*interrupted", err)
      assert.equal(130, status)
    end)

    it("given twice exits from a compiled loop", function()
      local _, _, status = interrupt("print 'ready' io.stdout:flush() while true do end", 0.3)
      assert.equal(130, status)
    end)

    it("leaves the prompt and its tensors intact", function()
      local out, err, status = lunce("-i", [[
x = lunce.ones(3)
io.popen('kill -INT $PPID'):close() while true do x:sum() end
x:sum():item()
]])
      assert.equal("interrupted\n", err)
      assert.equal("3\n", out)
      assert.equal(0, status)
    end)
  end)

  describe("the prompt", function()
    local function dialogue(input) return lunce("-i", input) end

    it("prints values, and none after a semicolon", function()
      assert.equal("2\na\nb\nnil\n",
        (dialogue("x = 1\nx + 1\n'a', 'b'\nx + 1;\nnil\nlocal y = 2\n")))
      assert.equal("{ 1, { 2 }, n = 3, s = \"t\" }\n{}\n", (dialogue("{1,{2},n=3,s='t'}\n{}")))
      assert.equal("5 -- no comment\n6\n", (dialogue("'5 -- no comment' -- one\n6 -- two")))
    end)

    it("prints tensors by their own words", function()
      assert.matches("^tensor %(2,2%) float32", (dialogue("lunce.ones(2, 2)\n")))
    end)

    it("goes on over lines until an entry is whole", function()
      assert.equal("1\n2\n", (dialogue("for i = 1, 2 do\n  print(i)\nend\n")))
      assert.equal("3\n", (dialogue("1 +\n2\n")))
      assert.equal("a\nb\n", (dialogue("[[a\nb]]\n")))
    end)

    it("keeps the session after an error and names the line", function()
      local out, err, status = dialogue("x = 5\nerror 'bad'\nx + * 1\nunknown\nx\n")
      assert.equal("5\n", out)
      assert.matches("^prompt:1: bad\n", err)
      assert.matches("\nprompt:1: [^\n]* near '%+'\n", err)
      assert.matches("\nprompt:1: undeclared global 'unknown'\n", err)
      assert.equal(0, status)
    end)

    it("keeps the entry's line in errors of the library", function()
      assert.matches("^prompt:1: ", (select(2, dialogue("lunce.ones(2) + lunce.ones(3)\n"))))
    end)

    it("survives values that cannot be printed", function()
      local out, err = dialogue("setmetatable({}, { __tostring = function() error 'no' end })\n7\n")
      assert.equal("7\n", out)
      assert.matches("no", err)
    end)

    it("stays after a script, also one that failed", function()
      local script = write("stays.lua", "rawset(_G, 'kept', 8) error 'late'")
      for _, arguments in ipairs{ "-i " .. script, script .. " -i" } do
        local out, err = lunce(arguments, "kept\n")
        assert.equal("8\n", out)
        assert.matches("late", err)
      end
      assert.equal("-i\n", (lunce("-- " .. write("own.lua", "print(...)") .. " -i", "print 'x'")))
    end)
  end)

  describe("on a terminal, the prompt", function()
    local function need_terminal()
      if select(3, shell "SHELL=/bin/sh script -qec true /dev/null") ~= 0 then
        pending "script(1), which makes a terminal, is absent or cannot"
      end
    end

    it("edits, interrupts, recalls and leaves", function()
      need_terminal()
      local screen, status = type_in{
        { "Ctrl-D leaves", "x = 41\r" },
        { "x = 41", "x = x + 1 print(x * 1000)\r" },
        { "42000", "discarded" },
        { "discarded", "\003" },
        { "discarded", "while true do end\r" },
        { "while true do end", "\003" },
        { "interrupted", "for i = 1, 2 do\r" },
        { "for i", "print(i + 200, 'é') end\r" },
        { "202", "\27[A\27[A\27[A\r" },
        { "43000", "\004" },
      }
      assert.equal(0, status)
      assert.matches("201\té\r\n202\té\r\n", screen)
      assert.is_nil(screen:match("prompt:"))
      assert.equal(table.concat({ "_HiStOrY_V2_", "x = 41", "x = x + 1 print(x * 1000)",
        "while true do end", "for i = 1, 2 do\nprint(i + 200, 'é') end",
        "x = x + 1 print(x * 1000)\n" }, "\n"), (read(folder .. "/state/lunce/history")
        :gsub("\\(%d%d%d)", function(octal) return string.char(tonumber(octal, 8)) end)))
    end)

    it("remembers entries between sessions", function()
      need_terminal()
      type_in{ { "Ctrl-D leaves", "remembered = 'first' .. 'ly'\r" }, { "remembered", "\004" } }
      local screen = type_in{ { "Ctrl-D leaves", "\27[A" }, { "remembered", "\r" },
        { "remembered", "remembered\r" }, { "firstly", "\004" } }
      assert.matches("firstly", screen)
    end)
  end)
end)

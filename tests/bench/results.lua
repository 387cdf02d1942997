-- The file of a bench's results: Markdown with what was measured, where and of which commit. Holds
-- no measure. Invariant: the file is whole at any time, and a figure that there is not reads "not
-- measured", with the reason where one is known.
local M = {}

local NOT = "not measured"

-- The first line that a command prints, nil without one.
local function output_of(command)
  local pipe = io.popen(command .. " 2>/dev/null")
  local line = pipe:read "*l"
  pipe:close()
  return line ~= "" and line or nil
end

local function first_line(path, pattern)
  local file = io.open(path)
  local line = file and file:read "*l"
  if file then file:close() end
  return line and line:match(pattern or ".+")
end

-- A folder that `make dist` made says it in a file.
local function commit()
  local given = first_line "commit"
  if given then return given end
  local hash = output_of "test -e .git && git rev-parse HEAD"
  if not hash then return "unknown" end
  local changed = output_of "git status --porcelain --untracked-files=no"
  return hash .. (changed and ", with changes" or "")
end

local function driver()
  return output_of "nvidia-smi --query-gpu=driver_version --format=csv,noheader"
    or first_line("/proc/driver/nvidia/version", "(%d+%.[%d.]+)") or "unknown"
end

local function command_line()
  local words = {}
  for i = 0, #arg do words[#words + 1] = arg[i] end
  return "DEVICE=cuda ./lunce " .. table.concat(words, " ")
end

--- "NVIDIA H200" becomes "h200".
---@param model string
---@return string
function M.slug(model)
  return (model:lower():gsub("^nvidia ", ""):gsub("[^%w]+", "-"):gsub("^%-+", ""):gsub("%-+$", ""))
end

--- What a head says of a run on this device, as { name, value } in order.
---@param model string
---@param torch string PyTorch's version, or why there is none
---@return string[][]
function M.head(model, torch)
  return { { "device", model }, { "date", os.date "!%Y-%m-%d %H:%M UTC" }, { "commit", commit() },
    { "driver", driver() }, { "command", "`" .. command_line() .. "`" }, { "beside", torch } }
end

-- What a row says of a side: its figure, nothing where the side has none to give.
local function figure(row, result, side, text_of)
  local value = result and result.median[side]
  if value then return text_of(value) end
  return (side == "lunce" or row.torch) and NOT or ""
end

local function line(row, result, text_of)
  local ratio = result and result.ratio.PyTorch
  return ("| %s | %s | %s | %s | %s | %s |"):format(row.name, row.unit,
    figure(row, result, "lunce", text_of), figure(row, result, "PyTorch", text_of),
    ratio and text_of(ratio) or "", result and result.rounds > 0 and result.rounds or "")
end

local function reasons(rows, results)
  local lines = {}
  for _, row in ipairs(rows) do
    for side, reason in pairs(results[row] and results[row].missing or {}) do
      lines[#lines + 1] = ("- %s, %s: %s"):format(row.name, side, reason)
    end
  end
  table.sort(lines)
  if #lines > 0 then table.insert(lines, 1, "Why figures were not measured:\n") end
  return lines
end

--- Writes the file anew.
---@param path string
---@param run { title: string, note: string, head: string[][], rows: table[], results: table }
---@param text_of fun(x: number): string
function M.write(path, run, text_of)
  local lines = { "# " .. run.title, "", run.note, "", "| | |", "| --- | --- |" }
  for _, pair in ipairs(run.head) do lines[#lines + 1] = ("| %s | %s |"):format(unpack(pair)) end
  lines[#lines + 1] = "\n| what | unit | lunce | PyTorch | ratio | rounds |"
  lines[#lines + 1] = "| --- | --- | --- | --- | --- | --- |"
  for _, row in ipairs(run.rows) do
    lines[#lines + 1] = line(row, run.results[row], text_of)
  end
  lines[#lines + 1] = ""
  for _, reason in ipairs(reasons(run.rows, run.results)) do lines[#lines + 1] = reason end
  local file = assert(io.open(path .. ".part", "w"))
  file:write((table.concat(lines, "\n"):gsub("\n+$", "")), "\n")
  file:close()
  assert(os.rename(path .. ".part", path))
end

return M

-- Replace what a request held by what it used. Once per id: the first settlement removes the request's marker, and
-- without the marker nothing moves. Where the admission was sent twice, an empty marker stays for a while, so that a copy
-- which is still on its way takes nothing; and where nothing moves, so that a request teaches once.
--
-- A rate moves by (used - granted): a give-back lowers its TAT; more than was granted is debt, taken from now on. A
-- missing rate stays missing. The hold of a budget or a slot is dropped and what was really used is spent, unless the hold
-- has expired, or what it was part of was lost and made anew (then metering brings it). Nor is it spent by a settlement
-- that comes late, where the budget was meanwhile loaded from a ledger that may know it already.
--
-- It may bring what the call used, for the estimates of its tenant and model: four packed doubles, prompt bytes, prompt
-- tokens, a running median of answers, their number. Formulas and constants are those of domain/estimates.py.
-- A request that took nothing here (on a cluster: nothing of its tenant's) has no marker, and teaches, too.
--
-- KEYS  1 marker, then those to be moved: rates, budgets, concurrency limits; then the estimates, if there is a sample
-- ARGV  1 numbers, packed as little-endian doubles:
--       now (us; 0: the server's clock), rates, samples (0 or 1), late (0 or 1), copies (1: it was sent twice), then
--       each position among the takes (from 1), in the order of the keys
--       each amount used: of rates in us, of budgets in their unit, 0 of a slot (which is just freed)
--       per sample: prompt bytes, prompt tokens, answer tokens (0: nothing to learn)
-- Result 1 settled, 0 nothing to do

local MINUTE, DEBTS, LARGEST = 60000000, 1200000000, 2 ^ 53 - 1 -- as in admit.lua
local EMPTY_MS = 60000 -- for how long an empty marker stays: no network holds a command back for longer
local MOST_ANSWERED = 1000000
local NUMBERS = '<dddddddddddddddddddddddddddddddd' -- 32, to cut formats from
local call, try, tonumber, sub, max, min = redis.call, redis.pcall, tonumber, string.sub, math.max, math.min
local codec, unpack = struct or string, unpack or table.unpack
local pack, read = codec.pack, codec.unpack

local found = call('MGET', unpack(KEYS))
local mark = found[1]
local held = mark and #mark % 8 == 0 and #mark >= 24
local asked, marked = #ARGV[1] / 8, held and #mark / 8
local n = {read(asked <= 32 and sub(NUMBERS, 1, 1 + asked) or '<' .. string.rep('d', asked), ARGV[1])}
local now, rates, samples, late, copies = unpack(n, 1, 5)
local teaches_only = samples == 1 and #KEYS == 2
if not held and (mark or not teaches_only) then return 0 end -- nothing was taken, or it is not ours
local granted = {0, LARGEST} -- what was taken begins with the third
if held then granted = {read(marked <= 32 and sub(NUMBERS, 1, 1 + marked) or '<' .. string.rep('d', marked), mark)} end
local taken, expiry = granted[1], granted[2]
if copies > 0 or teaches_only then
  call('SET', KEYS[1], pack('<dd', 0, LARGEST), 'PX', EMPTY_MS)
else
  call('DEL', KEYS[1])
end
if now == 0 then
  local time = call('TIME')
  now = time[1] * 1000000 + time[2]
end
if expiry <= now then return 0 end -- the hold has expired, and is released

local last = #KEYS - samples
local PLACE, USED = 4, 3 + last -- where the columns begin, for the keys from the second on
for k = 2, 1 + rates do
  local key, raw, move = KEYS[k], found[k], n[USED + k] - (granted[2 + n[PLACE + k]] or 0)
  if raw and move ~= 0 then
    local old, epoch = tonumber(raw), ''
    if not old then
      old, epoch = string.match(raw, '^(%d+)( %d+)$') -- see admit.lua
      old = old and tonumber(old)
    end
    if old and old >= 0 and old <= LARGEST then
      local tat = move < 0 and max(0, old + move) or min(max(old, now) + move, LARGEST)
      local minute = tat - tat % MINUTE
      if old < minute then
        local ms = math.ceil((minute + MINUTE + DEBTS - now) / 1000)
        call('SET', key, string.format('%d', tat) .. epoch, 'PX', ms)
      elseif epoch ~= '' or try('INCRBY', key, tat - old) ~= tat then
        call('SET', key, string.format('%d', tat) .. epoch, 'KEEPTTL')
      end
    end
  end
end
for k = 2 + rates, last do
  local key, raw, used, amount = KEYS[k], found[k], n[USED + k], granted[2 + n[PLACE + k]] or 0
  if raw and #raw >= 24 and #raw % 16 == 8 then
    local spent, loaded, made = read('<ddd', raw)
    for at = 25, made <= taken and #raw or 0, 16 do
      local until_us, sum = read('<dd', raw, at)
      if until_us == expiry then
        call('SETRANGE', key, at + 7, pack('<d', max(0, sum - amount)))
        if used > 0 and not (late > 0 and loaded > taken) then
          call('SETRANGE', key, 0, pack('<d', min(spent + used, LARGEST)))
        end
      end
    end
  end
end

if samples == 1 then
  local raw = found[#KEYS]
  local e = {0, 0, 0, 0}
  if raw and #raw == 32 then e = {read('<dddd', raw)} end
  local bytes, tokens, answer = unpack(n, USED + last + 1, USED + last + 3)
  if tokens > 0 then
    e[1], e[2] = e[1] + bytes, e[2] + tokens
    if e[2] > 100000 then e[1], e[2] = e[1] / 2, e[2] / 2 end
  end
  if answer > 0 then
    local step = max(0.05, 0.5 / (1 + e[4] / 4))
    if e[4] == 0 then
      e[3] = min(answer, MOST_ANSWERED)
    elseif answer > e[3] then
      e[3] = min(e[3] * (1 + step), answer, MOST_ANSWERED)
    else
      e[3] = max(e[3] / (1 + step), answer)
    end
    e[4] = e[4] + 1
  end
  call('SET', KEYS[#KEYS], pack('<dddd', e[1], e[2], e[3], e[4]), 'PX', 2592000000) -- 30 days
end
return 1

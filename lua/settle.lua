-- Replace what a request held by what it used. Once per id: the first settlement removes the request's marker, and
-- without the marker nothing moves.
--
-- A rate moves by (used - granted): a give-back lowers its TAT; more than was granted is debt, taken from now on. A
-- missing rate stays missing. A budget's hold is dropped and its real use is spent, unless the hold has expired (then
-- metering brings it). A slot is freed.
--
-- KEYS  1 marker, then as for admit: one per rate, two per budget (hash, holds), one per concurrency limit
-- ARGV  1 now (us; 0: the server's clock)   2 request id   3 rates   4 budgets   5 concurrency limits, then
--       per rate: used (us; '' leaves it), per budget: used (its unit)
-- Result 1 settled, 0 nothing to do

local mark = redis.call('GET', KEYS[1])
if not mark then return 0 end
redis.call('DEL', KEYS[1])
local now = tonumber(ARGV[1])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local id, rates, budgets, slots = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local granted = {}
for word in string.gmatch(mark, '%S+') do granted[#granted + 1] = word end
if tonumber(table.remove(granted, 1)) <= now then return 0 end -- the hold has expired, and is released

local k, arg = 2, 6
for i = 1, rates do
  local used = tonumber(ARGV[arg])
  if used then
    local tat = tonumber(redis.call('GET', KEYS[k]) or nil)
    local move = used - tonumber(granted[i])
    if tat and move ~= 0 then
      if move > 0 then tat = math.max(tat, now) end
      tat = tat + move
      redis.call('SET', KEYS[k], tat, 'PX', math.max(1, math.ceil((tat - now) / 1000)) + 1000)
    end
  end
  k, arg = k + 1, arg + 1
end
for i = rates + 1, rates + budgets do
  if redis.call('ZREM', KEYS[k + 1], granted[i] .. ':' .. id) == 1 then
    redis.call('HINCRBY', KEYS[k], 'held', '-' .. granted[i])
    redis.call('HINCRBY', KEYS[k], 'spent', ARGV[arg])
  end
  k, arg = k + 2, arg + 1
end
for i = 1, slots do
  redis.call('ZREM', KEYS[k], id)
  k = k + 1
end
return 1

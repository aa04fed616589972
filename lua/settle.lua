-- Replace what a request held by what it used. Once per id: the first settlement removes the request's marker, and
-- without the marker nothing moves.
--
-- A rate moves by (used - granted): a give-back lowers its TAT; more than was granted is debt, taken from now on. A
-- missing rate stays missing. A budget's hold is dropped and its real use is spent, unless the hold has expired (then
-- metering brings it). A slot is freed.
--
-- KEYS  1 marker, then as for admit: one per rate, one per budget, one per concurrency limit
-- ARGV  1 now (us; 0: the server's clock)   2 request id   3 rates   4 budgets   5 concurrency limits, then
--       per rate: used (us; '' leaves it), per budget: used (its unit)
-- Result 1 settled, 0 nothing to do

local call, tonumber = redis.call, tonumber
local mark = call('GETDEL', KEYS[1])
if not mark then return 0 end
local now = tonumber(ARGV[1])
if now == 0 then
  local time = call('TIME')
  now = time[1] * 1000000 + time[2]
end
local id, rates, budgets, slots = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local granted = {}
for word in string.gmatch(mark, '%S+') do granted[#granted + 1] = tonumber(word) end
if table.remove(granted, 1) <= now then return 0 end -- the hold has expired, and is released

local k, arg = 2, 6
for i = 1, rates do
  local used = tonumber(ARGV[arg])
  local move = used and used - granted[i] or 0
  if move ~= 0 then
    local tat = tonumber(call('GET', KEYS[k]) or nil)
    if tat and move < 0 then
      call('SET', KEYS[k], tat + move, 'KEEPTTL')
    elseif tat then
      tat = math.max(tat, now) + move
      call('SET', KEYS[k], tat, 'PX', math.ceil((tat - now) / 1000) + 1000)
    end
  end
  k, arg = k + 1, arg + 1
end
for i = rates + 1, rates + budgets do
  if call('HDEL', KEYS[k], '#' .. id) == 1 then
    local budget = call('HMGET', KEYS[k], 'spent', 'held')
    call('HSET', KEYS[k], 'spent', budget[1] + ARGV[arg], 'held', budget[2] - granted[i])
  end
  k, arg = k + 1, arg + 1
end
for i = 1, slots do
  call('ZREM', KEYS[k], id)
  k = k + 1
end
return 1

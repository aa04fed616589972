-- Take from every limit of one request, or from none. Idempotent by the request's id.
--
-- A rate is one integer, its theoretical arrival time (TAT): admit when max(tat, now) + inc <= now + burst. A budget is
-- a hash (spent, held, loaded) and a sorted set of its holds; committed = spent + held. Slots are a sorted set of
-- request ids by expiry. A take may be granted less than it asks for, but never less than its floor.
--
-- KEYS  1 marker of this request (string: when its hold expires (us), then what was granted, in take order)
--       2 policy version   3 tenant version   4 epoch (when this store last started empty or came back; us)
--       then one per rate (TAT), two per budget (hash, holds), one per concurrency limit (slots)
-- ARGV  1 now (us; 0: the server's clock)   2 hold life (us)   3 policy version   4 tenant version (0: unversioned)
--       5 request id   6 rates   7 budgets   8 concurrency limits, then
--       per rate: inc, floor, burst, keep (all us; keep: least life of the key, so that a late debt finds it)
--       per budget: cost, floor, limit (its unit), window start, window end (us), seed (what the ledger knows; '' none)
--       per concurrency limit: limit
-- Result {status, now, policy version, tenant version, ...}
--       1 admitted / 0 refused: then value, granted per take. value: TAT (us), committed, slots in use
--       2 stale: a newer policy or tenant record exists   4 a budget's window does not contain now
--       3 cold: then the positions (from 0) of budgets that must be loaded from the ledger
--
-- All numbers are integers below 2^53, where Lua's doubles are exact. They are handed to redis.call as numbers or
-- formatted with %.0f: `..` would print 1.76e+15.

local now = tonumber(ARGV[1])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local life, id = tonumber(ARGV[2]), ARGV[5]
local rates, budgets, slots = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])

local head = redis.call('MGET', unpack(KEYS, 1, 4 + rates))
local policy, tenant = tonumber(ARGV[3]), tonumber(ARGV[4])
local known_policy, known_tenant = tonumber(head[2] or 0), tonumber(head[3] or 0)
if (policy > 0 and known_policy > policy) or (tenant > 0 and known_tenant > tenant) then
  return {2, now, known_policy, known_tenant}
end
local epoch = tonumber(head[4])
if not epoch then
  epoch = now
  redis.call('SET', KEYS[4], now, 'PX', 3456000000) -- 40 days; a new epoch only asks for one more load
end

local result = {1, now, known_policy, known_tenant}
local granted = {}
if head[1] then -- this id was admitted before, and its answer was lost: the same answer again
  for word in string.gmatch(head[1], '%S+') do granted[#granted + 1] = tonumber(word) end
  if table.remove(granted, 1) <= now then granted = {} end
end
local again = #granted > 0

-- Look at everything first.
local fits, value, arg, take, k = true, {}, 9, 0, 5
local cold = {3, now, known_policy, known_tenant}
for i = 1, rates do
  take = take + 1
  local inc, floor, burst = tonumber(ARGV[arg]), tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2])
  local stored = tonumber(head[4 + i] or 0) or 0
  local tat = math.max(stored, now)
  value[take] = stored
  if not again then
    if tat + floor > now + burst then fits = false end
    granted[take] = math.max(floor, math.min(inc, now + burst - tat))
  end
  arg, k = arg + 4, k + 1
end
for i = 1, budgets do
  take = take + 1
  local cost, floor, limit = tonumber(ARGV[arg]), tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2])
  if now < tonumber(ARGV[arg + 3]) or now >= tonumber(ARGV[arg + 4]) then
    return {4, now, known_policy, known_tenant}
  end
  local expired = redis.call('ZRANGEBYSCORE', KEYS[k + 1], '-inf', now)
  for _, hold in ipairs(expired) do -- a hold is "amount:id"; its holder died
    redis.call('HINCRBY', KEYS[k], 'held', '-' .. string.match(hold, '^%d+'))
    redis.call('ZREM', KEYS[k + 1], hold)
  end
  local budget = redis.call('HMGET', KEYS[k], 'spent', 'held', 'loaded')
  local spent, held, loaded = tonumber(budget[1] or 0), tonumber(budget[2] or 0), tonumber(budget[3] or -1)
  if loaded < epoch then
    local seed = tonumber(ARGV[arg + 5])
    if seed then
      spent = math.max(spent, seed)
      redis.call('HSET', KEYS[k], 'spent', spent, 'held', held, 'loaded', now)
      -- an hour after its window, or 40 days unused (a life budget: it is loaded again)
      redis.call('PEXPIREAT', KEYS[k], math.floor(math.min(tonumber(ARGV[arg + 4]) + 3600000000, now + 3456000000000) / 1000))
    elseif not again then
      cold[#cold + 1] = take - 1
    end
  end
  value[take] = spent + held
  if not again then
    if spent + held + floor > limit then fits = false end
    granted[take] = math.max(floor, math.min(cost, limit - spent - held))
  end
  arg, k = arg + 6, k + 2
end
if #cold > 4 then return cold end
for i = 1, slots do
  take = take + 1
  redis.call('ZREMRANGEBYSCORE', KEYS[k], '-inf', now)
  local used = redis.call('ZCARD', KEYS[k])
  value[take] = used
  if not again then
    if used >= tonumber(ARGV[arg]) then fits = false end
    granted[take] = 1
  end
  arg, k = arg + 1, k + 1
end

-- Then take all, or nothing.
if fits and not again then
  local marks = {string.format('%.0f', now + life)}
  arg, k, take = 9, 5, 0
  for i = 1, rates do
    take = take + 1
    local tat = math.max(value[take], now) + granted[take]
    local px = math.ceil(math.max(tat - now, tonumber(ARGV[arg + 3])) / 1000) + 1000
    redis.call('SET', KEYS[k], tat, 'PX', px)
    value[take], marks[take + 1] = tat, string.format('%.0f', granted[take])
    arg, k = arg + 4, k + 1
  end
  for i = 1, budgets do
    take = take + 1
    local amount = string.format('%.0f', granted[take])
    redis.call('HINCRBY', KEYS[k], 'held', amount)
    redis.call('ZADD', KEYS[k + 1], now + life, amount .. ':' .. id)
    redis.call('PEXPIRE', KEYS[k + 1], math.ceil(life / 1000) + 3600000)
    value[take], marks[take + 1] = value[take] + granted[take], amount
    arg, k = arg + 6, k + 2
  end
  for i = 1, slots do
    take = take + 1
    redis.call('ZADD', KEYS[k], now + life, id)
    redis.call('PEXPIRE', KEYS[k], math.ceil(life / 1000) + 1000)
    value[take], marks[take + 1] = value[take] + 1, '1'
    k = k + 1
  end
  redis.call('SET', KEYS[1], table.concat(marks, ' '), 'PX', math.ceil(life / 1000))
  if known_policy < policy then redis.call('SET', KEYS[2], policy, 'PX', 3456000000) end
  if known_tenant < tenant then redis.call('SET', KEYS[3], tenant, 'PX', 3456000000) end
elseif not fits then
  result[1] = 0
end
for i = 1, take do
  result[#result + 1] = value[i]
  result[#result + 1] = fits and granted[i] or 0
end
return result

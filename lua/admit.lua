-- Take from every limit of one request, or from none. Idempotent by the request's id.
--
-- A rate is one integer, its theoretical arrival time (TAT): admit when max(tat, now) + inc <= now + burst. A budget is
-- a hash: spent, held (the sum of its holds), loaded (when its spending was loaded from the ledger), sweep (no hold
-- expires before), and one field "#id" = "amount expiry" per hold; committed = spent + held. Slots are a sorted set of
-- request ids by expiry. A take may be granted less than it asks for, but never less than its floor.
--
-- KEYS  1 marker of this request (string: when its hold expires (us), then what was granted, in take order)
--       2 policy version   3 tenant version   4 epoch of budgets (when this store last started empty or came back; us)
--       then one per rate (TAT), one per budget, one per concurrency limit (slots)
-- ARGV  1 now (us; 0: the server's clock)   2 hold life (us; 0: only look, take nothing)
--       3 policy version   4 tenant version (0: unversioned)
--       5 request id   6 rates   7 budgets   8 concurrency limits, then
--       per rate: inc, floor, burst, keep (all us; keep: least life of the key, so that a late debt finds it)
--       per budget: cost, floor, limit (its unit), window start, window end (us), seed (what the ledger knows; '' none)
--       per concurrency limit: limit
-- Result {status, now, policy version, tenant version, ...}
--       1 admitted (or would be) / 0 refused: then value, granted per take. value: TAT (us), committed, slots in use
--       2 stale: a newer policy or tenant record exists   4 a budget's window does not contain now
--       3 cold: then the positions (from 0) of budgets that must be loaded from the ledger
--
-- All numbers are integers below 2^53, where Lua's doubles are exact. They are handed to redis.call as numbers or
-- formatted with %.0f: `..` would print 1.76e+15. A redis.call costs several times what its command does, so commands
-- are few: rates are read together, a budget is read once and written once.

local MONTH_MS = 3456000000 -- 40 days: longer than any window; what it drops is loaded again
local call, tonumber, max, min, ceil = redis.call, tonumber, math.max, math.min, math.ceil
local format = string.format

local now = tonumber(ARGV[1])
if now == 0 then
  local time = call('TIME')
  now = time[1] * 1000000 + time[2]
end
local life, id = tonumber(ARGV[2]), ARGV[5]
local rates, budgets, slots = tonumber(ARGV[6]), tonumber(ARGV[7]), tonumber(ARGV[8])

local head = call('MGET', unpack(KEYS, 1, 4 + rates))
local policy, tenant = tonumber(ARGV[3]), tonumber(ARGV[4])
local known_policy, known_tenant = tonumber(head[2] or 0), tonumber(head[3] or 0)
if (policy > 0 and known_policy > policy) or (tenant > 0 and known_tenant > tenant) then
  return {2, now, known_policy, known_tenant}
end
local epoch = tonumber(head[4] or nil)
if not epoch and budgets > 0 then
  epoch = now
  call('SET', KEYS[4], now, 'PX', MONTH_MS)
end

local granted, again = {}, false
if head[1] then -- this id was admitted before, and its answer was lost: the same answer again
  for word in string.gmatch(head[1], '%S+') do granted[#granted + 1] = tonumber(word) end
  again = table.remove(granted, 1) > now
end

-- Look at everything first.
local fits, value, arg, take, k = true, {}, 9, 0, 5
for i = 1, rates do
  take = take + 1
  local stored = tonumber(head[4 + i] or 0) or 0
  value[take] = stored
  if not again then
    local tat, floor, burst = max(stored, now), tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2])
    if tat + floor > now + burst then fits = false end
    granted[take] = max(floor, min(tonumber(ARGV[arg]), now + burst - tat))
  end
  arg, k = arg + 4, k + 1
end
local cold, held, sweep = {3, now, known_policy, known_tenant}, {}, {}
for i = 1, budgets do
  take = take + 1
  if now < tonumber(ARGV[arg + 3]) or now >= tonumber(ARGV[arg + 4]) then
    return {4, now, known_policy, known_tenant}
  end
  local budget = call('HMGET', KEYS[k], 'spent', 'held', 'loaded', 'sweep')
  local spent = tonumber(budget[1] or 0)
  held[i], sweep[i] = tonumber(budget[2] or 0), tonumber(budget[4] or nil)
  if sweep[i] and sweep[i] <= now then -- holders died: release what they held
    local all, first = call('HGETALL', KEYS[k]), nil
    for f = 1, #all, 2 do
      if string.byte(all[f]) == 35 then -- '#'
        local amount, expiry = string.match(all[f + 1], '^(%d+) (%d+)$')
        expiry = tonumber(expiry)
        if expiry <= now then
          call('HDEL', KEYS[k], all[f])
          held[i] = held[i] - amount
        elseif not first or expiry < first then
          first = expiry
        end
      end
    end
    sweep[i] = first
    call('HSET', KEYS[k], 'held', held[i], 'sweep', first or '')
  end
  if tonumber(budget[3] or -1) < epoch then
    local seed = tonumber(ARGV[arg + 5])
    if seed then
      spent = max(spent, seed)
      call('HSET', KEYS[k], 'spent', spent, 'held', held[i], 'loaded', now)
      -- an hour after its window, so that a late settlement finds it
      call('PEXPIREAT', KEYS[k], math.floor(min(tonumber(ARGV[arg + 4]) + 3600000000, now + MONTH_MS * 1000) / 1000))
    elseif not again then
      cold[#cold + 1] = take - 1
    end
  end
  local committed = spent + held[i]
  value[take] = committed
  if not again then
    local floor, limit = tonumber(ARGV[arg + 1]), tonumber(ARGV[arg + 2])
    if committed + floor > limit then fits = false end
    granted[take] = max(floor, min(tonumber(ARGV[arg]), limit - committed))
  end
  arg, k = arg + 6, k + 1
end
if #cold > 4 then return cold end
for i = 1, slots do
  take = take + 1
  call('ZREMRANGEBYSCORE', KEYS[k], '-inf', now)
  local used = call('ZCARD', KEYS[k])
  value[take] = used
  if not again then
    if used >= tonumber(ARGV[arg]) then fits = false end
    granted[take] = 1
  end
  arg, k = arg + 1, k + 1
end

-- Then take all, or nothing.
if fits and not again and life > 0 then
  local expiry = now + life
  local marks = {format('%.0f', expiry)}
  arg, k, take = 9, 5, 0
  for i = 1, rates do
    take = take + 1
    local tat = max(value[take], now) + granted[take]
    call('SET', KEYS[k], tat, 'PX', ceil(max(tat - now, tonumber(ARGV[arg + 3])) / 1000) + 1000)
    value[take], marks[take + 1] = tat, format('%.0f', granted[take])
    arg, k = arg + 4, k + 1
  end
  for i = 1, budgets do
    take = take + 1
    local amount = format('%.0f', granted[take])
    call('HSET', KEYS[k], 'held', held[i] + granted[take], 'sweep', min(sweep[i] or expiry, expiry),
      '#' .. id, amount .. ' ' .. marks[1])
    value[take], marks[take + 1] = value[take] + granted[take], amount
    k = k + 1
  end
  for i = 1, slots do
    take = take + 1
    call('ZADD', KEYS[k], expiry, id)
    call('PEXPIRE', KEYS[k], ceil(life / 1000) + 1000)
    value[take], marks[take + 1] = value[take] + 1, '1'
    k = k + 1
  end
  if take > 0 then call('SET', KEYS[1], table.concat(marks, ' '), 'PX', ceil(life / 1000)) end
  if known_policy < policy then call('SET', KEYS[2], policy, 'PX', MONTH_MS) end
  if known_tenant < tenant then call('SET', KEYS[3], tenant, 'PX', MONTH_MS) end
end

local result, taken = {fits and 1 or 0, now, known_policy, known_tenant}, fits and (again or life > 0)
for i = 1, take do
  result[3 + 2 * i] = value[i]
  result[4 + 2 * i] = taken and granted[i] or 0
end
return result

-- Take from every limit of one request, or from none. Idempotent by the request's id.
--
-- A rate is one integer, its theoretical arrival time (TAT): admit when max(tat, now) + inc <= now + burst. A budget is
-- a hash: spent, held (the sum of its holds), loaded (when its spending was loaded from the ledger), sweep (no hold
-- expires before), and one field "#id" = "amount expiry" per hold; committed = spent + held. Slots are a sorted set of
-- request ids by expiry. A take may be granted less than it asks for, but never less than its floor.
--
-- An epoch begins when a store starts empty or comes back from an outage. What it holds from before, or lacks, is then
-- not to be believed: every budget until it was loaded from the ledger, and every rate for as long as its burst lasts
-- (after that it would be full again anyway) until another store's TAT was merged into it. Such a rate is stored as
-- "tat epoch", so that it is asked for once; all others as "tat".
--
-- KEYS  1 marker of this request (string, packed: when its hold expires (us), then what each take was granted)
--       2 policy version   3 tenant version   4 epoch (us)
--       then one per rate (TAT), one per budget, one per concurrency limit (slots)
--       and, where the estimates are asked for, their key
-- ARGV  1 request id   2 numbers, packed as little-endian doubles (as text they cost several times the whole decision):
--       now (us; 0: the server's clock), hold life (us; 0: only look, take nothing), policy version, tenant version
--       (0: unversioned), epoch of rates (us; 0: as in KEYS[4]), rates, budgets, concurrency limits, then
--       per rate: inc, floor, burst, keep (all us; keep: least life of the key, so that a late debt finds it),
--         seed (TAT that another store knows, 0 where it knows none; -1: nobody was asked)
--       per budget: cost, floor, limit (its unit), window start, window end (us), seed (what the ledger knows; -1: none)
--       per concurrency limit: limit
-- Result {status, now, policy version, tenant version, ...}
--       1 admitted (or would be) / 0 refused: then value, granted per take. value: TAT (us), committed, slots in use;
--         then the estimates as settle.lua keeps them ('' if there are none), where they were asked for
--       2 stale: a newer policy or tenant record exists   4 a budget's window does not contain now
--       3 cold: then the positions (from 0) of takes that must be loaded: rates from the other store, budgets from the ledger
--
-- All numbers are integers below 2^53, where doubles are exact. They are handed to redis.call as numbers or formatted
-- with %.0f: `..` would print 1.76e+15. A redis.call costs several times what its command does, so commands are few:
-- rates are read together, a budget is read once and written once.

local MONTH_MS = 3456000000 -- 40 days: longer than any window; what it drops is loaded again
local call, tonumber, max, min, ceil = redis.call, tonumber, math.max, math.min, math.ceil
local format, match = string.format, string.match
local codec, unpack = struct or string, unpack or table.unpack

local id = ARGV[1]
local n = {codec.unpack('<' .. string.rep('d', #ARGV[2] / 8), ARGV[2])}
local now, life, policy, tenant = n[1], n[2], n[3], n[4]
local rates, budgets, slots = n[6], n[7], n[8]
if now == 0 then
  local time = call('TIME')
  now = time[1] * 1000000 + time[2]
end

local head = call('MGET', unpack(KEYS, 1, 4 + rates))
local known_policy, known_tenant = tonumber(head[2] or 0) or 0, tonumber(head[3] or 0) or 0
if (policy > 0 and known_policy > policy) or (tenant > 0 and known_tenant > tenant) then
  return {2, now, known_policy, known_tenant}
end
local epoch = tonumber(head[4] or nil)
if not epoch and (budgets > 0 or n[5] == 0) then
  epoch = now
  call('SET', KEYS[4], now, 'PX', MONTH_MS)
end
local rates_since = n[5] > 0 and n[5] or epoch

local granted, again = {}, false
if head[1] then -- this id was admitted before, and its answer was lost: the same answer again
  granted = {codec.unpack('<' .. string.rep('d', #head[1] / 8), head[1])}
  again = table.remove(granted, 1) > now
end

-- Look at everything first.
local fits, value, arg, take, k = true, {}, 9, 0, 5
local cold, seeded = {3, now, known_policy, known_tenant}, {}
for i = 1, rates do
  take = take + 1
  local raw = head[4 + i]
  local stored, floor, burst, seed = tonumber(raw or nil), n[arg + 1], n[arg + 2], n[arg + 4]
  if now < rates_since + burst and not again then
    local since
    if raw and not stored then
      stored, since = match(raw, '^(%d+) (%d+)$')
      stored = tonumber(stored)
    end
    if tonumber(since) ~= rates_since then
      if seed < 0 then
        cold[#cold + 1] = take - 1
      else
        stored = max(stored or 0, seed)
        seeded[#seeded + 1] = take
      end
    end
  elseif raw and not stored then
    stored = tonumber(match(raw, '^(%d+) ') or 0)
  end
  stored = stored or 0
  value[take] = stored
  if not again then
    local tat = max(stored, now)
    if tat + floor > now + burst then fits = false end
    granted[take] = max(floor, min(n[arg], now + burst - tat))
  end
  arg, k = arg + 5, k + 1
end
local held, sweep = {}, {}
for i = 1, budgets do
  take = take + 1
  if now < n[arg + 3] or now >= n[arg + 4] then
    return {4, now, known_policy, known_tenant}
  end
  local budget = call('HMGET', KEYS[k], 'spent', 'held', 'loaded', 'sweep')
  local spent = tonumber(budget[1] or 0)
  held[i], sweep[i] = tonumber(budget[2] or 0), tonumber(budget[4] or nil)
  if sweep[i] and sweep[i] <= now then -- holders died: release what they held
    local all, first = call('HGETALL', KEYS[k]), nil
    for f = 1, #all, 2 do
      if string.byte(all[f]) == 35 then -- '#'
        local amount, expiry = match(all[f + 1], '^(%d+) (%d+)$')
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
    local seed = n[arg + 5]
    if seed >= 0 then
      spent = max(spent, seed)
      call('HSET', KEYS[k], 'spent', spent, 'held', held[i], 'loaded', now)
      -- an hour after its window, so that a late settlement finds it
      call('PEXPIREAT', KEYS[k], math.floor(min(n[arg + 4] + 3600000000, now + MONTH_MS * 1000) / 1000))
    elseif not again then
      cold[#cold + 1] = take - 1
    end
  end
  local committed = spent + held[i]
  value[take] = committed
  if not again then
    local floor, limit = n[arg + 1], n[arg + 2]
    if committed + floor > limit then fits = false end
    granted[take] = max(floor, min(n[arg], limit - committed))
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
    if used >= n[arg] then fits = false end
    granted[take] = 1
  end
  arg, k = arg + 1, k + 1
end

local function set_rate(position, tat)
  local numbers, left = 4 + 5 * position, tat - now
  local burst, keep = n[numbers + 2], n[numbers + 3]
  if now < rates_since + burst then
    local life = max(left, keep, rates_since + burst - now)
    call('SET', KEYS[4 + position], format('%.0f %.0f', tat, rates_since), 'PX', ceil(life / 1000) + 1000)
  else
    call('SET', KEYS[4 + position], tat, 'PX', ceil(max(left, keep) / 1000) + 1000)
  end
end

-- Then take all, or nothing.
if fits and not again and life > 0 then
  local expiry = now + life
  for i = 1, rates do
    local tat = max(value[i], now) + granted[i]
    set_rate(i, tat)
    value[i] = tat
  end
  take, k = rates, 5 + rates
  for i = 1, budgets do
    take = take + 1
    call('HSET', KEYS[k], 'held', held[i] + granted[take], 'sweep', min(sweep[i] or expiry, expiry),
      '#' .. id, format('%.0f %.0f', granted[take], expiry))
    value[take] = value[take] + granted[take]
    k = k + 1
  end
  for i = 1, slots do
    take = take + 1
    call('ZADD', KEYS[k], expiry, id)
    call('PEXPIRE', KEYS[k], ceil(life / 1000) + 1000)
    value[take] = value[take] + 1
    k = k + 1
  end
  if take > 0 then
    call('SET', KEYS[1], codec.pack('<' .. string.rep('d', take + 1), expiry, unpack(granted)), 'PX', ceil(life / 1000))
  end
  if known_policy < policy then call('SET', KEYS[2], policy, 'PX', MONTH_MS) end
  if known_tenant < tenant then call('SET', KEYS[3], tenant, 'PX', MONTH_MS) end
else
  for _, position in ipairs(seeded) do set_rate(position, value[position]) end
end

local result, taken = {fits and 1 or 0, now, known_policy, known_tenant}, fits and (again or life > 0)
for i = 1, take do
  result[3 + 2 * i] = value[i]
  result[4 + 2 * i] = taken and granted[i] or 0
end
if #KEYS > 4 + take then result[5 + 2 * take] = call('GET', KEYS[#KEYS]) or '' end
return result

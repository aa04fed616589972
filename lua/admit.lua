-- Take from every limit of one request, or from none. Idempotent by the request's id.
--
-- A rate is one integer, its theoretical arrival time (TAT): admit when max(tat, now) + inc <= now + burst. Its key
-- lives until the end of the TAT's minute, or longer; so the expiry is only moved when the TAT enters another minute.
--
-- A budget and a concurrency limit are counted alike, in a hash: field "s" is spent, held (the sum of its holds), sweep
-- (no hold expires before, us), loaded (when its spending was loaded from the ledger, us); and one field "#id" per hold
-- is amount, expiry (us). Admit when spent + held + cost <= limit. A slot costs 1 and is never spent.
--
-- A take may be granted less than it asks for, but never less than its floor.
--
-- An epoch begins when a store starts empty or comes back from an outage. What it holds from before, or lacks, is then
-- not to be believed: every budget until it was loaded from the ledger, and every rate for as long as its burst lasts
-- (after that it would be full again anyway) until another store's TAT was merged into it. Such a rate is stored as
-- "tat epoch", so that it is asked for once; all others as "tat".
--
-- KEYS  1 marker of this request (string, packed: when its hold expires (us), then what each take was granted)
--       2 policy version   3 tenant version   4 epoch (us)
--       then one per rate, one per budget, one per concurrency limit and, where the estimates are asked for, their key
-- ARGV  1 request id   2 numbers, packed:
--       now (us; 0: the server's clock), hold life (us; 0: only look, take nothing), policy version, tenant version
--       (0: unversioned), epoch of rates (us; 0: as in KEYS[4]), rates, budgets, concurrency limits, then
--       per rate: inc, floor, burst, keep (all us; keep: how long a settlement may take, 0: it has none),
--         seed (TAT that another store knows, 0 where it knows none; -1: nobody was asked)
--       per budget: cost, floor, limit (its unit), seed (what the ledger knows; -1: nobody was asked), start and end of
--         its window (us)
--       per concurrency limit: limit
-- Result one string, packed: status, now, policy version, tenant version, ...
--       1 admitted (or would be) / 0 refused: then the value of each take (TAT (us), committed, slots in use), what each
--         was granted, and the estimates as settle.lua keeps them (nothing if there are none), where they were asked for
--       2 stale: a newer policy or tenant record exists   4 a budget's window does not contain now
--       3 cold: then the positions (from 0) of takes that must be loaded: rates from the other store, budgets from the
--         ledger
--
-- What is packed is packed as little-endian doubles, which are exact: all numbers are integers below 2^53. As text they
-- would cost several times the whole decision. Every redis.call costs several times what its command does, so there are
-- few. Numbers become text by %d: redis.call prints them as %.17g, which takes as long as the command, and `..` would
-- print 1.76e+15.

local MINUTE, DAY, LARGEST = 60000000, 86400000000, 2 ^ 53
local DEBTS = 900000000 -- 15 minutes: a rate that can be settled lives on for as long, so that a late debt finds it
local MONTH_MS = 3456000000 -- 40 days: longer than any window; what it drops is loaded again
local call, tonumber, format, rep = redis.call, tonumber, string.format, string.rep
local max, min, ceil = math.max, math.min, math.ceil
local codec, unpack = struct or string, unpack or table.unpack
local pack, read = codec.pack, codec.unpack

local n = {read('<' .. rep('d', #ARGV[2] / 8), ARGV[2])}
local now, life, policy, tenant = n[1], n[2], n[3], n[4]
local rates, counts = n[6], n[7] + n[8]
local takes = rates + counts
if now == 0 then
  local time = call('TIME')
  now = time[1] * 1000000 + time[2]
end

local function whole(raw)
  local number = tonumber(raw or 0)
  return number and number >= 0 and number < LARGEST and number or 0
end
local head = call('MGET', unpack(KEYS, 1, 4 + rates))
local known_policy, known_tenant, epoch = whole(head[2]), whole(head[3]), whole(head[4])
local function answer(status, numbers, count)
  return pack('<dddd' .. rep('d', count), status, now, known_policy, known_tenant, unpack(numbers, 1, count))
end
if (policy > 0 and known_policy > policy) or (tenant > 0 and known_tenant > tenant) then return answer(2, {}, 0) end
if epoch == 0 and (counts > 0 or n[5] == 0) then
  epoch = now
  call('SET', KEYS[4], now, 'PX', MONTH_MS)
end
local rates_since = n[5] > 0 and n[5] or epoch

local granted, again = {0, 0, 0, 0, 0, 0, 0, 0}, false
local mark = head[1]
if mark and #mark > 0 and #mark % 8 == 0 then -- this id was admitted before, and its answer was lost: the same again
  granted = {read('<' .. rep('d', #mark / 8), mark)}
  again = table.remove(granted, 1) > now
end

-- Look at everything first.
local fits, arg, cold, seeded = true, 9, {}, {}
local value = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0} -- as long as usual, because growing costs
for i = 1, rates do
  local raw, least, burst, seed = head[4 + i], n[arg + 1], n[arg + 2], n[arg + 4]
  local tat, since = tonumber(raw or 0), nil
  if not tat then
    tat, since = string.match(raw, '^(%d+) (%d+)$')
    tat, since = tonumber(tat or 0), tonumber(since or nil)
  end
  if not (tat >= 0 and tat < LARGEST) then tat = 0 end -- not ours
  if now < rates_since + burst and since ~= rates_since and not again then
    if seed < 0 then
      cold[#cold + 1] = i - 1
    else
      tat = max(tat, seed)
      seeded[#seeded + 1] = i
    end
  end
  value[i] = tat
  if not again then
    local room = tat > now and now + burst - tat or burst
    if least > room then fits = false end
    granted[i] = max(least, min(n[arg], room))
  end
  arg = arg + 5
end

-- The holds of a hash that are alive: their sum, and when the first expires (0: there are none). Those of holders that
-- died are released.
local function swept(key)
  local sum, first, all = 0, 0, call('HGETALL', key)
  for f = 1, #all, 2 do
    if string.byte(all[f]) == 35 and #all[f + 1] == 16 then -- '#'
      local amount, expiry = read('<dd', all[f + 1])
      if not (expiry > now and amount >= 0 and amount < LARGEST) then
        call('HDEL', key, all[f])
      else
        sum = sum + amount
        first = first > 0 and min(first, expiry) or expiry
      end
    end
  end
  return sum, first
end
local counted, hold, expiry = {}, '#' .. ARGV[1], now + life -- counted: what each state becomes, if all fit
for take = rates + 1, takes do
  local key, budget = KEYS[4 + take], take <= rates + n[7]
  local cost, least, limit, seed, gone = 1, 1, n[arg], -1, now + max(DAY, 2 * life) -- every sweep prolongs it
  if budget then
    cost, least, limit, seed, gone = n[arg], n[arg + 1], n[arg + 2], n[arg + 3], n[arg + 5]
    if now < n[arg + 4] or now >= gone then return answer(4, {}, 0) end
    gone = gone + 3600000000 -- an hour after its window, so that a late settlement finds it
  end
  arg = arg + (budget and 6 or 1)

  local raw = call('HGET', key, 's')
  local spent, held, sweep, loaded = -1, 0, 0, 0
  if raw and #raw == 32 then spent, held, sweep, loaded = read('<dddd', raw) end
  local rewrite = not (spent >= 0 and held >= 0 and sweep >= 0 and loaded >= 0 and spent + held < LARGEST)
  if rewrite then spent, loaded = 0, budget and -1 or 0 end -- new, or not ours
  if rewrite or sweep <= now then
    held, sweep = swept(key)
    rewrite = true
  end
  if budget and loaded < epoch then
    if seed >= 0 then
      spent, loaded, rewrite = max(spent, seed), now, true
    elseif not again then
      cold[#cold + 1] = take - 1
    end
  end
  if rewrite and loaded >= 0 then
    call('HSET', key, 's', pack('<dddd', spent, held, sweep, loaded))
    call('PEXPIRE', key, min(ceil((gone - now) / 1000), MONTH_MS))
  end
  local committed = spent + held
  value[take] = committed
  if not again then
    if committed + least > limit then fits = false end
    local amount = max(least, min(cost, limit - committed))
    granted[take] = amount
    counted[take] = pack('<dddd', spent, held + amount, sweep > 0 and min(sweep, expiry) or expiry, loaded)
  end
end
if #cold > 0 then return answer(3, cold, #cold) end

local function set_rate(i, old, tat)
  local key, burst, keep, minute = KEYS[4 + i], n[6 + 5 * i], n[7 + 5 * i], tat - tat % MINUTE
  local young = now < rates_since + burst
  if old >= minute and old < minute + MINUTE and keep <= DEBTS and not young then
    if type(redis.pcall('INCRBY', key, tat - old)) == 'number' then return end -- else it is not ours
  end
  local last = minute + MINUTE
  if keep > 0 then last = last + max(keep, DEBTS) end
  if young then last = max(last, rates_since + burst) end
  local cell = young and format('%d %d', tat, rates_since) or format('%d', tat)
  call('SET', key, cell, 'PX', ceil((last - now) / 1000))
end

-- Then take all, or nothing.
if fits and not again and life > 0 then
  for i = 1, rates do
    local tat = max(value[i], now) + granted[i]
    set_rate(i, value[i], tat)
    value[i] = tat
  end
  for take = rates + 1, takes do
    call('HSET', KEYS[4 + take], 's', counted[take], hold, pack('<dd', granted[take], expiry))
    value[take] = value[take] + granted[take]
  end
  if takes > 0 then
    call('SET', KEYS[1], pack('<' .. rep('d', takes + 1), expiry, unpack(granted, 1, takes)), 'PX', ceil(life / 1000))
  end
  if known_policy < policy then call('SET', KEYS[2], policy, 'PX', MONTH_MS) end
  if known_tenant < tenant then call('SET', KEYS[3], tenant, 'PX', MONTH_MS) end
else
  for _, i in ipairs(seeded) do set_rate(i, 0, value[i]) end
end

local taken = fits and (again or life > 0)
for i = 1, takes do value[takes + i] = taken and granted[i] or 0 end
local told = #KEYS > 4 + takes and call('GET', KEYS[#KEYS]) or ''
return answer(fits and 1 or 0, value, 2 * takes) .. told

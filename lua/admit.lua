-- Take from every limit of one request, or from none. Idempotent by the request's id.
--
-- A rate is one integer, its theoretical arrival time (TAT): admit when max(tat, now) + inc <= now + burst. Its key
-- lives until the end of the TAT's minute, or longer; so the expiry is only moved when the TAT enters another minute.
--
-- A budget and a concurrency limit are counted alike, packed in one string: spent, loaded (when its spending was loaded
-- from the ledger, us), made (when this string was, us); then for each moment at which holds expire (us) their sum. These
-- moments are multiples of a grid, so there are few however many requests are in flight; which of them holds what, only
-- their markers know. A sum whose moment has passed counts no longer, and gives its place to the next. Admit when spent +
-- held + cost <= limit. A slot costs 1 and is never spent.
--
-- A take may be granted less than it asks for, but never less than its floor.
--
-- An epoch begins when a store starts empty or comes back from an outage. What it holds from before, or lacks, is then
-- not to be believed: every budget until it was loaded from the ledger, and every rate for as long as its burst lasts
-- (after that it would be full again anyway) until another store's TAT was merged into it. Such a rate is stored as
-- "tat epoch", so that it is asked for once; all others as "tat".
--
-- KEYS  1 marker of this request (string, packed: when it was taken, when its holds expire (us), what each take was
--         granted)
--       2 policy version   3 tenant version   4 epoch (us)
--       then one per rate, one per budget, one per concurrency limit and, where the estimates are asked for, their key
-- ARGV  numbers, packed; "each" means one per take, in the order of their keys
--       1 of this call: now (us; 0: the server's clock), hold life and grid (us; life 0: only look, take nothing), policy
--         version, tenant version (0: unversioned), epoch of rates (us; 0: as in KEYS[4]); each cost (inc in us; units; 1);
--         then, where they differ or seeds follow, each floor; then, where somebody was asked, each seed: the TAT that
--         another store knows (0: it knows none), or what the ledger knows; -1: nobody was asked
--       2 of the plan: rates, budgets, concurrency limits; each limit (burst in us; units; slots); then per rate: 1 if it
--         can be settled, else 0; then per budget: start and end of its window (us)
-- Result one string, packed: status, now, policy version, tenant version, ...
--       1 admitted (or would be) / 0 refused: then each value (TAT (us), committed, slots in use), what each was granted,
--         and the estimates as settle.lua keeps them (nothing if there are none), where they were asked for
--       2 stale: a newer policy or tenant record exists   4 a budget's window does not contain now
--       3 cold: then the positions (from 0) of takes that must be loaded: rates from the other store, budgets from the
--         ledger
--
-- What is packed is packed as little-endian doubles, which are exact: all numbers are integers below 2^53. As text they
-- would cost several times the whole decision. Every redis.call costs several times what its command does, so there are
-- few; every table that grows, and every closure, costs as much, so there are hardly any. Numbers become text by %d:
-- redis.call prints them as %.17g, which takes as long as some commands, and `..` would print 1.76e+15.

local MINUTE, DAY, LARGEST = 60000000, 86400000000, 2 ^ 53
local LATE = 3600000000 -- an hour: a budget outlives its window for as long, so that a late settlement finds it
local DEBTS = 1200000000 -- 20 minutes: a rate that can be settled lives on for as long, so that a late debt finds it
local MONTH_MS = 3456000000 -- 40 days: longer than any window; what it drops is loaded again
local call, tonumber, format, rep, sub = redis.call, tonumber, string.format, string.rep, string.sub
local codec, unpack = struct or string, unpack or table.unpack
local pack, read = codec.pack, codec.unpack

local of_call, of_plan = #ARGV[1] / 8, #ARGV[2] / 8
local asked, terms = {read('<' .. rep('d', of_call), ARGV[1])}, {read('<' .. rep('d', of_plan), ARGV[2])}
local now, life, grid, policy, tenant, rates_since = unpack(asked, 1, 6)
local rates, budgets = terms[1], terms[2]
local takes = rates + budgets + terms[3]
local each = '<' .. rep('d', takes)
-- Where the columns begin: in what was asked (costs, floors, seeds), and in the terms (limits, what follows them).
local COST, LIMIT, MORE = 6, 3, 3 + takes
local FLOOR = of_call > COST + takes and COST + takes or COST
local SEED = of_call > COST + 2 * takes and COST + 2 * takes
if now == 0 then
  local time = call('TIME')
  now = time[1] * 1000000 + time[2]
end
local expiry = now + life
expiry = expiry - expiry % grid + grid

local found = call('MGET', unpack(KEYS))
local known_policy, known_tenant, epoch = tonumber(found[2] or 0), tonumber(found[3] or 0), tonumber(found[4] or 0)
if not (known_policy and known_policy >= 0 and known_policy < LARGEST) then known_policy = 0 end -- not ours
if not (known_tenant and known_tenant >= 0 and known_tenant < LARGEST) then known_tenant = 0 end
if not (epoch and epoch >= 0 and epoch < LARGEST) then epoch = 0 end
if (policy > 0 and known_policy > policy) or (tenant > 0 and known_tenant > tenant) then
  return pack('<dddd', 2, now, known_policy, known_tenant)
end
if epoch == 0 and (takes > rates or rates_since == 0) then
  epoch = now
  call('SET', KEYS[4], format('%d', now), 'PX', MONTH_MS)
end
if rates_since == 0 then rates_since = epoch end

-- An id that was admitted before, and whose answer was lost, is told the same again.
local mark = found[1]
local again = mark and #mark >= 16 and read('<d', mark, 9) > now

-- Look at everything first.
local fits, shrunk, cold, steady, seeded, taken = true, false, '', expiry - now <= DEBTS, false, now
local values = {0, 0, 0, 0, 0, 0, 0, 0} -- as long as usual, because growing costs
for i = 1, rates do
  local raw, burst = found[4 + i] or 0, terms[LIMIT + i]
  local tat, since = tonumber(raw), nil
  if not tat then
    tat, since = string.match(raw, '^(%d+) (%d+)$')
    tat, since = tonumber(tat or 0), tonumber(since or 0)
  end
  if not (tat >= 0 and tat < LARGEST) then tat = 0 end -- not ours
  if now < rates_since + burst then
    steady = false
    if since ~= rates_since and not again then
      local seed = SEED and asked[SEED + i] or -1
      if seed < 0 then cold = cold .. pack('<d', i - 1) end
      if seed > tat then tat = seed end
      seeded = true
    end
  end
  values[i] = tat
  local room = tat > now and now + burst - tat or burst
  if asked[COST + i] > room then
    if asked[FLOOR + i] > room then fits = false end
    asked[COST + i], shrunk = room, true
  end
end
local places, sums = {0, 0, 0, 0}, {0, 0, 0, 0} -- of budgets and slots: where this request's hold is added, and to what
for i = rates + 1, takes do
  local raw, gone = found[4 + i] or '', nil
  if i <= rates + budgets then
    local window = MORE + 2 * i - rates - 1
    gone = terms[window + 1]
    if now < terms[window] or now >= gone then return pack('<dddd', 4, now, known_policy, known_tenant) end
  end
  local spent, loaded, made = -1, 0, 0
  if #raw >= 24 and #raw % 16 == 8 then spent, loaded, made = read('<ddd', raw) end
  if not (spent >= 0 and spent < LARGEST and loaded >= 0 and made >= 0) then -- new, or not ours
    raw, spent, loaded, made = rep('\0', 24), 0, gone and -1 or 0, now
  end
  local held, mine, free, sum = 0, nil, #raw + 1, 0
  for at = 25, #raw, 16 do
    local until_us, amount = read('<dd', raw, at)
    if until_us > now and amount >= 0 and amount < LARGEST then
      held = held + amount
      if until_us == expiry then mine, sum = at, amount end
    else
      free = at
    end
  end
  local store = not mine and life > 0 -- whatever is decided: it costs nobody anything
  if gone and loaded < epoch then
    local seed = SEED and asked[SEED + i] or -1
    if seed < 0 and not again then cold = cold .. pack('<d', i - 1) end
    if seed > spent then spent = seed end
    loaded, store = now, seed >= 0
  end
  if store and not again then
    if not mine then
      mine = free
      raw = sub(raw, 1, mine - 1) .. pack('<dd', expiry, 0) .. sub(raw, mine + 16)
    end
    local last = gone and gone + LATE or now + math.max(DAY, 2 * life)
    local ms = math.min(math.ceil((last - now) / 1000), MONTH_MS)
    call('SET', KEYS[4 + i], pack('<ddd', spent, loaded, made) .. sub(raw, 25), 'PX', format('%d', ms))
  end
  places[i - rates], sums[i - rates] = mine, sum
  values[i] = spent + held
  if made > taken then taken = made end -- a settlement leaves alone what was made after this (clocks may go back)
  local room = terms[LIMIT + i] - spent - held
  if asked[COST + i] > room then
    if asked[FLOOR + i] > room then fits = false end
    asked[COST + i], shrunk = room, true
  end
end
if cold ~= '' then return pack('<dddd', 3, now, known_policy, known_tenant) .. cold end

-- Then take all, or nothing.
local take, granted = fits and life > 0 and not again, nil
if take then
  granted = shrunk and pack(each, unpack(asked, COST + 1, COST + takes)) or sub(ARGV[1], 8 * COST + 1, 8 * (COST + takes))
  for i = rates + 1, takes do
    local cost = asked[COST + i]
    call('SETRANGE', KEYS[4 + i], places[i - rates] + 7, pack('<d', sums[i - rates] + cost))
    values[i] = values[i] + cost
  end
  if takes > 0 then
    local ms = format('%d', math.ceil((expiry - now) / 1000))
    call('SET', KEYS[1], pack('<dd', taken, expiry) .. granted, 'PX', ms)
  end
  if known_policy < policy then call('SET', KEYS[2], format('%d', policy), 'PX', MONTH_MS) end
  if known_tenant < tenant then call('SET', KEYS[3], format('%d', tenant), 'PX', MONTH_MS) end
end
local try = redis.pcall
for i = 1, (take or seeded) and rates or 0 do
  local key, old, tat = KEYS[4 + i], values[i], values[i]
  if take then tat = (old > now and old or now) + asked[COST + i] end
  local minute = tat - tat % MINUTE
  if not (steady and old >= minute and try('INCRBY', key, format('%d', tat - old)) == tat) then
    local burst, last, cell = terms[LIMIT + i], minute + MINUTE, format('%d', tat)
    if terms[MORE + i] > 0 then last = last + math.max(expiry - now, DEBTS) end
    if now < rates_since + burst then
      last, cell = math.max(last, rates_since + burst), format('%d %d', tat, rates_since)
    end
    if last > now then call('SET', key, cell, 'PX', format('%d', math.ceil((last - now) / 1000))) end
  end
  values[i] = tat
end
if again then
  fits, granted = true, sub(mark .. rep('\0', 8 * takes), 17, 16 + 8 * takes)
end
granted = granted or rep('\0', 8 * takes)
local told = pack(each .. 'dddd', fits and 1 or 0, now, known_policy, known_tenant, unpack(values, 1, takes))
return told .. granted .. (found[5 + takes] or '')

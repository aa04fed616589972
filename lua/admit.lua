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
--       2 of the plan: rates, budgets, concurrency limits, the longest burst (us); each limit (burst in us; units; slots);
--         then per rate: 1 if it can be settled, else 0; then per budget: start and end of its window (us)
-- Result one string, packed integers: status, now, policy version, tenant version, ...
--       1 admitted, and granted what was asked / 0 refused: then each value (TAT (us), committed, slots in use)
--       5 admitted (or would be): then each value, and what each was granted (as numbers came): less than was asked, or
--         nothing by a look, or what this request was granted before
--         after these three the estimates as settle.lua keeps them (nothing if there are none), where they were asked for
--       2 stale: a newer policy or tenant record exists   4 a budget's window does not contain now
--       3 cold: then the positions (from 0) of takes that must be loaded: rates from the other store, budgets from the
--         ledger
--
-- What is packed is packed as little-endian doubles, which are exact: all numbers are integers below 2^53. Answers are
-- 64-bit integers, which Python reads at once. As text they would cost several times the whole decision. Every redis.call
-- costs several times what its command does, so there are few; every table that grows, and every closure, costs as much, so
-- there are hardly any. redis.call takes numbers as they are; concatenated they must be text by %d, for `..` would print
-- 1.76e+15.

local MINUTE, LARGEST = 60000000, 2 ^ 53 - 1
local LATE = 3600000000 -- an hour: a budget outlives its window for as long, so that a late settlement finds it
local DEBTS = 1200000000 -- 20 minutes: a rate that can be settled lives on for as long, so that a late debt finds it
local MONTH_MS = 3456000000 -- 40 days: longer than any window; what it drops is loaded again
local NUMBERS = '<dddddddddddddddddddddddddddddddd' -- 32, and as many:
local INTEGERS = '<llllllllllllllllllllllllllllllll' -- formats are cut from them, for making one costs more
local call, tonumber, sub = redis.call, tonumber, string.sub
local codec, unpack = struct or string, unpack or table.unpack
local pack, read = codec.pack, codec.unpack

local of_call, of_plan = ARGV[1], ARGV[2]
local now, life, grid, policy, tenant, rates_since = read('<dddddd', of_call)
local rates, budgets, slots, longest = read('<dddd', of_plan)
local takes = rates + budgets + slots
local each = takes <= 32 and sub(NUMBERS, 1, 1 + takes) or '<' .. string.rep('d', takes)
-- Where columns begin: in what was asked costs (floors, seeds), in the plan limits, flags of rates, windows of budgets.
local COSTS, LIMITS, COLUMN = 49, 33, 8 * takes
local FLAGS = LIMITS + COLUMN
local WINDOWS = FLAGS + 8 * rates
local costs, limits = {read(each, of_call, COSTS)}, {read(each, of_plan, LIMITS)}
local floors, seeds = costs, nil
if #of_call >= COSTS + COLUMN then floors = {read(each, of_call, COSTS + COLUMN)} end
if #of_call >= COSTS + 2 * COLUMN then seeds = {read(each, of_call, COSTS + 2 * COLUMN)} end
if now == 0 then
  local time = call('TIME')
  now = time[1] * 1000000 + time[2]
end
local expiry = now + life
expiry = expiry - expiry % grid + grid

local found = call('MGET', unpack(KEYS))
local known_policy, known_tenant, epoch = tonumber(found[2] or 0), tonumber(found[3] or 0), tonumber(found[4] or 0)
if not (known_policy and known_policy >= 0 and known_policy <= LARGEST) then known_policy = 0 end -- not ours
if not (known_tenant and known_tenant >= 0 and known_tenant <= LARGEST) then known_tenant = 0 end
if not (epoch and epoch >= 0 and epoch <= LARGEST) then epoch = 0 end
if (policy > 0 and known_policy > policy) or (tenant > 0 and known_tenant > tenant) then
  return pack('<llll', 2, now, known_policy, known_tenant)
end
if epoch == 0 and (takes > rates or rates_since == 0) then
  epoch = now
  call('SET', KEYS[4], now, 'PX', MONTH_MS)
end
if rates_since == 0 then rates_since = epoch end

-- An id that was admitted before, and whose answer was lost, is told the same again.
local mark = found[1]
local again = mark and #mark >= 16 and read('<d', mark, 9) > now

-- Look at everything first.
local fits, shrunk, cold, seeded, taken = true, false, '', false, now
local trusted = now >= rates_since + longest -- no rate can be younger than the epoch
local steady = trusted and expiry - now <= DEBTS
local values = {0, 0, 0, 0, 0, 0, 0, 0} -- as long as usual, because growing costs
for i = 1, rates do
  local raw, room, since = found[4 + i], limits[i], nil
  local tat = tonumber(raw or 0)
  if not tat then
    tat, since = string.match(raw, '^(%d+) (%d+)$')
    tat, since = tonumber(tat or 0), tonumber(since or 0)
  end
  if not (tat >= 0 and tat <= LARGEST) then tat = 0 end -- not ours
  if not trusted and now < rates_since + room and since ~= rates_since and not again then
    local seed = seeds and seeds[i] or -1
    if seed < 0 then cold = cold .. pack('<l', i - 1) end
    if seed > tat then tat = math.min(seed, LARGEST) end
    seeded = true
  end
  values[i] = tat
  if tat > now then room = room + now - tat end
  if costs[i] > room then
    if floors[i] > room then fits = false end
    costs[i], shrunk = room, true
  end
end
local places, sums = {0, 0, 0, 0}, {0, 0, 0, 0} -- of budgets and slots: where this request's hold is added, and to what
for i = rates + 1, takes do
  local raw, gone, from = found[4 + i] or '', nil, nil
  if i <= rates + budgets then
    from, gone = read('<dd', of_plan, WINDOWS + 16 * (i - rates - 1))
    if now < from or now >= gone then return pack('<llll', 4, now, known_policy, known_tenant) end
  end
  local spent, loaded, made = -1, 0, 0
  if #raw >= 24 and #raw % 16 == 8 then spent, loaded, made = read('<ddd', raw) end
  if not (spent >= 0 and spent <= LARGEST and loaded >= 0 and made >= 0) then -- new, or not ours
    raw, spent, loaded, made = string.rep('\0', 24), 0, gone and -1 or 0, now
  end
  local held, mine, free, sum, latest = 0, nil, #raw + 1, 0, expiry
  for at = 25, #raw, 16 do
    local until_us, amount = read('<dd', raw, at)
    if until_us > now and amount >= 0 and amount <= LARGEST then
      held = held + amount
      if until_us == expiry then
        mine, sum = at, amount
      elseif until_us > latest then
        latest = until_us
      end
    else
      free = at
    end
  end
  -- A budget gets its place whatever is decided, which costs nobody anything; for slots, nobody makes a key who is refused.
  local store = not mine and life > 0 and (gone or fits and cold == '')
  if gone and loaded < epoch then
    local seed = seeds and seeds[i] or -1
    if seed < 0 and not again then cold = cold .. pack('<l', i - 1) end
    if seed > spent then spent = math.min(seed, LARGEST) end
    loaded, store = now, seed >= 0
  end
  if store and not again then
    if not mine then
      mine = free
      raw = sub(raw, 1, mine - 1) .. pack('<dd', expiry, 0) .. sub(raw, mine + 16)
    end
    local last = gone and gone + LATE or latest + MINUTE
    local ms = math.min(math.ceil((last - now) / 1000), MONTH_MS)
    call('SET', KEYS[4 + i], pack('<ddd', spent, loaded, made) .. sub(raw, 25), 'PX', ms)
  end
  places[i - rates], sums[i - rates] = mine, sum
  values[i] = spent + held
  if made > taken then taken = made end -- a settlement leaves alone what was made after this (clocks may go back)
  local room = limits[i] - spent - held
  if costs[i] > room then
    if floors[i] > room then fits = false end
    costs[i], shrunk = room, true
  end
end
if cold ~= '' then return pack('<llll', 3, now, known_policy, known_tenant) .. cold end

-- Then take all, or nothing.
local take, granted = fits and life > 0 and not again, nil
if take then
  for i = rates + 1, takes do
    local cost = costs[i]
    call('SETRANGE', KEYS[4 + i], places[i - rates] + 7, pack('<d', sums[i - rates] + cost))
    values[i] = values[i] + cost
  end
  if shrunk then granted = pack(each, unpack(costs, 1, takes)) end
  if takes > 0 then
    local each_granted = granted or sub(of_call, COSTS, COSTS + COLUMN - 1)
    call('SET', KEYS[1], pack('<dd', taken, expiry) .. each_granted, 'PX', math.ceil((expiry - now) / 1000))
  end
  if known_policy < policy then call('SET', KEYS[2], policy, 'PX', MONTH_MS) end
  if known_tenant < tenant then call('SET', KEYS[3], tenant, 'PX', MONTH_MS) end
elseif again then
  fits, granted = true, sub(mark .. string.rep('\0', COLUMN), 17, 16 + COLUMN)
elseif fits then
  granted = string.rep('\0', COLUMN)
end
local try = redis.pcall
for i = 1, (take or seeded) and rates or 0 do
  local key, old, tat = KEYS[4 + i], values[i], values[i]
  if take then tat = (old > now and old or now) + costs[i] end
  local minute = tat - tat % MINUTE
  if not (steady and old >= minute and try('INCRBY', key, tat - old) == tat) then
    local last, cell = minute + MINUTE, tat
    if read('<d', of_plan, FLAGS + 8 * (i - 1)) > 0 then last = last + math.max(expiry - now, DEBTS) end
    if now < rates_since + limits[i] then
      last, cell = math.max(last, rates_since + limits[i]), string.format('%d %d', tat, rates_since)
    end
    if last > now then call('SET', key, cell, 'PX', math.ceil((last - now) / 1000)) end
  end
  values[i] = tat
end
local status = fits and (granted and 5 or 1) or 0
local answer = takes <= 28 and sub(INTEGERS, 1, 5 + takes) or '<' .. string.rep('l', 4 + takes)
local told = pack(answer, status, now, known_policy, known_tenant, unpack(values, 1, takes))
return told .. (granted or '') .. (found[5 + takes] or '')

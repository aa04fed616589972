-- Take from every limit of one request, or from none. Idempotent by the request's id.
--
-- A rate is one integer, its theoretical arrival time (TAT): admit when max(tat, now) + inc <= now + burst. Its key
-- lives until the end of the TAT's minute, or longer; so the expiry is only moved when the TAT enters another minute.
--
-- A budget and a concurrency limit are counted alike, packed in one string: spent, loaded (when its spending was loaded
-- from the ledger, us), made (when this string was, us), and its holds: an expiry (us) and the sum that is held until
-- then, for each expiry. Admit when spent + held + cost <= limit. A slot costs 1 and is never spent. Expiries are
-- multiples of a grid, so there are few however many requests are in flight; and which request holds what, only its
-- marker knows. An expiry that has passed gives its place to the next.
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
--       1 now (us; 0: the server's clock), hold life and grid (us; life 0: only look, take nothing), policy version,
--         tenant version (0: unversioned), epoch of rates (us; 0: as in KEYS[4]), rates, budgets, concurrency limits
--       2 each limit (burst in us; units; slots), then per rate: 1 if it can be settled, else 0; then per budget: start and end of its window (us)
--       3 each cost (inc in us; units; 1)   4 each floor ('': the cost)
--       5 each seed: the TAT that another store knows (0: it knows none), or what the ledger knows; -1: nobody was asked
--         ('': nobody was, for any)
-- Result one string, packed: status, now, policy version, tenant version, ...
--       1 admitted (or would be) / 0 refused: then each value (TAT (us), committed, slots in use), what each was granted,
--         and the estimates as settle.lua keeps them (nothing if there are none), where they were asked for
--       2 stale: a newer policy or tenant record exists   4 a budget's window does not contain now
--       3 cold: then the positions (from 0) of takes that must be loaded: rates from the other store, budgets from the
--         ledger
--
-- What is packed is packed as little-endian doubles, which are exact: all numbers are integers below 2^53. As text they
-- would cost several times the whole decision. Every redis.call costs several times what its command does, so there are
-- few; every table that grows, closure and global costs as much as some of them, so there are few of these, too. Numbers
-- become text by %d: redis.call prints them as %.17g, which takes as long as the command, and `..` would print 1.76e+15.

local MINUTE, DAY, LARGEST = 60000000, 86400000000, 2 ^ 53
local LATE = 3600000000 -- an hour: a budget outlives its window for as long, so that a late settlement finds it
local DEBTS = 900000000 -- 15 minutes: a rate that can be settled lives on for as long, so that a late debt finds it
local MONTH_MS = 3456000000 -- 40 days: longer than any window; what it drops is loaded again
local call, tonumber, format, rep, unpack = redis.call, tonumber, string.format, string.rep, unpack or table.unpack
local codec = struct or string
local pack, read = codec.pack, codec.unpack

local now, life, grid, policy, tenant, rates_since, rates, budgets, slots = read('<ddddddddd', ARGV[1])
local takes = rates + budgets + slots
local each = '<' .. rep('d', takes)
local terms, wanted = {read('<' .. rep('d', #ARGV[2] / 8), ARGV[2])}, {read(each, ARGV[3])}
local least = ARGV[4] == '' and wanted or {read(each, ARGV[4])}
local seeds = ARGV[5] ~= '' and {read(each, ARGV[5])}
if now == 0 then
  local time = call('TIME')
  now = time[1] * 1000000 + time[2]
end
local expiry = now + life
expiry = expiry - expiry % grid + grid

local function whole(raw)
  local number = tonumber(raw or 0)
  return number and number >= 0 and number < LARGEST and number or 0
end
local found = call('MGET', unpack(KEYS))
local known_policy, known_tenant, epoch = whole(found[2]), whole(found[3]), whole(found[4])
local function answer(status) return pack('<dddd', status, now, known_policy, known_tenant) end
if (policy > 0 and known_policy > policy) or (tenant > 0 and known_tenant > tenant) then return answer(2) end
if epoch == 0 and (takes > rates or rates_since == 0) then
  epoch = now
  call('SET', KEYS[4], format('%d', now), 'PX', MONTH_MS)
end
if rates_since == 0 then rates_since = epoch end

-- An id that was admitted before, and whose answer was lost, is told the same again.
local mark = found[1]
local again = mark and #mark >= 16 and read('<d', mark, 9) > now

-- Look at everything first.
local fits, shrunk, taken, cold, seeded = true, false, now, '', 0
local values = {0, 0, 0, 0, 0, 0, 0, 0} -- as long as usual, because growing costs
for i = 1, rates do
  local raw, burst = found[4 + i] or 0, terms[i]
  local tat, since = tonumber(raw), nil
  if not tat then
    tat, since = string.match(raw, '^(%d+) (%d+)$')
    tat, since = tonumber(tat or 0), tonumber(since or 0)
  end
  if not (tat >= 0 and tat < LARGEST) then tat = 0 end -- not ours
  if now < rates_since + burst and since ~= rates_since and not again then
    local seed = seeds and seeds[i] or -1
    if seed < 0 then
      cold = cold .. pack('<d', i - 1)
    elseif seed > tat then
      tat = seed
    end
    seeded = life > 0 and rates or 0
  end
  values[i] = tat
  local room = tat > now and now + burst - tat or burst
  if wanted[i] > room then
    if least[i] > room then fits = false end
    wanted[i], shrunk = room, true
  end
end
for i = rates + 1, takes do
  local raw, limit, gone = found[4 + i], terms[i], nil
  if i <= rates + budgets then
    local window = takes + 2 * i - rates - 1
    gone = terms[window + 1]
    if now < terms[window] or now >= gone then return answer(4) end
  end
  local size = raw and #raw / 8 or 0
  local count = size >= 3 and size % 2 == 1 and {read('<' .. rep('d', size), raw)} or {-1, 0, 0}
  local spent, loaded, made = count[1], count[2], count[3]
  if not (spent >= 0 and spent < LARGEST and loaded >= 0 and made >= 0) then -- new, or not ours
    size, count = 3, {0, gone and -1 or 0, now}
    spent, loaded, made = 0, count[2], now
  end
  local held, mine, free = 0, nil, size + 1
  for at = 4, size, 2 do
    local until_us, sum = count[at], count[at + 1]
    if until_us > now and sum >= 0 and sum < LARGEST then
      held = held + sum
      if until_us == expiry then mine = at end
    else
      free = at
    end
  end
  local store, seed = not mine, seeds and seeds[i] or -1
  if gone and loaded < epoch and not again then
    if seed < 0 then
      cold, store = cold .. pack('<d', i - 1), false
    else
      if seed > spent then spent = seed end
      count[1], count[2], store = spent, now, true
    end
  end
  local room = limit - spent - held
  if wanted[i] > room then
    if least[i] > room then fits = false end
    wanted[i], shrunk = room, true
  end
  values[i] = spent + held
  if made > taken then taken = made end -- whatever clocks say: what a settlement finds made later is not what was taken from
  if life > 0 and not again then
    if not mine then
      mine = free
      if free > size then size = size + 2 end
      count[mine], count[mine + 1] = expiry, 0
    end
    local all = '<' .. rep('d', size)
    if store then -- whether it fits or not: what was loaded, and a new expiry, which moves the key's
      local last = gone and gone + LATE or now + math.max(DAY, 2 * life)
      local ms = math.min(math.ceil((last - now) / 1000), MONTH_MS)
      call('SET', KEYS[4 + i], pack(all, unpack(count, 1, size)), 'PX', format('%d', ms))
    end
    count[mine + 1] = count[mine + 1] + wanted[i]
    found[4 + i] = pack(all, unpack(count, 1, size)) -- what it becomes, if all fit
  end
end
if cold ~= '' then return answer(3) .. cold end

-- Then take all, or nothing.
local take, granted = fits and life > 0 and not again, nil
if take then
  granted = shrunk and pack(each, unpack(wanted, 1, takes)) or ARGV[3]
  for i = rates + 1, takes do
    call('SET', KEYS[4 + i], found[4 + i], 'KEEPTTL')
    values[i] = values[i] + wanted[i]
  end
  if takes > 0 then
    local ms = format('%d', math.ceil((expiry - now) / 1000))
    call('SET', KEYS[1], pack('<dd', taken, expiry) .. granted, 'PX', ms)
  end
  if known_policy < policy then call('SET', KEYS[2], format('%d', policy), 'PX', MONTH_MS) end
  if known_tenant < tenant then call('SET', KEYS[3], format('%d', tenant), 'PX', MONTH_MS) end
end
for i = 1, take and rates or seeded do
  local key, old, tat, burst = KEYS[4 + i], values[i], values[i], terms[i]
  if take then tat = (old > now and old or now) + wanted[i] end
  local minute, young = tat - tat % MINUTE, now < rates_since + burst
  local settled, last = terms[takes + i] * (expiry - now), minute + MINUTE
  local lives = old >= minute and old < last and settled <= DEBTS and not young
  if take or young then
    if not lives or type(redis.pcall('INCRBY', key, format('%d', tat - old))) ~= 'number' then
      if settled > 0 then last = last + math.max(settled, DEBTS) end
      if young then last = math.max(last, rates_since + burst) end
      local cell = young and format('%d %d', tat, rates_since) or format('%d', tat)
      call('SET', key, cell, 'PX', format('%d', math.ceil((last - now) / 1000)))
    end
  end
  values[i] = tat
end
if again then
  fits, granted = true, string.sub(mark .. rep('\0', 8 * takes), 17, 16 + 8 * takes)
end
granted = granted or rep('\0', 8 * takes)
return answer(fits and 1 or 0) .. pack(each, unpack(values, 1, takes)) .. granted .. (found[5 + takes] or '')

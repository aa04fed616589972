-- Make what budgets know to be spent at least what the ledger knows. Budgets that are not loaded stay so. One that is raised
-- knows what the ledger knew now, as if it had been loaded: a settlement that comes late (settle.lua) adds nothing to it.
--
-- KEYS  one budget each
-- ARGV  1 now (us; 0: the server's clock)   2.. the ledger's total for each key, in the budget's unit
-- Result how many were raised

local LARGEST = 2 ^ 53 - 1 -- as in admit.lua
local codec = struct or string
local now = tonumber(ARGV[1])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local raised = 0
for i, key in ipairs(KEYS) do
  local raw, floor = redis.call('MGET', key)[1], math.min(tonumber(ARGV[i + 1]), LARGEST) -- no string: as if missing
  if raw and #raw >= 24 and codec.unpack('<d', raw) < floor then -- see admit.lua
    redis.call('SETRANGE', key, 0, codec.pack('<dd', floor, now))
    raised = raised + 1
  end
end
return raised

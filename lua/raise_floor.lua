-- Make what budgets know to be spent at least what the ledger knows. Budgets that are not loaded stay so.
--
-- KEYS  one budget each
-- ARGV  1.. the ledger's total for each key, in the budget's unit
-- Result how many were raised

local LARGEST = 2 ^ 53 - 1 -- as in admit.lua
local codec = struct or string
local raised = 0
for i, key in ipairs(KEYS) do
  local raw, floor = redis.call('MGET', key)[1], math.min(tonumber(ARGV[i]), LARGEST) -- no string: as if missing
  if raw and #raw >= 24 and codec.unpack('<d', raw) < floor then -- see admit.lua
    redis.call('SETRANGE', key, 0, codec.pack('<d', floor))
    raised = raised + 1
  end
end
return raised

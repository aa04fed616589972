-- Make what budgets know to be spent at least what the ledger knows. Budgets that are not loaded stay so.
--
-- KEYS  one budget hash each
-- ARGV  1.. the ledger's total for each key, in the budget's unit
-- Result how many were raised

local codec = struct or string
local raised = 0
for i, key in ipairs(KEYS) do
  local raw, floor = redis.call('HGET', key, 's'), tonumber(ARGV[i])
  if raw and #raw == 32 then
    local spent, held, sweep, loaded = codec.unpack('<dddd', raw) -- see admit.lua
    if spent < floor then
      redis.call('HSET', key, 's', codec.pack('<dddd', floor, held, sweep, loaded))
      raised = raised + 1
    end
  end
end
return raised

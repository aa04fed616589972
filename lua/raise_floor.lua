-- Make what budgets know to be spent at least what the ledger knows. Budgets that are not loaded stay so.
--
-- KEYS  one budget hash each
-- ARGV  1.. the ledger's total for each key, in the budget's unit
-- Result how many were raised

local raised = 0
for i, key in ipairs(KEYS) do
  local spent = tonumber(redis.call('HGET', key, 'spent') or nil)
  if spent and spent < tonumber(ARGV[i]) then
    redis.call('HSET', key, 'spent', ARGV[i])
    raised = raised + 1
  end
end
return raised

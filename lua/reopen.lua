-- Start a new epoch after an outage: every budget must be loaded again, because others have spent meanwhile.
--
-- KEYS  1 epoch (us)
-- ARGV  1 how long ago the outage began (us)   2 now (us; 0: the server's clock)
-- Result the epoch in force: a new one, unless somebody else has started one since the outage began

local now = tonumber(ARGV[2])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local epoch = tonumber(redis.call('GET', KEYS[1]) or 0)
if epoch < now - tonumber(ARGV[1]) then
  redis.call('SET', KEYS[1], now, 'PX', 3456000000) -- 40 days
  return now
end
return epoch

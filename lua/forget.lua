-- Make sure that an admission which may still be on its way takes nothing when it arrives: its id is marked as admitted,
-- with nothing granted.
--
-- KEYS  1 marker of the request
-- ARGV  1 the mark (as admit.lua reads it)   2 for how long (ms)
-- Result 1 done, 0 it has been admitted: settle it first

local mark = redis.call('MGET', KEYS[1])[1] -- what is no string counts as missing
if mark and #mark % 8 == 0 and #mark >= 24 then return 0 end -- what settle.lua would take; anything else is not ours
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1

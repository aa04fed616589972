-- Make sure that an admission which may still be on its way takes nothing when it arrives: its id is marked as admitted,
-- with nothing granted.
--
-- KEYS  1 marker of the request
-- ARGV  1 the mark (as admit.lua reads it)   2 for how long (ms)
-- Result 1 done, 0 it has been admitted: settle it first

if redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2], 'NX') then return 1 end
return redis.call('GET', KEYS[1]) == ARGV[1] and 1 or 0

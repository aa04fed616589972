-- Announce newer versions of the policy or of tenants' records; a version never falls.
--
-- KEYS  one version key each
-- ARGV  1.. the version for each key
-- Result how many rose

local risen = 0
for i, key in ipairs(KEYS) do
  if tonumber(redis.call('GET', key) or 0) < tonumber(ARGV[i]) then
    redis.call('SET', key, ARGV[i], 'PX', 3456000000) -- 40 days
    risen = risen + 1
  end
end
return risen

-- Which requests still hold what they took. Looks, and changes nothing.
--
-- KEYS  a marker of each request
-- Result the positions (from 0) of those that are there

local found = {}
for i, mark in ipairs(redis.call('MGET', unpack(KEYS))) do
  if mark and #mark >= 24 then found[#found + 1] = i - 1 end -- shorter: of a request that holds nothing
end
return found

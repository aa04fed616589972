-- Which requests still hold what they took. Looks, and changes nothing.
--
-- KEYS  a marker of each request
-- Result the positions (from 0) of those that settle.lua would take

local found, unpack = {}, unpack or table.unpack
for i, mark in ipairs(redis.call('MGET', unpack(KEYS))) do
  if mark and #mark % 8 == 0 and #mark >= 24 then found[#found + 1] = i - 1 end
end
return found

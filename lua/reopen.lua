-- Start a new epoch where what this server holds is not to be believed: after an outage, in which others have decided,
-- and where another server wrote it (a replica that was promoted, a snapshot that was loaded) and the last of it may
-- be missing.
--
-- KEYS  1 epoch (us)   2 servers that have answered with this data (hash)
-- ARGV  1 how long ago the outage began (us; -1: there was none)   2 now (us; 0: the server's clock)
-- Result the epoch in force: a new one, unless the server is known, and an epoch has begun since the outage did

local MONTH_MS = 3456000000 -- 40 days
local MAX_SERVERS = 100
local now = tonumber(ARGV[2])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end

-- Of a process: its run id, and its replication id, which changes when it is promoted. '' where it may not be asked.
local function told(section, field)
  local info = redis.pcall('INFO', section)
  return type(info) == 'string' and string.match(info, field .. ':(%w+)') or ''
end
local server = told('server', 'run_id') .. '.' .. told('replication', 'master_replid')
if redis.call('TYPE', KEYS[2]).ok ~= 'hash' then redis.call('DEL', KEYS[2]) end
local known = redis.call('HLEN', KEYS[2])
if known >= MAX_SERVERS then redis.call('DEL', KEYS[2]) end
local stranger = redis.call('HSETNX', KEYS[2], server, now) == 1 and known > 0
redis.call('PEXPIRE', KEYS[2], MONTH_MS)

local epoch = tonumber(redis.call('MGET', KEYS[1])[1] or 0) or 0
local outage = tonumber(ARGV[1])
if stranger or epoch == 0 or (outage >= 0 and epoch < now - outage) then
  redis.call('SET', KEYS[1], now, 'PX', MONTH_MS)
  return now
end
return epoch

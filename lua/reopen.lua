-- Start a new epoch where what a server holds is not to be believed: after an outage, in which others have decided, and
-- where another server wrote it (a replica that was promoted, a snapshot that was loaded) and the last of it may be
-- missing.
--
-- KEYS  1 epoch (us)   2 servers that have answered with this data (hash); none: only tell who this server is
-- ARGV  1 how long ago the outage began (us; -1: there was none)   2 now (us; 0: the server's clock)
--       3.. the servers that answer now, each as it has told; none: this one
-- Result the epoch in force: a new one, unless all servers are known, and an epoch has begun since the outage did

local MONTH_MS = 3456000000 -- 40 days
local MAX_SERVERS = 1000
local unpack = unpack or table.unpack

-- Of a process: its run id, and its replication id, which changes when it is promoted. '' where it may not be asked.
local function told(section, field)
  local info = redis.pcall('INFO', section)
  return type(info) == 'string' and string.match(info, field .. ':(%w+)') or ''
end
local servers = {unpack(ARGV, 3)}
if #servers == 0 then servers[1] = told('server', 'run_id') .. '.' .. told('replication', 'master_replid') end
if #KEYS == 0 then return servers[1] end

local now = tonumber(ARGV[2])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
if redis.call('TYPE', KEYS[2]).ok ~= 'hash' then redis.call('DEL', KEYS[2]) end
local known, strangers = redis.call('HLEN', KEYS[2]), 0
if known >= MAX_SERVERS then redis.call('DEL', KEYS[2]) end
for _, server in ipairs(servers) do strangers = strangers + redis.call('HSETNX', KEYS[2], server, now) end
redis.call('PEXPIRE', KEYS[2], MONTH_MS)

local epoch = tonumber(redis.call('MGET', KEYS[1])[1] or 0) or 0
local outage = tonumber(ARGV[1])
if (strangers > 0 and known > 0) or epoch == 0 or (outage >= 0 and epoch < now - outage) then
  redis.call('SET', KEYS[1], now, 'PX', MONTH_MS)
  return now
end
return epoch

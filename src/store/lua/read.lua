-- read: a turn and its reads in one script, for a server that has reached maxmemory: it refuses every
-- MULTI, whatever is in it, and the turn is what brings memory back. The bodies pass through Lua, so this
-- is not the usual way. Appended to turn.lua, which it has as the function `turn`.
-- KEYS as turn.lua's
-- ARGV as turn.lua's, and then: read after (score), read to (score), packs at most
-- returns {the turn's reply, packs with their scores} | {{"busy", ...}}
local limit, read_to, read_after = table.remove(ARGV), table.remove(ARGV), table.remove(ARGV)
local reply = turn()
if reply[1] == 'busy' then return {reply} end
return {reply, redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. read_after, read_to, 'WITHSCORES', 'LIMIT', 0, limit)}

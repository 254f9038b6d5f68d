-- read: a turn and its reads in one script, for a server that has reached maxmemory: it refuses every
-- MULTI, whatever is in it, and the turn is what brings memory back. The bodies pass through Lua, so this
-- is not the usual way. Appended to turn.lua, which it has as the function `turn`.
-- KEYS as turn.lua's
-- ARGV as turn.lua's, and then: read after (score, "" for no read), read to (score), packs at most,
--   marks after ("" for no marks), marks to
-- returns {the turn's reply, packs with their scores if read, marks if asked for} | {{"busy", ...}}
local marks_to, marks_after = table.remove(ARGV), table.remove(ARGV)
local limit, read_to, read_after = table.remove(ARGV), table.remove(ARGV), table.remove(ARGV)
local replies = {turn()}
if replies[1][1] == 'busy' then return replies end
if read_after ~= '' then
  replies[#replies + 1] =
    redis.call('ZRANGEBYSCORE', KEYS[1], '(' .. read_after, read_to, 'WITHSCORES', 'LIMIT', 0, limit)
end
if marks_after ~= '' then
  replies[#replies + 1] = redis.call('ZRANGEBYSCORE', KEYS[4], '(' .. marks_after, marks_to)
end
return replies

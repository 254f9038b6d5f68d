-- resume: gives one pack of a topic that is no longer paused back to the queue. The bodies come from a read
-- just before; the entries that it compares are what makes the read still true (R7).
-- KEYS[1] due    zset  pack -> score            KEYS[2] horizon  hash  handed, opened, watch, below, held
-- KEYS[3] ids    hash  id -> entry              KEYS[4] live     zset  id -> due
-- KEYS[5] held   zset  pack -> score            KEYS[6] holds    hash  topic -> packs held
-- KEYS[7] bytes  hash  topic -> bytes of bodies in packs
-- ARGV[1] wake channel  ARGV[2] topic  ARGV[3] score (text) of the pack that is held
-- ARGV[4] score (text) of the new pack, "" if nothing is left of it   ARGV[5] its due_ms  ARGV[6] new pack
-- ARGV[7] bytes of bodies that it has less   ARGV[8..] of each message: id, entry that was read, new entry
-- returns {"ok" | "gone" | "changed", now_us} | {"late" | "taken", now_us, limit_ms}
-- "gone": somebody else has done it. "changed": one was cancelled or moved; look again.
-- R3 counter. No token: it touches nothing that an owner remembers, like an insert.
local time = redis.call('TIME')
local now_us = string.format('%.0f', time[1] * 1000000 + time[2])
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local horizon = redis.call('HMGET', KEYS[2], 'handed', 'opened', 'watch')
local handed = tonumber(horizon[1] or '0')
local limit = string.format('%.0f', math.max(now, handed))
if redis.call('ZCOUNT', KEYS[5], ARGV[3], ARGV[3]) == 0 then return {'gone', now_us} end
for at = 8, #ARGV, 3 do
  if redis.call('HGET', KEYS[3], ARGV[at]) ~= ARGV[at + 1] then return {'changed', now_us} end
end
if ARGV[4] ~= '' then
  local due = tonumber(ARGV[5])
  if due <= handed then return {'late', now_us, limit} end
  if redis.call('ZCOUNT', KEYS[1], ARGV[4], ARGV[4]) > 0 then return {'taken', now_us, limit} end
  redis.call('ZADD', KEYS[1], ARGV[4], ARGV[6])
  for at = 8, #ARGV, 3 do
    redis.call('HSET', KEYS[3], ARGV[at], ARGV[at + 2])
    redis.call('ZADD', KEYS[4], 'GT', due, ARGV[at])
  end
  appear(KEYS[2], {horizon[2], horizon[3]}, ARGV[1], {ARGV[5]})
end
redis.call('ZREMRANGEBYSCORE', KEYS[5], ARGV[3], ARGV[3])
if redis.call('HINCRBY', KEYS[6], ARGV[2], -1) <= 0 then redis.call('HDEL', KEYS[6], ARGV[2]) end
redis.call('HINCRBY', KEYS[2], 'held', -1)
-- Lua writes the negative of 0 as -0, which Redis does not take for a number.
if ARGV[7] ~= '0' and redis.call('HINCRBY', KEYS[7], ARGV[2], -ARGV[7]) <= 0 then
  redis.call('HDEL', KEYS[7], ARGV[2])
end
return {'ok', now_us}

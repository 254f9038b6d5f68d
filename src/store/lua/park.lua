-- park: in the owner's session, takes messages out of the way: to a later time, to the dead letters, or to
-- where a paused topic's messages are held.
-- KEYS[1] due, or held of the topic: zset  pack -> score           KEYS[2] claim  string  token
-- KEYS[3] horizon  hash    handed, opened, watch, below, held      KEYS[4] ids  hash  id -> entry
-- KEYS[5] cancelled  zset  mark -> due          KEYS[6] live       zset    id -> due
-- KEYS[7] pending  hash    topic -> messages    KEYS[8] dead       hash    id -> dead letter
-- KEYS[9] bytes    hash    topic -> bytes of bodies in packs       KEYS[10] holds  hash  topic -> packs held
-- ARGV[1] wake channel  ARGV[2] token
-- ARGV[3] score (text) of the pack that the messages go to, "" for the dead letters
-- ARGV[4] its due_ms, "held", or the most dead letters that there may be   ARGV[5] that pack, or ""
-- ARGV[6..] of each message: id, old mark, old due_ms, new entry, new due_ms, topic, dead letter or "",
--   length of the body
-- returns {"ok" | "fenced" | "full", now_us} | {"late" | "taken", now_us, limit_ms}
--       | {"marked", now_us, id, ...}: these were cancelled or moved; nothing was written
-- R8: one script, under the token; after a lost reply it is sent again (mark and entry there = done).
local time = redis.call('TIME')
local now_us = string.format('%.0f', time[1] * 1000000 + time[2])
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if redis.call('GET', KEYS[2]) ~= ARGV[2] then return {'fenced', now_us} end
-- A first write that frees memory, though it does nothing: after it Redis lets the script write also when
-- maxmemory is reached, so that parking keeps working when inserts are refused.
redis.call('ZREM', KEYS[5], '')
local horizon = redis.call('HMGET', KEYS[3], 'handed', 'opened', 'watch')
local handed = tonumber(horizon[1] or '0')
local limit = string.format('%.0f', math.max(now, handed))
local to_dead, to_held = ARGV[3] == '', ARGV[4] == 'held'

local marked, done = {}, 0
for at = 6, #ARGV, 8 do
  if redis.call('ZSCORE', KEYS[5], ARGV[at + 1]) then
    if redis.call('HGET', KEYS[4], ARGV[at]) == ARGV[at + 3] then
      done = done + 1
    else
      marked[#marked + 1] = ARGV[at]
    end
  end
end
local count = (#ARGV - 5) / 8
if done == count then return {'ok', now_us} end
if #marked > 0 then return {'marked', now_us, unpack(marked)} end
if to_dead then
  if redis.call('HLEN', KEYS[8]) + count > tonumber(ARGV[4]) then return {'full', now_us} end
else
  if not to_held and tonumber(ARGV[4]) <= handed then return {'late', now_us, limit} end
  if redis.call('ZCOUNT', KEYS[1], ARGV[3], ARGV[3]) > 0 then return {'taken', now_us, limit} end
  redis.call('ZADD', KEYS[1], ARGV[3], ARGV[5])
end

for at = 6, #ARGV, 8 do
  local id, old_due, new_due = ARGV[at], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 4])
  redis.call('ZADD', KEYS[5], old_due, ARGV[at + 1])
  redis.call('HSET', KEYS[4], id, ARGV[at + 3])
  if to_dead then
    redis.call('HSET', KEYS[8], id, ARGV[at + 6])
    if redis.call('HINCRBY', KEYS[7], ARGV[at + 5], -1) <= 0 then redis.call('HDEL', KEYS[7], ARGV[at + 5]) end
  else
    -- The entry of a message that is held stays as long as it is.
    if not to_held then redis.call('ZADD', KEYS[6], 'GT', math.max(old_due, new_due), id) end
    redis.call('HINCRBY', KEYS[9], ARGV[at + 5], ARGV[at + 7])
  end
end
if to_held then
  redis.call('HINCRBY', KEYS[10], ARGV[11], 1)
  redis.call('HINCRBY', KEYS[3], 'held', 1)
elseif not to_dead then
  appear(KEYS[3], {horizon[2], horizon[3]}, ARGV[1], {ARGV[4]})
end
return {'ok', now_us}

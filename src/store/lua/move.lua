-- move: puts one message at another time. The body comes from a read just before; the mark that this
-- script sets at the old place is what makes the read still true (R7).
-- KEYS[1] due      zset  pack -> score          KEYS[2] horizon    hash  handed, settled, opened, watch, below
-- KEYS[3] ids      hash  id -> entry            KEYS[4] cancelled  zset  mark -> due, Unix ms
-- KEYS[5] live     zset  id -> due              KEYS[6] bytes      hash  topic -> bytes of bodies in packs
-- KEYS[7] tallies  hash  begin of marks -> what of a pack is gone
-- ARGV[1] wake channel  ARGV[2] id  ARGV[3] entry that was read, "" for none
-- ARGV[4] old score (text)  ARGV[5] old due_ms  ARGV[6] old mark  ARGV[7] records in the old pack
-- ARGV[8] new score (text)  ARGV[9] new due_ms  ARGV[10] new pack  ARGV[11] new entry
-- ARGV[12] topic  ARGV[13] length of the body
-- returns {"ok" | "changed" | "closed" | "in_flight" | "gone" | "cancelled", now_us}
--       | {"late" | "taken", now_us, limit_ms}
-- "changed": the index no longer says what was read; look again.
local time = redis.call('TIME')
local now_us = string.format('%.0f', time[1] * 1000000 + time[2])
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local horizon = redis.call('HMGET', KEYS[2], 'handed', 'settled', 'opened', 'closed', 'watch')
local handed, settled = tonumber(horizon[1] or '0'), tonumber(horizon[2] or '0')
local opened = tonumber(horizon[3] or '0')
local limit = string.format('%.0f', math.max(now, handed))

local entry = redis.call('HGET', KEYS[3], ARGV[2]) or ''
-- The identical request, sent again after a lost reply: it is done.
if entry == ARGV[11] then return {'ok', now_us} end
if entry ~= ARGV[3] then return {'changed', now_us} end
if horizon[4] then return {'closed', now_us} end
local old_due, new_due = tonumber(ARGV[5]), tonumber(ARGV[9])
-- What is held has no mark and was not handed out from there: its entry alone says where it is.
local held = string.sub(entry, 1, 1) == 'H'
if not held then
  if old_due <= settled then return {'gone', now_us} end
  if is_marked(KEYS[4], KEYS[7], ARGV[6]) then return {'cancelled', now_us} end
  if old_due <= handed then return {'in_flight', now_us} end
end
if new_due <= handed then return {'late', now_us, limit} end
if redis.call('ZCOUNT', KEYS[1], ARGV[8], ARGV[8]) > 0 then return {'taken', now_us, limit} end

if not held then redis.call('ZADD', KEYS[4], old_due, ARGV[6]) end
redis.call('ZADD', KEYS[1], ARGV[8], ARGV[10])
redis.call('HINCRBY', KEYS[6], ARGV[12], ARGV[13])
redis.call('HSET', KEYS[3], ARGV[2], ARGV[11])
-- The entry may only age when S has passed every place that it was at: until then their marks depend
-- on it. GT, because an earlier move may have come from a later place.
redis.call('ZADD', KEYS[5], 'GT', math.max(old_due, new_due), ARGV[2])
-- A pack of which others are gone keeps its score.
local others = redis.call('HEXISTS', KEYS[7], string.sub(ARGV[6], 1, 12)) == 1
if not held and not others and ARGV[7] == '1' and math.floor(tonumber(ARGV[4]) / 2048) > opened then
  redis.call('ZREMRANGEBYSCORE', KEYS[1], ARGV[4], ARGV[4])
  redis.call('HINCRBY', KEYS[6], ARGV[12], -ARGV[13])
end
appear(KEYS[2], {horizon[3], horizon[5]}, ARGV[1], {ARGV[9]})
return {'ok', now_us}

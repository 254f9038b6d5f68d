-- requeue: gives a dead letter back to the queue, or drops it.
-- KEYS[1] due    zset  pack -> score            KEYS[2] horizon  hash  handed, opened, watch, below
-- KEYS[3] ids    hash  id -> entry              KEYS[4] live     zset  id -> due
-- KEYS[5] gone   zset  id -> when its entry goes
-- KEYS[6] pending  hash  topic -> messages      KEYS[7] dead     hash  id -> dead letter
-- KEYS[8] bytes    hash  topic -> bytes of bodies in packs
-- ARGV[1] wake channel  ARGV[2] id  ARGV[3] dead letter that was read
-- ARGV[4] score (text) of the new pack, "" to drop  ARGV[5] its due_ms, or dedupe_window_ms
-- ARGV[6] new pack  ARGV[7] new entry  ARGV[8] topic  ARGV[9] length of the body
-- returns {"ok" | "gone", now_us} | {"late" | "taken", now_us, limit_ms}
local time = redis.call('TIME')
local now_us = string.format('%.0f', time[1] * 1000000 + time[2])
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local horizon = redis.call('HMGET', KEYS[2], 'handed', 'opened', 'watch')
local handed = tonumber(horizon[1] or '0')
local limit = string.format('%.0f', math.max(now, handed))
if redis.call('HGET', KEYS[7], ARGV[2]) ~= ARGV[3] then return {'gone', now_us} end

if ARGV[4] == '' then
  local entry = redis.call('HGET', KEYS[3], ARGV[2]) or 'D'
  redis.call('HDEL', KEYS[7], ARGV[2])
  redis.call('HSET', KEYS[3], ARGV[2], 'C' .. string.sub(entry, 2))
  redis.call('ZREM', KEYS[4], ARGV[2])
  redis.call('ZADD', KEYS[5], now + ARGV[5], ARGV[2])
  return {'ok', now_us}
end

local due = tonumber(ARGV[5])
if due <= handed then return {'late', now_us, limit} end
if redis.call('ZCOUNT', KEYS[1], ARGV[4], ARGV[4]) > 0 then return {'taken', now_us, limit} end
redis.call('ZADD', KEYS[1], ARGV[4], ARGV[6])
redis.call('HSET', KEYS[3], ARGV[2], ARGV[7])
redis.call('ZADD', KEYS[4], 'GT', due, ARGV[2])
redis.call('HDEL', KEYS[7], ARGV[2])
redis.call('HINCRBY', KEYS[6], ARGV[8], 1)
redis.call('HINCRBY', KEYS[8], ARGV[8], ARGV[9])
appear(KEYS[2], {horizon[2], horizon[3]}, ARGV[1], {ARGV[5]})
return {'ok', now_us}

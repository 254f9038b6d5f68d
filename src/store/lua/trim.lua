-- trim: lets entries age. Those whose places S has passed are kept for dedupe_window, then go.
-- KEYS[1] horizon  hash  settled
-- KEYS[2] ids      hash  id -> entry
-- KEYS[3] live     zset  id -> due time that S must pass, Unix ms
-- KEYS[4] gone     zset  id -> when its entry goes, Unix ms
-- ARGV[1] dedupe_window_ms  ARGV[2] most entries of each kind
-- returns how many entries it touched, as text: as many as ARGV[2] means that there are more
-- R11: by when S passed them, not by due.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local settled = redis.call('HGET', KEYS[1], 'settled') or '0'
-- A first write that frees memory, though it does nothing: after it Redis lets the script write also when
-- maxmemory is reached, so that ageing keeps working when inserts are refused.
redis.call('ZREM', KEYS[3], '')
local passed = redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', settled, 'LIMIT', 0, ARGV[2])
for _, id in ipairs(passed) do
  redis.call('ZREM', KEYS[3], id)
  -- The entry of a dead letter, or of a message that is held, stays as long as that does.
  if not string.find(redis.call('HGET', KEYS[2], id) or 'D', '^[DH]') then
    redis.call('ZADD', KEYS[4], now + ARGV[1], id)
  end
end
local old = redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', now, 'LIMIT', 0, ARGV[2])
for _, id in ipairs(old) do
  redis.call('ZREM', KEYS[4], id)
  redis.call('HDEL', KEYS[2], id)
end
return tostring(math.max(#passed, #old))

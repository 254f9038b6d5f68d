-- members: one heartbeat, or a farewell; answers who is live.
-- KEYS[1] members  zset  instance -> its last heartbeat, Unix ms
-- ARGV[1] instance  ARGV[2] instance_ttl_ms  ARGV[3] "1" to leave
-- returns {now_us, instance, ...}
local time = redis.call('TIME')
local now_us = string.format('%.0f', time[1] * 1000000 + time[2])
local now = time[1] * 1000 + math.floor(time[2] / 1000)
-- A first write that frees memory, though it does nothing: after it Redis lets the script write also when
-- maxmemory is reached, so that taking over keeps working when inserts are refused.
redis.call('ZREM', KEYS[1], '')
if ARGV[3] == '1' then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], now, ARGV[1])
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[2])
-- A beat from the future: Redis's clock stepped back. It counts from now.
for _, ahead in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], now + ARGV[2], '+inf')) do
  redis.call('ZADD', KEYS[1], now, ahead)
end
return {now_us, unpack(redis.call('ZRANGE', KEYS[1], 0, -1))}

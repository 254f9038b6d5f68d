-- members: one heartbeat, or a farewell; answers who is live.
-- KEYS[1] members  zset  instance -> its last heartbeat, Unix ms
-- ARGV[1] instance  ARGV[2] instance_ttl_ms  ARGV[3] "1" to leave
-- returns {now_us, ms until the first of the others expires or "", instance, ...}
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
local live, soonest, beats = {now_us, ''}, nil, redis.call('ZRANGE', KEYS[1], 0, -1, 'WITHSCORES')
for at = 1, #beats, 2 do
  local beat = tonumber(beats[at + 1])
  if beat <= now - ARGV[2] then
    redis.call('ZREM', KEYS[1], beats[at])
  else
    -- A beat from the future: Redis's clock stepped back. It counts from now.
    if beat > now + ARGV[2] then redis.call('ZADD', KEYS[1], now, beats[at]) end
    live[#live + 1] = beats[at]
    local left = math.max(beat + ARGV[2] - now, 0)
    if beats[at] ~= ARGV[1] and (not soonest or left < soonest) then soonest = left end
  end
end
if soonest then live[2] = string.format('%.0f', soonest) end
return live

-- enter: what follows from packs that were admitted and added: or takes them back, if they were refused. Stands behind
-- their ZADD in one MULTI, and `admit` before it.
-- KEYS[1] due      zset  pack -> score      KEYS[2] horizon  hash  opened, watch: Unix ms; below: count
-- KEYS[3] refused  list  what lay at the scores of packs that are refused, SHA-1, or ""
-- KEYS[4] pending  hash  topic -> messages  KEYS[5] bytes    hash  topic -> bytes of bodies in packs
-- ARGV[1] wake channel   ARGV[2] number of packs, then of each: score (text), due_ms
-- ARGV[..] topics x (topic, messages, bytes)
-- returns "1", or "0": they were refused, and nothing of them is there
-- R3 counter.
local last = 2 + 2 * ARGV[2]
local there = redis.call('LRANGE', KEYS[3], 0, -1)
-- Also a first write that frees memory: whatever is true of maxmemory by now, the rest must pass.
redis.call('DEL', KEYS[3])
if #there > 0 then
  for at = 3, last, 2 do
    local found = there[(at - 1) / 2]
    for _, pack in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], ARGV[at], ARGV[at])) do
      if redis.sha1hex(pack) ~= found then redis.call('ZREM', KEYS[1], pack) end
    end
  end
  return '0'
end

local horizon = redis.call('HMGET', KEYS[2], 'opened', 'watch')
local dues = {}
for at = 4, last, 2 do dues[#dues + 1] = ARGV[at] end
for at = last + 1, #ARGV, 3 do
  redis.call('HINCRBY', KEYS[4], ARGV[at], ARGV[at + 1])
  redis.call('HINCRBY', KEYS[5], ARGV[at], ARGV[at + 2])
end
appear(KEYS[2], horizon, ARGV[1], dues)
return '1'

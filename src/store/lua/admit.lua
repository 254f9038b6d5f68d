-- admit: whether packs may be stored. Stands before their ZADD in one MULTI, and `enter` behind it: bodies that do
-- not pass through Lua are not copied and hashed there, byte by byte.
-- KEYS[1] due  zset  pack -> score    KEYS[2] horizon  hash  handed; closed
-- KEYS[3] refused  list  within such a MULTI, if the packs are refused: what lay at their scores, SHA-1, or ""
-- ARGV of each pack: score (text: tostring() loses digits), due_ms
-- returns {"ok", now_us} | {"closed", now_us}
--       | {"refused", now_us, limit_ms, verdicts}: one verdict a pack, "late" | "taken" | ""
-- R2 late and taken, R10 closed. The same request must not come twice: its packs would be taken by themselves.
local time = redis.call('TIME')
local now_us = string.format('%d', time[1] * 1000000 + time[2])
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('DEL', KEYS[3])
local horizon = redis.call('HMGET', KEYS[2], 'handed', 'closed')
local handed = tonumber(horizon[1] or '0')

local verdicts, there, seen, refused = {}, {}, {}, horizon[2]
for at = 1, #ARGV, 2 do
  local verdict, found = seen[ARGV[at]] and 'taken' or '', ''
  seen[ARGV[at]] = true
  if redis.call('ZCOUNT', KEYS[1], ARGV[at], ARGV[at]) > 0 then
    verdict, found = 'taken', redis.sha1hex(redis.call('ZRANGEBYSCORE', KEYS[1], ARGV[at], ARGV[at])[1])
  end
  if tonumber(ARGV[at + 1]) <= handed then verdict = 'late' end
  verdicts[#verdicts + 1], there[#there + 1] = verdict, found
  refused = refused or verdict ~= ''
end
if not refused then return {'ok', now_us} end
for _, found in ipairs(there) do redis.call('RPUSH', KEYS[3], found) end
if horizon[2] then return {'closed', now_us} end
return {'refused', now_us, string.format('%d', math.max(now, handed)), verdicts}

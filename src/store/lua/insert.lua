-- insert: stores packs, all or none. Nothing ever appears at or under H.
-- KEYS[1] due      zset  pack -> score
-- KEYS[2] horizon  hash  handed, opened, watch: Unix ms; below: count; closed
-- KEYS[3] ids      hash  client id -> entry
-- KEYS[4] live     zset  client id -> due, Unix ms
-- KEYS[5] pending  hash  topic -> messages
-- KEYS[6] bytes    hash  topic -> bytes of bodies in packs
-- ARGV[1] wake channel   ARGV[2] number of packs, then of each pack:
--   score (text: tostring() loses digits), due_ms, pack,
--   topics, then topics x (topic, messages, bytes),
--   ids, then ids x (id, entry, due_ms)
-- returns {"ok", now_us}
--       | {"closed", now_us}
--       | {"refused", now_us, limit_ms, verdicts}: one verdict a pack, "late" | "taken" | "" and,
--         where ids are taken, {id, entry, id, entry, ...}; nothing was written
-- R2 late and taken, R3 counter, R10 closed, R11 a pack with a taken id is refused whole.
local time = redis.call('TIME')
local now_us = string.format('%d', time[1] * 1000000 + time[2])
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local horizon = redis.call('HMGET', KEYS[2], 'handed', 'opened', 'closed', 'watch')
if horizon[3] then return {'closed', now_us} end
local handed = tonumber(horizon[1] or '0')

local verdicts, refused = {}, false
-- What is written if no pack is refused: members of `due` and of `live` with their scores, entries of `ids`, counts.
local packs, lives, entries = {}, {}, {}
local messages, bytes = {}, {}
local dues, seen = {}, {}
local at = 3
for p = 1, tonumber(ARGV[2]) do
  local score, due, value, topics = ARGV[at], tonumber(ARGV[at + 1]), ARGV[at + 2], tonumber(ARGV[at + 3])
  at = at + 4
  local verdict, done = '', false
  if due <= handed then
    verdict = 'late'
  elseif seen[score] then
    verdict = 'taken'
  elseif redis.call('ZCOUNT', KEYS[1], score, score) > 0 then
    local have = redis.call('ZSCORE', KEYS[1], value)
    -- The identical request, sent again after a lost reply: it is done.
    done = have and tonumber(have) == tonumber(score)
    if not done then verdict = 'taken' end
  end
  seen[score] = true
  if not done then
    packs[#packs + 1], packs[#packs + 2] = score, value
    dues[#dues + 1] = due
  end
  for _ = 1, topics do
    if not done then
      local topic = ARGV[at]
      messages[topic] = (messages[topic] or 0) + tonumber(ARGV[at + 1])
      bytes[topic] = (bytes[topic] or 0) + tonumber(ARGV[at + 2])
    end
    at = at + 3
  end
  at = at + 1
  local taken
  for _ = 1, tonumber(ARGV[at - 1]) do
    if verdict == '' and not done then
      local entry = redis.call('HGET', KEYS[3], ARGV[at])
      if entry then
        taken = taken or {}
        taken[#taken + 1], taken[#taken + 2] = ARGV[at], entry
      end
      entries[#entries + 1], entries[#entries + 2] = ARGV[at], ARGV[at + 1]
      lives[#lives + 1], lives[#lives + 2] = ARGV[at + 2], ARGV[at]
    end
    at = at + 3
  end
  verdicts[p] = taken or verdict
  refused = refused or verdicts[p] ~= ''
end
if refused then
  return {'refused', now_us, string.format('%d', math.max(now, handed)), verdicts}
end

-- Few calls of many arguments; of so many that Lua's stack holds them.
local function write(command, key, list)
  for first = 1, #list, 1000 do
    redis.call(command, key, unpack(list, first, math.min(first + 999, #list)))
  end
end
write('ZADD', KEYS[1], packs)
write('HSET', KEYS[3], entries)
write('ZADD', KEYS[4], lives)
for topic, count in pairs(messages) do
  redis.call('HINCRBY', KEYS[5], topic, string.format('%d', count))
  redis.call('HINCRBY', KEYS[6], topic, string.format('%d', bytes[topic]))
end
appear(KEYS[2], {horizon[2], horizon[4]}, ARGV[1], dues)
return {'ok', now_us}

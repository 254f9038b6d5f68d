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
local handed, opened = tonumber(horizon[1] or '0'), tonumber(horizon[2] or '0')
local watch = tonumber(horizon[4] or '0')

local packs, verdicts, refused = {}, {}, false
local at = 3
for p = 1, tonumber(ARGV[2]) do
  local pack = {score = ARGV[at], due = tonumber(ARGV[at + 1]), value = ARGV[at + 2], topics = {}, ids = {}}
  at = at + 4
  for _ = 1, tonumber(ARGV[at - 1]) do
    pack.topics[#pack.topics + 1] = {ARGV[at], ARGV[at + 1], ARGV[at + 2]}
    at = at + 3
  end
  at = at + 1
  for _ = 1, tonumber(ARGV[at - 1]) do
    pack.ids[#pack.ids + 1] = {ARGV[at], ARGV[at + 1], ARGV[at + 2]}
    at = at + 3
  end
  packs[p] = pack

  local verdict = ''
  if pack.due <= handed then
    verdict = 'late'
  elseif redis.call('ZCOUNT', KEYS[1], pack.score, pack.score) > 0 then
    local have = redis.call('ZSCORE', KEYS[1], pack.value)
    -- The identical request, sent again after a lost reply: it is done.
    if have and tonumber(have) == tonumber(pack.score) then pack.done = true else verdict = 'taken' end
  end
  if verdict == '' and not pack.done then
    local taken = {}
    for _, id in ipairs(pack.ids) do
      local entry = redis.call('HGET', KEYS[3], id[1])
      if entry then
        taken[#taken + 1] = id[1]
        taken[#taken + 1] = entry
      end
    end
    if #taken > 0 then verdict = taken end
  end
  if verdict ~= '' then refused = true end
  verdicts[p] = verdict
end
if refused then
  return {'refused', now_us, string.format('%d', math.max(now, handed)), verdicts}
end

local earliest, more = nil, {[5] = {}, [6] = {}}
for _, pack in ipairs(packs) do
  if not pack.done then
    redis.call('ZADD', KEYS[1], pack.score, pack.value)
    for _, topic in ipairs(pack.topics) do
      more[5][topic[1]] = (more[5][topic[1]] or 0) + tonumber(topic[2])
      more[6][topic[1]] = (more[6][topic[1]] or 0) + tonumber(topic[3])
    end
    for _, id in ipairs(pack.ids) do
      redis.call('HSET', KEYS[3], id[1], id[2])
      redis.call('ZADD', KEYS[4], id[3], id[1])
    end
    if pack.due <= opened then redis.call('HINCRBY', KEYS[2], 'below', 1) end
    earliest = math.min(earliest or pack.due, pack.due)
  end
end
for key, topics in pairs(more) do
  for topic, count in pairs(topics) do redis.call('HINCRBY', KEYS[key], topic, string.format('%d', count)) end
end
if earliest and (earliest <= opened or earliest < watch) then
  local text = string.format('%d', earliest)
  -- The owner is told of this one: what is due behind it need not wake it again.
  if earliest < watch then redis.call('HSET', KEYS[2], 'watch', text) end
  redis.call('PUBLISH', ARGV[1], text)
end
return {'ok', now_us}

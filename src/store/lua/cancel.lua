-- cancel: marks records so that they are not delivered from where they lie.
-- KEYS[1] due      zset  pack -> score          KEYS[2] horizon    hash  handed, settled, opened
-- KEYS[3] ids      hash  id -> entry            KEYS[4] cancelled  zset  mark -> due, Unix ms
-- KEYS[5] live     zset  id -> due              KEYS[6] gone       zset  id -> when its entry goes
-- KEYS[7] pending  hash  topic -> messages       KEYS[8] bytes      hash  topic -> bytes of bodies in packs
-- ARGV[1] dedupe_window_ms, then of each message: id, score (text; "" of a client's id), nonce,
--   position, due_ms, mark
-- returns one of "cancelled" | "in_flight" | "gone" | "dead" for each message
-- An entry is "S score nonce position due maybe digest mark-in-hex": stored there; or "C ...": cancelled; or
-- "D ...": a dead letter; or "H ... topic": held there while its topic is paused. R1 the bytes of an opened pack stay; R7 the index is asked first; R8 maybe.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local horizon = redis.call('HMGET', KEYS[2], 'handed', 'settled', 'opened')
local handed, settled = tonumber(horizon[1] or '0'), tonumber(horizon[2] or '0')
local opened = tonumber(horizon[3] or '0')
-- A first write that frees memory, though it does nothing: after it Redis lets the script write also when
-- maxmemory is reached, so that cancelling keeps working when inserts are refused.
redis.call('ZREM', KEYS[4], '')

local function u16(text, at)
  local high, low = string.byte(text, at, at + 1)
  return high * 256 + low
end

-- The length of the only body of a pack, whose record begins there: due offset, flags, id, length.
local function only_body(pack, at)
  while string.byte(pack, at) >= 128 do at = at + 1 end
  local flags = string.byte(pack, at + 1)
  at = at + 2
  if flags % 4 >= 2 then at = at + 1 + string.byte(pack, at) end
  local len, unit = 0, 1
  repeat
    local byte = string.byte(pack, at)
    len, unit, at = len + byte % 128 * unit, unit * 128, at + 1
  until byte < 128
  return len
end

-- What packs at a score say in their heads. Read once a call: what is cancelled together often lies together.
local read = {}
local function packs_at(score)
  if read[score] then return read[score] end
  local packs = {}
  for _, bytes in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], score, score)) do
    if string.byte(bytes, 1) == 1 then
      local topics, at = {}, 12
      for t = 1, string.byte(bytes, 11) do
        local len = string.byte(bytes, at)
        topics[t] = string.sub(bytes, at + 1, at + len)
        at = at + 1 + len
      end
      packs[#packs + 1] = {
        bytes = bytes, nonce = u16(bytes, 3) * 65536 + u16(bytes, 5), count = u16(bytes, 9), topics = topics, directory = at,
      }
    end
  end
  read[score] = packs
  return packs
end

-- The topic of a record, from the pack's directory, how many records the pack has, and of a pack of one
-- the length of its body.
local function topic_of(score, nonce, position)
  for _, pack in ipairs(packs_at(score)) do
    if pack.nonce == nonce then
      local bytes, at = pack.bytes, pack.directory
      for _ = 1, pack.count do
        if u16(bytes, at) == position then
          local len = pack.count == 1 and only_body(bytes, at + 3) or 0
          return pack.topics[string.byte(bytes, at + 2) + 1], pack.count, len
        end
        at = at + 3
      end
    end
  end
end

-- The entry says that the message is gone, and ages from now on.
local function bury(id, entry)
  redis.call('HSET', KEYS[3], id, 'C' .. string.sub(entry, 2))
  redis.call('ZREM', KEYS[5], id)
  redis.call('ZADD', KEYS[6], now + ARGV[1], id)
end

-- Counted once a topic, at the end.
local uncounted = {}
local function uncount(topic) uncounted[topic] = (uncounted[topic] or 0) + 1 end

-- Mostly there is none: only messages with an id of the producer, moved, parked and held ones have one.
local any_entry = redis.call('HLEN', KEYS[3]) > 0

local function cancel(id, score, nonce, position, due, mark)
  local entry, maybe = any_entry and redis.call('HGET', KEYS[3], id), false
  if entry then
    local kind = string.sub(entry, 1, 1)
    if kind == 'C' then return 'cancelled' end
    if kind == 'D' then return 'dead' end
    if kind == 'H' then
      local held_maybe, topic = string.match(entry, '^H %d+ %d+ %d+ %d+ (%d) %x+ %x+ (%S+)$')
      if held_maybe == '1' then return 'in_flight' end
      -- Its bytes go when the topic is resumed.
      uncount(topic)
      bury(id, entry)
      return 'cancelled'
    end
    local s, n, p, d, m, _, hex = string.match(entry, '^S (%d+) (%d+) (%d+) (%d+) (%d) (%x+) (%x+)$')
    score, nonce, position, due, maybe = s, n, p, d, m == '1'
    mark = string.gsub(hex, '%x%x', function(pair) return string.char(tonumber(pair, 16)) end)
  elseif score == '' then
    return 'gone'
  end
  due = tonumber(due)
  -- S first: a mark may outlive the entry that says where its message went.
  if due <= settled then return 'gone' end
  if due <= handed or maybe then
    return redis.call('ZSCORE', KEYS[4], mark) and 'cancelled' or 'in_flight'
  end
  if redis.call('ZADD', KEYS[4], 'NX', due, mark) == 0 then return 'cancelled' end

  local topic, count, len = topic_of(score, tonumber(nonce), tonumber(position))
  -- Only after a failover: the id is ours, and what it names was lost.
  if not topic then
    redis.call('ZREM', KEYS[4], mark)
    return 'gone'
  end
  uncount(topic)
  if count == 1 and math.floor(tonumber(score) / 2048) > opened then
    redis.call('ZREMRANGEBYSCORE', KEYS[1], score, score)
    if redis.call('HINCRBY', KEYS[8], topic, -len) <= 0 then redis.call('HDEL', KEYS[8], topic) end
  end
  if entry then bury(id, entry) end
  return 'cancelled'
end

local answers = {}
for at = 2, #ARGV, 6 do
  answers[#answers + 1] =
    cancel(ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4], ARGV[at + 5])
end
for topic, count in pairs(uncounted) do
  if redis.call('HINCRBY', KEYS[7], topic, -count) <= 0 then redis.call('HDEL', KEYS[7], topic) end
end
return answers

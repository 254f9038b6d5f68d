-- cancel: marks records so that they are not delivered from where they lie.
-- KEYS[1] due      zset  pack -> score          KEYS[2] horizon    hash  handed, settled, opened
-- KEYS[3] ids      hash  id -> entry            KEYS[4] cancelled  zset  mark -> due, Unix ms
-- KEYS[5] live     zset  id -> due              KEYS[6] gone       zset  id -> when its entry goes
-- KEYS[7] pending  hash  topic -> messages       KEYS[8] bytes      hash  topic -> bytes of bodies in packs
-- ARGV[1] dedupe_window_ms, then of each message: id, score (text; "" of a client's id), nonce,
--   position, due_ms, mark
-- returns one of "cancelled" | "in_flight" | "gone" | "dead" for each message
-- An entry is "S score nonce position due maybe digest mark-in-hex": stored there; or "C ...": cancelled; or
-- "D ...": a dead letter; or "H ... topic": held there while its topic is paused. R1 the bytes of an opened pack stay, marks stay; R7 the index is asked first; R8 maybe.
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

-- Where the next record begins after the one that begins there (due offset, flags, id, length, body), and the
-- length of its body.
local function after(pack, at)
  while string.byte(pack, at) >= 128 do at = at + 1 end
  local flags = string.byte(pack, at + 1)
  at = at + 2
  if flags % 4 >= 2 then at = at + 1 + string.byte(pack, at) end
  local len, unit = 0, 1
  repeat
    local byte = string.byte(pack, at)
    len, unit, at = len + byte % 128 * unit, unit * 128, at + 1
  until byte < 128
  return at + len, len
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

-- The pack that has a record, and the record's topic from the pack's directory.
local function record(score, nonce, position)
  for _, pack in ipairs(packs_at(score)) do
    if pack.nonce == nonce then
      local at = pack.directory
      for _ = 1, pack.count do
        if u16(pack.bytes, at) == position then return pack, pack.topics[string.byte(pack.bytes, at + 2) + 1] end
        at = at + 3
      end
    end
  end
end

-- Gives the bytes of what is marked back once that is half of a pack beyond `opened`: rewriting it costs no
-- more than storing it did. Score, nonce and positions stay, and so do the marks.
local rewrites = 0
local function compact(score, pack, marks_begin)
  local bytes, marks = pack.bytes, {}
  for i = 1, pack.count do
    local at = pack.directory + 3 * (i - 1)
    marks[i] = marks_begin .. string.sub(bytes, at, at + 1)
  end
  local marked, kept = redis.call('ZMSCORE', KEYS[4], unpack(marks)), 0
  for i = 1, pack.count do kept = kept + (marked[i] and 0 or 1) end
  if kept * 2 > pack.count then return end
  if kept > 0 then
    -- Another cancel will find it: no call may take long.
    if rewrites == 16 then return end
    rewrites = rewrites + 1
  end

  local directory, records, dropped = {}, {}, {}
  local named, at = pack.directory, pack.directory + 3 * pack.count
  for i = 1, pack.count do
    local next, len = after(bytes, at)
    if marked[i] then
      local topic = pack.topics[string.byte(bytes, named + 2) + 1]
      dropped[topic] = (dropped[topic] or 0) + len
    else
      directory[#directory + 1] = string.sub(bytes, named, named + 2)
      records[#records + 1] = string.sub(bytes, at, next - 1)
    end
    named, at = named + 3, next
  end
  redis.call('ZREMRANGEBYSCORE', KEYS[1], score, score)
  if kept > 0 then
    local count = string.char(math.floor(kept / 256), kept % 256)
    redis.call('ZADD', KEYS[1], score, string.sub(bytes, 1, 8) .. count .. string.sub(bytes, 11, pack.directory - 1)
      .. table.concat(directory) .. table.concat(records))
  end
  for topic, len in pairs(dropped) do
    if redis.call('HINCRBY', KEYS[8], topic, -len) <= 0 then redis.call('HDEL', KEYS[8], topic) end
  end
  read[score] = nil
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

  position = tonumber(position)
  local pack, topic = record(score, tonumber(nonce), position)
  -- Only after a failover: the id is ours, and what it names was lost.
  if not pack then
    redis.call('ZREM', KEYS[4], mark)
    return 'gone'
  end
  uncount(topic)
  -- Not each cancel looks at the marks of the whole pack: about eight of them do, evenly over its positions.
  if math.floor(tonumber(score) / 2048) > opened and position * 8 % pack.count < 8 then
    compact(score, pack, string.sub(mark, 1, 12))
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

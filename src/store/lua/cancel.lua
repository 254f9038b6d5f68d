-- cancel: marks records so that they are not delivered from where they lie.
-- KEYS[1] due      zset  pack -> score          KEYS[2] horizon    hash  handed, settled, opened
-- KEYS[3] ids      hash  id -> entry            KEYS[4] cancelled  zset  mark -> due, Unix ms
-- KEYS[5] live     zset  id -> due              KEYS[6] gone       zset  id -> when its entry goes
-- KEYS[7] pending  hash  topic -> messages       KEYS[8] bytes      hash  topic -> bytes of bodies in packs
-- KEYS[9] heads    hash  begin of marks (score u64, nonce u32) -> of a pack of several: stored u16, lying u16,
--   left u16, stored x topic u8 (255: cancelled), topics u8, topics x (len u8, name). lying: records in the pack
--   now; left: those that are not cancelled
-- ARGV[1] dedupe_window_ms, then of each message: id, score (text; "" of a client's id), position, due_ms, mark
-- returns one of "cancelled" | "in_flight" | "gone" | "dead" for each message
-- An entry is "S score nonce position due maybe digest mark-in-hex": stored there; or "C ...": cancelled; or
-- "D ...": a dead letter; or "H ... topic": held there while its topic is paused.
-- R1 the bytes of an opened pack stay, and marks stay, in `cancelled` or in `heads`; R7 the index is asked first; R8
-- maybe.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local horizon = redis.call('HMGET', KEYS[2], 'handed', 'settled', 'opened')
local handed, settled = tonumber(horizon[1] or '0'), tonumber(horizon[2] or '0')
local opened = tonumber(horizon[3] or '0')
-- A first write that frees memory, though it does nothing: after it Redis lets the script write also when
-- maxmemory is reached, so that cancelling keeps working when inserts are refused.
redis.call('ZREM', KEYS[4], '')

local byte, sub, char, floor = string.byte, string.sub, string.char, math.floor
local function u16(text, at)
  local high, low = byte(text, at, at + 1)
  return high * 256 + low
end
local function u16_text(number) return char(floor(number / 256), number % 256) end

-- The length of the body of the record that begins there (due offset, flags, id, length, body), where that
-- length is written, and where the next record begins.
local function measure(pack, at)
  local one, flags = byte(pack, at, at + 1)
  while one >= 128 do
    at = at + 1
    one, flags = byte(pack, at, at + 1)
  end
  at = at + 2
  if flags % 4 >= 2 then at = at + 1 + byte(pack, at) end
  local written, len, unit = at, 0, 1
  repeat
    one = byte(pack, at)
    len, unit, at = len + one % 128 * unit, unit * 128, at + 1
  until one < 128
  return len, written, at + len
end

-- The pack that has a nonce, and where its directory begins.
local function pack_at(score, nonce)
  for _, pack in ipairs(redis.call('ZRANGEBYSCORE', KEYS[1], score, score)) do
    if byte(pack, 1) == 1 and sub(pack, 3, 6) == nonce then
      local directory = 12
      for _ = 1, byte(pack, 11) do directory = directory + 1 + byte(pack, directory) end
      return pack, directory
    end
  end
end

-- What is known of a pack of several without its bodies. Kept from the first cancel on, so that the next ones need not
-- read the pack: Lua hashes every byte that passes through it.
local GONE = 255
local any_head = redis.call('HLEN', KEYS[9]) > 0
local heads, changed = {}, {}
local function head_of(prefix)
  local head = heads[prefix] or any_head and redis.call('HGET', KEYS[9], prefix)
  if head then heads[prefix] = head end
  return head
end
local function new_head(pack, directory)
  local states, count = {}, sub(pack, 9, 10)
  for position = 1, u16(pack, 7) do states[position] = char(GONE) end
  for at = directory, directory + 3 * (u16(pack, 9) - 1), 3 do
    states[u16(pack, at) + 1] = sub(pack, at + 2, at + 2)
  end
  return sub(pack, 7, 8) .. count .. count .. table.concat(states) .. sub(pack, 11, directory - 1)
end

-- The topic that has a number among those listed there: how many, and each with its length.
local function topic_of(text, at, number)
  at = at + 1
  for _ = 1, number do at = at + 1 + byte(text, at) end
  return sub(text, at + 1, at + byte(text, at))
end

local function drop_bytes(topic, len)
  if len > 0 and redis.call('HINCRBY', KEYS[8], topic, -len) <= 0 then redis.call('HDEL', KEYS[8], topic) end
end

-- Rewrites a pack without what is cancelled. Score, nonce and positions stay, and the head stands for the marks of
-- what is gone, but for the one that was set last: it tells when the head may go. The last record stays
-- without its body: a score that is free again could be given the same pack by an insert that arrives twice.
local function compact(score, prefix, position, head)
  local pack, directory = pack_at(score, sub(prefix, 9))
  if not pack then return head end
  local count = u16(pack, 9)
  local named, at = directory, directory + 3 * count
  local entries, records, marks, dropped = {}, {}, {}, {}
  -- Records that stay and lie side by side are copied together.
  local last, run
  for _ = 1, count do
    local high, low, number = byte(pack, named, named + 2)
    local here = high * 256 + low
    local len, written, next = measure(pack, at)
    if byte(head, 7 + here) ~= GONE then
      entries[#entries + 1] = sub(pack, named, named + 2)
      run = run or at
    else
      if run then records[#records + 1] = sub(pack, run, at - 1) end
      run = nil
      dropped[number] = (dropped[number] or 0) + len
      if here == position then
        last = {sub(pack, named, named + 2), sub(pack, at, written - 1) .. char(0)}
      else
        marks[#marks + 1] = prefix .. sub(pack, named, named + 1)
      end
    end
    named, at = named + 3, next
  end
  if run then records[#records + 1] = sub(pack, run) end
  if #entries == 0 then entries[1], records[1] = last[1], last[2] end
  local lying = u16_text(#entries)
  redis.call('ZREMRANGEBYSCORE', KEYS[1], score, score)
  redis.call('ZADD', KEYS[1], score, sub(pack, 1, 8) .. lying .. sub(pack, 11, directory - 1)
    .. table.concat(entries) .. table.concat(records))
  if #marks > 0 then redis.call('ZREM', KEYS[4], unpack(marks)) end
  for number, len in pairs(dropped) do drop_bytes(topic_of(pack, 11, number), len) end
  return sub(head, 1, 2) .. lying .. sub(head, 5)
end

-- The entry says that the message is gone, and ages from now on.
local function bury(id, entry)
  redis.call('HSET', KEYS[3], id, 'C' .. sub(entry, 2))
  redis.call('ZREM', KEYS[5], id)
  redis.call('ZADD', KEYS[6], now + ARGV[1], id)
end

-- Counted once a topic, at the end.
local uncounted = {}
local function uncount(topic) uncounted[topic] = (uncounted[topic] or 0) + 1 end

-- Mostly there is none: only messages with an id of the producer, moved, parked and held ones have one.
local any_entry = redis.call('HLEN', KEYS[3]) > 0

local rewrites = 0
local function cancel(id, score, position, due, mark)
  local entry, maybe = any_entry and redis.call('HGET', KEYS[3], id), false
  if entry then
    local kind = sub(entry, 1, 1)
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
    local s, p, d, m, hex = string.match(entry, '^S (%d+) %d+ (%d+) (%d+) (%d) %x+ (%x+)$')
    score, position, due, maybe = s, p, d, m == '1'
    mark = string.gsub(hex, '%x%x', function(pair) return char(tonumber(pair, 16)) end)
  elseif score == '' then
    return 'gone'
  end
  local due_text = due
  due = tonumber(due)
  -- S first: a mark may outlive the entry that says where its message went.
  if due <= settled then return 'gone' end
  local prefix = sub(mark, 1, 12)
  position = tonumber(position)
  local head = head_of(prefix)
  if head and byte(head, 7 + position) == GONE then return 'cancelled' end
  if due <= handed or maybe then
    return redis.call('ZSCORE', KEYS[4], mark) and 'cancelled' or 'in_flight'
  end
  if redis.call('ZADD', KEYS[4], 'NX', due_text, mark) == 0 then return 'cancelled' end

  local pack, directory
  if not head then
    pack, directory = pack_at(score, sub(prefix, 9))
    -- Only after a failover: the id is ours, and what it names was lost.
    if not pack then
      redis.call('ZREM', KEYS[4], mark)
      return 'gone'
    end
    head = new_head(pack, directory)
  end
  local stored, lying, left = u16(head, 1), u16(head, 3), u16(head, 5) - 1
  uncount(topic_of(head, 7 + stored, byte(head, 7 + position)))
  local unopened = floor(tonumber(score) / 2048) > opened
  if stored > 1 then
    head = sub(head, 1, 4) .. u16_text(left) .. sub(head, 7, 6 + position) .. char(GONE) .. sub(head, 8 + position)
    -- Each rewrite leaves a third or less, so all of a pack together copy half of what storing it did. Beyond 16
    -- another cancel will do it: no call may take long.
    if unopened and (lying - left) * 3 >= lying * 2 and rewrites < 16 then
      rewrites = rewrites + 1
      head = compact(score, prefix, position, head)
    end
    heads[prefix], changed[prefix] = head, true
  elseif unopened then
    -- Of a pack of one the mark says everything.
    redis.call('ZREMRANGEBYSCORE', KEYS[1], score, score)
    drop_bytes(topic_of(pack, 11, 0), (measure(pack, directory + 3)))
  end
  if entry then bury(id, entry) end
  return 'cancelled'
end

local answers = {}
for at = 2, #ARGV, 5 do
  answers[#answers + 1] = cancel(ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3], ARGV[at + 4])
end
for prefix in pairs(changed) do redis.call('HSET', KEYS[9], prefix, heads[prefix]) end
for topic, count in pairs(uncounted) do
  if redis.call('HINCRBY', KEYS[7], topic, -count) <= 0 then redis.call('HDEL', KEYS[7], topic) end
end
return answers

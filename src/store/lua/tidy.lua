-- tidy: what follows from marks that a cancel has set. The messages are counted off, once, and what is cancelled leaves
-- its pack when that is two thirds of it. It may be repeated, or never come: then the turn that removes the pack
-- counts, and the bytes stay until then.
-- KEYS[1] due        zset  pack -> score        KEYS[2] horizon  hash  opened
-- KEYS[3] cancelled  zset  mark -> due, Unix ms; half a ms less: not counted yet
-- KEYS[4] pending    hash  topic -> messages    KEYS[5] bytes    hash  topic -> bytes of bodies in packs
-- KEYS[6] heads      hash  begin of marks (score u64, nonce u32) -> of a pack of several: stored u16, lying u16,
--   left u16, stored x topic u8 (255: cancelled), topics u8, topics x (len u8, name). lying: records in the pack
--   now; left: those that are not cancelled
-- ARGV of each pack: score (text), begin of its marks, positions x u16
-- returns nothing of interest
-- R1 the bytes of an opened pack stay, and marks stay, in `cancelled` or in `heads`.
local byte, sub, char, floor = string.byte, string.sub, string.char, math.floor
local opened = tonumber(redis.call('HGET', KEYS[2], 'opened') or '0')
-- A first write that frees memory, though it does nothing: after it Redis lets the script write also when
-- maxmemory is reached, so that memory comes back when inserts are refused.
redis.call('ZREM', KEYS[3], '')
local any_head = redis.call('HLEN', KEYS[6]) > 0
local GONE = 255

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

-- What is known of a pack of several without its bodies: Lua hashes every byte that passes through it.
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

-- Taken off once a topic, at the end.
local messages, bytes = {}, {}
local function drop(counts, topic, count) counts[topic] = (counts[topic] or 0) + count end
local function take_off(key, counts)
  for topic, count in pairs(counts) do
    -- Lua writes the negative of 0 as -0, which Redis does not take for a number.
    if count > 0 and redis.call('HINCRBY', key, topic, -count) <= 0 then redis.call('HDEL', key, topic) end
  end
end

-- Rewrites a pack without what is cancelled. Score, nonce and positions stay, and the head stands for the marks of
-- what is gone, but for the one at `position`: it tells when the head may go. The last record stays without its body: a
-- score that is free again could be given the same pack by an insert that arrives twice.
local function compact(score, prefix, position, head, pack, directory)
  if not pack then pack, directory = pack_at(score, sub(prefix, 9)) end
  if not pack then return head end
  local count = u16(pack, 9)
  local named, at = directory, directory + 3 * count
  local entries, records, marks = {}, {}, {}
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
      drop(bytes, topic_of(pack, 11, number), len)
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
  if #marks > 0 then redis.call('ZREM', KEYS[3], unpack(marks)) end
  return sub(head, 1, 2) .. lying .. sub(head, 5)
end

-- Of a pack of one the mark says everything.
local function tidy_one(score, pack, directory)
  local topic = topic_of(pack, 11, byte(pack, directory + 2))
  drop(messages, topic, 1)
  if floor(score / 2048) > opened then
    redis.call('ZREMRANGEBYSCORE', KEYS[1], score, score)
    drop(bytes, topic, (measure(pack, directory + 3)))
  end
end

local function tidy_several(score, prefix, positions, head, pack, directory)
  local stored, lying, left = u16(head, 1), u16(head, 3), u16(head, 5)
  local states, last = {byte(head, 7, 6 + stored)}, nil
  for _, position in ipairs(positions) do
    local state = states[position + 1]
    -- A message may be cancelled again when its mark has gone with its bytes.
    if state ~= GONE then
      drop(messages, topic_of(head, 7 + stored, state), 1)
      states[position + 1] = GONE
      left, last = left - 1, position
    end
  end
  if not last then return end
  head = sub(head, 1, 4) .. u16_text(left) .. char(unpack(states)) .. sub(head, 7 + stored)
  -- Each rewrite leaves a third or less, so all of a pack together copy half of what storing it did.
  if floor(score / 2048) > opened and (lying - left) * 3 >= lying * 2 then
    head = compact(score, prefix, last, head, pack, directory)
  end
  redis.call('HSET', KEYS[6], prefix, head)
end

local function tidy(score, prefix, positions)
  local marks, counted, uncounted = {}, {}, {}
  for at = 1, #positions, 2 do marks[#marks + 1] = prefix .. sub(positions, at, at + 1) end
  for n, due in ipairs(redis.call('ZMSCORE', KEYS[3], unpack(marks))) do
    if due and due % 1 > 0 then
      counted[#counted + 1], counted[#counted + 2] = due + 0.5, marks[n]
      uncounted[#uncounted + 1] = u16(positions, 2 * n - 1)
    end
  end
  if #uncounted == 0 then return end
  local head, pack, directory = any_head and redis.call('HGET', KEYS[6], prefix), nil, nil
  if not head then pack, directory = pack_at(score, sub(prefix, 9)) end
  -- The turn that removed it has counted; or a failover has lost it, and should it come again, the marks are there.
  if not pack and (not head or redis.call('ZCOUNT', KEYS[1], score, score) == 0) then return end
  redis.call('ZADD', KEYS[3], 'XX', unpack(counted))
  if pack and u16(pack, 7) == 1 then
    tidy_one(score, pack, directory)
  else
    tidy_several(score, prefix, uncounted, head or new_head(pack, directory), pack, directory)
  end
end

for at = 1, #ARGV, 3 do tidy(ARGV[at], ARGV[at + 1], ARGV[at + 2]) end
take_off(KEYS[4], messages)
take_off(KEYS[5], bytes)

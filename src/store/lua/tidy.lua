-- tidy: what follows from marks. Messages that were cancelled are counted off, once, and a pack is replaced by what is left
-- of it, or removed. What that is was found out by reads just before; a tally that is still as it was read is what makes
-- them still true. It may be repeated, or never come: then a sweep finds it, or the turn that removes the
-- pack counts, and the bytes stay until then.
-- KEYS[1] due        zset  pack -> score        KEYS[2] horizon  hash  opened
-- KEYS[3] cancelled  zset  mark -> due, Unix ms; half a ms less: not counted yet
-- KEYS[4] pending    hash  topic -> messages    KEYS[5] bytes    hash  topic -> bytes of bodies in packs
-- KEYS[6] tallies    hash  begin of marks (score u64, nonce u32) -> of a pack of several: records that it has u16, then a
--   bit for each position: gone
-- ARGV of each pack: score (text), begin of its marks, tally that was read ("" for none), new tally ("" for none),
--   pack ("" as it is, "-" removed), numbers of the following, then
--   (due_ms, mark) of those that are counted off and stay, marks that go, (topic, messages, bytes) to take off
-- returns for each pack "1", or "0": it is not as it was read
-- R1 the bytes of an opened pack stay, and marks stay, in `cancelled` or in `tallies`.
local opened = tonumber(redis.call('HGET', KEYS[2], 'opened') or '0')
-- A first write that frees memory, though it does nothing: after it Redis lets the script write also when
-- maxmemory is reached, so that memory comes back when inserts are refused.
redis.call('ZREM', KEYS[3], '')

-- Taken off once a topic, at the end.
local messages, bytes = {}, {}
local function take_off(key, counts)
  for topic, count in pairs(counts) do
    -- Lua writes the negative of 0 as -0, which Redis does not take for a number.
    if count > 0 and redis.call('HINCRBY', key, topic, -count) <= 0 then redis.call('HDEL', key, topic) end
  end
end

local answers, at = {}, 1
while ARGV[at] do
  local score, prefix, read, tally, pack = unpack(ARGV, at, at + 4)
  local counted = at + 8
  local going = counted + 2 * ARGV[at + 5]
  local shares = going + ARGV[at + 6]
  at = shares + 3 * ARGV[at + 7]
  local same = (redis.call('HGET', KEYS[6], prefix) or '') == read
    and redis.call('ZCOUNT', KEYS[1], score, score) == 1
    and (pack == '' or math.floor(score / 2048) > opened)
  -- A pack of one has no tally: its mark tells whether it was tidied, and whether it is still that pack.
  if same and going > counted then
    same = redis.call('ZADD', KEYS[3], 'XX', 'CH', unpack(ARGV, counted, going - 1)) * 2 == going - counted
  end
  if same then
    if pack ~= '' then redis.call('ZREMRANGEBYSCORE', KEYS[1], score, score) end
    if pack ~= '' and pack ~= '-' then redis.call('ZADD', KEYS[1], score, pack) end
    if shares > going then redis.call('ZREM', KEYS[3], unpack(ARGV, going, shares - 1)) end
    if tally ~= '' then redis.call('HSET', KEYS[6], prefix, tally) end
    for share = shares, at - 1, 3 do
      local topic = ARGV[share]
      messages[topic] = (messages[topic] or 0) + ARGV[share + 1]
      bytes[topic] = (bytes[topic] or 0) + ARGV[share + 2]
    end
  end
  answers[#answers + 1] = same and '1' or '0'
end
take_off(KEYS[4], messages)
take_off(KEYS[5], bytes)
return answers

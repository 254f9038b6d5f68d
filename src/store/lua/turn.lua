-- turn: claim or extend, settle what nsqd confirmed, hand out up to now. Numbers and marks only: but for the
-- pack that the owner waits for next, no body passes through Lua. The packs come from the ZRANGEBYSCORE in
-- the same MULTI (R6).
-- KEYS[1] due        zset    pack -> score
-- KEYS[2] claim      string  token, PX claim_ttl_ms
-- KEYS[3] horizon    hash    handed, settled, opened, watch: Unix ms; below: count; no TTL
-- KEYS[4] cancelled  zset    mark -> due, Unix ms; half a ms less: not counted yet
-- KEYS[5] pending    hash    topic -> messages
-- KEYS[6] bytes      hash    topic -> bytes of bodies in packs
-- KEYS[7] tallies    hash    begin of marks -> what of a pack is gone
-- ARGV[1] token            ARGV[2] claim_ttl_ms     ARGV[3] "1": extend the claim
-- ARGV[4] settle_to_ms, 0: nothing to settle        ARGV[5] hand_out_to_ms, 0: nothing to hand out
-- ARGV[6] open_to_ms, 0: nothing is read
-- ARGV[7] idle_until_ms: 0, or release the claim and sleep until the head is due, or until this
-- ARGV[8] marks after_ms, "": none are read          ARGV[9] marks to_ms
-- ARGV[10..] finished packs: score (text), shares, then shares x (topic, messages delivered, bytes of bodies), or
--   (topic, mark, ""): of a record that was cancelled and, when its mark was read, not counted
-- returns {"ok", now_us, handed, settled, below, taken, head_ms, handed_before, marks with their scores}
--         taken "1": the claim was free, so nothing is known; head_ms: of a shard gone idle,
--         its first pack; otherwise the first beyond open_to; "": none
--       | {"busy", now_us, ms_left}: somebody else's claim; nothing was written
-- why TIME here: the shard has one clock, so instances with skew never deliver early.
local time = redis.call('TIME')
local now_us = string.format('%d', time[1] * 1000000 + time[2])
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local ttl = tonumber(ARGV[2])
local holder = redis.call('GET', KEYS[2])
if holder and holder ~= ARGV[1] then
  local left = redis.call('PTTL', KEYS[2])
  -- Redis's clock jumped back, or the key lost its TTL: no claim outlives claim_ttl.
  if left < 0 or left > ttl then
    redis.call('PEXPIRE', KEYS[2], ttl)
    left = ttl
  end
  return {'busy', now_us, tostring(left)}
end
-- %d, not %.0f: exact for what fits a double, and a quarter of its cost.
local function text(number) return string.format('%d', number) end
local idle_until, head = tonumber(ARGV[7]), ''
local horizon = redis.call('HMGET', KEYS[3], 'handed', 'settled', 'opened', 'below')
local handed, settled = tonumber(horizon[1] or '0'), tonumber(horizon[2] or '0')
local opened, below = tonumber(horizon[3] or '0'), horizon[4] or '0'

-- settle. The first write is one that frees memory, though it may do nothing: after it Redis lets the
-- script write also when maxmemory is reached, so that settling keeps working when inserts are refused.
if idle_until > 0 then redis.call('DEL', KEYS[2]) end
local at, messages, bytes = 10, {}, {}
while ARGV[at] do
  -- Counted where the bytes go, once, whoever removes them, and before the marks do.
  local removed = redis.call('ZREMRANGEBYSCORE', KEYS[1], ARGV[at], ARGV[at]) == 1
  at = at + 2
  for _ = 1, tonumber(ARGV[at - 1]) do
    local topic = ARGV[at]
    if removed and ARGV[at + 2] == '' then
      local due = redis.call('ZSCORE', KEYS[4], ARGV[at + 1])
      if due and due % 1 > 0 then messages[topic] = (messages[topic] or 0) + 1 end
    elseif removed then
      messages[topic] = (messages[topic] or 0) + ARGV[at + 1]
      bytes[topic] = (bytes[topic] or 0) + ARGV[at + 2]
    end
    at = at + 3
  end
end
if tonumber(ARGV[4]) > settled then
  settled = math.min(tonumber(ARGV[4]), handed)
  -- A pack that lies there still may begin up to 4095 ms (the longest window) before S. Its marks stay,
  -- so that a successor knows which of its records were delivered.
  local trimmed = text(settled - 4096)
  if redis.call('HLEN', KEYS[7]) > 0 then
    -- All of a pack is due within 4095 ms: where S has passed one mark so far, it has passed all of the tally.
    for _, mark in ipairs(redis.call('ZRANGEBYSCORE', KEYS[4], '-inf', trimmed)) do
      redis.call('HDEL', KEYS[7], string.sub(mark, 1, 12))
    end
  end
  redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', trimmed)
elseif idle_until == 0 then
  redis.call('ZREM', KEYS[4], '')
end
local function take_off(key, counts)
  for topic, count in pairs(counts) do
    -- Lua writes the negative of 0 as -0, which Redis does not take for a number.
    if count > 0 and redis.call('HINCRBY', key, topic, text(-count)) <= 0 then redis.call('HDEL', key, topic) end
  end
end
take_off(KEYS[5], messages)
take_off(KEYS[6], bytes)

-- hand out
local handed_before = text(handed)
handed = math.max(handed, math.min(tonumber(ARGV[5]), now))
opened = math.max(opened, tonumber(ARGV[6]))
if idle_until > 0 then
  local first = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
  if first[2] then
    local head_ms = math.floor(tonumber(first[2]) / 2048)
    head = text(head_ms)
    idle_until = math.min(idle_until, head_ms)
  end
  -- Nothing is read while the owner sleeps, so `opened` stays; an insert before its time wakes it.
  redis.call('HSET', KEYS[3], 'handed', text(handed), 'settled', text(settled), 'opened', text(opened),
    'watch', text(idle_until))
else
  if ARGV[3] == '1' or not holder then redis.call('SET', KEYS[2], ARGV[1], 'PX', ttl) end
  local open_to = tonumber(ARGV[6])
  if open_to > 0 then
    -- The owner comes back when the next pack begins, or to renew its claim: an insert before that must
    -- wake it, though it lies beyond what was read and need not be counted.
    local watch = open_to + ttl
    local beyond = '(' .. text(open_to * 2048 + 2047)
    local next = redis.call('ZRANGEBYSCORE', KEYS[1], beyond, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
    if next[2] then
      local next_ms = math.floor(tonumber(next[2]) / 2048)
      head = text(next_ms)
      watch = math.min(watch, next_ms)
    end
    redis.call('HSET', KEYS[3], 'handed', text(handed), 'settled', text(settled), 'opened', text(opened),
      'watch', text(watch))
  else
    redis.call('HSET', KEYS[3], 'handed', text(handed), 'settled', text(settled))
  end
end
local marks = {}
if ARGV[8] ~= '' then marks = redis.call('ZRANGEBYSCORE', KEYS[4], '(' .. ARGV[8], ARGV[9], 'WITHSCORES') end
return {'ok', now_us, text(handed), text(settled), below, holder and '0' or '1', head, handed_before, marks}

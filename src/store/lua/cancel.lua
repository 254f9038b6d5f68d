-- cancel: marks records so that they are not delivered from where they lie. What follows from a mark, counts and
-- bytes, is left to tidy.lua, which works by the pack.
-- KEYS[1] cancelled  zset  mark -> due, Unix ms; half a ms less: not counted yet
-- KEYS[2] horizon    hash  handed, settled, marked  KEYS[3] ids      hash  id -> entry
-- KEYS[4] live       zset  id -> due            KEYS[5] gone     zset  id -> when its entry goes
-- KEYS[6] pending    hash  topic -> messages    KEYS[7] tallies  hash  begin of marks -> what of a pack is gone
-- ARGV[1] dedupe_window_ms  ARGV[2] number of messages  ARGV[3] the smallest of their dues, "" if there is a client's id
-- then of each message: due_ms less a half (text; "" of a client's id), mark; then the id of each
-- returns {answers, mark, ...}: a letter for each message, "c"ancelled, "i"n flight, "g"one or "d"ead, and the marks
--   that were set where an entry said
-- An entry is "S score nonce position due maybe digest mark-in-hex": stored there; or "C ...": cancelled; or
-- "D ...": a dead letter; or "H ... topic": held there while its topic is paused.
-- R1 marks stay, in `cancelled` or in `tallies`; R7 the index is asked first; R8 maybe.
local horizon = redis.call('HMGET', KEYS[2], 'handed', 'settled')
local handed, settled = tonumber(horizon[1] or '0'), tonumber(horizon[2] or '0')
-- A first write that frees memory, though it does nothing: after it Redis lets the script write also when
-- maxmemory is reached, so that cancelling keeps working when inserts are refused.
redis.call('ZREM', KEYS[1], '')

-- Mostly there is none: only messages with an id of the producer, moved, parked and held ones have one.
local any_entry = redis.call('HLEN', KEYS[3]) > 0

-- The entry says that the message is gone, and ages from now on.
local function bury(id, entry)
  local time = redis.call('TIME')
  local now = time[1] * 1000 + math.floor(time[2] / 1000)
  redis.call('HSET', KEYS[3], id, 'C' .. string.sub(entry, 2))
  redis.call('ZREM', KEYS[4], id)
  redis.call('ZADD', KEYS[5], now + ARGV[1], id)
end

-- Its bytes go when the topic is resumed.
local function cancel_held(id, entry)
  local maybe, topic = string.match(entry, '^H %d+ %d+ %d+ %d+ (%d) %x+ %x+ (%S+)$')
  if maybe == '1' then return 'i' end
  if redis.call('HINCRBY', KEYS[6], topic, -1) <= 0 then redis.call('HDEL', KEYS[6], topic) end
  bury(id, entry)
  return 'c'
end

-- Few calls of many arguments; of so many that Lua's stack holds them. NX: what is counted stays so.
local function set_marks(list, first, last)
  for at = first, last, 1000 do
    redis.call('ZADD', KEYS[1], 'NX', unpack(list, at, math.min(at + 999, last)))
  end
  -- Whoever dies before tidying: a sweep sees that this was counted, and looks.
  if first <= last then redis.call('HINCRBY', KEYS[2], 'marked', 1) end
end

local count = tonumber(ARGV[2])
-- Mostly all lie where they were inserted, and none was handed out.
if not any_entry and ARGV[3] ~= '' and tonumber(ARGV[3]) > handed then
  set_marks(ARGV, 4, 3 + 2 * count)
  return {string.rep('c', count)}
end

local answers, found, marks = {}, {}, {}
for n = 1, count do
  local due, mark, id = ARGV[2 + 2 * n], ARGV[3 + 2 * n], ARGV[3 + 2 * count + n]
  local entry, answer, maybe = any_entry and redis.call('HGET', KEYS[3], id), nil, false
  if entry then
    local kind = string.sub(entry, 1, 1)
    if kind == 'C' then
      answer = 'c'
    elseif kind == 'D' then
      answer = 'd'
    elseif kind == 'H' then
      answer = cancel_held(id, entry)
    else
      local ms, m, hex = string.match(entry, '^S %d+ %d+ %d+ (%d+) (%d) %x+ (%x+)$')
      due, maybe = string.format('%.1f', ms - 0.5), m == '1'
      mark = string.gsub(hex, '%x%x', function(pair) return string.char(tonumber(pair, 16)) end)
    end
  elseif due == '' then
    answer = 'g'
  end
  if not answer then
    local before_due = tonumber(due)
    -- S first: a mark may outlive the entry that says where its message went.
    if before_due <= settled then
      answer = 'g'
    elseif before_due <= handed or maybe then
      answer = is_marked(KEYS[1], KEYS[7], mark) and 'c' or 'i'
    else
      marks[#marks + 1], marks[#marks + 2] = due, mark
      answer = 'c'
      if entry then
        found[#found + 1] = mark
        bury(id, entry)
      end
    end
  end
  answers[#answers + 1] = answer
end
set_marks(marks, 1, #marks)
return {table.concat(answers), unpack(found)}

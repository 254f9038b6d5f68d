-- appear: what a script has stored in `due` is made known to the shard's owner. Stands before each script that moves
-- something there. R3: below what the owner has read it is counted, so that it reads again. Before that, or before the
-- owner comes by itself, it is woken, once: what is due behind need not wake it again.
-- horizon: key  read: its `opened` and `watch`  due_ms: text
local function appear(horizon, read, channel, due_ms)
  local opened, watch, due = tonumber(read[1] or '0'), tonumber(read[2] or '0'), tonumber(due_ms)
  if due <= opened then redis.call('HINCRBY', horizon, 'below', 1) end
  if due < watch then redis.call('HSET', horizon, 'watch', due_ms) end
  if due <= opened or due < watch then redis.call('PUBLISH', channel, due_ms) end
end

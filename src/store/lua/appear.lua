-- appear: what a script has stored in `due` is made known to the shard's owner. Stands before each script that stores
-- something there. R3: below what the owner has read it is counted, so that it reads again. Before that, or before the
-- owner comes by itself, it is woken, once, for the earliest: what is due behind need not wake it again.
-- horizon: key  read: its `opened` and `watch`  dues: Unix ms, of each pack
local function appear(horizon, read, channel, dues)
  local opened, watch = tonumber(read[1] or '0'), tonumber(read[2] or '0')
  local earliest, below = math.huge, 0
  for _, due_ms in ipairs(dues) do
    local due = tonumber(due_ms)
    earliest = math.min(earliest, due)
    if due <= opened then below = below + 1 end
  end
  if below > 0 then redis.call('HINCRBY', horizon, 'below', below) end
  if #dues > 0 and (earliest <= opened or earliest < watch) then
    local text = string.format('%d', earliest)
    if earliest < watch then redis.call('HSET', horizon, 'watch', text) end
    redis.call('PUBLISH', channel, text)
  end
end

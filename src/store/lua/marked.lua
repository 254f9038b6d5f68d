-- marked: whether a record is not to be delivered from its place. Stands before each script that asks: its mark may have
-- gone with its bytes, and then its pack's tally says the same (tidy.lua).
local function is_marked(cancelled, tallies, mark)
  if redis.call('ZSCORE', cancelled, mark) then return true end
  local tally = redis.call('HGET', tallies, string.sub(mark, 1, 12))
  if not tally then return false end
  local high, low = string.byte(mark, 13, 14)
  local position = high * 256 + low
  local byte = string.byte(tally, 3 + math.floor(position / 8))
  return byte and math.floor(byte / 2 ^ (position % 8)) % 2 == 1
end

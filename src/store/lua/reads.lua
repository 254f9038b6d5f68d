-- reads: several reads at one moment, for a server that has reached maxmemory: it refuses every MULTI, whatever
-- is in it. The bodies pass through Lua, so this is not the usual way.
-- KEYS[n]  the key of the nth read
-- ARGV of each read: number of words, command, words after the key
-- returns the reply of each read
local replies, at = {}, 1
for n = 1, #KEYS do
  local count = tonumber(ARGV[at])
  local words = {ARGV[at + 1], KEYS[n]}
  for word = 2, count do words[word + 1] = ARGV[at + word] end
  replies[n] = redis.call(unpack(words))
  at = at + 1 + count
end
return replies

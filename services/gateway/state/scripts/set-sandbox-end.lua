-- Moves the end of a sandbox.
-- KEYS[1] ends  sorted set: id by end, epoch milliseconds
-- ARGV[1] id  [2] end  [3] 'set' or 'extend' (never earlier than it was)  [4] channel
-- Returns the end that holds now as a string, or nil when there is no such sandbox.
local now = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not now then
  return nil
end
if ARGV[3] == 'extend' and tonumber(now) >= tonumber(ARGV[2]) then
  return now
end
redis.call('ZADD', KEYS[1], ARGV[2], ARGV[1])
redis.call('PUBLISH', ARGV[4], 'sandbox ' .. ARGV[1])
return ARGV[2]

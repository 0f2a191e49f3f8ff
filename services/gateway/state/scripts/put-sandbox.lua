-- Stores a sandbox and its end.
-- KEYS[1] sandboxes  hash: id -> sandbox record
-- KEYS[2] ends       sorted set: id by end, epoch milliseconds
-- ARGV[1] id  [2] sandbox record  [3] end  [4] 'new' or 'existing'  [5] channel
-- Returns 1, or 0 when an existing one was asked for and is gone.
if ARGV[4] == 'existing' and redis.call('HEXISTS', KEYS[1], ARGV[1]) == 0 then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[1])
redis.call('PUBLISH', ARGV[5], 'sandbox ' .. ARGV[1])
return 1

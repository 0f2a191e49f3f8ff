-- Forgets a sandbox and its end.
-- KEYS[1] sandboxes  hash: id -> sandbox record
-- KEYS[2] ends       sorted set: id by end, epoch milliseconds
-- ARGV[1] id  [2] channel
-- Returns 1 when there was one.
local removed = redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('PUBLISH', ARGV[2], 'sandbox ' .. ARGV[1])
return removed

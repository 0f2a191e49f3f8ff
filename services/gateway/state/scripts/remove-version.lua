-- Forgets a version that is not current.
-- KEYS[1] versions  hash of this function: version -> version record
-- KEYS[2] current   hash: name -> version that serves
-- ARGV[1] name  [2] version  [3] channel
-- Returns 1, or 0 when it is the current one.
if redis.call('HGET', KEYS[2], ARGV[1]) == ARGV[2] then
  return 0
end
redis.call('HDEL', KEYS[1], ARGV[2])
redis.call('PUBLISH', ARGV[3], 'function ' .. ARGV[1])
return 1

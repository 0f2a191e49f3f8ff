-- Makes another version current.
-- KEYS[1] versions  hash of this function: version -> version record
-- KEYS[2] current   hash: name -> version that serves
-- ARGV[1] name  [2] version  [3] channel
-- Returns 1, or 0 when the version is gone.
if redis.call('HEXISTS', KEYS[1], ARGV[2]) == 0 then
  return 0
end
redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
redis.call('PUBLISH', ARGV[3], 'function ' .. ARGV[1])
return 1

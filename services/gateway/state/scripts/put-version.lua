-- Stores a changed record of a version that still exists.
-- KEYS[1] versions  hash of this function: version -> version record
-- ARGV[1] name  [2] version  [3] version record  [4] channel
-- Returns 1, or 0 when the version is gone.
if redis.call('HEXISTS', KEYS[1], ARGV[2]) == 0 then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
redis.call('PUBLISH', ARGV[4], 'function ' .. ARGV[1])
return 1

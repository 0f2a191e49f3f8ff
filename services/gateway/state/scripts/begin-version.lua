-- Takes a function's build lease and allocates its next version number.
-- KEYS[1] functions    hash: name -> function record
-- KEYS[2] versions     hash of this function: version -> version record
-- KEYS[3] counters     hash: name -> last number given out (outlives the function, so that numbers are never reused)
-- KEYS[4] build lease  string: holder's token
-- ARGV[1] name  [2] function record for a new function  [3] version record  [4] token  [5] lease ms  [6] channel
-- Returns the version number, or 0 when another build holds the lease.
if not redis.call('SET', KEYS[4], ARGV[4], 'NX', 'PX', ARGV[5]) then
  return 0
end
redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2])
local version = redis.call('HINCRBY', KEYS[3], ARGV[1], 1)
redis.call('HSET', KEYS[2], version, ARGV[3])
redis.call('PUBLISH', ARGV[6], 'function ' .. ARGV[1])
return version

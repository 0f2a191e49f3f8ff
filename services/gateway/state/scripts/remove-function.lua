-- Forgets a function and all its versions, unless one is being built.
-- KEYS[1] functions    hash: name -> function record
-- KEYS[2] versions     hash of this function: version -> version record
-- KEYS[3] current      hash: name -> version that serves
-- KEYS[4] build lease  string: holder's token
-- ARGV[1] name  [2] channel
-- Returns 1 when removed, 0 when there was none, -1 while a build runs.
if redis.call('EXISTS', KEYS[4]) == 1 then
  return -1
end
local removed = redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('DEL', KEYS[2])
redis.call('HDEL', KEYS[3], ARGV[1])
redis.call('PUBLISH', ARGV[2], 'function ' .. ARGV[1])
return removed

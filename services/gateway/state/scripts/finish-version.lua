-- Stores a finished version, makes it current when it is ready, and frees the build lease: all or nothing.
-- KEYS[1] versions     hash of this function: version -> version record
-- KEYS[2] current      hash: name -> version that serves
-- KEYS[3] build lease  string: holder's token
-- ARGV[1] name  [2] version  [3] version record  [4] token  [5] '1' to make it current  [6] channel
-- Returns 1, or 0 when the lease was lost: a later build may have begun.
if redis.call('GET', KEYS[3]) ~= ARGV[4] then
  return 0
end
redis.call('HSET', KEYS[1], ARGV[2], ARGV[3])
if ARGV[5] == '1' then
  redis.call('HSET', KEYS[2], ARGV[1], ARGV[2])
end
redis.call('DEL', KEYS[3])
redis.call('PUBLISH', ARGV[6], 'function ' .. ARGV[1])
return 1

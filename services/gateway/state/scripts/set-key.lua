-- Admits or withdraws an API key.
-- KEYS[1] keys  hash: SHA-256 of the key, hex -> key record
-- ARGV[1] hash  [2] key record, or '' to withdraw  [3] channel
if ARGV[2] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSETNX', KEYS[1], ARGV[1], ARGV[2])
end
redis.call('PUBLISH', ARGV[3], 'keys')
return 1

-- Stores or removes a template, unless somebody changed it meanwhile.
-- KEYS[1] templates  hash: name -> template record
-- ARGV[1] name  [2] the record as it was read, or '' for none  [3] the new record, or '' to remove it  [4] channel
-- Returns 1, or 0 when the stored record is another one than was read.
if (redis.call('HGET', KEYS[1], ARGV[1]) or '') ~= ARGV[2] then
  return 0
end
if ARGV[3] == '' then
  redis.call('HDEL', KEYS[1], ARGV[1])
else
  redis.call('HSET', KEYS[1], ARGV[1], ARGV[3])
end
redis.call('PUBLISH', ARGV[4], 'template ' .. ARGV[1])
return 1

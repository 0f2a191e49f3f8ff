-- Keeps a build lease alive for its holder.
-- KEYS[1] build lease  string: holder's token
-- ARGV[1] token  [2] lease ms
-- Returns 1, or 0 when somebody else holds it or nobody does.
if redis.call('GET', KEYS[1]) ~= ARGV[1] then
  return 0
end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])

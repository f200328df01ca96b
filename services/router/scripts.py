"""What the journal asks of Redis in one step each.

KEYS are the list of an entry and the key of its owner. Ownership is a lease: it lapses unless its
owner renews it, so that an answer whose router died is found without one.
"""

from __future__ import annotations

from typing import Final

# ARGV: owner, lease in ms, TTL in s, first record or "" -> the records, none for no entry.
TAKE: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 then
  if ARGV[4] == '' then return {} end
  redis.call('RPUSH', KEYS[1], ARGV[4])
  redis.call('EXPIRE', KEYS[1], ARGV[3])
end
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return redis.call('LRANGE', KEYS[1], 0, -1)
"""

# ARGV: owner, lease in ms, TTL in s, records its owner knows of, new records -> an outcome. An
# owner whose lease has lapsed keeps the entry unless another one has written since. Records are
# sealed to their places, so none can follow a gap that a restarted Redis left: the entry is gone.
APPEND: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 then return -1 end
local owner = redis.call('GET', KEYS[2])
if owner and owner ~= ARGV[1] then return 0 end
local length = redis.call('LLEN', KEYS[1])
if length < tonumber(ARGV[4]) then return -1 end
if length > tonumber(ARGV[4]) then return 0 end
for i = 5, #ARGV do redis.call('RPUSH', KEYS[1], ARGV[i]) end
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2])
return 1
"""
GONE: Final = -1
TAKEN: Final = 0
DONE: Final = 1

# ARGV: owner, lease in ms, records known -> an outcome (1: the caller owns it now), new records.
LOOK: Final = """
if redis.call('EXISTS', KEYS[1]) == 0 then return {-1, {}} end
local taken = redis.call('SET', KEYS[2], ARGV[1], 'PX', ARGV[2], 'NX')
return {taken and 1 or 0, redis.call('LRANGE', KEYS[1], ARGV[3], -1)}
"""

# ARGV: owner, lease in ms.
RENEW: Final = """
if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('PEXPIRE', KEYS[2], ARGV[2]) end
return 1
"""

# ARGV: owner.
RELEASE: Final = """
if redis.call('GET', KEYS[2]) == ARGV[1] then redis.call('DEL', KEYS[2]) end
return 1
"""

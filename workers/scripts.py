"""The ledger's atomic writes, as Lua scripts that Redis runs whole or not at all. Each may be repeated without harm.

Entries of the hash `chunks`, by chunk id:

* `p:N`          pending, N images
* `d:N:E:U:F`    done: N submitted = E embedded + U unchanged + F failed
* `s:REST`       split: replaced by its children, of which REST was left to do

The hash `outbox` holds the messages of pending chunks until their fate is known, so that one that got lost can be sent again: all of those
that were split or are replayed, up to a bound of those that were dispatched.

An entry is *set*, and `totals` moves by the difference to the entry before: a chunk that is counted twice counts once.

The hash `working` says who has a chunk in hand, as "worker token". That counts while two keys exist: the worker's heartbeat, and the lease
of this token, which the heartbeat renews as long as the worker itself knows of it.
"""

from __future__ import annotations

from typing import Final

WORKER_PREFIX: Final = "mcip_qdrant:worker:"
LEASE_PREFIX: Final = "mcip_qdrant:lease:"

PREFIXES = f"local WORKERS, LEASES = '{WORKER_PREFIX}', '{LEASE_PREFIX}'"

PRELUDE = """
local chunks, totals, info, failures = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local working, crashes, risky, outbox = KEYS[5], KEYS[6], KEYS[7], KEYS[8]
local NAMES = {'submitted', 'embedded', 'unchanged', 'failed'}

local function count(entry, sign)
  if not entry then return end
  local kind, numbers = string.sub(entry, 1, 1), {}
  if kind == 's' then return end
  for number in string.gmatch(string.sub(entry, 3), '%d+') do numbers[#numbers + 1] = tonumber(number) end
  for index, number in ipairs(numbers) do
    if number ~= 0 then redis.call('HINCRBY', totals, NAMES[index], sign * number) end
  end
end

local function set(id, entry)
  count(redis.call('HGET', chunks, id), -1)
  redis.call('HSET', chunks, id, entry)
  count(entry, 1)
end

local function let_go(id)
  local holder = redis.call('HGET', working, id)
  if not holder then return end
  redis.call('DEL', LEASES .. string.match(holder, '%S+$'))
  redis.call('HDEL', working, id)
end

local function release(id)
  let_go(id)
  redis.call('HDEL', crashes, id)
  redis.call('HDEL', risky, id)
  redis.call('HDEL', outbox, id)
end

local function record_failures(keys, letters)
  for _, key in ipairs(keys) do redis.call('HDEL', failures, key) end
  for key, letter in pairs(letters) do redis.call('HSET', failures, key, letter) end
end

local function touch()
  redis.call('HSET', info, 'last_at', ARGV[1])
  for _, key in ipairs(KEYS) do redis.call('EXPIRE', key, ARGV[2]) end
end
"""
"""ARGV[1] and ARGV[2] are always the time now and the seconds that a run's keys outlive their last change."""

DISPATCH = """
local id, images = ARGV[3], ARGV[4]
local entry = redis.call('HGET', chunks, id)
if not entry then set(id, 'p:' .. images) end
local open = not entry or string.sub(entry, 1, 1) == 'p'
if open and redis.call('HLEN', outbox) < tonumber(ARGV[6]) then redis.call('HSET', outbox, id, ARGV[5]) end
touch()
return entry
"""

ALL_DISPATCHED = """
local state = redis.call('HGET', info, 'state')
if not state or state == 'cancelled' then return 0 end
redis.call('HSET', info, 'state', 'dispatched')
return 1
"""

BEGIN = """
local id, images, owner, token, lease_ms = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local entry = redis.call('HGET', chunks, id)
local kind = entry and string.sub(entry, 1, 1)
if kind == 'd' then return {'settled'} end
if kind == 's' then return {'split', redis.call('HGET', outbox, string.sub(entry, 3)) or ''} end
if redis.call('HGET', info, 'state') == 'cancelled' then return {'cancelled'} end
local holder = redis.call('HGET', working, id)
if holder and holder ~= owner .. ' ' .. token then
  local worker, lease = string.match(holder, '^(%S+) (%S+)$')
  local lives = redis.call('EXISTS', WORKERS .. worker) == 1
  if lives and redis.call('EXISTS', LEASES .. lease) == 1 then return {'busy'} end
  -- Who lives and does not know of it any more had done with it, and Redis lost that with its last second: no crash.
  if not lives then redis.call('HINCRBY', crashes, id, 1) end
end
if not entry then set(id, 'p:' .. images) end
redis.call('HSET', working, id, owner .. ' ' .. token)
redis.call('SET', LEASES .. token, id, 'PX', lease_ms)
touch()
return {'go', redis.call('HGET', crashes, id) or '0', redis.call('HGET', risky, id) or '0'}
"""

GIVE_BACK = """
local id, owner, token = ARGV[3], ARGV[4], ARGV[5]
-- Who was thought dead may find another's name here: that one has the chunk in hand now.
if redis.call('HGET', working, id) ~= owner .. ' ' .. token then return 0 end
redis.call('HDEL', risky, id)
let_go(id)
return 1
"""

SETTLE = """
local id, entry, keys, letters = ARGV[3], ARGV[4], cjson.decode(ARGV[5]), cjson.decode(ARGV[6])
local before = redis.call('HGET', chunks, id)
-- Who comes late was thought dead: what it says is known, and its dead letters may be part of a replay by now.
if before and string.sub(before, 1, 1) ~= 'p' then return 0 end
set(id, entry)
record_failures(keys, letters)
release(id)
touch()
return 1
"""

SPLIT = """
local id, done_id, done, rest_id, rest_images = ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local before = redis.call('HGET', chunks, id)
if before == 's:' .. rest_id then return 1 end
if before and string.sub(before, 1, 1) ~= 'p' then return 0 end
set(id, 's:' .. rest_id)
set(done_id, done)
if not redis.call('HGET', chunks, rest_id) then set(rest_id, 'p:' .. rest_images) end
record_failures(cjson.decode(ARGV[9]), cjson.decode(ARGV[10]))
release(id)
redis.call('HSET', outbox, rest_id, ARGV[8])
touch()
return 1
"""

REPLAY = """
local id, keys = ARGV[3], cjson.decode(ARGV[4])
if redis.call('HGET', chunks, id) then return redis.call('HEXISTS', outbox, id) end
for _, key in ipairs(keys) do
  local letter = redis.call('HGET', failures, key)
  if not letter then return -1 end
end
for _, key in ipairs(keys) do
  local old = cjson.decode(redis.call('HGET', failures, key))['chunk']
  local n, e, u, f = string.match(redis.call('HGET', chunks, old), '^d:(%d+):(%d+):(%d+):(%d+)$')
  set(old, string.format('d:%d:%d:%d:%d', n - 1, e, u, f - 1))
  redis.call('HDEL', failures, key)
end
set(id, 'p:' .. #keys)
redis.call('HSET', outbox, id, ARGV[5])
touch()
return 1
"""

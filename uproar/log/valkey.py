"""The embedded log: one partition as a Valkey stream, on a server that fsyncs every append.

An entry of the stream `log:0` is one batch: its id is `{first offset}-0`, its fields are `n` (how
many records), `t` (ts of the newest, ms) and `b` (the records as a msgpack array of byte strings).
The counter `log:0:next` is advanced in the same script, so offsets rise by one a record and an
entry exists exactly where the counter says so; the server's AOF has both or none.
"""

from __future__ import annotations

import uuid
from collections.abc import Collection, Mapping
from typing import Any

import msgspec
import redis

from uproar.config import Config
from uproar.log import LogBatch, LogFull, LogUnavailable, epoch_of
from uproar.valkey_client import connect, errors_as

# %.0f because Lua would print an offset of 10**15 and more as 1e+15.
_APPEND = """
local last = redis.call('INCRBY', KEYS[2], ARGV[1])
local first = string.format('%.0f', last - ARGV[1] + 1)
redis.call('XADD', KEYS[1], first .. '-0', 'n', ARGV[1], 't', ARGV[2], 'b', ARGV[3])
return tonumber(first)
"""

_COMMIT = """
local now = tonumber(redis.call('HGET', KEYS[1], ARGV[1]) or '0')
if tonumber(ARGV[2]) > now then redis.call('HSET', KEYS[1], ARGV[1], ARGV[2]) end
"""

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(list[bytes]).decode


class SoleMember:
    """The one member of every group: the role's file lock has shared out the partition."""

    def partitions(self) -> frozenset[int]:
        return frozenset((0,))

    def close(self) -> None:
        pass


class ValkeyLog:
    """`uproar.log.Log` on the Valkey behind `config.socket("log")`."""

    partitions = 1

    def __init__(self, config: Config) -> None:
        timeout_s = config.log.timeout_s
        self._client = connect(config.socket("log"), timeout_s)
        # A blocking read lasts as long as its caller waits; the socket allows for that on top.
        self._reader = connect(config.socket("log"), timeout_s + 2.0)
        self._longest_wait_s = timeout_s
        self._append = self._client.register_script(_APPEND)
        self._commit = self._client.register_script(_COMMIT)
        self._aligned = 0  # a position known to be the end of an entry
        self._per_entry = 64  # records an entry held lately, so that a read is about its limit

    def prepare(self, *, appending: bool = False) -> None:
        """Do nothing: the supervisor starts the server as it must be."""

    def join(self, group: str, role: str) -> SoleMember:
        return SoleMember()

    def epoch(self, partition: int) -> str:
        with errors_as(LogUnavailable, "the log"):
            topic = self._client.get("log:topic")
            if topic is None:
                self._client.set("log:topic", uuid.uuid4().hex, nx=True)
                topic = self._client.get("log:topic")
        if not isinstance(topic, bytes):
            raise LogUnavailable("the log has no identity; its server was emptied under us")
        return epoch_of(topic.decode(), partition, self.partitions)

    def partition_of(self, stream: str) -> int:
        return 0

    def append(self, partition: int, records: list[bytes], ts: int) -> int:
        try:
            with errors_as(LogUnavailable, "the log"):
                return int(
                    self._append(
                        keys=["log:0", "log:0:next"], args=[len(records), ts, _encode(records)]
                    )
                )
        except LogUnavailable as error:
            if isinstance(error.__cause__, redis.OutOfMemoryError) or "OOM" in str(error):
                raise LogFull(
                    "the log is at its memory bound (log.max_memory_mb); raise it or wait for "
                    "consumers that lag to catch up"
                ) from error
            raise

    def read(self, partition: int, after: int, wait_s: float, limit: int) -> list[LogBatch]:
        block = max(1, int(min(wait_s, self._longest_wait_s) * 1000))
        count = max(1, limit // self._per_entry)
        with errors_as(LogUnavailable, "the log"):
            batches = self._rest_of(after)
            if batches:
                after = batches[-1].last
                block = 0
                count = 1
            answer: Any = self._reader.xread(
                {"log:0": f"{after}-0"}, count=count, block=block or None
            )
        for _, entries in answer or ():
            batches += [_batch(entry) for entry in entries]
        self._aligned = batches[-1].last if batches else after
        if batches:
            records = sum(len(batch.records) for batch in batches)
            self._per_entry = max(1, records // len(batches))
        return batches

    def read_any(self, after: Mapping[int, int], wait_s: float, limit: int) -> list[LogBatch]:
        return self.read(0, after[0], wait_s, limit)

    def _rest_of(self, after: int) -> list[LogBatch]:
        """The part above `after` of the entry that holds it: positions may lie inside a batch."""
        if after in (0, self._aligned):
            return []
        found: Any = self._client.xrevrange("log:0", f"{after}-0", "-", count=1)
        if not found:
            return []
        batch = _batch(found[0])
        if batch.last <= after:
            return []
        skip = after - batch.first + 1
        return [LogBatch(0, after + 1, batch.last, batch.records[skip:])]

    def end(self, partition: int) -> tuple[int, int]:
        with errors_as(LogUnavailable, "the log"):
            found: Any = self._client.xrevrange("log:0", count=1)
        if not found:
            return 0, 0
        return _batch(found[0]).last, _number(found[0][1], b"t", 0)

    def ends(self, partitions: Collection[int]) -> dict[int, int]:
        return {partition: self.end(partition)[0] for partition in partitions}

    def ts_at(self, partition: int, offset: int) -> int:
        with errors_as(LogUnavailable, "the log"):
            found: Any = self._client.xrevrange("log:0", f"{offset}-0", "-", count=1)
        return _number(found[0][1], b"t", 0) if found else 0

    def before_ts(self, partition: int, ts: int) -> int:
        """Binary search over entry ids; an entry's `t` is that of its newest record."""
        low, high = 0, self.end(partition)[0] + 1
        answer = 0
        while low < high:
            middle = (low + high) // 2
            with errors_as(LogUnavailable, "the log"):
                found: Any = self._client.xrange("log:0", f"{middle}-0", "+", count=1)
            # An entry that does not say its time is taken as new: so less is trimmed, more read.
            if not found or _number(found[0][1], b"t", ts) >= ts:
                high = middle
            else:
                answer = _batch(found[0]).last
                low = answer + 1
        return answer

    def position(self, group: str, partition: int) -> int:
        with errors_as(LogUnavailable, "the log"):
            found: Any = self._client.hget("log:positions", f"{group}:{partition}")
        return int(found or 0)

    def commit(self, group: str, partition: int, offset: int) -> None:
        with errors_as(LogUnavailable, "the log"):
            self._commit(keys=["log:positions"], args=[f"{group}:{partition}", offset])

    def trim(self, partition: int, keep_after: int) -> None:
        with errors_as(LogUnavailable, "the log"):
            # The entry that holds keep_after + 1 stays whole.
            found: Any = self._client.xrevrange("log:0", f"{keep_after + 1}-0", "-", count=1)
            if found:
                self._client.xtrim("log:0", minid=found[0][0].decode(), approximate=True)

    def close(self) -> None:
        self._client.close()
        self._reader.close()


def _batch(entry: tuple[bytes, dict[bytes, bytes]]) -> LogBatch:
    entry_id, fields = entry
    first = int(entry_id.split(b"-")[0])
    # A stray entry that no append made still has a place, and covers it alone.
    last = first + max(1, _number(fields, b"n", 1)) - 1
    try:
        records = _decode(fields[b"b"])
    except (KeyError, msgspec.DecodeError):
        records = []
    return LogBatch(0, first, last, records)


def _number(fields: dict[bytes, bytes], name: bytes, default: int) -> int:
    """A field of an entry; the default where no append made it."""
    text = fields.get(name, b"")
    return int(text) if text.isdigit() else default

"""The embedded state, on the second Valkey: rings, leases, presence, reactions, registry.

| key | type | holds |
|---|---|---|
| `stream:{id}:ring` | stream | one entry a batch, id `{last}-0` |
| `stream:{id}:interest` | hash | shard → end of its lease |
| `stream:{id}:connections` | hash | gateway → `incarnation count` |
| `stream:viewers:{id}:{minute}` | HyperLogLog | who is present; 12 KB at most |
| `reactions:stream:{id}` | hash | kind → total |
| `conn:user:{user_id}` | hash | session → `gateway incarnation stream` |
| `streams:active` | sorted set | stream → when it was last active |
| `stream:{id}` | hash | title and start of an active stream |
| `gateway:{name}` | string | its lease: the incarnation |
| `coordinator:{partition}` | hash | last offset and epoch |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, TypeVar

import redis

from uproar.config import Config
from uproar.state import ActiveStream, Present, RingEntry, RingWrite, Seat, StateLost
from uproar.valkey_client import connect, errors_as

AT_ONCE: Final = 500  # commands of one pipeline, and members of one command
MINUTE_S: Final = 60
VIEWERS_KEEP_S: Final = 180  # a minute is counted in itself and in the next one
ACTIVE_S: Final = 300  # since the last sign of life of a stream
SEAT_KEEP_S: Final = 93_600  # 26 h: gateways say it again daily
DESCRIBED_KEEP_S: Final = 93_600  # refreshed while the stream is active
REACTIONS_KEEP_S: Final = 30 * 86_400  # since the last reaction: a replay still shows them

# One script a key, so it runs on a cluster as well; said twice it changes nothing the second time.
_RAISE: Final = """
for i = 1, #ARGV - 1, 2 do
  local found = redis.call('HGET', KEYS[1], ARGV[i])
  if not found or tonumber(found) < tonumber(ARGV[i + 1]) then
    redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  end
end
redis.call('EXPIRE', KEYS[1], ARGV[#ARGV])
"""
_END_LEASE: Final = """
if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end
"""

T = TypeVar("T")


class ValkeyState:
    """`uproar.state.State` on the Valkey behind `config.socket("state")`."""

    def __init__(self, config: Config) -> None:
        self._client = connect(config.socket("state"), config.state.timeout_s)
        self._ring_ms = int(config.state.ring_s * 1000)
        self._lease_ms = int(config.state.gateway_lease_s * 1000)
        self._interest_ms = int(config.state.interest_lease_s * 1000)

    def write_rings(self, writes: list[RingWrite], now: float) -> list[list[int]]:
        with errors_as(StateLost, "the state server"):
            pipe = self._client.pipeline(transaction=False)
            for write in writes:
                ring = f"stream:{write.stream}:ring"
                pipe.xadd(
                    ring,
                    {"b": write.payload},
                    id=f"{write.last}-0",
                    minid=f"{write.trim_to + 1}-0",
                    approximate=False,
                )
                pipe.pexpire(ring, self._ring_ms)
            for write in writes:
                pipe.hgetall(f"stream:{write.stream}:interest")
            answers = pipe.execute(raise_on_error=False)
        for answer in answers:
            # An older id than the ring's newest: another holder was here, its batch stands.
            if isinstance(answer, Exception) and not (
                isinstance(answer, redis.ResponseError) and "equal or smaller" in str(answer)
            ):
                raise StateLost(f"the state server refused: {answer}") from answer
        return [_live(leases, now) for leases in answers[2 * len(writes) :]]

    def ring(self, stream: str, after: int) -> list[RingEntry]:
        with errors_as(StateLost, "the state server"):
            entries: Any = self._client.xrange(f"stream:{stream}:ring", f"{after + 1}-0", "+")
        return [RingEntry(int(at.split(b"-")[0]), fields[b"b"]) for at, fields in entries]

    def interests(self, streams: list[str], now: float) -> list[list[int]]:
        keys = [f"stream:{stream}:interest" for stream in streams]
        return [_live(leases, now) for leases in self._hashes(keys)]

    def add_interest(self, streams: list[str], shard: int, until: float) -> list[str]:
        with errors_as(StateLost, "the state server"):
            pipe = self._client.pipeline(transaction=False)
            for stream in streams:
                key = f"stream:{stream}:interest"
                pipe.hset(key, str(shard), str(until))
                pipe.pexpire(key, 2 * self._interest_ms)
            answers = pipe.execute()
        return [stream for stream, added in zip(streams, answers[::2], strict=True) if added]

    def set_last(self, partition: int, offset: int, epoch: str) -> None:
        with errors_as(StateLost, "the state server"):
            self._client.hset(f"coordinator:{partition}", mapping={"last": offset, "epoch": epoch})

    def last(self, partition: int) -> tuple[int, str] | None:
        with errors_as(StateLost, "the state server"):
            found: Any = self._client.hmget(f"coordinator:{partition}", ["last", "epoch"])
        last, epoch = found
        return (int(last), epoch.decode()) if last is not None and epoch is not None else None

    def lease_gateway(self, name: str, incarnation: str, connections: dict[str, int]) -> bool:
        with errors_as(StateLost, "the state server"):
            pipe = self._client.pipeline(transaction=False)
            pipe.set(f"gateway:{name}", incarnation, px=self._lease_ms, get=True)
            for stream, count in connections.items():
                key = f"stream:{stream}:connections"
                if count:
                    pipe.hset(key, name, f"{incarnation} {count}")
                    pipe.expire(key, 3600)
                else:
                    pipe.hdel(key, name)
            held: Any = pipe.execute()[0]
        return bool(held == incarnation.encode())

    def end_lease(self, name: str, incarnation: str) -> None:
        with errors_as(StateLost, "the state server"):
            self._client.eval(_END_LEASE, 1, f"gateway:{name}", incarnation)

    def connections(self, streams: list[str]) -> list[int]:
        keys = [f"stream:{stream}:connections" for stream in streams]
        counts = [
            {name: value.split() for name, value in found.items()} for found in self._hashes(keys)
        ]
        live = self._leases({name for found in counts for name in found})
        return [
            sum(int(value[1]) for name, value in found.items() if live[name] == value[0])
            for found in counts
        ]

    # -- presence ---------------------------------------------------------------------------------

    def add_present(self, present: list[Present]) -> None:
        with errors_as(StateLost, "the state server"):
            pipe = self._client.pipeline(transaction=False)
            for stream, now, members in present:
                key = _viewers_key(stream, int(now) // MINUTE_S)
                for part in _parts(members):
                    pipe.pfadd(key, *part)
                pipe.expire(key, VIEWERS_KEEP_S)
            pipe.execute()

    def viewers(self, streams: list[str], now: float) -> list[int]:
        minute = int(now) // MINUTE_S
        counts: list[int] = []
        with errors_as(StateLost, "the state server"):
            for part in _parts(streams):
                pipe = self._client.pipeline(transaction=False)
                for stream in part:
                    # Not one PFCOUNT of both: that is their union, which holds twice as many who
                    # have left, and a cluster keeps the two keys in different slots.
                    pipe.pfcount(_viewers_key(stream, minute))
                    pipe.pfcount(_viewers_key(stream, minute - 1))
                found: Any = pipe.execute()
                counts += map(max, found[::2], found[1::2])
        return counts

    # -- reactions --------------------------------------------------------------------------------

    def add_reactions(self, counts: dict[str, dict[str, int]]) -> None:
        # One pipeline: a part of it that is said again by the caller would count twice.
        with errors_as(StateLost, "the state server"):
            pipe = self._client.pipeline(transaction=False)
            for stream, kinds in counts.items():
                key = f"reactions:stream:{stream}"
                for kind, count in kinds.items():
                    pipe.hincrby(key, kind, count)
                pipe.expire(key, REACTIONS_KEEP_S)
            pipe.execute()

    def reactions(self, streams: list[str]) -> list[dict[str, int]]:
        found = self._hashes([f"reactions:stream:{stream}" for stream in streams])
        return [{kind.decode(): int(total) for kind, total in kinds.items()} for kinds in found]

    def raise_reactions(self, totals: dict[str, dict[str, int]]) -> None:
        with errors_as(StateLost, "the state server"):
            for part in _parts(list(totals.items())):
                pipe = self._client.pipeline(transaction=False)
                for stream, kinds in part:
                    flat = [str(item) for pair in kinds.items() for item in pair]
                    pipe.eval(_RAISE, 1, f"reactions:stream:{stream}", *flat, str(REACTIONS_KEEP_S))
                pipe.execute()

    # -- the registry -----------------------------------------------------------------------------

    def seat(self, added: list[Seat], removed: list[Seat]) -> None:
        with errors_as(StateLost, "the state server"):
            for part in _parts(added):
                pipe = self._client.pipeline(transaction=False)
                for user, session, gateway, incarnation, stream in part:
                    pipe.hset(f"conn:user:{user}", session, f"{gateway} {incarnation} {stream}")
                    pipe.expire(f"conn:user:{user}", SEAT_KEEP_S)
                pipe.execute()
            for part in _parts(removed):
                pipe = self._client.pipeline(transaction=False)
                for seat in part:
                    pipe.hdel(f"conn:user:{seat.user}", seat.session)
                pipe.execute()

    def seats(self, user: str) -> list[Seat]:
        key = f"conn:user:{user}"
        seats = []
        with errors_as(StateLost, "the state server"):
            for session, value in self._client.hscan_iter(key, count=AT_ONCE):
                gateway, incarnation, stream = value.decode().split(" ")
                seats.append(Seat(user, session.decode(), gateway, incarnation, stream))
        leases = self._leases({seat.gateway.encode() for seat in seats})
        live = [
            seat for seat in seats if leases[seat.gateway.encode()] == seat.incarnation.encode()
        ]
        if len(live) < len(seats):
            self.seat([], [seat for seat in seats if seat not in live])
        return live

    # -- active streams ---------------------------------------------------------------------------

    def mark_active(self, streams: list[str], now: float) -> None:
        with errors_as(StateLost, "the state server"):
            for part in _parts(streams):
                pipe = self._client.pipeline(transaction=False)
                pipe.zadd("streams:active", dict.fromkeys(part, now), gt=True)
                pipe.zremrangebyscore("streams:active", "-inf", now - ACTIVE_S)
                for stream in part:
                    pipe.expire(f"stream:{stream}", DESCRIBED_KEEP_S)
                pipe.execute()

    def active(self, now: float) -> list[str]:
        with errors_as(StateLost, "the state server"):
            found: Any = self._client.zrangebyscore("streams:active", now - ACTIVE_S, "+inf")
        return sorted(stream.decode() for stream in found)

    def describe_streams(self, described: dict[str, tuple[str, int] | None]) -> None:
        with errors_as(StateLost, "the state server"):
            for part in _parts(list(described.items())):
                pipe = self._client.pipeline(transaction=False)
                for stream, about in part:
                    key = f"stream:{stream}"
                    if about is None:
                        pipe.delete(key)
                    else:
                        pipe.hset(key, mapping={"title": about[0], "started_at": about[1]})
                        pipe.expire(key, DESCRIBED_KEEP_S)
                pipe.execute()

    def active_streams(self, now: float) -> list[ActiveStream]:
        streams = self.active(now)
        described = self._hashes([f"stream:{stream}" for stream in streams])
        found = [
            ActiveStream(
                stream,
                viewers,
                connections,
                int(about[b"started_at"]) if b"started_at" in about else None,
                about.get(b"title", b"").decode(),
            )
            for stream, viewers, connections, about in zip(
                streams, self.viewers(streams, now), self.connections(streams), described,
                strict=True,
            )
        ]  # fmt: skip
        return sorted(found, key=lambda one: (-one.viewers, -one.connections, one.stream))

    # -- the connection ---------------------------------------------------------------------------

    def _hashes(self, keys: list[str]) -> list[dict[bytes, bytes]]:
        """Return small hashes, whole."""
        found: list[dict[bytes, bytes]] = []
        with errors_as(StateLost, "the state server"):
            for part in _parts(keys):
                pipe = self._client.pipeline(transaction=False)
                for key in part:
                    pipe.hgetall(key)
                found += pipe.execute()
        return found

    def _leases(self, gateways: set[bytes]) -> dict[bytes, bytes | None]:
        """Return the incarnation that holds each gateway's lease."""
        names = sorted(gateways)
        with errors_as(StateLost, "the state server"):
            held: Any = self._client.mget([b"gateway:" + name for name in names]) if names else []
        return dict(zip(names, held, strict=True))

    def ping(self) -> None:
        with errors_as(StateLost, "the state server"):
            self._client.ping()

    def close(self) -> None:
        self._client.close()


def _viewers_key(stream: str, minute: int) -> str:
    return f"stream:viewers:{stream}:{minute}"


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[at : at + AT_ONCE] for at in range(0, len(items), AT_ONCE))


def _live(leases: dict[bytes, bytes], now: float) -> list[int]:
    return sorted(int(shard) for shard, until in leases.items() if float(until) > now)

"""State on Valkey: rings, leases, presence, reactions, registry; on one server or on a cluster.

Every command touches one key, so that a cluster runs them all: `uproar.state.cluster` changes only
what runs them.

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
from uproar.valkey_client import Command, OneServer, Server, sentence

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
    """`uproar.state.State` on the Valkey behind `config.socket("state")`, or on another server."""

    def __init__(self, config: Config, server: Server | None = None) -> None:
        self._server = server or OneServer(config.socket("state"), config.state.timeout_s)
        self._ring_ms = int(config.state.ring_s * 1000)
        self._lease_ms = int(config.state.gateway_lease_s * 1000)
        self._interest_ms = int(config.state.interest_lease_s * 1000)

    def write_rings(self, writes: list[RingWrite], now: float) -> list[list[int]]:
        rings: list[Command] = []
        for stream, last, payload, trim_to in writes:
            ring = f"stream:{stream}:ring"
            rings.append(
                ("XADD", ring, "MINID", f"{trim_to + 1}-0", f"{last}-0", "b", payload)
            )  # fmt: skip
            rings.append(("PEXPIRE", ring, self._ring_ms))
        interests: list[Command] = [
            ("HGETALL", f"stream:{write.stream}:interest") for write in writes
        ]
        answers = self._server.run(rings, interests)
        for answer in answers:
            # An older id than the ring's newest: another holder was here, its batch stands.
            if isinstance(answer, Exception) and not (
                isinstance(answer, redis.ResponseError) and "equal or smaller" in str(answer)
            ):
                raise _lost(answer)
        return [_live(_pairs(leases), now) for leases in answers[len(rings) :]]

    def ring(self, stream: str, after: int) -> list[RingEntry]:
        (entries,) = self._run([("XRANGE", f"stream:{stream}:ring", f"{after + 1}-0", "+")])
        return [RingEntry(int(at.split(b"-")[0]), fields[1]) for at, fields in entries]

    def interests(self, streams: list[str], now: float) -> list[list[int]]:
        keys = [f"stream:{stream}:interest" for stream in streams]
        return [_live(leases, now) for leases in self._hashes(keys)]

    def add_interest(self, streams: list[str], shard: int, until: float) -> list[str]:
        commands: list[Command] = []
        for stream in streams:
            key = f"stream:{stream}:interest"
            commands.append(("HSET", key, shard, until))
            commands.append(("PEXPIRE", key, 2 * self._interest_ms))
        answers = self._run(commands)
        return [stream for stream, added in zip(streams, answers[::2], strict=True) if added]

    def set_last(self, partition: int, offset: int, epoch: str) -> None:
        self._run([("HSET", f"coordinator:{partition}", "last", offset, "epoch", epoch)])

    def last(self, partition: int) -> tuple[int, str] | None:
        ((last, epoch),) = self._run([("HMGET", f"coordinator:{partition}", "last", "epoch")])
        return (int(last), epoch.decode()) if last is not None and epoch is not None else None

    def lease_gateway(self, name: str, incarnation: str, connections: dict[str, int]) -> bool:
        lease = f"gateway:{name}"
        commands: list[Command] = [("SET", lease, incarnation, "PX", self._lease_ms, "GET")]
        for stream, count in connections.items():
            key = f"stream:{stream}:connections"
            if count:
                commands.append(("HSET", key, name, f"{incarnation} {count}"))
                commands.append(("EXPIRE", key, 3600))
            else:
                commands.append(("HDEL", key, name))
        held = self._run(commands)[0]
        return bool(held == incarnation.encode())

    def leased(self, names: list[str]) -> list[str]:
        held = self._leases({name.encode() for name in names})
        return [name for name in names if held[name.encode()] is not None]

    def end_lease(self, name: str, incarnation: str) -> None:
        self._run([("EVAL", _END_LEASE, 1, f"gateway:{name}", incarnation)])

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
        commands: list[Command] = []
        for stream, now, members in present:
            key = _viewers_key(stream, int(now) // MINUTE_S)
            commands += [("PFADD", key, *part) for part in _parts(members)]
            commands.append(("EXPIRE", key, VIEWERS_KEEP_S))
        self._run(commands)

    def viewers(self, streams: list[str], now: float) -> list[int]:
        minute = int(now) // MINUTE_S
        # Not one PFCOUNT of both minutes: that is their union, which holds twice as many who have
        # left, and a cluster keeps the two keys in different slots.
        commands: list[Command] = [
            ("PFCOUNT", _viewers_key(stream, when))
            for stream in streams
            for when in (minute, minute - 1)
        ]
        found = self._run(commands)
        return list(map(max, found[::2], found[1::2]))

    # -- reactions --------------------------------------------------------------------------------

    def add_reactions(self, counts: dict[str, dict[str, int]]) -> None:
        lost: Exception | None = None
        for streams in _parts(list(counts)):
            commands: list[Command] = []
            for stream in streams:
                key = f"reactions:stream:{stream}"
                commands += [("HINCRBY", key, *pair) for pair in counts[stream].items()]
                commands.append(("EXPIRE", key, REACTIONS_KEEP_S))
            answers = iter(self._server.run(commands))
            for stream in streams:
                its = [next(answers) for _ in range(len(counts[stream]) + 1)]
                wrong = next((answer for answer in its if isinstance(answer, Exception)), None)
                if wrong is None:
                    del counts[stream]
                lost = wrong or lost
        if lost is not None:
            raise _lost(lost)

    def reactions(self, streams: list[str]) -> list[dict[str, int]]:
        found = self._hashes([f"reactions:stream:{stream}" for stream in streams])
        return [{kind.decode(): int(total) for kind, total in kinds.items()} for kinds in found]

    def raise_reactions(self, totals: dict[str, dict[str, int]]) -> None:
        commands: list[Command] = []
        for stream, kinds in totals.items():
            flat = [item for pair in kinds.items() for item in pair]
            key = f"reactions:stream:{stream}"
            commands.append(("EVAL", _RAISE, 1, key, *flat, REACTIONS_KEEP_S))
        self._run(commands)

    # -- the registry -----------------------------------------------------------------------------

    def seat(self, added: list[Seat], removed: list[Seat]) -> None:
        commands: list[Command] = []
        for user, session, gateway, incarnation, stream in added:
            key = f"conn:user:{user}"
            commands.append(("HSET", key, session, f"{gateway} {incarnation} {stream}"))
            commands.append(("EXPIRE", key, SEAT_KEEP_S))
        commands += [("HDEL", f"conn:user:{seat.user}", seat.session) for seat in removed]
        self._run(commands)

    def seats(self, user: str) -> list[Seat]:
        key = f"conn:user:{user}"
        found: dict[bytes, bytes] = {}
        cursor = b"0"
        while True:
            ((cursor, fields),) = self._run([("HSCAN", key, cursor, "COUNT", AT_ONCE)])
            found |= _pairs(fields)
            if cursor == b"0":
                break
        seats = []
        for session, value in found.items():
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
        commands: list[Command] = []
        for part in _parts(streams):
            scored = [item for stream in part for item in (now, stream)]
            commands.append(("ZADD", "streams:active", "GT", *scored))
            commands += [("EXPIRE", f"stream:{stream}", DESCRIBED_KEEP_S) for stream in part]
        if commands:
            commands.append(("ZREMRANGEBYSCORE", "streams:active", "-inf", now - ACTIVE_S))
        self._run(commands)

    def active(self, now: float) -> list[str]:
        (found,) = self._run([("ZRANGEBYSCORE", "streams:active", now - ACTIVE_S, "+inf")])
        return sorted(stream.decode() for stream in found)

    def describe_streams(self, described: dict[str, tuple[str, int] | None]) -> None:
        commands: list[Command] = []
        for stream, about in described.items():
            key = f"stream:{stream}"
            if about is None:
                commands.append(("DEL", key))
            else:
                commands.append(("HSET", key, "title", about[0], "started_at", about[1]))
                commands.append(("EXPIRE", key, DESCRIBED_KEEP_S))
        self._run(commands)

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

    # -- the server -------------------------------------------------------------------------------

    def _hashes(self, keys: list[str]) -> list[dict[bytes, bytes]]:
        """Return small hashes, whole."""
        return [_pairs(flat) for flat in self._run([("HGETALL", key) for key in keys])]

    def _leases(self, gateways: set[bytes]) -> dict[bytes, bytes | None]:
        """Return the incarnation that holds each gateway's lease."""
        names = sorted(gateways)
        held = self._run([("GET", b"gateway:" + name) for name in names])
        return dict(zip(names, held, strict=True))

    def _run(self, commands: list[Command]) -> list[Any]:
        """Return the answers, asked for in pipelines of bounded length; raises StateLost."""
        answers: list[Any] = []
        for part in _parts(commands):
            for answer in self._server.run(part):
                if isinstance(answer, Exception):
                    raise _lost(answer)
                answers.append(answer)
        return answers

    def ping(self) -> None:
        self._run([("PING",)])

    def close(self) -> None:
        self._server.close()


def _lost(error: Exception) -> StateLost:
    lost = StateLost(sentence(error, "the state server"))
    lost.__cause__ = error
    return lost


def _viewers_key(stream: str, minute: int) -> str:
    return f"stream:viewers:{stream}:{minute}"


def _parts(items: Sequence[T]) -> Iterator[Sequence[T]]:
    return (items[at : at + AT_ONCE] for at in range(0, len(items), AT_ONCE))


def _pairs(flat: list[bytes]) -> dict[bytes, bytes]:
    return dict(zip(flat[::2], flat[1::2], strict=True))


def _live(leases: dict[bytes, bytes], now: float) -> list[int]:
    return sorted(int(shard) for shard, until in leases.items() if float(until) > now)

"""The embedded state: rings, leases and last positions on the second Valkey.

Keys: `stream:{id}:ring` (a Valkey stream, one entry a batch, id `{last}-0`), `stream:{id}:interest`
(shard → end of lease), `stream:{id}:connections` (gateway → `incarnation count`), `gateway:{name}`
(lease: the incarnation), `coordinator:{partition}` (last offset and epoch).
"""

from __future__ import annotations

from typing import Any

import redis

from uproar.config import Config
from uproar.state import RingEntry, RingWrite, StateLost
from uproar.valkey_client import connect, errors_as


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

    def interest(self, stream: str, now: float) -> list[int]:
        with errors_as(StateLost, "the state server"):
            leases: Any = self._client.hgetall(f"stream:{stream}:interest")
        return _live(leases, now)

    def add_interest(self, streams: list[str], shard: int, until: float) -> None:
        with errors_as(StateLost, "the state server"):
            pipe = self._client.pipeline(transaction=False)
            for stream in streams:
                key = f"stream:{stream}:interest"
                pipe.hset(key, str(shard), str(until))
                pipe.pexpire(key, 2 * self._interest_ms)
            pipe.execute()

    def set_last(self, partition: int, offset: int, epoch: str) -> None:
        with errors_as(StateLost, "the state server"):
            self._client.hset(f"coordinator:{partition}", mapping={"last": offset, "epoch": epoch})

    def last(self, partition: int) -> tuple[int, str] | None:
        with errors_as(StateLost, "the state server"):
            found: Any = self._client.hmget(f"coordinator:{partition}", ["last", "epoch"])
        last, epoch = found
        return (int(last), epoch.decode()) if last is not None and epoch is not None else None

    def lease_gateway(self, name: str, incarnation: str, connections: dict[str, int]) -> None:
        with errors_as(StateLost, "the state server"):
            pipe = self._client.pipeline(transaction=False)
            pipe.set(f"gateway:{name}", incarnation, px=self._lease_ms)
            for stream, count in connections.items():
                key = f"stream:{stream}:connections"
                if count:
                    pipe.hset(key, name, f"{incarnation} {count}")
                    pipe.expire(key, 3600)
                else:
                    pipe.hdel(key, name)
            pipe.execute()

    def connections(self, streams: list[str]) -> list[int]:
        with errors_as(StateLost, "the state server"):
            pipe = self._client.pipeline(transaction=False)
            for stream in streams:
                pipe.hgetall(f"stream:{stream}:connections")
            counts = [
                {name: value.split() for name, value in found.items()} for found in pipe.execute()
            ]
            names = sorted({name for found in counts for name in found})
            leases: Any = self._client.mget([b"gateway:" + name for name in names]) if names else []
        live = dict(zip(names, leases, strict=True))
        return [
            sum(int(value[1]) for name, value in found.items() if live.get(name) == value[0])
            for found in counts
        ]

    def ping(self) -> None:
        with errors_as(StateLost, "the state server"):
            self._client.ping()

    def close(self) -> None:
        self._client.close()


def _live(leases: dict[bytes, bytes], now: float) -> list[int]:
    return sorted(int(shard) for shard, until in leases.items() if float(until) > now)

"""What do registry, presence and bus cost on a cluster, and do its masters share the work?

    python -m benchmarks.cluster registry|bus [--nodes HOST:PORT] [--json]

Takes a running cluster (`--nodes`, else UPROAR_TEST_CLUSTER), **and empties it**. The client is the
adapter itself, in one process; simulated gateways are another. CPU of the servers is their own
account of it (INFO), so they may run anywhere.
"""

from __future__ import annotations

import os
import shlex
import sys
import time
from collections.abc import Callable, Iterator
from typing import Final, NamedTuple

import click
import psutil

from benchmarks import host
from benchmarks.report import Figure, Report, document, limit_of, milliseconds, per, table
from benchmarks.sink import STAMP, Sink
from uproar.bus import BusLost, channel
from uproar.bus.cluster import ClusterBus
from uproar.config import Config, load
from uproar.state import Present, RingWrite, Seat, StateLost
from uproar.state.cluster import ClusterState
from uproar.valkey_cluster import Address, Cluster

USERS: Final = 1_000_000
STREAMS: Final = 1000
BATCH: Final = 1000  # seats of one call, as a gateway writes them
CHUNK: Final = 500  # members of one PFADD
LOOK_UPS: Final = 5000

PAYLOAD: Final = 1000  # bytes of a batch: ten comments
SECONDS: Final = 5.0  # of each row of the bus
IN_FLIGHT: Final = 2  # rounds that are not received yet
WAIT_S: Final = 60.0
# (gateways, shards, streams)
ROWS: Final = [
    *((gateways, 100, streams) for streams in (1, STREAMS) for gateways in (1, 10, 100)),
    *((100, shards, streams) for streams in (1, STREAMS) for shards in (1, 10)),
]


class Servers(NamedTuple):
    """What INFO says of the cluster now."""

    cpu_s: dict[str, float]  # of masters and replicas
    busiest_s: dict[str, float]  # by node
    commands: int  # that the masters have run
    memory: dict[Address, int]  # bytes of data, by master
    keys: dict[Address, int]

    @classmethod
    def ask(cls, cluster: Cluster) -> Servers:
        """Ask all nodes."""
        cpu: dict[str, float] = {"masters": 0.0, "replicas": 0.0}
        busiest: dict[str, float] = {}
        topology = cluster.refresh()
        masters = set(topology.masters)
        memory: dict[Address, int] = {}
        keys: dict[Address, int] = {}
        commands = 0
        for node in topology.nodes:
            (answer,) = cluster.ask(node, [("INFO", "everything")])
            info = dict(line.split(":", 1) for line in answer.decode().splitlines() if ":" in line)
            used = float(info["used_cpu_user"]) + float(info["used_cpu_sys"])
            role = "masters" if node in masters else "replicas"
            cpu[role] += used
            busiest[f"{role[:-1]} {node[1]}"] = used
            if node in masters:
                commands += int(info["total_commands_processed"])
                memory[node] = int(info["used_memory"])
                keys[node] = int(info.get("db0", "keys=0,").split(",")[0].removeprefix("keys="))
        return cls(cpu, busiest, commands, memory, keys)


class Window:
    """CPU, commands and clock from the beginning to `close`."""

    def __init__(self, cluster: Cluster, sink: Sink | None = None) -> None:
        self._cluster, self._sink = cluster, sink
        self._before = Servers.ask(cluster)
        self._own = self._cpu()
        self._machine = psutil.cpu_times()
        self._began = time.monotonic()
        self.wall_s = 0.0
        self.cpu: dict[str, float] = {}
        self.commands = 0
        self.limit = ""

    def close(self) -> None:
        """Take the second reading."""
        self.wall_s = time.monotonic() - self._began
        own, machine, after = self._cpu(), psutil.cpu_times(), Servers.ask(self._cluster)
        before = self._before
        self.commands = after.commands - before.commands
        mine = {role: own[role] - self._own[role] for role in own}
        servers = {role: after.cpu_s[role] - before.cpu_s[role] for role in after.cpu_s}
        self.cpu = {role: round(used, 2) for role, used in {**servers, **mine}.items()}
        busiest = {n: used - before.busiest_s.get(n, 0.0) for n, used in after.busiest_s.items()}
        total, idle = sum(machine) - sum(self._machine), machine.idle - self._machine.idle
        cores = psutil.cpu_count() or 1
        self.limit = limit_of(
            {**busiest, **mine},
            self.wall_s,
            cores=cores,
            idle=idle / total if total else 0.0,
            others=max(0.0, 1 - idle / total - sum(self.cpu.values()) / (self.wall_s * cores)),
        )

    def _cpu(self) -> dict[str, float]:
        found = {"generator": _cpu_of(os.getpid())}
        if self._sink is not None:
            found["gateways"] = _cpu_of(self._sink.pid)
        return found


def registry(config: Config, command: str) -> Report:
    """Write seats and presence of a million users, and look some up."""
    cluster, state = Cluster(config.state), ClusterState(config)
    _empty(cluster)
    empty = Servers.ask(cluster)
    figures: dict[str, Figure] = {}
    whole = Window(cluster)

    window = Window(cluster)
    for at in range(0, USERS, BATCH):
        state.seat([_seat(number) for number in range(at, at + BATCH)], [])
    window.close()
    seated = Servers.ask(cluster)
    figures |= {"seats": USERS} | _rates("seat", USERS, 2 * USERS, window)
    figures |= _shares("seat", empty, seated, USERS)

    state.lease_gateway("g0", "i", {})
    times = []
    for number in range(0, USERS, USERS // LOOK_UPS):
        began = time.monotonic()
        found = state.seats(f"user-{number}")
        times.append(time.monotonic() - began)
        if bool(found) != (number % 56 == 0):
            raise RuntimeError(f"user-{number} has {len(found)} sessions")
    figures |= {
        f"look-up {name}": value for name, value in milliseconds(times, (0.5, 0.99)).items()
    }

    for name, streams in (("in 1 stream", 1), (f"in {STREAMS:,} streams", STREAMS)):
        before, now = Servers.ask(cluster), time.time()
        window = Window(cluster)
        commands = 0
        for present in _present(streams, now):
            state.add_present(present)
            commands += len(present) * 2
        window.close()
        after = Servers.ask(cluster)
        figures |= _rates(f"presence {name}: member", USERS, commands, window)
        figures[f"presence {name}: MB"] = (
            sum(after.memory.values()) - sum(before.memory.values())
        ) / 1e6
        names = [f"of-{streams}-{number}" for number in range(streams)]
        began = time.monotonic()
        counted = sum(state.viewers(names, now))
        figures[f"presence {name}: count ms"] = (time.monotonic() - began) * 1000
        figures[f"presence {name}: counted of {USERS:,}"] = counted
    whole.close()
    state.close()
    _empty(cluster)
    cluster.close()
    return Report(
        "cluster registry", "what do a million users cost in registry and presence?", command,
        {"users": USERS, "seats a call": BATCH, "members a command": CHUNK},
        figures, whole.cpu, {}, round(whole.wall_s, 2), whole.limit,
    )  # fmt: skip


def _seat(number: int) -> Seat:
    gateway = number % 56
    return Seat(f"user-{number}", f"g{gateway}-i-{number}", f"g{gateway}", "i", "s-1")


def _present(streams: int, now: float) -> Iterator[list[Present]]:
    """Yield calls as gateways make them: 2,000 members, 500 of a stream in one command."""
    each = USERS // streams
    pieces = [
        Present(
            f"of-{streams}-{stream}",
            now,
            [f"u:user-{stream * each + at + n}" for n in range(min(CHUNK, each - at))],
        )
        for stream in range(streams)
        for at in range(0, each, CHUNK)
    ]
    return (pieces[at : at + 4] for at in range(0, len(pieces), 4))


def _rates(name: str, count: int, commands: int, window: Window) -> dict[str, Figure]:
    return {
        f"{name}s/s": per(count, window.wall_s),
        f"{name}: commands/s": per(commands, window.wall_s),
        f"{name}: masters us": per(window.cpu["masters"] * 1e6, count),
        f"{name}: client us": per(window.cpu["generator"] * 1e6, count),
    }


def _shares(name: str, before: Servers, after: Servers, count: int) -> dict[str, Figure]:
    grown = {node: after.memory[node] - before.memory[node] for node in after.memory}
    fair_keys, fair_bytes = sum(after.keys.values()) / len(grown), sum(grown.values()) / len(grown)
    return {
        f"{name}: bytes of masters": per(sum(grown.values()), count),
        f"{name}: most and least keys of a master, of a fair share": _range(after.keys, fair_keys),
        f"{name}: most and least bytes of a master, of a fair share": _range(grown, fair_bytes),
    }


def _range(values: dict[Address, int], fair: float) -> str:
    return f"{max(values.values()) / fair:.3f}, {min(values.values()) / fair:.3f}"


# -- the bus ---------------------------------------------------------------------------------------


def bus(config: Config, command: str, *, seconds: float = SECONDS) -> Iterator[Report]:
    """Ring, interest and publish of one batch a stream and round, as fast as they are received."""
    for gateways, shards, streams in ROWS:
        yield _row(_with_shards(config, shards), command, gateways, shards, streams, seconds)


def _row(
    config: Config, command: str, gateways: int, shards: int, streams: int, seconds: float
) -> Report:
    cluster, state, out = Cluster(config.state), ClusterState(config), ClusterBus(config)
    _empty(cluster)
    names = [f"s-{number}" for number in range(streams)]
    sink = Sink(config, gateways, names)
    try:
        sink.wait_ready()
        window = Window(cluster, sink)
        rounds, published = 0, 0
        due = 0  # messages that the gateways will have received
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            rounds += 1
            payload = STAMP.pack(time.monotonic()) + bytes(PAYLOAD - STAMP.size)
            writes = [RingWrite(name, rounds, payload, max(0, rounds - 100)) for name in names]
            interested = state.write_rings(writes, time.time())
            payload = STAMP.pack(time.monotonic()) + bytes(PAYLOAD - STAMP.size)
            messages = [
                (channel(name, shard), payload)
                for name, its in zip(names, interested, strict=True)
                for shard in its
            ]
            out.publish(messages)
            published += len(messages)
            due += gateways * streams
            _wait(sink, due - IN_FLIGHT * gateways * streams)
        _wait(sink, due)
        window.close()
    finally:
        latencies = sink.close()
    commands = 3 * rounds * streams + published
    state.close()
    out.close()
    _empty(cluster)
    cluster.close()
    figures: dict[str, Figure] = {
        "batches/s": per(rounds * streams, window.wall_s),
        "SPUBLISH per batch": per(published, rounds * streams),
        "commands/s": per(commands, window.wall_s),
        "received/s": per(due, window.wall_s),
        "masters us/command": per(window.cpu["masters"] * 1e6, commands),
        "coordinator us/batch": per(window.cpu["generator"] * 1e6, rounds * streams),
        "coordinator us/command": per(window.cpu["generator"] * 1e6, commands),
        **{
            f"bus {name}": value
            for name, value in milliseconds(latencies, (0.5, 0.95, 0.99)).items()
        },
    }
    return Report(
        "cluster bus", "what do batches cost against gateways, shards and streams?", command,
        {"gateways": gateways, "shards": shards, "streams": streams, "bytes": PAYLOAD},
        figures, window.cpu, {}, round(window.wall_s, 2), window.limit,
    )  # fmt: skip


def _wait(sink: Sink, count: int) -> None:
    until = time.monotonic() + WAIT_S
    while sink.received < count:
        if time.monotonic() > until:
            raise RuntimeError(f"only {sink.received:,} of {count:,} messages came")
        time.sleep(0.0005)


# -- the cluster -----------------------------------------------------------------------------------


def _empty(cluster: Cluster) -> None:
    for answer in cluster.on_masters(("FLUSHALL", "SYNC")).values():
        if isinstance(answer, Exception):
            raise answer


def _cpu_of(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


def _with_shards(config: Config, shards: int) -> Config:
    return _config(config.state.nodes, shards)


def _config(nodes: list[str], shards: int = 0) -> Config:
    return load(
        environ={},
        flags={
            "state.engine": "cluster",
            "state.nodes": nodes,
            "state.timeout_s": 30.0,  # a thousand streams for a hundred gateways is one call
            "bus.shards": shards,
        },
    )


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, type=click.Choice(["registry", "bus"]))
@click.option("--nodes", envvar="UPROAR_TEST_CLUSTER", required=True, metavar="HOST:PORT[,…]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--seconds", type=click.FloatRange(1), default=SECONDS, help="Of each row of `bus`.")
def main(names: tuple[str, ...], nodes: str, as_json: bool, seconds: float) -> None:
    """Measure a cluster, AND EMPTY IT; everything without a NAME."""
    block = host.block()
    config = _config(nodes.split(","))
    runs: dict[str, Callable[[str], Iterator[Report]]] = {
        "registry": lambda command: iter([registry(config, command)]),
        "bus": lambda command: bus(config, command, seconds=seconds),
    }
    reports: list[Report] = []
    for name in names or tuple(runs):
        try:
            for report in runs[name](shlex.join(["python", "-m", "benchmarks.cluster", name])):
                reports.append(report)
                if not as_json:
                    click.echo(f"{table([report])}\n")
        except (RuntimeError, OSError, StateLost, BusLost) as error:
            click.echo(f"uproar: bench cluster {name}: {error}", err=True)
            sys.exit(1)
    if as_json:
        click.echo(document(block, reports))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.cluster")

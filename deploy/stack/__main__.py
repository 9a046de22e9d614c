"""`python -m deploy.stack ACTION [SERVER…]`: the stack by hand.

Environment, all with defaults: UPROAR_STACK (what is fetched; build/stack), UPROAR_STACK_RUN (what
runs; $UPROAR_STACK/run), UPROAR_STACK_KAFKA_NODES (1, or 3), UPROAR_STACK_KAFKA_PORT (9092 and the
next, for each node), UPROAR_STACK_CASSANDRA_PORT (9042, and +1, +2), UPROAR_STACK_CASSANDRA_SYNC
(batch), UPROAR_STACK_CLUSTER_PORT (7300 to +5). Where UPROAR_TEST_KAFKA, UPROAR_TEST_CASSANDRA or
UPROAR_TEST_CLUSTER names a server (HOST:PORT), that one is used and none is started.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Final

from deploy.stack.cassandra import Cassandra
from deploy.stack.cluster import Cluster
from deploy.stack.kafka import Brokers
from deploy.stack.server import Group, Server, StackError

ENVIRON: Final = {
    "kafka": "UPROAR_TEST_KAFKA",
    "cassandra": "UPROAR_TEST_CASSANDRA",
    "cluster": "UPROAR_TEST_CLUSTER",
}


def run_dir() -> Path:
    """Return the one directory of everything that runs."""
    return Path(_setting("RUN", str(cache_dir() / "run")))


def cache_dir() -> Path:
    """Return the directory of what is fetched."""
    return Path(os.environ.get("UPROAR_STACK", "build/stack"))


def groups() -> dict[str, Group]:
    """Return the stack as the environment describes it."""
    kafka = int(_setting("KAFKA_PORT", "9092"))
    kafka_ports = range(kafka, kafka + 2 * int(_setting("KAFKA_NODES", "1")))
    cql = int(_setting("CASSANDRA_PORT", "9042"))
    cluster = int(_setting("CLUSTER_PORT", "7300"))
    cache, run = cache_dir(), run_dir()
    cassandra = Cassandra(
        cache, run / "cassandra", (cql, cql + 1, cql + 2), _setting("CASSANDRA_SYNC", "batch")
    )
    return {
        "kafka": Brokers(cache, run, kafka_ports),
        "cassandra": Group([cassandra]),
        "cluster": Cluster(run, range(cluster, cluster + 6)),
    }


def _setting(name: str, default: str) -> str:
    return os.environ.get(f"UPROAR_STACK_{name}") or default


def _up(chosen: dict[str, Group]) -> None:
    """Start everything at once: the JVMs take seconds each."""
    ours = {name: group for name, group in chosen.items() if not os.environ.get(ENVIRON[name])}
    for group in ours.values():
        group.launch()
    for group in ours.values():
        group.wait()
    lines = [
        f"export {ENVIRON[name]}={os.environ.get(ENVIRON[name]) or group.address}"
        for name, group in chosen.items()
    ]
    print("\n".join(lines))


def _status(servers: list[Server]) -> None:
    for server in servers:
        state = f"runs as {server.pid}" if server.pid else "does not run"
        print(f"{server.name:12} port {server.ports[0]:5}  {state}  {server.directory}")


def main() -> int:
    """Do what is asked for; 1 with a sentence where that fails."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.stack",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("action", choices=("up", "down", "kill9", "status"))
    parser.add_argument("server", nargs="*", help="kafka, cassandra, cluster, or one by its name")
    arguments = parser.parse_args()
    known = groups()
    by_name = {server.name: server for group in known.values() for server in group.servers}
    unknown = [name for name in arguments.server if name not in known and name not in by_name]
    if unknown:
        parser.error(f"{unknown[0]} is none of {', '.join([*known, *by_name])}")
    named = [
        server
        for name in arguments.server or known
        for server in (known[name].servers if name in known else [by_name[name]])
    ]
    try:
        if arguments.action == "up":
            _up({name: known[name] for name in arguments.server or known if name in known})
            for name in arguments.server:
                if name in by_name and name not in known:
                    by_name[name].start()
        elif arguments.action == "down":
            for server in reversed(named):
                server.stop()
        elif arguments.action == "kill9":
            if not arguments.server:
                parser.error("kill9 needs the name of a server")
            for server in named:
                server.kill9()
        else:
            _status(named)
    except (StackError, OSError) as error:
        print(f"stack: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

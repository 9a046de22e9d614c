"""Is the cluster of `[state] nodes` fit for bus and state? Asked before anything is started.

What can't work is refused with the setting and the remedy; what works worse than promised is a
warning. What only takes time, a failover for example, is refused as well: nothing runs yet that
could wait for it.
"""

from __future__ import annotations

import logging
from typing import Any, Final, NamedTuple

import redis

from uproar.bus import channel
from uproar.config import Config
from uproar.errors import ServeError
from uproar.logs import event
from uproar.valkey_client import AWAY
from uproar.valkey_cluster import Address, Cluster, Topology, slot_of

logger = logging.getLogger(__name__)

SAMPLE_STREAMS: Final = 50  # whose shards are looked at: names decide, and any will do
UNEVEN: Final = 1.5  # of a fair share of the shards: one master is the bottleneck of the bus


class Findings(NamedTuple):
    """Each master's share of the bus, 1.0 for a fair one, and what is short of the promise."""

    shares: dict[str, float]
    warnings: list[str]


def check(config: Config) -> None:
    """Log what is found; raises ServeError when the cluster can't be used."""
    found = examine(config)
    event(logger, "bus_spread", shards=config.shards, shares=found.shares)
    for warning in found.warnings:
        event(logger, "cluster_short", level=logging.WARNING, why=warning)


def examine(config: Config) -> Findings:
    """Ask the cluster; raises ServeError when it can't be used."""
    cluster = Cluster(config.state)
    try:
        topology = cluster.refresh()
        _slots(topology)
        _servers(cluster)
        shares = spread(topology, config.shards)
        return Findings(shares, [*_alone(topology), *_uneven(shares), *_evicting(cluster)])
    except (redis.RedisError, *AWAY) as error:
        raise ServeError(_remedy(config, error)) from error
    finally:
        cluster.close()


def spread(topology: Topology, shards: int) -> dict[str, float]:
    """Return each master's share of the bus's channels, 1.0 for a fair one.

    Over a sample of streams, each with as many channels as there are shards.
    """
    counts = dict.fromkeys(topology.masters, 0)
    for stream in range(SAMPLE_STREAMS):
        for shard in range(shards):
            counts[topology.owner(slot_of(channel(f"sample-{stream}", shard)))] += 1
    fair = SAMPLE_STREAMS * shards / len(counts)
    return {_at(master): round(count / fair, 2) for master, count in counts.items()}


def _slots(topology: Topology) -> None:
    lost = topology.owners.count(None)
    if lost:
        raise ServeError(
            f"state.nodes: {lost:,} slots of the cluster have no master; "
            "repair it with `redis-cli --cluster fix` and start again"
        )


def _servers(cluster: Cluster) -> None:
    for master, answer in cluster.on_masters(("COMMAND", "INFO", "SSUBSCRIBE")).items():
        if isinstance(answer, Exception):
            raise answer
        if not answer or answer[0] is None:
            raise ServeError(
                f"state.nodes: {_at(master)} has no sharded publish and subscribe; "
                "it takes Redis 7.0, any Valkey, or newer"
            )


def _alone(topology: Topology) -> list[str]:
    return [
        f"{_at(master)} has no replica: when it is lost, nothing is delivered until it is back"
        for master in topology.alone
    ]


def _uneven(shares: dict[str, float]) -> list[str]:
    most = max(shares, key=lambda master: shares[master])
    if shares[most] <= UNEVEN:
        return []
    return [
        f"{most} carries {shares[most]:.1f} times its share of the bus; "
        "even the slots out with `redis-cli --cluster rebalance`, or raise bus.shards"
    ]


def _evicting(cluster: Cluster) -> list[str]:
    found = []
    for master, answer in cluster.on_masters(("INFO", "memory")).items():
        policy = _field(answer, "maxmemory_policy")
        if policy not in ("", "noeviction") and _field(answer, "maxmemory") != "0":
            found.append(
                f"{_at(master)} drops keys when its memory is full ({policy}), leases and rings "
                "among them; set maxmemory-policy noeviction"
            )
    return found


def _field(info: Any, name: str) -> str:
    """Return a field of INFO, empty where an access list hides it."""
    if isinstance(info, bytes):
        for line in info.decode("utf-8", "replace").splitlines():
            if line.startswith(f"{name}:"):
                return line.partition(":")[2]
    return ""


def _remedy(config: Config, error: BaseException) -> str:
    state = config.state
    if isinstance(error, redis.AuthenticationError):
        return (
            f"state.password_file: the cluster refused us: {error}; "
            "put its password into the file, and its user into state.user"
        )
    if "cluster support disabled" in str(error):
        return (
            f"state.nodes: {', '.join(state.nodes)} is no cluster; start it with "
            'cluster-enabled yes, or take state.engine = "valkey"'
        )
    if "verify failed" in str(error) or "can't be used" in str(error):
        return (
            f"state.ca_file: no TLS with the cluster: {error}; "
            "name the file of the authority that signed its certificates"
        )
    if isinstance(error, AWAY):
        # A node that wants TLS, or our certificate, hangs up without saying so.
        tls = "; where they want a certificate of ours, set state.cert_file"
        if not state.ca_file:
            tls = "; where they speak TLS, set state.ca_file"
        elif state.cert_file:
            tls = ""
        return f"state.nodes: the cluster does not answer: {error}; start it or name others{tls}"
    return f"state.nodes: the cluster refused us: {error}; allow our user all it needs, ~* &* +@all"


def _at(place: Address) -> str:
    return f"{place[0]}:{place[1]}"

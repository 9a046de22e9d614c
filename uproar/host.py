"""`uproar gateway` and `uproar worker`: some roles on one host of a cluster, under a supervisor.

    what a cluster needs → data directory + lock → ports → effective.toml → processes

Each host has a data directory of its own, for logs, sockets and a copy of the signing key, and an
admin port of its own: a balancer asks its `/readyz`.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import time
from typing import Any, Final

import msgspec

from uproar import auth, cluster_check, logs
from uproar.admin import gateway_names
from uproar.config import Config
from uproar.datadir import DataDir
from uproar.errors import ServeError
from uproar.listeners import Listener, url
from uproar.logs import event
from uproar.serve import LOG_BYTES, listen, make_specs, raise_file_limit, write_effective
from uproar.state import StateLost, open_state
from uproar.supervisor import Supervisor

log = logging.getLogger(__name__)

GATEWAY: Final = ("gateway",)
POLL_S: Final = 0.1  # between two looks at the leases
SPARE_S: Final = 1.0  # after the time in which a lease runs out


def run(config: Config, roles: tuple[str, ...], *, as_json: bool) -> None:
    """Run the roles until it is told to stop; raises ServeError or AuthError."""
    config = named(config)
    check(config, roles)
    data = DataDir(config)
    listeners: list[Listener] = []
    try:
        supervisor_log = data.logs / "supervisor.log"
        logs.rotate(supervisor_log, LOG_BYTES)
        logs.configure("supervisor", file=supervisor_log, stderr_level=logging.WARNING)
        raise_file_limit()
        cluster_check.check(config)
        if "gateway" in roles:
            wait_alone(config)
        auth.platform_keys(config)
        config = listen(config, listeners, public="gateway" in roles)
        file = write_effective(config)
        running = frozenset((*roles, "admin"))
        specs = make_specs(config, "", file, listeners, "", running)
        supervisor = Supervisor(specs, config.supervisor, config.run_dir)

        def on_ready() -> None:
            found = described(config, roles, supervisor.pids())
            event(log, "host_serves", roles=list(roles), http=found["http"], admin=found["admin"])
            print(json.dumps(found) if as_json else _for_people(config, roles, found), flush=True)

        supervisor.run(on_ready)
    finally:
        for listener in listeners:
            listener.close()
        data.close()


def named(config: Config) -> Config:
    """Give the host the machine's name where the configuration has none."""
    if config.gateway.name:
        return config
    name = re.sub(r"[^A-Za-z0-9-]+", "-", socket.gethostname())[:32].strip("-")
    if not name:
        raise ServeError("gateway.name: this machine has no name; give one that no other host has")
    replace = msgspec.structs.replace
    return replace(config, gateway=replace(config.gateway, name=name))


def check(config: Config, roles: tuple[str, ...]) -> None:
    """Refuse what only works on one machine, before anything is made; raises ServeError."""
    if config.state.engine != "cluster":
        raise ServeError(
            'state.engine: the embedded server of bus and state is for one machine; set "cluster" '
            "and name its nodes in state.nodes"
        )
    store = config.data_dir / "store.db"
    if config.store.engine == "sqlite" and not store.exists():
        raise ServeError(
            f"store.engine: history in SQLite is a file of one machine, and {store} is not there; "
            'set "cassandra" and name its hosts in store.hosts'
        )
    if not config.ingest.address and {"gateway", "ingest"} & set(roles):
        raise ServeError(
            "ingest.address: empty; name where ingest listens for the gateways of all hosts, "
            '"tcp:HOST:PORT"'
        )
    if roles != GATEWAY and config.log.engine != "kafka":
        raise ServeError(
            'log.engine: the embedded log is for one machine; set "kafka" and name its brokers in '
            "log.brokers"
        )
    if "webhooks" in roles and not config.webhooks.targets:
        raise ServeError("webhooks.targets: empty, so there is nobody to tell; name them")
    if "gateway" in roles and not config.key_path.exists():
        raise ServeError(
            f"auth.key_file: {config.key_path} is not there; copy the signing key of the other "
            "hosts to it, or their tokens would be refused here"
        )


def wait_alone(config: Config) -> None:
    """Wait until nobody has our gateways' names; raises ServeError when another host does.

    The leases of gateways that were killed run out by themselves.
    """
    names = [config.gateway_name(name) for name in gateway_names(config)]
    until = time.monotonic() + config.state.gateway_lease_s + SPARE_S
    state = open_state(config)
    try:
        while taken := state.leased(names):
            if time.monotonic() > until:
                raise ServeError(
                    f'gateway.name: "{config.gateway.name}" is another host\'s, whose gateway '
                    f"{taken[0]} is alive; give this one a name of its own"
                )
            time.sleep(POLL_S)
    except StateLost as error:
        raise ServeError(f"state.nodes: the cluster does not answer: {error}; start it") from error
    finally:
        state.close()


def described(config: Config, roles: tuple[str, ...], pids: dict[str, list[int]]) -> dict[str, Any]:
    """Return the document of `--json`: URLs (null where nothing listens) and pids by role."""
    server, public = config.server, "gateway" in roles
    return {
        "name": config.gateway.name,
        "http": url("http", server.host, server.port) if public else None,
        "ws": url("ws", server.host, server.port) if public else None,
        "admin": url("http", server.admin_host, server.admin_port),
        "pids": pids,
    }


def _for_people(config: Config, roles: tuple[str, ...], found: dict[str, Any]) -> str:
    where = f"\n  viewers          {found['http']}/" if found["http"] else ""
    return f"""
uproar is running {", ".join(roles)} on {found["name"]}.
{where}
  health           {found["admin"]}/readyz
  logs             {config.data_dir / "logs"}

Ctrl-C stops it.
"""

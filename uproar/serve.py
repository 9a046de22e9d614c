"""`uproar serve`: assembles one machine's system and has the supervisor run it.

    data directory + lock → signing key → ports → effective.toml → processes → what was printed

Order of start: the two Valkeys (with the log on Kafka one); then ingest, coordinator, archive and
moderation, which read the log; then the gateways, which let viewers in; then the admin port and the
demo.
"""

from __future__ import annotations

import json
import logging
import os
import resource
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import msgspec

from uproar import auth, cluster_check, logs, valkey_server
from uproar.admin import gateway_names
from uproar.child import LISTEN_FD, READY_FD, Spec
from uproar.config import ENV_PREFIX, ENV_RESERVED, Config, Log, State, dump
from uproar.datadir import DataDir
from uproar.errors import ServeError
from uproar.listeners import Listener, Port, url
from uproar.log import LogUnavailable
from uproar.logs import event
from uproar.state import StateLost
from uproar.supervisor import Supervisor

log = logging.getLogger(__name__)

TOKEN_TTL_S: Final = 43_200.0  # the printed tokens: 12 h, as long as the longest streams
DEMO_STREAM: Final = "demo"
WORKERS: Final = ("ingest", "coordinator", "archive", "moderation")
WEBHOOKS: Final = "webhooks"  # only where there are targets
# Workers stop from the one nearest to the viewers to the one that owns the log.
STOP_ORDER: Final = (
    "demo",
    "gateway",
    "webhooks",
    "moderation",
    "coordinator",
    "archive",
    "ingest",
    "admin",
    "state",
    "log",
)
EVERY: Final = frozenset(STOP_ORDER)
EPOCH_S: Final = 15.0  # for a group's first members to be given their partitions
LOG_BYTES: Final = 16 << 20  # supervisor.log above this is moved away at the next start


@dataclass(frozen=True)
class Prints:
    """What a started system tells the person or program that started it."""

    as_json: bool
    demo: bool


def serve(config: Config, prints: Prints) -> None:
    """Run the system until it is told to stop; raises ServeError, AuthError or LogUnavailable."""
    binary = valkey_server.find_binary()
    data = DataDir(config)
    listeners: list[Listener] = []
    try:
        supervisor_log = data.logs / "supervisor.log"
        logs.rotate(supervisor_log, LOG_BYTES)
        logs.configure("supervisor", file=supervisor_log, stderr_level=logging.WARNING)
        raise_file_limit()
        key = auth.load_key(config.key_path)
        if config.state.engine == "cluster":
            cluster_check.check(config)
        auth.platform_keys(config)  # one that can't be used is a sentence here, not restarts
        config = listen(config, listeners)
        file = write_effective(config)
        specs = make_specs(config, binary, file, listeners, _demo_token(key) if prints.demo else "")
        supervisor = Supervisor(specs, config.supervisor, config.run_dir)

        def on_ready() -> None:
            found = described(config, key, supervisor.pids())
            event(log, "serving", http=found["http"], admin=found["admin"], data=str(data.path))
            print(
                json.dumps(found) if prints.as_json else _for_people(config, found, prints.demo),
                flush=True,
            )

        supervisor.run(on_ready)
    finally:
        for listener in listeners:
            listener.close()
        data.close()


def make_specs(
    config: Config,
    binary: str,
    file: Path,
    listeners: list[Listener],
    demo_token: str,
    roles: frozenset[str] = EVERY,
) -> list[Spec]:
    """Return the processes of one machine, or those of some roles.

    `listeners` holds the gateways' and then admin's.
    """
    env = child_env(os.environ)
    python = (sys.executable, "-m")
    ready = ("--ready-fd", READY_FD)
    stop_s = config.supervisor.stop_s
    specs: list[Spec] = []

    def add(role: str, start: int, argv: tuple[str, ...], **more: Any) -> None:
        if role not in roles:
            return
        name = more.pop("name", role)
        more = {"env": env, "stop_s": stop_s, **more}
        path = config.data_dir / "logs" / f"{name}.log"
        stop = STOP_ORDER.index(role)
        specs.append(Spec(name, role, argv, path, start=start, stop=stop, **more))

    # A role that is a cluster's is somebody else's to run.
    servers: list[valkey_server.Role] = ["log"] if config.log.engine == "valkey" else []
    if config.state.engine == "valkey":
        servers.append("state")
    for server in servers:
        add(
            server,
            0,
            tuple(valkey_server.arguments(binary, server, config)),
            ready=valkey_server.ready_check(config.socket(server)),
            gate=_space(config) if server == "log" else None,
        )
    for role in (*WORKERS, WEBHOOKS) if config.webhooks.targets else WORKERS:
        add(role, 1, (*python, "workers", role, "--config", str(file), *ready))
    for name, listener in zip(gateway_names(config), listeners, strict=False):
        argv = (*python, "gateway", "--config", str(file), "--name", name, "--listen-fd", LISTEN_FD)
        add(
            "gateway",
            2,
            (*argv, *ready),
            name=name,
            listener=listener,
            stop_s=stop_s + config.gateway.drain_s,
        )
    admin = (*python, "uproar.admin", "--config", str(file), "--listen-fd", LISTEN_FD, *ready)
    some = ("--roles", ",".join(sorted(roles))) if roles != EVERY else ()
    add("admin", 3, (*admin, *some), listener=listeners[-1])
    if demo_token:
        base = url("http", config.server.host, config.server.port)
        demo = (*python, "uproar.demo", "--url", base, "--stream", DEMO_STREAM)
        add("demo", 4, demo, env={**env, "UPROAR_TOKEN": demo_token})
    return specs


def child_env(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the environment without settings: the children's all stand in effective.toml."""
    kept = ENV_RESERVED - {"UPROAR_TOKEN"}
    return {
        name: text
        for name, text in environ.items()
        if not name.startswith(ENV_PREFIX) or name in kept
    }


def write_effective(config: Config) -> Path:
    """Write the whole tree for the children, readable by the owner alone; return the file."""
    file = config.run_dir / "effective.toml"
    new = file.with_name(file.name + ".new")
    new.unlink(missing_ok=True)
    try:
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(fd, "w", encoding="utf-8") as stream:
            stream.write(dump(config))
        new.replace(file)
    except OSError as error:
        raise ServeError(
            f"{file}: can't be written: {error.strerror}; free some space and start again"
        ) from error
    return file


def described(config: Config, key: bytes, pids: dict[str, list[int]]) -> dict[str, Any]:
    """Return the document of `serve --json` (DESIGN section 7); raises LogUnavailable."""
    epoch = _epoch(config)
    server = config.server
    return {
        "http": url("http", server.host, server.port),
        "ws": url("ws", server.host, server.port),
        "admin": url("http", server.admin_host, server.admin_port),
        "irc": None,
        "mqtt": None,
        "grpc": None,
        "epoch": epoch,
        "pids": pids,
        "tokens": {
            role: auth.make_token(
                key, sub=role, name=role.capitalize(), role=role, ttl_s=TOKEN_TTL_S
            )
            for role in ("viewer", "moderator", "broadcaster", "service")
        },
    }


def _epoch(config: Config) -> str:
    """The epoch of the log's first partition; raises LogUnavailable."""
    # Not at the top: the adapters are for the one question that only the running system can answer.
    if config.log.engine == "valkey":
        from uproar.log.valkey import ValkeyLog

        client = ValkeyLog(config)
        try:
            return client.epoch(0)
        finally:
            client.close()
    # What forks must not have librdkafka's threads: the coordinator has said it to STATE.
    from uproar.state import open_state

    state = open_state(config)
    try:
        until = time.monotonic() + EPOCH_S
        while time.monotonic() < until:
            known = state.last(0)
            if known is not None:
                return known[1]
            time.sleep(0.05)
        raise LogUnavailable("no coordinator has taken up the log's first partition yet")
    except StateLost as error:
        raise LogUnavailable(f"nobody knows where the log stands: {error}") from error
    finally:
        state.close()


def listen(config: Config, listeners: list[Listener], *, public: bool = True) -> Config:
    """Open the listening sockets; return the configuration with the ports that they got.

    Those of the gateways come first; without `public` there are none.
    """
    server = config.server
    number = server.port
    if public:
        port = Port(server.host, server.port, "server.port")
        number = port.number
        try:
            # One by one: what was opened before a failure is closed by the caller.
            listeners.extend(Listener(port, shared=True) for _ in range(server.gateways))
        finally:
            port.close()
    admin = Port(server.admin_host, server.admin_port, "server.admin_port")
    try:
        listeners.append(Listener(admin, shared=False))
    finally:
        admin.close()
    replace = msgspec.structs.replace
    # Absolute paths: a child must find the same files wherever it is started from.
    return replace(
        config,
        data=str(config.data_dir),
        server=replace(server, port=number, admin_port=admin.number),
        auth=replace(
            config.auth,
            key_file=str(config.key_path.resolve()),
            keys=[str(Path(file).expanduser().resolve()) for file in config.auth.keys],
            jwks_file=str(Path(config.auth.jwks_file).expanduser().resolve())
            if config.auth.jwks_file
            else "",
        ),
        log=replace(config.log, **_absolute(config.log)),
        state=replace(config.state, **_absolute(config.state)),
        webhooks=replace(config.webhooks, key_file=str(config.webhook_key_path.resolve())),
    )


def _absolute(section: Log | State) -> dict[str, str]:
    """The absolute paths of a server's password and certificates, by their settings."""
    return {
        field: str(Path(file).expanduser().resolve())
        for field in ("password_file", "ca_file", "cert_file", "key_file")
        if (file := getattr(section, field))
    }


def _demo_token(key: bytes) -> str:
    # Without an end: the demo has to outlive a weekend, and the token goes nowhere else.
    return auth.make_token(
        key, sub="demo", name="Demo", role="service", streams=(DEMO_STREAM,), ttl_s=None
    )


def _space(config: Config) -> Callable[[], str | None]:
    """The gate of the log: with `appendfsync always` a full disk ends it, so it waits for space."""
    path, need = config.data_dir / "log", config.supervisor.disk_free_mb << 20

    def gate() -> str | None:
        free = shutil.disk_usage(path).free
        if free >= need:
            return None
        return (
            f"waits for disk space: {free >> 20} MB are free below {path}, "
            f"{need >> 20} MB are needed (supervisor.disk_free_mb)"
        )

    return gate


def raise_file_limit() -> None:
    """Let the children open as many files as they may: each viewer is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError) as error:  # some systems refuse `unlimited` here
            event(log, "file_limit_stays", level=logging.WARNING, soft=soft, reason=str(error))


def _for_people(config: Config, found: dict[str, Any], demo: bool) -> str:
    page = f"{found['http']}/" + (f"stream/{DEMO_STREAM}" if demo else "")
    tokens = found["tokens"]
    return f"""
uproar is running.

  page             {page}
  as a moderator   {page}#token={tokens["moderator"]}
  health           {found["admin"]}/readyz

  viewer token     {tokens["viewer"]}
  moderator token  {tokens["moderator"]}

  data             {config.data_dir}
  logs             {config.data_dir / "logs"}

The tokens hold for 12 hours; `uproar token` makes others. Ctrl-C stops everything.
"""

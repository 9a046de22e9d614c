"""The command `uproar`. Each command imports what it needs when it runs, so `--help` is quick.

Errors are one sentence on stderr and exit code 2.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

import uproar

if TYPE_CHECKING:
    from uproar.config import Config

Command = TypeVar("Command", bound=Callable[..., Any])

ROLES: Final = ("viewer", "vip", "moderator", "broadcaster", "service")
WORKER_ROLES: Final = ("ingest", "coordinator", "archive", "moderation", "webhooks")
_UNITS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Sentence(click.ClickException):
    """What is wrong and what to do, on stderr, with exit code 2."""

    exit_code = 2

    def show(self, file: Any = None) -> None:
        """Print the sentence."""
        click.echo(f"uproar: {self.message}", err=True)


class Duration(click.ParamType[float]):
    """`90s`, `30m`, `1h`, `7d` or plain seconds, as seconds."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        """Return the seconds."""
        found = re.fullmatch(r"(\d{1,9}(?:\.\d+)?)([smhd]?)", str(value))
        if not found or float(found[1]) <= 0:
            self.fail(f"{value!r} is no duration; write 90s, 30m, 1h or 7d", param, ctx)
        return float(found[1]) * _UNITS[found[2] or "s"]


def _config_option(command: Command) -> Command:
    return click.option(
        "--config",
        "config_file",
        type=click.Path(path_type=Path),
        help="Configuration file; default: uproar.toml here, where there is one.",
    )(command)


def _data_option(command: Command) -> Command:
    return click.option("--data", metavar="DIR", help="Data directory; default: data.")(command)


def _json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON line once ready.")(
        command
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(uproar.__version__, prog_name="uproar")
def main() -> None:
    """The live chat behind a live stream."""


@main.command()
@click.option("--port", type=int, help="HTTP and WebSocket port; 0: any free one.")
@_data_option
@click.option("--gateways", type=int, help="Gateway processes; default: 2.")
@_config_option
@click.option("--demo", is_flag=True, help="Play a generated conversation into the stream `demo`.")
@_json_option
def serve(
    port: int | None,
    data: str | None,
    gateways: int | None,
    config_file: Path | None,
    demo: bool,
    as_json: bool,
) -> None:
    """Run everything on this machine, until Ctrl-C."""
    from uproar.auth import AuthError
    from uproar.errors import ServeError

    config = _load(config_file, {"server.port": port, "data": data, "server.gateways": gateways})
    from uproar import serve as serving
    from uproar.log import LogUnavailable

    try:
        serving.serve(config, serving.Prints(as_json=as_json, demo=demo))
    except (ServeError, AuthError) as error:
        raise Sentence(str(error)) from error
    except LogUnavailable as error:
        raise Sentence(f"the log did not answer: {error}; start again") from error


@main.command()
@click.option("--processes", type=int, help="Gateway processes; default: 2.")
@click.option("--name", help="This host's name among the others; default: the machine's.")
@click.option("--port", type=int, help="HTTP and WebSocket port; 0: any free one.")
@_data_option
@_config_option
@_json_option
def gateway(
    processes: int | None,
    name: str | None,
    port: int | None,
    data: str | None,
    config_file: Path | None,
    as_json: bool,
) -> None:
    """Run the gateways of one host of a cluster, until Ctrl-C."""
    flags = {"server.gateways": processes, "gateway.name": name, "server.port": port, "data": data}
    _run_host(_load(config_file, flags), ("gateway",), as_json)


@main.command()
@click.argument("roles", nargs=-1, required=True, type=click.Choice(WORKER_ROLES))
@_data_option
@_config_option
@_json_option
def worker(
    roles: tuple[str, ...], data: str | None, config_file: Path | None, as_json: bool
) -> None:
    """Run workers on one host of a cluster, until Ctrl-C."""
    roles = tuple(dict.fromkeys(roles))
    _run_host(_load(config_file, {"data": data}), roles, as_json)


@main.command()
@click.option("--sub", required=True, metavar="ID", help="The user's id, at most 64 characters.")
@click.option("--name", required=True, help="The name that others see.")
@click.option("--role", type=click.Choice(ROLES), default="viewer", show_default=True)
@click.option("--stream", "streams", multiple=True, metavar="ID", help="Repeatable; none: all.")
@click.option("--ttl", type=Duration(), default="1h", show_default=True, help="90s, 30m, 1h, 7d.")
@_data_option
@_config_option
def token(
    sub: str,
    name: str,
    role: str,
    streams: tuple[str, ...],
    ttl: float,
    data: str | None,
    config_file: Path | None,
) -> None:
    """Print a token signed with the data directory's key."""
    from uproar import auth

    config = _load(config_file, {"data": data})
    try:
        if not config.auth.key_file:
            config.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        key = auth.load_key(config.key_path)
        made = auth.make_token(
            key, sub=sub, name=name, role=role, streams=streams or None, ttl_s=ttl
        )
    except auth.AuthError as error:
        raise Sentence(str(error)) from error
    except OSError as error:
        raise Sentence(
            f"{config.data_dir}: can't be used as data directory: {error.strerror}; "
            "take another with --data"
        ) from error
    click.echo(made)


@main.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--stream", required=True, metavar="ID", help="The stream to play into.")
@click.option(
    "--speed", type=float, default=1.0, show_default=True, help="2: twice as fast; 0: no waiting."
)
@click.option("--url", default="http://127.0.0.1:8080", show_default=True)
def replay(file: Path, stream: str, speed: float, url: str) -> None:
    """Play a chat log (JSON lines: t_ms, user, role, text); service token in UPROAR_TOKEN."""
    made = os.environ.get("UPROAR_TOKEN", "")
    if not made:
        raise Sentence(
            "UPROAR_TOKEN is not set; put a service token in it: "
            'UPROAR_TOKEN="$(uproar token --sub replay --name Replay --role service)"'
        )
    if not 0 <= speed < float("inf"):
        raise Sentence(f"--speed {speed:g} is no speed; 1 is as it was, 10 ten times as fast")
    if not file.is_file():
        raise Sentence(f"{file}: no such file; give a chat log of JSON lines")
    from uproar.replay import replay as play

    sys.exit(play(file, stream, speed, url, made))


@main.command()
@click.option("--role", type=click.Choice(ROLES), default="viewer", show_default=True)
@_data_option
@_config_option
def moderate(role: str, data: str | None, config_file: Path | None) -> None:
    """Judge text lines from stdin: one JSON decision a line (action, stage, categories, spans)."""
    from uproar.moderate import decisions, moderator_of

    try:
        moderator = moderator_of(_load(config_file, {"data": data}))
    except (OSError, ValueError) as error:
        raise Sentence(str(error)) from error
    for line in decisions(moderator, sys.stdin.buffer, role):
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()  # a program may be waiting for the answer to its line


@main.command(context_settings={"ignore_unknown_options": True, "help_option_names": []})
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def bench(arguments: tuple[str, ...]) -> None:
    """Measure a system on this machine: `uproar bench [NAME…] [--json]`."""
    try:
        from benchmarks.__main__ import main as measure
    except ModuleNotFoundError as error:
        if error.name != "benchmarks":
            raise
        raise Sentence("the benchmarks lie in the source tree; run `make bench` there") from error
    measure(arguments, prog_name="uproar bench")


@main.command()
@click.argument("user")
@click.option("--stream", metavar="ID", help="On this stream only; default: on all.")
@_data_option
@_config_option
def kick(user: str, stream: str | None, data: str | None, config_file: Path | None) -> None:
    """Close every open connection of USER (an id, not a name)."""
    config = _load(config_file, {"data": data})
    from uproar.auth import printable
    from uproar.bus import BusLost, open_bus
    from uproar.kick import kick as kicked
    from uproar.state import StateLost, open_state

    if not 1 <= len(user) <= 64 or not printable(user):
        raise Sentence("a user id has 1 to 64 characters without controls")
    state, bus = open_state(config), open_bus(config)
    try:
        seats = kicked(state, bus, user, stream.lower() if stream else None)
    except (StateLost, BusLost) as error:
        raise Sentence(
            f"{config.data_dir}: no uproar runs on this data directory ({error}); "
            "name another with --data"
        ) from error
    finally:
        state.close()
        bus.close()
    if not seats:
        click.echo(f"{user} has no open session{f' on {stream}' if stream else ''}")
        return
    for seat in seats:
        click.echo(f"kicked {user} from {seat.stream} (session {seat.session})")


@main.command("move-history")
@click.argument("data", type=click.Path(exists=True, file_okay=False, path_type=Path))
@_config_option
def move_history(data: Path, config_file: Path | None) -> None:
    """Copy the history of the data directory DATA into the configured store.

    Repeat it to bring what was added meanwhile, or after an interruption.
    """
    config = _load(config_file, {})
    from uproar.store import StoreUnavailable, open_store
    from uproar.store.move import MoveError, move
    from uproar.store.sqlite import SqliteStore

    if config.store.engine == "sqlite":
        raise Sentence('store.engine: "sqlite" is where history comes from; set "cassandra"')
    source, target = SqliteStore(data / "store.db"), open_store(config, writer=True)
    try:
        copied = move(
            source, target,
            lambda epoch, at: click.echo(f"era {epoch.era}: {at} of {epoch.position}", err=True),
        )  # fmt: skip
    except (MoveError, StoreUnavailable) as error:
        raise Sentence(str(error)) from error
    finally:
        source.close()
        target.close()
    click.echo(f"copied {copied} events; history stands in keyspace {config.store.keyspace}")


@main.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@_data_option
@_config_option
def doctor(as_json: bool, data: str | None, config_file: Path | None) -> None:
    """Examine this machine: what is there, what is needed, what to do. Exit 1: something fails."""
    config = _load(config_file, {"data": data})
    import json

    from uproar import doctor as examination

    rows = examination.examine(config)
    if as_json:
        click.echo(json.dumps(examination.document(rows), ensure_ascii=False))
    else:
        width = min(140, shutil.get_terminal_size().columns)
        click.echo(examination.table(rows, width), nl=False)
    sys.exit(0 if examination.healthy(rows) else 1)


@main.command()
@_data_option
@_config_option
def config(data: str | None, config_file: Path | None) -> None:
    """Print the effective configuration as TOML."""
    from uproar.config import dump

    click.echo(dump(_load(config_file, {"data": data})), nl=False)


def _load(file: Path | None, flags: dict[str, Any]) -> Config:
    from uproar.config import ConfigError, load

    try:
        return load(file, flags=flags)
    except ConfigError as error:
        raise Sentence(str(error)) from error


def _run_host(config: Config, roles: tuple[str, ...], as_json: bool) -> None:
    from uproar import host
    from uproar.auth import AuthError
    from uproar.errors import ServeError

    try:
        host.run(config, roles, as_json=as_json)
    except (ServeError, AuthError) as error:
        raise Sentence(str(error)) from error


if __name__ == "__main__":
    main()

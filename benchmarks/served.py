"""How much CPU and memory does each process of the system take? A real `uproar serve`, measured."""

from __future__ import annotations

import http.client
import json
import math
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import psutil
from tqdm import tqdm

from benchmarks.child import pin
from benchmarks.report import limit_of

ROOT: Final = Path(__file__).parents[1]
READY_S: Final = 60.0
STOP_S: Final = 30.0
PAGE: Final = 1000  # comments of history in one request


class Served:
    """One `uproar serve --json` on free ports with a data directory of its own."""

    def __init__(self, *, gateways: int | None = None, **settings: object) -> None:
        """`settings` are those of the configuration: gateway__tick_ms=10 and so on."""
        self._settings = {
            f"UPROAR_{name.upper()}": str(value)
            for name, value in {"server__gateways": gateways, **settings}.items()
            if value is not None
        }

    def __enter__(self) -> Served:
        # Short: Unix sockets lie below it, and their paths have at most 107 bytes.
        self._folder = Path(tempfile.mkdtemp(prefix="upr-"))
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "uproar", "serve", "--json",
                "--port", "0", "--data", str(self._folder / "d"),
            ],
            env={
                **os.environ,
                "UPROAR_SERVER__ADMIN_PORT": "0",
                **self._settings,
                "PYTHONPATH": os.pathsep.join(
                    [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
                ),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self._process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            line = self._process.stdout.readline() if selector.select(READY_S) else b""
        if not line:
            self._end()
            raise RuntimeError("uproar serve did not start; try it by hand to see why")
        self.info: dict[str, Any] = json.loads(line)
        self.pids: dict[str, list[int]] = {
            "supervisor": [self._process.pid], **self.info["pids"]
        }  # fmt: skip
        self._processes = [
            (role, f"{role} {number}" if len(pids) > 1 else role, psutil.Process(pid))
            for role, pids in self.pids.items()
            for number, pid in enumerate(pids, 1)
        ]
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._end()

    def _end(self) -> None:
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
        try:
            self._process.communicate(timeout=STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def data(self) -> Path:
        """The data directory."""
        return self._folder / "d"

    def stream(self, name: str) -> str:
        """Return the WebSocket URL of a stream."""
        return f"{self.info['ws'].rstrip('/')}/stream/{name}"

    @property
    def service_token(self) -> str:
        """A token that names authors and has no rate limit."""
        return str(self.info["tokens"]["service"])

    @property
    def effective(self) -> Path:
        """The configuration that the processes of the system read."""
        return self._folder / "d" / "run" / "effective.toml"

    # -- processes --------------------------------------------------------------------------------

    def cpu(self) -> dict[str, list[float]]:
        """Return CPU seconds so far (user and system) of each process, by role, and our own."""
        used: dict[str, list[float]] = {}
        for role, _, process in self._processes:
            used.setdefault(role, []).append(_cpu_of(process))
        used["generator"] = [_cpu_of(psutil.Process())]
        return used

    def pin(self, gateways: Iterable[int], others: Iterable[int]) -> None:
        """Bind the gateways to some cores and everything else, this process too, to others."""
        for role, _, process in self._processes:
            pin(process.pid, gateways if role == "gateway" else others)
        pin(os.getpid(), others)

    @property
    def gateway(self) -> psutil.Process:
        """The first gateway process."""
        return next(process for role, _, process in self._processes if role == "gateway")

    def gateway_cpu_s(self) -> float:
        """Return user and system CPU seconds of the first gateway so far, to the nanosecond."""
        return time.clock_gettime(~self.gateway.pid << 3 | 2)  # as clock_getcpuclockid(3) makes it

    def gateway_waited_s(self) -> float:
        """Return how long the first gateway was ready to run and had no core; NaN if unknown."""
        tasks = Path(f"/proc/{self.gateway.pid}/task")
        try:
            waits = [(task / "schedstat").read_text().split()[1] for task in tasks.iterdir()]
        except (OSError, IndexError):
            return math.nan
        return sum(map(int, waits)) / 1e9

    def memory_mb(self, role: str) -> float:
        """Return the resident memory of a role's processes now."""
        return sum(
            float(process.memory_info().rss) / 1e6
            for found, _, process in self._processes
            if found == role
        )

    def peaks_mb(self) -> dict[str, float]:
        """Return the largest resident set of each process so far (now, where there is no /proc)."""
        return {name: _peak_mb(process) for _, name, process in self._processes}

    # -- history ----------------------------------------------------------------------------------

    def newest_offset(self, stream: str) -> int:
        """Return the offset of the newest comment in history, -1 where there is none."""
        for page in self._pages(stream, 1):
            return int(page[0]["offset"]) if page else -1
        return -1

    def history(self, stream: str, expected: int) -> Iterator[list[dict[str, Any]]]:
        """Yield all pages of a stream's history, newest first, with a progress bar."""
        bar = tqdm(total=expected, desc="reading history", unit="", disable=None, leave=False)
        with bar:
            for page in self._pages(stream, PAGE):
                bar.update(len(page))
                yield page

    def _pages(self, stream: str, limit: int) -> Iterator[list[dict[str, Any]]]:
        parts = urlsplit(self.info["http"])
        connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
        cursor = ""
        try:
            while True:
                connection.request("GET", f"/stream/{stream}/comments?limit={limit}{cursor}")
                answer = connection.getresponse()
                body = answer.read()
                if answer.status != 200:
                    raise RuntimeError(f"history was answered {answer.status}: {body[:200]!r}")
                page = json.loads(body)
                yield page["comments"]
                if page["next"] is None:
                    return
                cursor = f"&before={page['next']}"
        finally:
            connection.close()


class Window:
    """CPU and clock between two moments, of the system, the generator and the whole machine."""

    def __init__(self, served: Served, beside: Mapping[str, int] | None = None) -> None:
        """`beside` are processes of the generator: role (`generator …`) to pid."""
        self._served = served
        self._beside = {role: psutil.Process(pid) for role, pid in (beside or {}).items()}
        self._cpu = self._used()
        self._machine = psutil.cpu_times()
        self._began = time.monotonic()

    def _used(self) -> dict[str, list[float]]:
        return {
            **self._served.cpu(),
            **{role: [_cpu_of(process)] for role, process in self._beside.items()},
        }

    def close(self) -> Used:
        """Return what was used since the beginning."""
        wall_s = time.monotonic() - self._began
        before, after = self._machine, psutil.cpu_times()
        spent = {
            role: [b - a for a, b in zip(self._cpu[role], now, strict=True)]
            for role, now in self._used().items()
        }
        total = sum(after) - sum(before)
        idle = after.idle - before.idle
        return Used(wall_s, spent, idle / total if total else 0.0)


class Used(NamedTuple):
    """What a window cost: CPU seconds of each process by role, the machine's idle share."""

    wall_s: float
    cpu: dict[str, list[float]]
    idle: float

    @property
    def by_role(self) -> dict[str, float]:
        """CPU seconds by role."""
        return {role: round(sum(each), 2) for role, each in self.cpu.items()}

    @property
    def busiest(self) -> dict[str, float]:
        """CPU seconds of the busiest process of each role."""
        return {role: max(each) for role, each in self.cpu.items()}

    @property
    def limit(self) -> str:
        """What the run could not get more of."""
        cores = psutil.cpu_count() or 1
        ours = sum(self.by_role.values()) / (self.wall_s * cores)
        return limit_of(
            self.busiest,
            self.wall_s,
            cores=cores,
            idle=self.idle,
            others=max(0.0, 1.0 - self.idle - ours),
        )

    @property
    def system_s(self) -> float:
        """CPU seconds of all processes of the system."""
        return sum(sum(each) for role, each in self.cpu.items() if not role.startswith("generator"))


def _cpu_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _peak_mb(process: psutil.Process) -> float:
    try:
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return round(int(line.split()[1]) * 1024 / 1e6, 1)
    except OSError:
        pass
    return round(float(process.memory_info().rss) / 1e6, 1)

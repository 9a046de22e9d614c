"""Builds the extensions of `_fastpath`; everything else about the package is in pyproject.toml.

UPROAR_NATIVE=1   for this machine's processor (not portable)
UPROAR_DEBUG=1    without optimisation, with debug symbols
"""

import os
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent
# What a module of `_fastpath` is made of beside its .pyx: C sources there, and system libraries.
PARTS: dict[str, tuple[list[str], list[str]]] = {
    "bare": (["bare_send.c"], []),
    "swarm": (["swarm_loop.c"], ["z"]),
}


def switched_on(name: str) -> bool:
    """Whether an environment switch is set to something other than nothing and 0."""
    return os.environ.get(name, "") not in ("", "0")


def flags() -> list[str]:
    """Return the compiler's options for this build."""
    chosen = ["-O0", "-g"] if switched_on("UPROAR_DEBUG") else ["-O3"]
    if switched_on("UPROAR_NATIVE"):
        chosen.append("-march=native")
    return chosen


def extensions() -> list[Extension]:
    """Return one extension per .pyx file of `_fastpath`, none where there are none yet."""
    sources = sorted(path.relative_to(ROOT) for path in (ROOT / "_fastpath").glob("*.pyx"))
    if not sources:
        return []
    from Cython.Build import cythonize

    def extension(path: Path) -> Extension:
        parts, libraries = PARTS.get(path.stem, ([], []))
        return Extension(
            f"_fastpath.{path.stem}",
            [str(path), *(f"_fastpath/{part}" for part in parts)],
            include_dirs=["_fastpath"],
            libraries=libraries,
            extra_compile_args=flags(),
        )

    return cythonize(
        [extension(path) for path in sources], language_level=3, build_dir="build/cython"
    )


setup(ext_modules=extensions())

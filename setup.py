"""Builds the extensions of `_fastpath`; everything else about the package is in pyproject.toml.

UPROAR_NATIVE=1     for this machine's processor (not portable)
UPROAR_DEBUG=1      without optimisation, with debug symbols; a warning of the compiler is an error
UPROAR_SANITIZE=1   as UPROAR_DEBUG, with AddressSanitizer and UBSan
UPROAR_ISAL=0       without ISA-L, which is taken where its header is found
"""

import os
import shlex
import subprocess
import sysconfig
from pathlib import Path

from setuptools import Extension, setup

ROOT = Path(__file__).parent
FASTPATH = "_fastpath"

# What a module needs besides its .pyx: C files of `_fastpath`, and libraries.
SOURCES: dict[str, list[str]] = {
    "bare": ["bare.c"],
    "deflate": ["deflate.c"],
    "reactor": [
        "reactor.c", "session.c", "audience.c", "frames.c", "head.c", "commands.c", "deflate.c",
    ],
    "swarm": ["swarm.c"],
}  # fmt: skip
LIBRARIES: dict[str, list[str]] = {"deflate": ["z"], "reactor": ["z"], "swarm": ["z"]}
WITH_ISAL = {"deflate", "reactor"}  # modules with deflate.c in them

# What Cython writes is not clean under -Wextra; what we write is.
WARNINGS = ["-Wall", "-Wextra", "-Wno-unused-parameter", "-Wno-missing-field-initializers"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-omit-frame-pointer"]


def switched_on(name: str) -> bool:
    """Whether an environment switch is set to something other than nothing and 0."""
    return os.environ.get(name, "") not in ("", "0")


def switches() -> list[str]:
    """Return the names of the switches of this build, for `uproar doctor` to print."""
    return [name for name in ("NATIVE", "DEBUG", "SANITIZE") if switched_on(f"UPROAR_{name}")]


def flags() -> list[str]:
    """Return the compiler's options for this build."""
    chosen = [*WARNINGS]
    if switched_on("UPROAR_DEBUG") or switched_on("UPROAR_SANITIZE"):
        # Debian's Python asks for _FORTIFY_SOURCE, which warns without optimisation.
        chosen += ["-O0", "-g", "-Werror", "-U_FORTIFY_SOURCE"]
    else:
        chosen += ["-O3"]
    if switched_on("UPROAR_SANITIZE"):
        chosen += SANITIZERS
    if switched_on("UPROAR_NATIVE"):
        chosen += ["-march=native"]
    return chosen


def has_isal() -> bool:
    """Whether the compiler finds ISA-L's header and nobody asked to leave it out."""
    if os.environ.get("UPROAR_ISAL") == "0":
        return False
    compiler = shlex.split(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc")
    try:
        found = subprocess.run(
            [*compiler, "-E", "-x", "c", "-"], input=b"#include <isa-l.h>", capture_output=True
        )
    except OSError:
        return False  # without a compiler the build says so by itself
    return found.returncode == 0


def record(isal: bool) -> str:
    """Return a file that changes with the options, so that nothing built with others is kept."""
    path = ROOT / "build" / "options"
    options = " ".join([*flags(), "isal" if isal else ""])
    if not path.exists() or path.read_text() != options:
        path.parent.mkdir(exist_ok=True)
        path.write_text(options)
    return str(path.relative_to(ROOT))


def extension(module: str, *, isal: bool) -> Extension:
    """Return how a module of `_fastpath` is built."""
    macros: list[tuple[str, str | None]] = [
        ("_GNU_SOURCE", None),
        ("UPROAR_SWITCHES", f'"{" ".join(switches())}"'),
    ]
    libraries = [*LIBRARIES.get(module, [])]
    if isal and module in WITH_ISAL:
        macros.append(("UPROAR_ISAL", None))
        libraries.append("isal")
    return Extension(
        f"{FASTPATH}.{module}",
        [f"{FASTPATH}/{module}.pyx"],
        depends=[
            record(isal),
            *(f"{FASTPATH}/{path.name}" for path in (ROOT / FASTPATH).glob("*.h")),
        ],
        include_dirs=[FASTPATH],
        define_macros=macros,
        libraries=libraries,
        extra_compile_args=flags(),
        extra_link_args=SANITIZERS if switched_on("UPROAR_SANITIZE") else [],
    )


def extensions() -> list[Extension]:
    """Return one extension per .pyx file of `_fastpath`, none where there are none yet."""
    modules = sorted(path.stem for path in (ROOT / FASTPATH).glob("*.pyx"))
    if not modules:
        return []
    from Cython.Build import cythonize
    from Cython.Compiler import Options

    Options.warning_errors = True
    isal = has_isal()
    built = cythonize(
        [extension(module, isal=isal) for module in modules],
        language_level=3,
        build_dir="build/cython",  # beside deflate.pyx lies a deflate.c of our own
    )
    for module, made in zip(modules, built, strict=True):
        # Only now, or Cython would copy them to where it writes, one deflate.c over the other.
        made.sources += [f"{FASTPATH}/{name}" for name in SOURCES.get(module, [])]
    return built


setup(ext_modules=extensions())

"""Build the fuzz targets and run each for a while; any finding fails.

    python -m tests.fuzz [--seconds 60] [--runs N] [--plain] [TARGET…]

With clang each target is a libFuzzer, which follows coverage and keeps what reached something new
in build/fuzz/corpus; with `--plain`, or where there is no clang, gcc and driver.c, which change the
seeds at random. AddressSanitizer and UBSan watch in both cases. What fails lies in build/fuzz.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

from tests.fuzz import seeds

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
FASTPATH = ROOT / "_fastpath"
BUILD = ROOT / "build" / "fuzz"
MEMORY_MB = 1024
INPUT_BYTES = 4096

# What of `_fastpath` a target needs.
PARTS = {
    "frames": ["frames", "deflate"],
    "head": ["head"],
    "commands": ["commands"],
    "deflate": ["deflate"],
    "reactor": ["reactor", "session", "audience", "frames", "head", "commands", "deflate"],
}
# Of these what they ask of the system goes through the target, which refuses it now and then.
FAULTY = {"reactor": ["reactor", "session", "audience"]}
FLAGS = [
    "-g", "-O1", "-D_GNU_SOURCE", "-Wall", "-Wextra", "-Werror", "-fno-omit-frame-pointer",
    "-fsanitize=address,undefined", "-fno-sanitize-recover=all", f"-I{FASTPATH}", f"-I{HERE}",
]  # fmt: skip


def clang() -> str | None:
    """Return the newest clang that brings libFuzzer."""
    for name in ("clang", *(f"clang-{version}" for version in range(20, 13, -1))):
        found = shutil.which(name)
        if found is None:
            continue
        asked = subprocess.run(
            [found, "-fsanitize=fuzzer", "-x", "c", "-", "-o", "/dev/null"],
            input=b"int LLVMFuzzerTestOneInput(void) { return 0; }", capture_output=True,
        )  # fmt: skip
        if asked.returncode == 0:
            return found
    return None


def compile_target(target: str, compiler: str | None, directory: Path) -> Path:
    """Return the program of a target; `compiler` is a clang with libFuzzer, None for gcc."""
    directory.mkdir(parents=True, exist_ok=True)
    command, flags = [compiler or "gcc"], [*FLAGS]
    if subprocess.run(
        [*command, "-E", "-x", "c", "-"], input=b"#include <isa-l.h>", capture_output=True
    ).returncode == 0:  # fmt: skip
        flags.append("-DUPROAR_ISAL")
    libraries = ["-lz", "-lisal"] if "-DUPROAR_ISAL" in flags else ["-lz"]
    parts, faulty = PARTS[target], FAULTY.get(target, [])
    follows = ["-fsanitize=fuzzer-no-link"] if compiler else []
    objects = []
    for part in parts:
        made = directory / f"{target}-{part}.o"
        through = ["-include", str(HERE / "faults.h")] if part in faulty else []
        run([*command, *flags, *follows, *through, "-c", FASTPATH / f"{part}.c", "-o", made])
        objects.append(made)
    main = ["-fsanitize=fuzzer"] if compiler else [HERE / "driver.c"]
    program = directory / target
    run([*command, *flags, *main, HERE / f"{target}.c", *objects, *libraries, "-o", program])
    return program


def run(command: list[str | Path]) -> None:
    """Run a compiler; what it says is the error."""
    subprocess.run([str(part) for part in command], check=True)


def fuzz(target: str, program: Path, directory: Path, options: list[str]) -> bool:
    """Run a target from its seeds on; return whether nothing was found."""
    given = directory / "seeds" / target
    seeds.make(target, given)
    corpus = directory / "corpus" / target
    corpus.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [
            str(program), f"-rss_limit_mb={MEMORY_MB}", f"-max_len={INPUT_BYTES}", "-timeout=10",
            f"-artifact_prefix=crash-{target}-", *options, str(corpus), str(given),
        ],
        cwd=directory, capture_output=True, text=True, errors="replace",
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if not line.startswith("#")]
    if done.returncode:
        print("\n".join(lines[-60:]))
    said = [line for line in lines if line.startswith("Done ")]
    print(f"{target}: {said[-1] if said else 'FAILED'}", flush=True)
    return done.returncode == 0 and bool(said)


def main() -> int:
    """Run the targets asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help=", ".join(PARTS))
    parser.add_argument("--seconds", type=int, default=60, help="for each target")
    parser.add_argument("--runs", type=int, help="inputs for each target, instead of seconds")
    parser.add_argument("--plain", action="store_true", help="gcc, without looking at coverage")
    chosen = parser.parse_args()
    unknown = [target for target in chosen.targets if target not in PARTS]
    if unknown:
        parser.error(f"{unknown[0]} is no target; there are {', '.join(PARTS)}")
    compiler = None if chosen.plain else clang()
    print(f"with {compiler or 'gcc'}", flush=True)
    limit = f"-runs={chosen.runs}" if chosen.runs else f"-max_total_time={chosen.seconds}"
    fine = True
    for target in chosen.targets or PARTS:
        program = compile_target(target, compiler, BUILD / ("plain" if compiler is None else "bin"))
        fine = fuzz(target, program, BUILD, [limit]) and fine
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())

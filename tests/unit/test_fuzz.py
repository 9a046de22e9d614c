"""The fuzz targets of tests/fuzz, each for a moment; `make fuzz` runs them for longer."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fuzz.__main__ import PARTS, compile_target, fuzz

# So many inputs take some seconds; each of the last makes a reactor and up to 600 steps in it.
RUNS = {"frames": 20_000, "head": 20_000, "commands": 20_000, "deflate": 1_500, "reactor": 500}

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the reactor is for Linux"),
    pytest.mark.skipif(shutil.which("gcc") is None, reason="needs gcc with its sanitizers"),
]


def test_every_target_is_tried() -> None:
    here = Path(__file__).parents[1] / "fuzz"
    sources = {path.stem for path in here.glob("*.c")} - {"driver"}
    assert sources == set(PARTS) == set(RUNS)


@pytest.mark.parametrize("target", PARTS)
def test_nothing_is_found(target: str, tmp_path: Path) -> None:
    program = compile_target(target, None, tmp_path)
    assert fuzz(target, program, tmp_path, [f"-runs={RUNS[target]}"])


def test_a_finding_fails_and_its_input_is_kept(tmp_path: Path) -> None:
    """The driver ends with what it found, and the file finds it again."""
    (tmp_path / "falls.c").write_text(
        '#include "fuzz.h"\n'
        "int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {\n"
        "    uint8_t *copy = copy_of(data, n);\n"
        "    int beyond = n > 3 && data[0] == 0xFF && copy[n];\n"
        "    free(copy);\n"
        "    return beyond && 0;\n"
        "}\n"
    )
    here = Path(__file__).parents[1] / "fuzz"
    program = tmp_path / "falls"
    subprocess.run(
        ["gcc", "-g", "-fsanitize=address", f"-I{here}", str(here / "driver.c"),
         str(tmp_path / "falls.c"), "-o", str(program)],
        check=True,
    )  # fmt: skip
    done = subprocess.run([program, "-runs=100000"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert "heap-buffer-overflow" in done.stderr
    (kept,) = tmp_path.glob("crash-*")
    assert kept.read_bytes()[0] == 0xFF and len(kept.read_bytes()) > 3

"""The JavaScript client by Node's own test runner: web/*.js against tests/browser/*.test.mjs."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "tests" / "browser").glob("*.test.mjs"))
NODE = shutil.which("node")
OLDEST = 20  # the first with CustomEvent and the test runner as used here


def node_version() -> int:
    """Return Node's major version, 0 without Node."""
    if NODE is None:
        return 0
    said = subprocess.run([NODE, "--version"], capture_output=True, text=True, timeout=20).stdout
    return int(said.lstrip("v").split(".")[0] or 0)


def test_there_are_tests_to_run() -> None:
    assert [file.name for file in FILES] == [
        "client.test.mjs",
        "colors.test.mjs",
        "msgpack.test.mjs",
        "wire.test.mjs",
    ]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_node(file: Path) -> None:
    if (version := node_version()) < OLDEST:
        pytest.skip(f"needs Node {OLDEST} or later, found {version or 'none'}")
    run = subprocess.run(
        [str(NODE), "--test", "--test-reporter=spec", str(file)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stdout + run.stderr

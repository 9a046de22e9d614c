"""The JavaScript client by Node's own test runner: web/*.js against tests/browser/*.test.mjs."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from uproar import codes

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
        "room.test.mjs",
        "wire.test.mjs",
    ]


def table(name: str) -> dict[str, Any]:
    """Return a table of web/codes.js."""
    if (version := node_version()) < OLDEST:
        pytest.skip(f"needs Node {OLDEST} or later, found {version or 'none'}")
    code = f"import('./web/codes.js').then((all) => console.log(JSON.stringify(all.{name})))"
    run = subprocess.run(
        [str(NODE), "-e", code], cwd=ROOT, capture_output=True, text=True, timeout=20
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def test_every_refusal_has_words_for_people() -> None:
    ours = {"unconfirmed", "disconnected", "too_many"}  # made by the client itself
    texts = table("REJECTIONS")
    assert set(texts) == set(codes.REJECTIONS) | ours
    assert all(text.endswith(".") for text in texts.values())


def test_the_close_codes_are_the_servers() -> None:
    # "later" is the page's own: yes, but not at once.
    again = {"yes": "yes", "later": "yes", "token": "token", "no": "no"}
    pages = {
        int(code): (rule["name"], again[rule["reconnect"]])
        for code, rule in table("CLOSE_CODES").items()
    }
    assert pages == {code: (entry.name, entry.again) for code, entry in codes.CLOSE_CODES.items()}


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

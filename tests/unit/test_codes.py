"""Close codes and rejections: the server's, the documentation's and the page's tables agree."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from uproar import codes

ROOT = Path(__file__).parents[2]
PROTOCOL = (ROOT / "docs/protocol.md").read_text("utf-8")
SCRIPT = (ROOT / "web/codes.js").read_text("utf-8")
OF_REST = {"conflict"}  # answers no command
# Made by the page itself, never by a server.
OF_THE_PAGE = {"unconfirmed", "disconnected", "too_many"}
AGAIN = {"no": "no", "yes": "yes", "yes, later": "yes", "with a new token": "token"}


def table(heading: str) -> list[list[str]]:
    """Return the rows of the table below a heading, without its head."""
    below = PROTOCOL.partition(f"\n{heading}\n")[2].lstrip("\n")
    lines = below[: re.search(r"\n(?!\|)", below).start()].splitlines()
    return [
        [cell.strip().strip("`") for cell in line.strip("|").split(" | ")] for line in lines[2:]
    ]


def test_close_codes_in_the_documentation() -> None:
    documented = {
        int(code): (name, AGAIN[again]) for code, name, _, again in table("## Close codes")
    }
    assert documented == {
        code: (entry.name, entry.again) for code, entry in codes.CLOSE_CODES.items()
    }


def test_close_codes_of_the_page() -> None:
    found = re.findall(r'^  (\d{4}): \{ name: "(\w+)", reconnect: "(\w+)"', SCRIPT, re.MULTILINE)
    shown = {int(code): (name, {"later": "yes"}.get(again, again)) for code, name, again in found}
    assert shown == {code: (entry.name, entry.again) for code, entry in codes.CLOSE_CODES.items()}


def documented_rejections() -> set[str]:
    """Return the codes of the table."""
    return {row[0] for row in table("### REJECTED codes")}


def test_rejections_in_the_documentation() -> None:
    assert documented_rejections() == codes.REJECTIONS.keys() - OF_REST


def test_rejections_of_the_page() -> None:
    block = SCRIPT.partition("export const REJECTIONS = {")[2].partition("\n};")[0]
    names = set(re.findall(r"^  (\w+):", block, re.MULTILINE))
    assert names - OF_REST == documented_rejections() | OF_THE_PAGE


def test_statuses_of_the_rest_api() -> None:
    documented = {row[0]: int(row[3]) for row in table("### REJECTED codes")}
    assert documented
    assert documented.items() <= codes.REJECTIONS.items()


@pytest.mark.parametrize(
    "status", [400, 401, 403, 404, 405, 408, 413, 414, 422, 426, 429, 431, 503]
)
def test_a_problem_object(status: int) -> None:
    found = json.loads(codes.problem(status, "bad_request", "it is bad", retry_after_ms=5))
    assert found.pop("title")
    assert found == {
        "type": "about:blank", "status": status, "code": "bad_request", "detail": "it is bad",
        "retry_after_ms": 5,
    }  # fmt: skip

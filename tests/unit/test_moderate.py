"""`uproar moderate`: one JSON decision for each line, whatever the line."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from uproar.cli import main


def run(data, lines, *options):
    result = CliRunner().invoke(main, ["moderate", "--data", str(data), *options], input=lines)
    return result, [json.loads(line) for line in result.stdout_bytes.splitlines()]


def test_one_decision_a_line(tmp_path):
    (tmp_path / "terms.txt").write_text("darn*\n")
    lines = "hello\noh darned thing\n\nyou are st*pid\r\nsee example.com"
    result, found = run(tmp_path, lines)
    assert result.exit_code == 0
    assert [(one["action"], one["stage"], one["rule"]) for one in found] == [
        ("allow", None, None),
        ("delete", "rules", "term: darn*"),
        ("allow", None, None),
        ("delete", "linear", "linear: 1.00"),
        ("flag", "rules", "link: example.com"),
    ]
    assert found[1]["spans"] == [[3, 7]]
    assert found[3]["spans"] == [[8, 14]]
    assert set(found[0]["categories"]) == {"toxic"}
    assert found[1]["categories"]["term"] == 1.0
    assert all(set(one) == {"action", "stage", "categories", "spans", "rule"} for one in found)


def test_bytes_that_are_no_text_are_judged_all_the_same(tmp_path):
    result, found = run(tmp_path, b"\xff\xfe you are stupid\n\x00\x00\n" + b"a" * 200_000 + b"\n")
    assert result.exit_code == 0
    assert [one["action"] for one in found] == ["delete", "allow", "allow"]


def test_nothing_in_nothing_out(tmp_path):
    result, found = run(tmp_path, b"")
    assert (result.exit_code, found) == (0, [])


def test_a_role_may_be_given(tmp_path):
    _, found = run(tmp_path, "you are stupid\n", "--role", "moderator")
    assert found[0]["action"] == "allow"


@pytest.mark.parametrize("term", ["***", "a"])
def test_terms_that_can_not_be_used_are_named(tmp_path, term):
    (tmp_path / "terms.txt").write_text(f"good\n{term}\n")
    result, _ = run(tmp_path, "hello\n")
    assert result.exit_code == 2
    assert "terms.txt:2:" in result.stderr

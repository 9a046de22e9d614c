"""The arithmetic of the benchmarks: figures follow from what was counted. No timed test."""

import json
import math

import psutil
import pytest
from click.testing import CliRunner

from benchmarks import host
from benchmarks.load import Pace
from benchmarks.report import (
    Report,
    document,
    limit_of,
    milliseconds,
    per,
    percentile,
    table,
)
from benchmarks.served import Used
from uproar.cli import main


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, 1), (0.5, 50), (0.501, 51), (0.95, 95), (0.99, 99), (0.999, 100), (1.0, 100)],
)
def test_a_percentile_is_the_nearest_rank(share, expected):
    assert percentile(range(1, 101), share) == expected


def test_a_percentile_of_one_value_is_that_value_and_of_none_is_nan():
    assert percentile([7.0], 0.001) == percentile([7.0], 0.999) == 7.0
    assert math.isnan(percentile([], 0.5))


def test_times_need_not_be_sorted_and_come_in_milliseconds():
    found = milliseconds([0.004, 0.001, 0.003, 0.002], (0.5, 0.999))
    assert found == {"p50_ms": 2.0, "p99.9_ms": 4.0, "max_ms": 4.0}


def test_dividing_by_nothing_is_nan_and_not_an_error():
    assert per(3.0, 2) == 1.5
    assert math.isnan(per(3.0, 0))


def test_cpu_is_summed_by_role_and_the_generator_is_not_the_system():
    used = Used(10.0, {"gateway": [1.0, 2.5], "log": [0.25], "generator": [9.0]}, 0.5)
    assert used.by_role == {"gateway": 3.5, "log": 0.25, "generator": 9.0}
    assert used.busiest == {"gateway": 2.5, "log": 0.25, "generator": 9.0}
    assert used.system_s == 3.75


def verdict(generator, gateway, idle):
    busiest = {"generator": generator, "gateway": gateway}
    return limit_of(busiest, 10.0, cores=2, idle=idle, others=0.0)


def test_a_run_says_what_limited_it():
    assert verdict(3.0, 4.0, 0.5).startswith("nothing")
    assert "generator was a limit" in verdict(9.6, 4.0, 0.3)
    assert "generator (96% of a core)" in verdict(9.6, 4.0, 0.3)
    assert verdict(3.0, 9.0, 0.3) == "out of CPU: gateway (90% of a core)"
    assert verdict(3.0, 4.0, 0.02) == "the machine was: 2% of 2 cores idle"


@pytest.mark.parametrize(("idle", "said"), [(0.1, "other programs took 30% of it"), (0.35, "")])
def test_a_run_says_when_other_programs_took_the_machine(idle, said):
    # 12 CPU seconds of ours in 10 s on two cores are 60 %.
    cores = psutil.cpu_count()
    used = Used(10.0, {"gateway": [2.5, 2.0 * cores], "generator": [4.0 * cores - 2.5]}, idle)
    assert said in used.limit
    assert said or "other programs" not in used.limit


def test_a_pace_counts_what_is_due_and_how_late_it_is():
    pace = Pace(rate=100.0, total=5)
    assert pace.due(0.0) == 1
    assert pace.due(0.029) == 3
    assert pace.due(60.0) == 5
    assert pace.late_s(sent=2, elapsed=0.05) == pytest.approx(0.03)
    assert pace.late_s(sent=2, elapsed=0.01) == 0.0
    assert pace.next_s(sent=2, elapsed=0.005) == pytest.approx(0.015)
    assert pace.next_s(sent=2, elapsed=0.5) == 0.0


def report(**figures):
    return Report(
        "acks", "how long?", "uproar bench acks", {"comments/s": 1000.0}, figures,
        {"ingest": 1.25, "generator": 2.0}, {"ingest": 51.5}, 20.0, "nothing was",
    )  # fmt: skip


def test_the_table_has_a_column_a_run():
    text = table([report(p95_ms=12.345, comments=20_000), report(p95_ms=math.nan, comments=1)])
    assert "p95_ms" in text
    row = next(line.split() for line in text.splitlines() if "comments  " in line)
    assert row == ["comments", "20,000", "1"]
    row = next(line.split() for line in text.splitlines() if "p95_ms" in line)
    assert row == ["p95_ms", "12.35", "-"]
    assert text.count("limit: nothing was") == 2


def test_the_document_is_json_with_the_host_block_and_null_for_what_is_not_known():
    whole = json.loads(document(host.block(), [report(p95_ms=math.nan)]))
    assert whole["runs"][0]["figures"] == {"p95_ms": None}
    assert whole["runs"][0]["cpu_s"] == {"ingest": 1.25, "generator": 2.0}
    assert whole["host"]["cores"] >= 1
    assert len(whole["host"]["load_average"]) == 3
    assert whole["host"]["packages"]["gevent"] != "not installed"


def test_the_command_knows_its_benchmarks_and_refuses_others():
    shown = CliRunner().invoke(main, ["bench", "--help"])
    assert shown.exit_code == 0
    assert "fanout" in shown.output
    refused = CliRunner().invoke(main, ["bench", "nonsense"])
    assert refused.exit_code == 2
    assert "nonsense" in refused.output

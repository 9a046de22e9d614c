"""The arithmetic of the benchmarks: figures follow from what was counted. No timed test."""

import json
import math

import msgspec
import psutil
import pytest
from click.testing import CliRunner

import benchmarks.__main__ as bench
from benchmarks import host
from benchmarks.crowd import Skip
from benchmarks.load import Pace
from benchmarks.report import (
    Report,
    at_least,
    at_most,
    below,
    document,
    exactly,
    limit_of,
    milliseconds,
    per,
    percentile,
    table,
)
from benchmarks.served import Used
from benchmarks.stage import Stretch, merged
from benchmarks.syscalls import CALL, PERF, TOTAL
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


def test_bars_are_met_or_missed_and_what_is_not_known_meets_none():
    assert at_most("us", 1.25, 1.25).reached
    assert not at_most("us", 1.2501, 1.25).reached
    assert not below("ms", 60.0, 60.0).reached
    assert below("ms", 59.9, 60.0).reached
    assert at_least("frames", 90, 90).reached
    assert exactly("lost", 0, 0).reached
    assert not exactly("lost", 1, 0).reached
    for made in (at_most, at_least, below, exactly):
        assert not made("unknown", math.nan, 1.0).reached


def test_the_table_says_of_each_bar_whether_it_was_reached():
    run = msgspec.structs.replace(
        report(), bars=[at_most("KB per viewer", 0.5, 0.7), below("p99 ms", 61.0, 60)]
    )
    text = table([run])
    assert "reached  KB per viewer: 0.5  (bar ≤ 0.7)" in text
    assert "MISSED   p99 ms: 61  (bar < 60)" in text
    assert json.loads(document({}, [run]))["runs"][0]["bars"][1]["reached"] is False


def test_one_that_is_skipped_or_fails_stops_no_other(tmp_path, monkeypatch):
    def skipped(command):
        raise Skip("a second core is needed")

    def broken(command, *, seconds=1.0):
        raise RuntimeError("no viewer came in")

    measured = {"first": skipped, "second": broken, "third": lambda command: report(comments=7)}
    monkeypatch.setattr(bench, "BENCHMARKS", measured)
    found = CliRunner().invoke(bench.main, ["--out", str(tmp_path / "results"), "--seconds", "3"])
    assert found.exit_code == 1
    assert "bench first: skipped: a second core is needed" in found.output
    assert "bench second: no viewer came in" in found.output
    assert [file.name for file in (tmp_path / "results").iterdir()] == ["third.json"]
    written = json.loads((tmp_path / "results" / "third.json").read_text())
    assert written["runs"][0]["figures"] == {"comments": 7}


def stretch(**more):
    whole = {
        "published": 10, "cpu_s": 0.1, "wall_s": 1.0, "frames": 50, "bytes": 500,
        "comments": 20, "due": 20, "gaps": 0, "repeats": 0, "missing": 0, "buckets": [],
        "late_s": 0.0,
    }  # fmt: skip
    return Stretch(**{**whole, **more})


def test_a_stretch_is_whole_only_with_every_comment_once_and_in_order():
    assert stretch().whole
    for wrong in ({"comments": 19}, {"gaps": 1}, {"repeats": 1}, {"missing": 1}):
        assert not stretch(**wrong).whole
    both = merged([stretch(buckets=[(5, 1), (9, 2)]), stretch(buckets=[(5, 3)])])
    assert both == [(5, 4), (9, 2)]


STRACE = """\
% time     seconds  usecs/call     calls    errors syscall
------ ----------- ----------- --------- --------- ----------------
 68.10    0.101000          20      3845           sendto
  8.10    0.002000          17       466        12 recvfrom
  0.00    0.000000           0         2           write
------ ----------- ----------- --------- --------- ----------------
100.00    0.103000          23      4313        12 total
"""


def test_what_strace_counted_is_read():
    total = TOTAL.search(STRACE)
    assert total is not None
    assert total[1] == "4313"
    calls = {name: int(count) for count, name in CALL.findall(STRACE) if name != "total"}
    assert calls == {"sendto": 3845, "recvfrom": 466, "write": 2}


def test_what_perf_counted_is_read():
    found = PERF.search("143,,raw_syscalls:sys_enter,2522000,100.00,,\n")
    assert found is not None
    assert found[1] == "143"
    assert PERF.search("<not supported>,,raw_syscalls:sys_enter,0,100.00,,") is None

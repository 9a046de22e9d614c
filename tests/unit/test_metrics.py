"""Metrics of one process: what is counted, and the text that is made of it."""

import math
import random

import pytest
from prometheus_client.parser import text_string_to_metric_families

from uproar.metrics import CATALOGUE, Histogram, Metrics, table


def families(metrics):
    return {family.name: family for family in text_string_to_metric_families(metrics.text())}


def test_every_kind_of_reading_becomes_samples():
    metrics, waits = Metrics(), Histogram((0.1, 1.0))
    for value, times in ((0.05, 1), (0.1, 1), (0.5, 3), (2.0, 1), (-1.0, 1)):
        waits.observe(value, times)
    metrics.read("uproar_gateway_gaps_total", lambda: 7)
    metrics.read("uproar_gateway_tick_seconds", lambda: 0.01)
    metrics.read("uproar_comment_seconds", lambda: {"sent": waits})
    metrics.read(
        "uproar_moderation_decisions_total", lambda: {("allow", 'a"\\\n'): 2, ("hold", "b"): 0}
    )
    found = families(metrics)
    assert [(s.labels, s.value) for s in found["uproar_gateway_gaps"].samples] == [({}, 7)]
    assert found["uproar_gateway_tick_seconds"].samples[0].value == 0.01
    assert {
        (s.labels["action"], s.labels["stage"]): s.value
        for s in found["uproar_moderation_decisions"].samples
    } == {("allow", 'a"\\\n'): 2, ("hold", "b"): 0}
    hop = found["uproar_comment_seconds"]
    assert hop.type == "histogram"
    assert {s.labels.get("hop") for s in hop.samples} == {"sent"}
    assert [(s.labels.get("le"), s.value) for s in hop.samples] == [
        # A bound counts what is equal to it; a negative wait is none.
        ("0.1", 3), ("1.0", 6), ("+Inf", 7), (None, 7), (None, 0.05 + 0.1 + 1.5 + 2.0),
    ]  # fmt: skip
    assert found["process_cpu_seconds"].samples[0].value > 0
    assert found["process_resident_memory_bytes"].samples[0].value > 1 << 20


def test_what_is_not_to_be_told_is_left_out():
    metrics = Metrics()
    metrics.read("uproar_gateway_keyframes_total", lambda: None)
    metrics.read("uproar_gateway_resumes_total", dict)
    metrics.read("uproar_gateway_tick_seconds", lambda: math.nan)
    assert set(families(metrics)) == {"process_cpu_seconds", "process_resident_memory_bytes"}


def test_a_reading_that_fails_costs_itself(caplog):
    metrics = Metrics()
    metrics.read("uproar_gateway_gaps_total", lambda: 1 // 0)
    metrics.read("uproar_gateway_resumes_total", lambda: {("true", "too many"): 1})
    metrics.read("uproar_gateway_fills_total", lambda: 3)
    assert families(metrics)["uproar_gateway_fills"].samples[0].value == 3
    assert "uproar_gateway_gaps" not in metrics.text()
    assert [record.getMessage() for record in caplog.records] == ["metric_failed"] * 4


def test_a_name_that_nobody_described_is_refused():
    with pytest.raises(ValueError, match=r"uproar_new_total is not in .*CATALOGUE; describe it"):
        Metrics().read("uproar_new_total", lambda: 1)


def test_ages_of_stamps():
    waits = Histogram((0.1, 1.0))
    waits.observe_since(10_000, [])
    waits.observe_since(10_000, [3_000, 9_000, 9_500, 9_900, 9_950, 9_950, 10_500])
    assert waits.counts == [4, 2, 1]
    assert waits.sum == pytest.approx(7.0 + 1.0 + 0.5 + 0.1 + 0.05 + 0.05)


@pytest.mark.parametrize("seed", range(50))
def test_ages_are_counted_as_one_by_one(seed):
    chance = random.Random(seed)
    now = 1_764_088_000_000 + chance.randrange(1000)
    spread = chance.choice((20, 3_000, 100_000))
    stamps = sorted(now + 15 - chance.randrange(spread) for _ in range(chance.randrange(80)))
    together, single = Histogram(), Histogram()
    together.observe_since(now, stamps)
    for stamp in stamps:
        single.observe((now - stamp) / 1000)
    assert together.counts == single.counts
    assert together.sum == pytest.approx(single.sum)


@pytest.mark.parametrize("name", CATALOGUE)
def test_names_say_kind_and_unit(name):
    spec = CATALOGUE[name]
    assert name.endswith("_total") == (spec.kind == "counter")
    if spec.kind == "histogram":
        assert name.endswith("_seconds")
    assert spec.kind in ("counter", "gauge", "histogram")
    assert spec.about.endswith(".")
    assert not {"stream", "user", "session"} & set(spec.labels), "a label without bound"
    assert f"| `{name}` | {spec.kind} |" in table()

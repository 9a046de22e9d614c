"""Figures: what a gateway counts of ticks, batches, comments, probes and ends."""

import time

import pytest

from gateway.audiences import AudienceKey, Audiences
from gateway.figures import Figures
from uproar.events import MASK_ALL, Event


@pytest.fixture
def clock(monkeypatch):
    """Unix ms, and monotonic seconds, that the test moves."""
    now = [1_000_000.0]
    monkeypatch.setattr(time, "time_ns", lambda: int(now[0] * 1_000_000))
    monkeypatch.setattr(time, "monotonic", lambda: now[0] / 1000)
    return now


def events(*stamps, kind="COMMENT"):
    return [Event(n, kind, ts, "u", MASK_ALL, 0, None) for n, ts in enumerate(stamps, 1)]


def test_a_comment_s_latency_is_since_its_batch_was_published_and_since_it_was_accepted(clock):
    figures = Figures()
    figures.came(999_990, events(999_960, 999_970))
    figures.came(0, events(999_960))  # from the ring: nobody knows when it was published
    figures.came(999_995, [])
    clock[0] += 10
    figures.went([*events(999_960, 999_970), *events(5, kind="CLEARED")])
    figures.ticked(0.002, 0.01, 0.01, 0.25)
    assert figures.sent.sum == pytest.approx(2 * 0.020)
    assert sum(figures.sent.counts) == 2
    assert figures.all.sum == pytest.approx(0.050 + 0.040)
    assert sum(figures.all.counts) == 2
    figures.ticked(0.002, 0.01, 0.01, 0.25)
    assert sum(figures.sent.counts) == 2, "each batch goes out once"


@pytest.mark.parametrize(
    ("took", "length", "reason"),
    [(0.001, 0.01, "normal"), (0.02, 0.04, "stretched"), (0.3, 0.3, "overload")],
)
def test_a_tick_says_why_the_next_one_waits(took, length, reason):
    figures = Figures()
    figures.ticked(took, length, 0.01, 0.25)
    assert figures.ticks == {"normal": 0, "stretched": 0, "overload": 0, reason: 1}
    assert figures.fanout.sum == took


def test_a_lost_probe_counts_as_a_slow_one(clock):
    figures = Figures()
    figures.probed()  # of a time before we began to count
    for _ in range(2):
        figures.probe()
        clock[0] += 1000
    figures.probed()
    figures.probe()
    clock[0] += 2
    figures.probed()
    assert sum(figures.roundtrip.counts) == 2
    assert figures.roundtrip.sum == pytest.approx(2.0 + 0.002)


def test_sessions_end_by_the_names_of_the_table():
    figures = Figures()
    figures.closed.update([1000, 1006, 1006, 4008, 4999, 3000])
    found = figures.ends()
    assert {name: count for name, count in found.items() if count} == {
        "normal": 1, "lost": 2, "too_slow": 1, "other": 2,
    }  # fmt: skip
    assert found["unauthorized"] == 0, "every name is there before its first"


class Sends:
    """An engine that only counts."""

    def __init__(self):
        self.made, self.bytes = 0, {}

    def audience(self, form):
        self.made += 1
        return self.made

    def sent_to(self, number):
        return self.bytes[number]

    def members(self, number):
        return 3

    def forget(self, number):
        del self.bytes[number]


def test_bytes_of_a_kind_outlive_its_audiences_and_streams_are_no_kind():
    engine = Sends()
    audiences = Audiences(engine)
    keys = [
        AudienceKey(stream, "native", codec, "window", rate, "viewer")
        for stream in ("one", "two")
        for codec, rate in (("json", "all"), ("json", "5"), ("msgpack", "all"))
    ]
    for key in keys:
        engine.bytes[audiences.number(key)] = 100
    json, msgpack = (("native", codec, "window") for codec in ("json", "msgpack"))
    assert audiences.bytes_by_kind() == {json: 400, msgpack: 200}
    assert audiences.members_by_kind() == {json: 12, msgpack: 6}
    audiences.forget("one")
    assert audiences.bytes_by_kind() == {json: 400, msgpack: 200}
    assert audiences.members_by_kind() == {json: 6, msgpack: 3}
    audiences.forget("two")
    assert audiences.bytes_by_kind() == {json: 400, msgpack: 200}
    assert audiences.members_by_kind() == {json: 0, msgpack: 0}

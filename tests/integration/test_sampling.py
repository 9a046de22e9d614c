"""A stream that is too fast: 600 comments/s offered where sampling begins at 300."""

from __future__ import annotations

import pytest

from tests.sender import Sender
from tests.system import System, wait_until
from uproar.swarm import Member, Swarm

STREAM = "fast"
RATIO = 0.2
STEADY_S = 10.0


@pytest.fixture(scope="module")
def system():
    settings = {
        "sampling__threshold": 300,
        "sampling__ratio": RATIO,
        "sampling__calm_s": 1.5,
    }
    with System(**settings) as running:
        yield running


def _live(swarm: Swarm, system: System, rate: str, banners: list) -> list[Member]:
    """Three viewers of a rate class on both codecs; two of them report banners."""

    def on_event(member: Member, event: dict, now: float) -> None:
        if event["type"] == "BANNER":
            banners.append((member, event["text"], event["sample_ratio"]))

    return [
        swarm.add(
            system.stream(STREAM),
            codec="msgpack" if number else "json",
            rate=rate,
            backlog=0,
            backoff_s=0.02,
            on_event=on_event,
        )
        for number in range(3)
    ]


def test_everybody_of_a_class_sees_the_same_choice(system):
    banners: list = []
    with Swarm(seed=5) as swarm:
        classes = {rate: _live(swarm, system, rate, banners) for rate in ("all", "50", "20", "5")}
        viewers = [viewer for members in classes.values() for viewer in members]
        assert swarm.run(lambda: all(viewer.live for viewer in viewers), 20)
        sender = Sender(swarm, system.stream(STREAM), system.tokens["service"], 600)
        assert swarm.run(lambda: sender.member.live, 10)
        sender.play(swarm, 2.0)
        before = {rate: len(members[0].offsets) for rate, members in classes.items()}
        classes["all"][2].cut()  # resumes in the middle of it
        sender.play(swarm, STEADY_S)
        during = {rate: len(members[0].offsets) - before[rate] for rate, members in classes.items()}
        sender.rate = 60
        sender.play(swarm, 3.0)
        assert swarm.run(lambda: not sender.open, 10)
        last = max(o for o, shown in sender.shown.items() if shown == "all")
        assert swarm.run(lambda: all(v.offsets[-1] == last for v in classes["all"]), 10)
        assert swarm.run(lambda: len(banners) == 2 * len(viewers), 10), len(banners)

    for members in classes.values():
        longest = max(members, key=lambda member: len(member.offsets))
        for member in members:
            assert member.offsets == longest.offsets
            assert not (member.repeats or member.gaps)
    wide = {rate: set(members[0].offsets) for rate, members in classes.items()}
    assert wide["5"] < wide["20"] < wide["50"] < wide["all"], "the classes are nested"
    assert 0.8 * 20 * STEADY_S <= during["20"] <= 1.2 * 20 * STEADY_S, during
    assert 0.8 * 5 * STEADY_S <= during["5"] <= 1.2 * 5 * STEADY_S, during

    shown = {offset for offset, word in sender.shown.items() if word == "all"}
    assert set(sender.shown.values()) == {"all", "sampled"}
    assert wide["all"] == shown, "ACK, live and resume agree"
    sampled = [offset for offset in sender.shown if offset > min(set(sender.shown) - shown)]
    kept = sum(offset in shown for offset in sampled if offset <= max(set(sender.shown) - shown))
    assert 0.1 < kept / len(sampled) < 0.4, "about a fifth is shown"

    for viewer in viewers:
        said = [(text, ratio) for member, text, ratio in banners if member is viewer]
        assert [ratio for _, ratio in said] == [RATIO, None], "it comes and goes once"
        assert "sampled" in said[0][0] and said[1][0] is None
    acknowledged = sorted(offset for _, offset in sender.acknowledged.values())
    wait_until(
        lambda: [c["offset"] for c in system.history(STREAM)] == acknowledged,
        10,
        "history is complete",
    )

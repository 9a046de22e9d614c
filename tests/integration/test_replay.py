"""The main job: real chat replayed at speed to 100 viewers of all kinds, who must all agree.

Half speak JSON and half msgpack; 10 join in the middle; 10 are cut off and resume on another
gateway process. Some comments carry a blocked term, so moderation deletes them meanwhile.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from tests import chatlog
from tests.system import ROOT, System, wait_until
from uproar.swarm import Member, Swarm

TERM = "zorkmuffin"
PLANTED_EVERY = 40
VIEWERS, JOINERS, CUT = 80, 10, 10
PART_S = 1.5  # for a third of a log, which took minutes when it was new


def _gateway(session: str | None) -> str:
    return (session or "").split("-")[0]


class _Elsewhere:
    """Cuts a member off and lets it reconnect until it stands on another gateway process."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.left = _gateway(member.session)
        member.cut()

    def arrived(self) -> bool:
        if not self.member.live:
            return False
        if _gateway(self.member.session) == self.left:
            self.member.cut()
            return False
        return True


class _Replay:
    """`uproar replay` playing some lines in a few seconds; ends well when all is acknowledged."""

    def __init__(self, system: System, stream: str, lines: list[dict]) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".jsonl", delete=False) as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        self.file = Path(file.name)
        seconds = (lines[-1]["t_ms"] - lines[0]["t_ms"]) / 1000
        command = [sys.executable, "-m", "uproar", "replay", file.name, "--stream", stream,
                   "--speed", str(seconds / PART_S), "--url", system.info["http"]]  # fmt: skip
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**system.environ(), "UPROAR_TOKEN": system.tokens["service"]},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def done(self) -> bool:
        if self.process.poll() is None:
            return False
        output = self.process.communicate()[0]
        self.file.unlink()
        assert self.process.returncode == 0, output
        return True


@pytest.mark.parametrize("name", ["chat_vod", "chat_burst"])
def test_every_viewer_ends_with_the_same_comments(system: System, name):
    lines = chatlog.lines(name)
    for line in lines:  # IRC's frame around `/me waves`, which replay takes off
        line["text"] = line["text"].removeprefix("\x01ACTION ").rstrip("\x01")
    for line in lines[::PLANTED_EVERY]:
        line["text"] = f"{line['text'][:400]} {TERM}"
    planted: set[str] = set()
    (system.data / "terms.txt").write_text(f"{TERM}\n")
    stream = name.replace("_", "-")
    deleted: set[str] = set()
    shown: dict[str, int] = {}

    def watch(member, event, now):
        if event["type"] == "COMMENT_DELETED":
            deleted.add(event["comment_id"])
        elif event["type"] == "COMMENT":
            shown[event["id"]] = event["offset"]
            if TERM in event["text"]:
                planted.add(event["id"])

    with Swarm(seed=7) as swarm:

        def add(count: int) -> list[Member]:
            return [
                swarm.add(
                    system.stream(stream),
                    codec="json" if number % 2 else "msgpack",
                    backlog=20,
                    backoff_s=0.02,
                    on_event=watch if number == 0 else None,
                )
                for number in range(count)
            ]

        steady, cut = add(VIEWERS), add(CUT)
        assert swarm.run(lambda: all(m.live for m in swarm.members), 20)
        first = steady[0]
        third = len(lines) // 3
        swarm.run(_Replay(system, stream, lines[:third]).done, 60)
        # The second third plays while viewers join and move, the last when all are there.
        second = _Replay(system, stream, lines[third : 2 * third])
        joiners = add(JOINERS)
        elsewhere = [_Elsewhere(member) for member in cut]
        assert swarm.run(lambda: all(one.arrived() for one in elsewhere), 30)
        assert swarm.run(lambda: all(member.live for member in joiners), 30)
        swarm.run(second.done, 60)
        swarm.run(_Replay(system, stream, lines[2 * third :]).done, 60)
        assert swarm.run(lambda: len(first.offsets) == len(lines), 60), len(first.offsets)
        # The moderation model may have found others as well.
        assert swarm.run(lambda: planted <= deleted, 20), len(planted - deleted)
        last = first.offsets[-1]
        assert swarm.run(lambda: all(m.offsets[-1:] == [last] for m in steady + joiners), 20)
        # The last comment of all may be a deleted one, which a resume leaves out.
        assert swarm.run(lambda: all((m.position or 0) >= last for m in cut), 20)

    everything = first.offsets
    assert everything == sorted(set(everything))
    gone = {shown[comment] for comment in deleted}
    for member in steady:
        assert member.offsets == everything
    for member in joiners:
        assert member.offsets, "a joiner saw nothing live"
        assert member.offsets == everything[-len(member.offsets) :]
        assert set(member.historical) <= set(everything)
        assert member.historical[-1] < member.offsets[0]
        missed = set(everything[: -len(member.offsets)]) - set(member.historical)
        assert len(member.historical) == 20 and max(missed - gone) < member.historical[0]
    for member in cut:
        assert member.core.connections > 1 and all(member.recovered[1:]), member.recovered
        assert set(everything) - set(member.offsets) <= gone
        assert member.offsets == sorted(set(member.offsets))
    assert not any(member.repeats or member.gaps for member in swarm.members)

    assert len(planted) == len(lines[::PLANTED_EVERY])
    wait_until(
        lambda: len(system.history(stream)) == len(everything) - len(deleted),
        10,
        "history is complete",
    )
    gone = {shown[comment] for comment in deleted}
    history = system.history(stream)
    assert [comment["offset"] for comment in history] == [o for o in everything if o not in gone]
    texts = {line["text"] for line in lines}
    assert all(comment["text"] in texts and TERM not in comment["text"] for comment in history)

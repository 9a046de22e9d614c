"""What does it cost the gateway to let a viewer in, WELCOME included?

Anonymous ones, ones with an HS256 token each (checked and registered), and anonymous ones who get
the last 50 comments, in turn. What the gateway uses without viewers coming is taken off, and so is
what else it sends meanwhile: how many watch, to all who do, once a second. A frame of that costs
what one of a comment to as many viewers costs in the same round.
"""

from __future__ import annotations

import statistics
import time
from typing import Final

from benchmarks.report import Figure, Report, at_most, per
from benchmarks.stage import DRAIN_S, Stage

QUESTION: Final = "what does it cost to let a viewer in?"
VIEWERS: Final = 3000
ROUNDS: Final = 5
BACKLOG: Final = 50
DECODING: Final = 10  # viewers of a round
SETTLE_S: Final = 0.5
LEAVE_S: Final = 30.0
IDLE_S: Final = 3.0
KINDS: Final = ("anonymous", "token", "backlog")
BARS: Final = {"anonymous": 25.0, "token": 80.0}
MORE_FOR_BACKLOG: Final = 30.0


def measure(command: str, *, viewers: int = VIEWERS, rounds: int = ROUNDS) -> Report:
    """Run once."""
    with Stage() as stage:
        served, crowd = stage.served, stage.crowd
        tokens = stage.tokens(viewers * rounds)
        warm = crowd.add(stage.url, 50)
        crowd.join(warm, 50)
        stage.stretch(200, 1, {warm: 50}, DRAIN_S)  # what a backlog is made of
        began, used = time.monotonic(), served.gateway_cpu_s()
        time.sleep(IDLE_S)
        idle = per(served.gateway_cpu_s() - used, time.monotonic() - began)
        spent: dict[str, list[float]] = {kind: [] for kind in KINDS}
        besides = dict.fromkeys(KINDS, 0.0)
        wall = dict.fromkeys(KINDS, 0.0)
        historical = 0
        for number in range(rounds + 1):  # the first round warms up
            for kind in KINDS:
                mine = tokens[(number - 1) * viewers : number * viewers]
                began, used = time.monotonic(), served.gateway_cpu_s()
                count = viewers if number else 200
                group = crowd.add(
                    stage.url, count,
                    tokens=(mine if number else tokens[:200]) if kind == "token" else (),
                    backlog=BACKLOG if kind == "backlog" else 0,
                    decode_every=count // DECODING,
                )  # fmt: skip
                crowd.join(group, count)
                took = time.monotonic() - began
                time.sleep(SETTLE_S)
                used = served.gateway_cpu_s() - used - idle * (time.monotonic() - began)
                seen = crowd.seen(group)
                if kind == "backlog":
                    historical = seen.historical
                if number:
                    each_frame = _frame(stage, idle, group)
                    greetings = count * (2 if kind == "backlog" else 1)
                    others = (seen.frames - greetings) * each_frame
                    spent[kind].append((used - others) * 1e6 / viewers)
                    besides[kind] += others
                    wall[kind] += took
                crowd.leave(group, mode=1)
                crowd.wait(lambda seen: seen.open == 0, group, deadline_s=LEAVE_S)
                time.sleep(SETTLE_S)
        each = {kind: statistics.median(found) for kind, found in spent.items()}
        more = each["backlog"] - each["anonymous"]
        figures: dict[str, Figure] = {
            **{f"{kind}: us/handshake": value for kind, value in each.items()},
            **{f"{kind}: us/handshake, least": min(found) for kind, found in spent.items()},
            **{
                f"{kind}: us/handshake of telling how many watch": per(used * 1e6, viewers * rounds)
                for kind, used in besides.items()
            },
            **{f"{kind}: handshakes/s": per(viewers * rounds, took) for kind, took in wall.items()},
            "50 comments of backlog: us more": more,
            f"comments of backlog, each of {DECODING} decoding viewers": per(historical, DECODING),
            "gateway without viewers coming, share of a core": idle,
        }
        return stage.report(
            "handshakes", QUESTION, command, {"viewers": viewers, "rounds": rounds}, figures,
            [
                *(at_most(f"us per handshake, {kind}", each[kind], bar)
                  for kind, bar in BARS.items()),
                at_most("us more for 50 comments of backlog", more, MORE_FOR_BACKLOG),
            ],
        )  # fmt: skip


def _frame(stage: Stage, idle: float, group: int) -> float:
    """Return the gateway's CPU seconds for one frame to one viewer of a group."""
    told = stage.stretch(10, 1, {group: DECODING}, DRAIN_S)
    return per(told.cpu_s - idle * told.wall_s, told.frames)

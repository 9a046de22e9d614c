"""What does a viewer cost who only listens, in a room where nothing happens?

Memory: the resident set of the gateway at 1,000 and at 15,000 viewers, and the slope between them:
anonymous viewers with compression, and registered ones with a token each. CPU: 15,000 viewers who
ping every 30 s, by protocol pings and by the PING command of the web client, in turn.
"""

from __future__ import annotations

import time
from typing import Final

from benchmarks.crowd import room
from benchmarks.report import Figure, Report, at_most, exactly, per
from benchmarks.stage import Stage

QUESTION: Final = "what does a viewer cost who only listens?"
FEW: Final = 1000
MANY: Final = 15_000
PING_S: Final = 30.0
SETTLE_S: Final = 3.0
SILENT_S: Final = 10.0
JOIN_S: Final = 300.0
PING: Final = '{"type":"PING"}'


def memory(command: str, *, few: int = FEW, many: int = MANY) -> Report:
    """Measure the memory of an idle viewer."""
    room(many)
    with Stage(publish=False) as stage:
        anonymous = _sizes(stage, few, many, [])
    with Stage(publish=False) as stage:
        registered = _sizes(stage, few, many, stage.tokens(many))
        figures: dict[str, Figure] = {}
        slopes = {}
        for kind, (small, large) in {"anonymous": anonymous, "registered": registered}.items():
            figures[f"{kind}: RSS MB at {few}"] = small / 1e6
            figures[f"{kind}: RSS MB at {many}"] = large / 1e6
            slopes[kind] = per((large - small) / 1000, many - few)
            figures[f"{kind}: KB/viewer"] = slopes[kind]
        return stage.report(
            "memory", QUESTION, command, {"viewers": many, "from": few}, figures,
            [
                at_most("KB per idle viewer, anonymous", slopes["anonymous"], 0.7),
                at_most("KB per idle viewer, registered", slopes["registered"], 1.2),
            ],
        )  # fmt: skip


def _sizes(stage: Stage, few: int, many: int, tokens: list[str]) -> tuple[int, int]:
    """Return the gateway's resident bytes with few and with many viewers."""
    sizes = []
    for have, count in ((0, few), (few, many - few)):
        group = stage.crowd.add(
            stage.served.stream("idle"), count, tokens=tokens[have : have + count], decode_every=0
        )
        stage.crowd.join(group, count, JOIN_S)
        if stage.crowd.seen(group).deflated != count:
            raise RuntimeError("not all viewers agreed on compression")
        time.sleep(SETTLE_S)
        sizes.append(int(stage.served.gateway.memory_info().rss))
    return sizes[0], sizes[1]


def cpu(command: str, *, seconds: float = 30.0, viewers: int = MANY) -> Report:
    """Measure the CPU of idle viewers."""
    room(viewers)
    with Stage(publish=False) as stage:
        group = stage.crowd.add(
            stage.served.stream("idle"), viewers, codec="json", decode_every=viewers // 10
        )
        stage.crowd.join(group, viewers, JOIN_S)
        time.sleep(SETTLE_S)
        began, used = time.monotonic(), stage.served.gateway_cpu_s()
        time.sleep(SILENT_S)
        used = stage.served.gateway_cpu_s() - used
        silent = per(used * 1e6, viewers * (time.monotonic() - began))
        found: dict[str, float] = {}
        answered: dict[str, int] = {}
        for kind, text in (("protocol pings", ""), ("PING commands", PING)):
            job = stage.crowd.send(group, text, viewers / PING_S)
            time.sleep(SETTLE_S)
            stage.crowd.reset()
            began, used = time.monotonic(), stage.served.gateway_cpu_s()
            time.sleep(seconds)
            used = stage.served.gateway_cpu_s() - used
            found[kind] = per(used * 1e6, viewers * (time.monotonic() - began))
            seen = stage.crowd.seen(group)
            answered[kind] = seen.pongs if kind == "protocol pings" else seen.messages
            stage.crowd.stop(group, job)
        standing = stage.crowd.seen(group).live
        figures: dict[str, Figure] = {
            "without pings: us/(viewer s)": silent,
            **{f"{kind}: us/(viewer s)": value for kind, value in found.items()},
            **{f"{kind}: us/ping": (value - silent) * PING_S for kind, value in found.items()},
            **{f"{kind}: answers": value for kind, value in answered.items()},
            "viewers at the end": standing,
        }
        return stage.report(
            "idle", QUESTION, command,
            {"viewers": viewers, "ping every s": PING_S, "seconds": seconds}, figures,
            [
                *(
                    at_most(f"CPU us per viewer and second, {kind}", value, 0.4)
                    for kind, value in found.items()
                ),
                exactly("viewers at the end", standing, viewers),
            ],
        )  # fmt: skip

"""Does a gateway come back to where it was after 200,000 viewers have come and gone?

Viewers come, get their WELCOME and go: by a close frame, by FIN and by RST in turn.
"""

from __future__ import annotations

import time
from typing import Final

from benchmarks.report import Figure, Report, at_most, exactly, per
from benchmarks.stage import Stage

QUESTION: Final = "what is left after 200,000 viewers have come and gone?"
TOTAL: Final = 200_000
AT_ONCE: Final = 200
WARM: Final = 10_000
SETTLE_S: Final = 5.0
FILES_S: Final = 30.0
KB: Final = 4000.0  # 20 bytes a connection: a leak of the smallest thing there is would be more


def measure(command: str, *, total: int = TOTAL, warm: int = WARM) -> Report:
    """Run once."""
    with Stage(publish=False) as stage:
        url = stage.served.stream("churn")
        gateway = stage.served.gateway
        # One stays, so that the stream does and its end is not what is measured.
        stays = stage.crowd.add(url, 1)
        stage.crowd.join(stays, 1)
        _come_and_go(stage, url, warm)
        time.sleep(SETTLE_S)
        files, memory = gateway.num_fds(), gateway.memory_info().rss
        began, cpu = time.monotonic(), stage.served.gateway_cpu_s()
        opened, failed = _come_and_go(stage, url, total)
        took, cpu = time.monotonic() - began, stage.served.gateway_cpu_s() - cpu
        until = time.monotonic() + FILES_S
        while gateway.num_fds() > files and time.monotonic() < until:
            time.sleep(0.2)
        time.sleep(SETTLE_S)
        files_left = gateway.num_fds() - files
        left_kb = (gateway.memory_info().rss - memory) / 1000
        figures: dict[str, Figure] = {
            "opened": opened, "failed or refused": failed, "connections/s": per(opened, took),
            "gateway us/connection": per(cpu * 1e6, opened),
            "RSS MB before": memory / 1e6, "RSS KB more": left_kb, "files more": files_left,
        }  # fmt: skip
        return stage.report(
            "churn", QUESTION, command, {"connections": total, "at once": AT_ONCE}, figures,
            [
                exactly("opened", opened, total),
                exactly("files more than before", files_left, 0),
                at_most("RSS KB more than before", left_kb, KB),
            ],
        )  # fmt: skip


def _come_and_go(stage: Stage, url: str, total: int) -> tuple[int, int]:
    """Have so many viewers come and go; return (those who got a WELCOME, those who did not)."""
    group = stage.crowd.add(url, AT_ONCE, churn=total, at_once=AT_ONCE, decode_every=0)
    stage.crowd.wait(
        lambda seen: seen.left + seen.failed + seen.refused >= total and seen.open == 0,
        group, deadline_s=120 + total / 200,
    )  # fmt: skip
    seen = stage.crowd.seen(group)
    return seen.welcomed, seen.failed + seen.refused + seen.ended + seen.cut

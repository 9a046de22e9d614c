"""How many reactions a second does a gateway count exactly, one a message and added up by clients?

Load: one connection sends REACT without pause, first `count: 1`, then `count: 100`.
"""

from __future__ import annotations

import json
import time
import urllib.request
from typing import Final

from benchmarks.report import Figure, Report, per
from benchmarks.served import Served, Window
from uproar import wire
from uproar.client import Viewer

QUESTION: Final = "how many reactions a second are counted exactly?"
SECONDS: Final = 5.0
FORMS: Final = {"single": 1, "aggregated": 100}  # the count of each REACT
BURST: Final = 200  # commands between two looks at the clock
SETTLE_S: Final = 10.0  # for the totals to come out


def measure(command: str, *, seconds: float = SECONDS) -> Report:
    """Run once."""
    figures: dict[str, Figure] = {}
    with Served() as served:
        window = Window(served)
        for form, count in FORMS.items():
            gateways = sum(served.cpu()["gateway"])
            sent, took = _send(served, form, count, seconds)
            cpu = sum(served.cpu()["gateway"]) - gateways
            figures[f"{form}: REACT/s"] = per(sent, took)
            figures[f"{form}: reactions/s"] = per(sent * count, took)
            figures[f"{form}: gateway us/REACT"] = per(cpu * 1e6, sent)
            exact = _settles(served, form, sent * count)
            figures[f"{form}: totals"] = "exact" if exact else "WRONG"
        used = window.close()
        return Report(
            "reactions", QUESTION, command,
            {"seconds": seconds, **{f"{form}: count": count for form, count in FORMS.items()}},
            figures, used.by_role, served.peaks_mb(), round(used.wall_s, 2),
            used.limit,
        )  # fmt: skip


def _send(served: Served, stream: str, count: int, seconds: float) -> tuple[int, float]:
    """Send for so long; return (commands, seconds until the last was taken)."""
    viewer = Viewer(served.stream(stream), token=served.service_token, backlog=0)
    viewer.connect()
    burst = [{"type": "REACT", "kind": "fire", "count": count}] * BURST
    began = time.monotonic()
    sent = 0
    while time.monotonic() < began + seconds:
        for one in burst:
            viewer.send(one)
        sent += BURST
    viewer.send(wire.PING)
    viewer.wait_for(lambda event: event["type"] == "PONG", 60)
    took = time.monotonic() - began
    viewer.close()
    return sent, took


def _settles(served: Served, stream: str, total: int) -> bool:
    until = time.monotonic() + SETTLE_S
    while time.monotonic() < until:
        with urllib.request.urlopen(f"{served.info['http']}/stream/{stream}", timeout=5) as answer:
            if json.loads(answer.read())["reactions"].get("fire") == total:
                return True
        time.sleep(0.1)
    return False

"""How many bytes does a comment take on its way to a viewer, plain and compressed, and what CPU?

No system runs: the frames of ticks with 1, 5 and 60 comments are made as a gateway makes them, for
an audience of one and of many (`uproar.deflate`). The comments are those of `chat_vod.jsonl` in the
folder UPROAR_CHAT_DATA, or generated ones like them.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from benchmarks.report import Figure, Report
from gateway.dialects import native
from uproar import chatgen, deflate, frames, ids
from uproar.events import MASK_ALL, ROLES, Comment, Event, User

QUESTION: Final = "how many bytes does a comment take, plain and compressed, and what CPU a tick?"
FILE: Final = "chat_vod.jsonl"
COMMENTS: Final = 3000
BEGIN_MS: Final = 1_763_836_800_000
PER_TICK: Final = (1, 5, 60)
ROUNDS: Final = 5  # the fastest counts
LEVELS: Final = {
    "few": deflate.LEVEL_FEW,
    "many": deflate.LEVEL_MANY,
    "level 9": 9,
}


def measure(command: str, *, seconds: float = 0.0) -> Report:
    """Run once; `seconds` has no meaning here."""
    began = time.perf_counter()
    source, comments = _comments()
    figures: dict[str, Figure] = {}
    for codec in ("json", "msgpack"):
        for count in PER_TICK:
            ticks = [
                native.encode(codec, comments[at : at + count])[0]
                for at in range(0, len(comments) - count + 1, count)
            ]
            where = f"{codec}, {count} a tick"
            total = count * len(ticks)
            encoded_us = _us(_encoder(codec, count), [comments]) / len(ticks)
            figures[f"{where}: none bytes/comment"] = _bytes(ticks, 0) / total
            figures[f"{where}: none us/tick"] = encoded_us
            worth = sum(len(tick) >= deflate.MIN_BYTES for tick in ticks) / len(ticks)
            figures[f"{where}: ticks compressed"] = f"{worth:.0%}"
            for name, level in LEVELS.items():
                figures[f"{where}: each, {name} bytes/comment"] = _bytes(ticks, level) / total
                more_us = _us(_compressor(level), ticks) / len(ticks)
                figures[f"{where}: each, {name} us/tick more"] = more_us
    settings: dict[str, Figure] = {
        "comments": len(comments), "from": source, "not below bytes": deflate.MIN_BYTES,
        "many from viewers": deflate.MANY,
    }  # fmt: skip
    took = time.perf_counter() - began
    return Report(
        "bytes", QUESTION, command, settings, figures, {}, {}, round(took, 2),
        "one core: nothing is sent",
    )  # fmt: skip


def _comments() -> tuple[str, list[native.Object]]:
    """Return where they come from, and COMMENT objects as a gateway holds them."""
    folder = os.environ.get("UPROAR_CHAT_DATA")
    if folder:
        with (Path(folder) / FILE).open(encoding="utf-8") as file:
            lines: list[dict[str, Any]] = [json.loads(line) for line in islice(file, COMMENTS)]
    else:
        lines = list(chatgen.generate(seed=1, count=COMMENTS, kind="talk"))
    node = ids.new_node()
    objects = []
    for number, line in enumerate(lines):
        ts = BEGIN_MS + line["t_ms"]
        role = line["role"] if line["role"] in ROLES else "viewer"
        user = User(line["user"], line["user"], role)
        comment = Comment(ids.build(ts, number % 5, node), user, line["text"], ts)
        event = Event(BEGIN_MS // 1000 + number, "COMMENT", ts, user.id, MASK_ALL, 0, comment)
        objects.append(native.comment_object(event))
    return FILE if folder else "generated chat", objects


def _bytes(ticks: list[bytes], level: int) -> int:
    """Return the length of all frames; a level of 0 compresses nothing."""
    total = 0
    for tick in ticks:
        compressed = level > 0 and len(tick) >= deflate.MIN_BYTES
        payload = deflate.compress(tick, level) if compressed else tick
        total += len(frames.encode(frames.Opcode.TEXT, payload, compressed=compressed))
    return total


def _encoder(codec: str, count: int) -> Callable[[list[native.Object]], None]:
    def encode(comments: list[native.Object]) -> None:
        for at in range(0, len(comments) - count + 1, count):
            payload, _ = native.encode(codec, comments[at : at + count])
            frames.encode(frames.Opcode.TEXT, payload)

    return encode


def _compressor(level: int) -> Callable[[bytes], None]:
    def compress(tick: bytes) -> None:
        if len(tick) >= deflate.MIN_BYTES:
            deflate.compress(tick, level)

    return compress


def _us(work: Callable[[Any], None], items: Sequence[Any]) -> float:
    """Return the CPU microseconds for all items."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.process_time()
        for item in items:
            work(item)
        best = min(best, time.process_time() - began)
    return best * 1e6

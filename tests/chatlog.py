"""Real chat where UPROAR_CHAT_DATA names its folder, else generated chat like it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from uproar import chatgen

COUNTS = {"chat_vod": 3090, "chat_burst": 798}


def lines(name: str) -> list[dict[str, Any]]:
    """Return the comments of `chat_vod` or `chat_burst`: t_ms, user, role, text."""
    folder = os.environ.get("UPROAR_CHAT_DATA")
    if folder:
        text = (Path(folder) / f"{name}.jsonl").read_text("utf-8")
        return [json.loads(line) for line in text.splitlines()]
    print(f"UPROAR_CHAT_DATA is not set: {name} is generated chat of the same proportions")
    kind: chatgen.Kind = "burst" if name == "chat_burst" else "talk"
    return list(chatgen.generate(seed=1, count=COUNTS[name], kind=kind))

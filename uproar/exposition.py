"""Merges the metrics of all processes into one Prometheus text exposition.

Comes in: the text of each process (version 0.0.4, as prometheus-client writes it). Goes out: one
text in which each metric has its HELP and TYPE once and every sample a `proc` label.
Source: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_SUFFIXES = ("_bucket", "_count", "_sum", "_total", "_created", "_info", "_gcount", "_gsum")


class _Family:
    def __init__(self) -> None:
        self.about: dict[str, str] = {}  # HELP and TYPE lines; the first process's count
        self.samples: list[str] = []


def merge(texts: Iterable[tuple[str, str]]) -> str:
    """Return the merged text of (process name, its text); lines that are none are left out."""
    families: dict[str, _Family] = {}
    for proc, text in texts:
        label = f'proc="{_escape(proc)}"'
        current = ""
        for line in text.splitlines():
            if line.startswith(("# HELP ", "# TYPE ")):
                _, kind, rest = line.split(" ", 2)
                found = _NAME.match(rest)
                if found:
                    current = found.group()
                    families.setdefault(current, _Family()).about.setdefault(kind, line)
                continue
            found = _NAME.match(line)
            if not found:
                continue
            sample = _labelled(line, found.end(), label)
            if sample is not None:
                family = current if _belongs(found.group(), current) else found.group()
                families.setdefault(family, _Family()).samples.append(sample)
    lines: list[str] = []
    for family_ in families.values():
        if family_.samples:
            lines += [family_.about[kind] for kind in ("HELP", "TYPE") if kind in family_.about]
            lines += family_.samples
    return "".join(f"{line}\n" for line in lines)


def sample(name: str, kind: str, about: str, values: Iterable[tuple[str, float]]) -> str:
    """Return one metric's text with a value per process, with its `proc` labels."""
    lines = [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
    lines += [f'{name}{{proc="{_escape(proc)}"}} {value:g}' for proc, value in values]
    return "".join(f"{line}\n" for line in lines)


def _labelled(line: str, end: int, label: str) -> str | None:
    """The sample with the label put first: label values need not be parsed for that."""
    name, rest = line[:end], line[end:]
    values = rest.rpartition("}")[2].split()  # a value and perhaps a time
    try:
        float(values[0])
    except (IndexError, ValueError):
        return None
    if rest.startswith("{"):
        inner = rest[1:].lstrip()
        return f"{name}{{{label}{inner}" if inner.startswith("}") else f"{name}{{{label},{inner}"
    return f"{name}{{{label}}}{rest}" if rest.startswith(" ") else None


def _belongs(name: str, family: str) -> bool:
    return bool(family) and (
        name == family or (name.startswith(family) and name[len(family) :] in _SUFFIXES)
    )


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

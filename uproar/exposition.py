"""Merges the metrics of all processes into one Prometheus text exposition.

Comes in: the text of each process (version 0.0.4, `uproar.metrics`). Goes out: one text in which
each metric has its HELP and TYPE once and every sample the labels `process` and `role`.
Source: https://prometheus.io/docs/instrumenting/exposition_formats/
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final, NamedTuple

from uproar.metrics import CATALOGUE, escape

CONTENT_TYPE: Final = "text/plain; version=0.0.4; charset=utf-8"

_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*")
_SUFFIXES = ("_bucket", "_count", "_sum", "_total", "_created", "_info", "_gcount", "_gsum")


class Origin(NamedTuple):
    """Which process of the machine something is of, and what it does there."""

    process: str
    role: str

    @property
    def labels(self) -> str:
        """Both, as they stand in a sample."""
        return f'process="{escape(self.process)}",role="{escape(self.role)}"'


class _Family:
    def __init__(self) -> None:
        self.about: dict[str, str] = {}  # HELP and TYPE lines; the first process's count
        self.samples: list[str] = []


def merge(texts: Iterable[tuple[Origin, str]]) -> str:
    """Return the merged text of (whose, its text); lines that are none are left out."""
    families: dict[str, _Family] = {}
    for origin, text in texts:
        labels = origin.labels
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
            sample = _labelled(line, found.end(), labels)
            if sample is not None:
                family = current if _belongs(found.group(), current) else found.group()
                families.setdefault(family, _Family()).samples.append(sample)
    lines: list[str] = []
    for family_ in families.values():
        if family_.samples:
            lines += [family_.about[kind] for kind in ("HELP", "TYPE") if kind in family_.about]
            lines += family_.samples
    return "".join(f"{line}\n" for line in lines)


def each(name: str, values: Iterable[tuple[Origin, float]]) -> str:
    """Return the text of a metric of the catalogue that has one value per process."""
    spec = CATALOGUE[name]
    lines = [f"# HELP {name} {spec.about}", f"# TYPE {name} {spec.kind}"]
    lines += [f"{name}{{{origin.labels}}} {value:g}" for origin, value in values]
    return "".join(f"{line}\n" for line in lines)


def _labelled(line: str, end: int, labels: str) -> str | None:
    """The sample with the labels put first: label values need not be parsed for that."""
    name, rest = line[:end], line[end:]
    values = rest.rpartition("}")[2].split()  # a value and perhaps a time
    try:
        float(values[0])
    except (IndexError, ValueError):
        return None
    if rest.startswith("{"):
        inner = rest[1:].lstrip()
        return f"{name}{{{labels}{inner}" if inner.startswith("}") else f"{name}{{{labels},{inner}"
    return f"{name}{{{labels}}}{rest}" if rest.startswith(" ") else None


def _belongs(name: str, family: str) -> bool:
    return bool(family) and (
        name == family or (name.startswith(family) and name[len(family) :] in _SUFFIXES)
    )

"""What did a run find? Figures with their units, and what limited them, as table and as JSON.

Pure functions of numbers: percentiles, ratios, the verdict, the table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, TypeAlias

import msgspec

Figure: TypeAlias = float | int | str

BUSY: Final = 0.85  # of a core: a process above this has hardly any time left
IDLE: Final = 0.10  # of the machine: with less than this left, everybody waits for everybody
OTHERS: Final = 0.10  # of the machine: with more than this taken, latencies are theirs as well


class Bar(msgspec.Struct, frozen=True):
    """What was asked for, what was found, and whether that is enough."""

    what: str
    bar: str
    figure: float
    reached: bool


def at_most(what: str, figure: float, bound: float) -> Bar:
    """Return the bar that a figure must not be above; NaN reaches none."""
    return Bar(what, f"≤ {bound:g}", figure, figure <= bound)


def at_least(what: str, figure: float, bound: float) -> Bar:
    """Return the bar that a figure must not be below; NaN reaches none."""
    return Bar(what, f"≥ {bound:g}", figure, figure >= bound)


def below(what: str, figure: float, bound: float) -> Bar:
    """Return the bar that a figure must stay below."""
    return Bar(what, f"< {bound:g}", figure, figure < bound)


def exactly(what: str, figure: float, wanted: float) -> Bar:
    """Return the bar that a figure must meet."""
    return Bar(what, f"= {wanted:,g}", figure, figure == wanted)


class Report(msgspec.Struct, frozen=True):
    """One run. `figures` keep their order; names end in their unit."""

    name: str
    question: str
    command: str
    settings: dict[str, Figure]
    figures: dict[str, Figure]
    cpu_s: dict[str, float]  # CPU seconds by role, `generator` among them, over `wall_s`
    peak_mb: dict[str, float]  # the largest resident set of each process so far, by name
    wall_s: float
    limit: str
    bars: list[Bar] = []


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the smallest value that at least `share` (0…1) of a sorted sequence do not exceed.

    Nearest rank: no value is made up. NaN for an empty sequence.
    """
    if not ordered:
        return math.nan
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def milliseconds(seconds: Iterable[float], shares: Sequence[float]) -> dict[str, float]:
    """Return {"p50_ms": …} of times in seconds, and the longest as `max_ms`."""
    ordered = sorted(seconds)
    named = {f"p{share * 100:g}_ms": percentile(ordered, share) * 1000 for share in shares}
    return {**named, "max_ms": ordered[-1] * 1000 if ordered else math.nan}


def per(amount: float, count: float) -> float:
    """Return amount / count, NaN where there was nothing to divide by."""
    return amount / count if count else math.nan


def limit_of(
    busiest: Mapping[str, float], wall_s: float, *, cores: int, idle: float, others: float
) -> str:
    """Return one clause about what the run could not get more of.

    `busiest` holds, by role, the CPU seconds of its busiest process. `idle` and `others` are shares
    of all cores: that nobody used, and that neither the system nor the generator used.
    """
    full = [
        f"{role} ({used / wall_s:.0%} of a core)"
        for role, used in sorted(busiest.items(), key=lambda item: -item[1])
        if wall_s > 0 and used / wall_s >= BUSY
    ]
    words = []
    if any(name.startswith("generator") for name in full):
        words.append("the generator was a limit: the server could have done more")
    if full:
        words.append("out of CPU: " + ", ".join(full))
    if idle < IDLE:
        words.append(f"the machine was: {idle:.0%} of {cores} cores idle")
    if others > OTHERS:
        words.append(f"other programs took {others:.0%} of it: figures are bounds")
    return "; ".join(words) or "nothing was: the load was carried with room left"


def table(reports: Sequence[Report]) -> str:
    """Return runs of one benchmark side by side, a column each."""
    first = reports[0]
    settings = ", ".join(f"{name} {_text(value)}" for name, value in first.settings.items())
    rows = [(name, [_text(run.figures.get(name, "")) for run in reports]) for name in first.figures]
    rows += [
        (f"cpu {role} s", [_text(run.cpu_s.get(role, math.nan)) for run in reports])
        for role in first.cpu_s
    ]
    rows += [
        (f"peak {name} MB", [_text(run.peak_mb.get(name, math.nan)) for run in reports])
        for name in first.peak_mb
    ]
    left = max(len(name) for name, _ in rows)
    right = max(len(cell) for _, cells in rows for cell in cells)
    lines = [f"{first.name}: {first.question}", f"  {settings}", ""]
    lines += [
        f"  {name:<{left}}  " + "  ".join(f"{cell:>{right}}" for cell in cells)
        for name, cells in rows
    ]
    for run in reports:
        lines += ["", f"  limit: {run.limit}"]
        lines += [
            f"  {'reached' if bar.reached else 'MISSED '}  {bar.what}: {_text(bar.figure)}"
            f"  (bar {bar.bar})"
            for bar in run.bars
        ]
    return "\n".join(lines)


def document(host: dict[str, Any], reports: Sequence[Report]) -> str:
    """Return everything as one JSON document; what could not be measured is null."""
    whole = {"host": host, "runs": reports}  # msgspec writes NaN as null
    return msgspec.json.format(msgspec.json.encode(whole), indent=2).decode()


def _text(value: Figure) -> str:
    if isinstance(value, float):
        if not math.isfinite(value):
            return "-"
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else value

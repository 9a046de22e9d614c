"""`python -m benchmarks [NAME…]`: run benchmarks, print a table each, or one JSON document."""

from __future__ import annotations

import functools
import inspect
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

from benchmarks import (
    acks,
    against_bare,
    churn,
    endtoend,
    fanout,
    flood,
    handshakes,
    host,
    idle,
    metrics,
    millions,
    reactions,
    slow,
    syscalls,
    taps,
)
from benchmarks import bytes as sizes
from benchmarks.crowd import Skip
from benchmarks.report import Report, document, table

BENCHMARKS: Final[dict[str, Callable[..., Report]]] = {
    "fanout": fanout.measure,
    "acks": acks.measure,
    "flood": flood.measure,
    "reactions": reactions.measure,
    "bytes": sizes.measure,
    "metrics": metrics.measure,
    # One gateway on a core of its own, against the bars of the engine.
    "frames-1000": functools.partial(against_bare.measure, viewers=1000, rate=10.0, p99_ms=60),
    "frames-10000": functools.partial(against_bare.measure, viewers=10_000, rate=10.0, p99_ms=150),
    "merged": functools.partial(against_bare.measure, viewers=1000, rate=1000.0, p99_ms=60),
    "millions": millions.measure,
    "endtoend": endtoend.measure,
    "memory": idle.memory,
    "idle": idle.cpu,
    "handshakes": handshakes.measure,
    "syscalls": syscalls.measure,
    "taps": taps.measure,
    "slow": slow.measure,
    "churn": churn.measure,
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHMARKS)))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--seconds", type=click.FloatRange(1), help="How long comments are sent.")
@click.option("--out", type=click.Path(path_type=Path), help="Write NAME.json of each there, too.")
@click.option("--repeat", type=click.IntRange(1, 20), default=1, help="Runs of each; shows spread.")
def main(
    names: tuple[str, ...], as_json: bool, seconds: float | None, repeat: int, out: Path | None
) -> None:
    """Measure on this machine; everything without a NAME."""
    block = host.block()
    reports: list[Report] = []
    failed = False
    if not as_json:
        click.echo("\n".join(f"{name}: {_plain(value)}" for name, value in block.items()))
    for name in names or tuple(BENCHMARKS):
        words = ["uproar", "bench", name, *(["--seconds", f"{seconds:g}"] if seconds else [])]
        options: dict[str, Any] = {}
        if seconds is not None and "seconds" in inspect.signature(BENCHMARKS[name]).parameters:
            options["seconds"] = seconds
        try:
            runs = [BENCHMARKS[name](shlex.join(words), **options) for _ in range(repeat)]
        except Skip as lack:
            click.echo(f"uproar: bench {name}: skipped: {lack}", err=True)
            continue
        except (RuntimeError, OSError) as error:
            click.echo(f"uproar: bench {name}: {error}", err=True)
            failed = True  # the others may still tell something
            continue
        reports += runs
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            (out / f"{name}.json").write_text(document(host.block(), runs) + "\n")
        if not as_json:
            click.echo(f"\n{table(runs)}")
    if as_json:
        click.echo(document(block, reports))
    if failed:
        sys.exit(1)


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    return str(value)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")

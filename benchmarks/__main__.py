"""`python -m benchmarks [NAME…]`: run benchmarks, print a table each, or one JSON document."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable
from typing import Any, Final

import click

from benchmarks import acks, fanout, flood, host, metrics, reactions
from benchmarks import bytes as sizes
from benchmarks.report import Report, document, table

BENCHMARKS: Final[dict[str, Callable[..., Report]]] = {
    "fanout": fanout.measure,
    "acks": acks.measure,
    "flood": flood.measure,
    "reactions": reactions.measure,
    "bytes": sizes.measure,
    "metrics": metrics.measure,
}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("names", nargs=-1, type=click.Choice(list(BENCHMARKS)))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--seconds", type=click.FloatRange(1), help="How long comments are sent.")
@click.option("--repeat", type=click.IntRange(1, 20), default=1, help="Runs of each; shows spread.")
def main(names: tuple[str, ...], as_json: bool, seconds: float | None, repeat: int) -> None:
    """Measure on this machine; everything without a NAME."""
    block = host.block()
    chosen = names or tuple(BENCHMARKS)
    options: dict[str, Any] = {} if seconds is None else {"seconds": seconds}
    reports: list[Report] = []
    if not as_json:
        click.echo("\n".join(f"{name}: {_plain(value)}" for name, value in block.items()))
    for name in chosen:
        words = ["uproar", "bench", name, *(["--seconds", f"{seconds:g}"] if seconds else [])]
        try:
            runs = [BENCHMARKS[name](shlex.join(words), **options) for _ in range(repeat)]
        except (RuntimeError, OSError) as error:
            click.echo(f"uproar: bench {name}: {error}", err=True)
            sys.exit(1)
        reports += runs
        if not as_json:
            click.echo(f"\n{table(runs)}")
    if as_json:
        click.echo(document(block, reports))


def _plain(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    if isinstance(value, list):
        return " ".join(str(item) for item in value)
    return str(value)


if __name__ == "__main__":
    main(prog_name="python -m benchmarks")

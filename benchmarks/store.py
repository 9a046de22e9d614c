"""What does history cost, to write and to read, in the configured store?

`UPROAR_STORE__ENGINE=cassandra python -m benchmarks.store` writes comments as the archive does,
batches of 2,048 by 2,000 users, and reads them as gateways do. CPU is this process's own: the
client's share, which is what an archive process has one core for. Name a keyspace (or `--data`) of
its own: what is written stays there.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click
import msgspec

from benchmarks import host
from benchmarks.report import milliseconds, per
from uproar import ids
from uproar.config import load
from uproar.events import MASK_ALL, Comment, Event, User, Visibility
from uproar.store import Store, StoreUnavailable, open_store

BATCH: Final = 2048  # what the archive takes from the log at a time
USERS: Final = 2000
CALLS: Final = 200
STREAM: Final = "bench0"


def comments(first: int, streams: int, node: bytes, start_ms: int) -> list[tuple[str, Event]]:
    """Return a batch at offsets `first` and up, ten a millisecond."""
    rng = random.Random(first)
    found = []
    for offset in range(first, first + BATCH):
        ts = start_ms + offset // 10
        user = User(f"user{rng.randrange(USERS)}", "Somebody")
        data = Comment(ids.build(ts, offset % 10_000, node), user, "x" * 60, ts)
        event = Event(offset, "COMMENT", ts, user.id, MASK_ALL, int(Visibility.ALL), data)
        found.append((f"bench{offset % streams}", event))
    return found


def written(store: Store, era: int, at: int, count: int, streams: int) -> dict[str, float]:
    """Write about `count` comments above `at`; return the figures."""
    node, start_ms = ids.new_node(), int(time.time() * 1000)
    batches = [comments(at + n + 1, streams, node, start_ms) for n in range(0, count, BATCH)]
    took: list[float] = []
    wall, cpu = time.monotonic(), time.process_time()
    for batch in batches:
        begun = time.monotonic()
        store.write(era, batch, batch[-1][1].offset)
        took.append(time.monotonic() - begun)
    wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    total = len(batches) * BATCH
    return {
        "comments": total,
        "comments_per_s": per(total, wall),
        "cpu_us_per_comment": per(cpu * 1e6, total),
        **milliseconds(took, (0.5, 0.99)),
    }


def called(call: Callable[[], Any], times: int = CALLS) -> dict[str, float]:
    """Call it many times; return the figures."""
    call()
    took: list[float] = []
    cpu = time.process_time()
    for _ in range(times):
        begun = time.monotonic()
        call()
        took.append(time.monotonic() - begun)
    cpu = time.process_time() - cpu
    return {"cpu_ms": per(cpu * 1000, times), **milliseconds(took, (0.5, 0.99))}


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--config", type=click.Path(path_type=Path, exists=True), help="Configuration file.")
@click.option("--data", help="Data directory, for SQLite.")
@click.option("--comments", "count", default=100_000, type=click.IntRange(BATCH), show_default=True)
@click.option("--streams", default=1, type=click.IntRange(1, 1000), show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def main(config: Path | None, data: str | None, count: int, streams: int, as_json: bool) -> None:
    """Measure the configured store."""
    settings = load(config, flags={"data": data})
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    store = open_store(settings, writer=True)
    try:
        era = store.open_epoch("benchmark")
        figures = {"write": written(store, era, store.position("benchmark"), count, streams)}
        end = store.position("benchmark")
        last = store.newest(STREAM, 1)[0].event
        calls: dict[str, Callable[[], Any]] = {
            "newest 50": lambda: store.newest(STREAM, 50),
            "events 500": lambda: store.events(STREAM, era, end - 500 * streams, end, 500),
            "window 50": lambda: store.window(STREAM, last.ts - 2000, last.ts - 1000, 50),
            "by_user 50": lambda: store.by_user(STREAM, "user7", 50),
            "comment": lambda: store.comment(STREAM, last.data.id),
            "standing": lambda: store.standing(STREAM),
            "position": lambda: store.position("benchmark"),
        }
        figures |= {name: called(call) for name, call in calls.items()}
    except StoreUnavailable as error:
        raise click.ClickException(str(error)) from error
    finally:
        store.close()
    document = {"host": host.block(), "engine": settings.store.engine, "streams": streams}
    if as_json:
        document["figures"] = figures
        click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
        return
    click.echo("\n".join(f"{name}: {value}" for name, value in document.items()))
    for name, found in figures.items():
        click.echo(f"{name}: " + ", ".join(f"{key} {value:,.4g}" for key, value in found.items()))


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.store")

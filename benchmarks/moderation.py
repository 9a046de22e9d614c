"""How often is moderation right, at which threshold?

`python -m benchmarks.moderation --data FOLDER`, where FOLDER holds labelled comments (`toxicity/`)
and real chat (`chat_*.jsonl`). The labels are people's: surge (half toxic), davidson (hate,
offensive, neither), madlibs (templates with identity words, bad and not bad). Chat has no labels:
the figure there is how much would be flagged or deleted, and `--show` prints what. The linear
model's authors trained it on davidson, so its figures there flatter.
"""

from __future__ import annotations

import csv
import gzip
import json
import re
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

import click
import msgspec

from benchmarks import host
from uproar.config import Moderation
from workers.moderation.linear import Linear, LinearModel
from workers.moderation.moderator import Moderator
from workers.moderation.pipeline import Decision, Judged


def _rules(**changes: Any) -> Moderation:
    alone = Moderation(stages=["rules"], links="allow", duplicates="allow")
    return msgspec.structs.replace(alone, **changes)


THRESHOLDS: Final = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)
# What is off by default, or milder: one rule alone.
OTHERS: Final = {
    "with capitals": _rules(caps="flag"),
    "with repetition": _rules(repetition="flag"),
    "with 3 duplicates": _rules(duplicates="flag", duplicates_times=3),
}
_MARKUP: Final = re.compile(r"&#?\w+;|https?://\S+|^!*\s*RT @\w+:")
_START: Final = 1_700_000_000_000  # unix ms; the chat's times are differences


class Labelled(NamedTuple):
    """One comment, whether people find it bad, and its class."""

    text: str
    bad: bool
    kind: str


class Scored(NamedTuple):
    """A comment's probability, and whether it is said to somebody."""

    score: float
    aimed: bool
    bad: bool
    kind: str


def surge(folder: Path) -> Iterator[Labelled]:
    """Yield social-media comments."""
    with (folder / "surge.csv").open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield Labelled(row["text"], row["is_toxic"] == "Toxic", row["is_toxic"])


def davidson(folder: Path) -> Iterator[Labelled]:
    """Yield tweets without links, entities and retweet heads."""
    with gzip.open(folder / "davidson.csv.gz", "rt", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            kind = ("hate", "offensive", "neither")[int(row["class"])]
            yield Labelled(_MARKUP.sub("", row["tweet"]), kind != "neither", kind)


def madlibs(folder: Path) -> Iterator[Labelled]:
    """Yield short templates with identity words."""
    with gzip.open(folder / "madlibs.csv.gz", "rt", newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            yield Labelled(row["Text"], row["Label"] == "BAD", row["Label"])


def scored(stage: Linear, labelled: Iterator[Labelled]) -> list[Scored]:
    """Return the model's findings; the stage deletes whatever is said to somebody."""
    found = []
    for text, bad, kind in labelled:
        verdict = stage.judge(Judged(text))
        assert verdict is not None  # nobody here is exempt
        found.append(Scored(verdict.score, verdict.action == "delete", bad, kind))
    return found


def rates(found: list[Scored], threshold: float, *, aimed: bool) -> tuple[int, float, float, float]:
    """Return (how many are found, precision, recall, false alarms among what is not bad)."""
    hits = [one for one in found if one.score >= threshold and (one.aimed or not aimed)]
    right = sum(one.bad for one in hits)
    bad = sum(one.bad for one in found)
    return (
        len(hits),
        right / len(hits) if hits else float("nan"),
        right / bad,
        (len(hits) - right) / (len(found) - bad),
    )


def chat(lines: list[dict[str, Any]], moderator: Moderator) -> Iterator[tuple[str, Decision]]:
    """Yield (text, decision) of a chat log's lines, at their own times."""
    for number, line in enumerate(lines):
        yield (
            line["text"],
            moderator.pipeline.decide(
                Judged(
                    line["text"],
                    stream="chat",
                    user=line["user"],
                    role="moderator" if line["role"] == "moderator" else "viewer",
                    comment_id=number.to_bytes(16),
                    ts=_START + line["t_ms"],
                    protected=moderator.lists.covered,
                )
            ),
        )


def shares(file: Path, *, show: bool) -> dict[str, Any]:
    """Return what becomes of a chat log at the defaults, and what other settings would find."""
    lines = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    settings = Moderation()
    moderator = Moderator(settings)
    started = time.process_time()
    found = list(chat(lines, moderator))
    each_us = (time.process_time() - started) / len(lines) * 1e6
    if show:
        for text, decision in found:
            if decision.action != "allow":
                click.echo(f"{decision.action:6} {decision.rule:34.34} {text[:80]!r}")
    counts = Counter(f"{one.action} {one.category}" for _, one in found if one.action != "allow")
    sure = sum(one.categories.get("toxic", 0.0) >= settings.delete_at for _, one in found)
    others = {
        name: sum(one.action != "allow" for _, one in chat(lines, Moderator(other)))
        for name, other in OTHERS.items()
    }
    return {
        "comments": len(lines),
        "us_each": round(each_us),
        **counts,
        f"toxic from {settings.delete_at:g}, aimed or not": sure,
        **others,
    }


def table(name: str, found: list[Scored], *, aimed: bool) -> str:
    """Return a Markdown table of one data set by threshold."""
    bad = sum(one.bad for one in found)
    what = ", only what is said to somebody" if aimed else ""
    rows = [
        f"{name}: {len(found):,} comments, {bad:,} of them bad{what}",
        "",
        "| p at least | found | precision | recall | false alarms |",
        "|---|---|---|---|---|",
    ]
    for threshold in THRESHOLDS:
        count, precision, recall, alarms = rates(found, threshold, aimed=aimed)
        rows.append(
            f"| {threshold:g} | {count:,} | {precision:.3f} | {recall:.3f} | {alarms:.2%} |"
        )
    return "\n".join(rows)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--data",
    "folder",
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The folder with toxicity/ and chat_*.jsonl.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--show", is_flag=True, help="Print what would be flagged or deleted of the chat.")
def main(folder: Path, as_json: bool, show: bool) -> None:
    """Measure precision, recall and false alarms of the stages on labelled and on real comments."""
    stage = Linear(LinearModel.load(), flag_at=0.0, delete_at=0.0)
    document: dict[str, Any] = {"host": host.block(), "labelled": {}, "chat": {}}
    for name, read in (("surge", surge), ("davidson", davidson), ("madlibs", madlibs)):
        try:
            found = scored(stage, read(folder / "toxicity"))
        except OSError as error:
            raise click.ClickException(
                f"{error.filename}: can't be read: {error.strerror}"
            ) from None
        for aimed in (False, True):
            key = f"{name}, aimed" if aimed else name
            document["labelled"][key] = [
                {"threshold": at, **dict(zip(_RATES, rates(found, at, aimed=aimed), strict=True))}
                for at in THRESHOLDS
            ]
            if not as_json:
                click.echo(table(name, found, aimed=aimed) + "\n")
    for file in sorted(folder.glob("chat_*.jsonl")):
        figures = document["chat"][file.stem] = shares(file, show=show and not as_json)
        if not as_json:
            said = "; ".join(f"{what}: {number:,}" for what, number in figures.items())
            click.echo(f"{file.stem}: {said}")
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


_RATES: Final = ("found", "precision", "recall", "false_alarms")

if __name__ == "__main__":
    main(prog_name="python -m benchmarks.moderation")

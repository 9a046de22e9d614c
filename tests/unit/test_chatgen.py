"""The generated chat keeps the proportions measured on real logs."""

from __future__ import annotations

from collections import Counter
from itertools import islice, pairwise
from typing import Any

import pytest

from uproar.chatgen import INVISIBLE, generate

Lines = list[dict[str, Any]]


def chat(**options: Any) -> Lines:
    return list(generate(**{"seed": 1, "count": 5000, **options}))


def duplicates(lines: Lines) -> float:
    return 1 - len({line["text"] for line in lines}) / len(lines)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rate", [0.5, 1.0, 20.0, 200.0])
def test_busiest_second(seed: int, rate: float) -> None:
    # Moments come every minute and a half: several of them, however fast the chat.
    lines = chat(seed=seed, rate=rate, count=int(max(5000, rate * 300)))
    seconds = Counter(line["t_ms"] // 1000 for line in lines)
    mean = len(lines) / (max(seconds) + 1)
    assert 9 <= max(seconds.values()) / mean <= 15
    assert 0.8 <= mean / rate <= 1.25


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("kind", ["talk", "esports"])
@pytest.mark.parametrize("count", [2000, 10_000])
def test_lines_lengths_and_users(seed: int, kind: str, count: int) -> None:
    lines = chat(seed=seed, kind=kind, count=count)
    lengths = sorted(len(line["text"]) for line in lines)
    assert 5 <= lengths[count // 2] <= 19
    assert 44 <= lengths[int(count * 0.95)] <= 70
    assert lengths[0] >= 1
    assert lengths[-1] <= 500
    authors = Counter(line["user"] for line in lines)
    top = sum(number for _, number in authors.most_common(len(authors) // 100))
    assert 0.07 <= top / count <= 0.22
    low, high = (0.10, 0.40) if kind == "talk" else (0.65, 0.80)
    assert low <= duplicates(lines) <= high


def test_a_long_chat_stays_as_it_began() -> None:
    lines = chat(count=60_000, rate=50.0)
    assert 0.10 <= duplicates(lines) <= 0.40


def test_burst_carries_invisible_characters() -> None:
    lines = chat(kind="burst")
    marked = [line["text"] for line in lines if line["text"].endswith(f" {INVISIBLE}")]
    assert 0.14 <= len(marked) / len(lines) <= 0.18
    assert max(len(line["text"]) for line in lines) <= 500
    bare = {line["text"] for line in lines} & {text[:-2] for text in marked}
    assert len(bare) > 10, "the mark is there to repeat a text that was there without it"


def test_time_order_shape_and_seed() -> None:
    lines = chat()
    assert all(one["t_ms"] <= two["t_ms"] for one, two in pairwise(lines))
    assert {tuple(line) for line in lines} == {("t_ms", "user", "role", "text")}
    roles = Counter(line["role"] for line in lines)
    assert set(roles) == {"", "subscriber", "moderator", "vip", "broadcaster"}
    by_user: dict[str, set[str]] = {}
    for line in lines:
        by_user.setdefault(line["user"], set()).add(line["role"])
    assert all(len(found) == 1 for found in by_user.values())
    assert lines == chat()
    assert lines != chat(seed=2)


def test_without_an_end_and_with_few_users() -> None:
    endless = generate(seed=3, users=1, rate=0.2)
    assert len({line["user"] for line in islice(endless, 300)}) == 1

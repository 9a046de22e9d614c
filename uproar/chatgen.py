"""Generates chat with the proportions of real live chat, for load, tests and demonstrations.

Goes out: {t_ms, user, role, text} in time order, the shape that `uproar.replay` reads. The same
seed gives the same chat. Measured on 17 real logs, and kept here: the busiest second has 9 to 15
times the mean; the top 1 % of users write 7 to 22 % of the lines; half the texts have at most 5 to
19 characters and 95 % at most 44 to 70, none above 500; exact duplicates are 10 to 40 % of the
lines in talk rooms and 65 to 80 % in e-sports rooms. In a copy-pasta burst 16 % carry an invisible
U+E0000, which beats naive duplicate filters.
"""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final, Literal

Kind = Literal["talk", "esports", "burst"]

INVISIBLE: Final = "\U000e0000"
MAX_CHARS: Final = 500

# The share of lines that repeat a recent text exactly.
_REPEATS: Final[dict[str, float]] = {"talk": 0.22, "esports": 0.72, "burst": 0.5}
_INVISIBLE_SHARE: Final = 0.16
_TOP_SHARE: Final = 0.13  # of the lines, by the top 1 % of users
_RECENT: Final = 200  # texts that may be repeated
_REMEMBERED: Final = 20_000  # texts that a new one must differ from

# A moment: what everybody reacts to. Seconds at these fractions of its height, one after the other.
_MOMENT: Final = (0.5, 1.0, 0.8, 0.6, 0.4, 0.25, 0.15)
_TALLEST: Final = 11.5  # times the mean rate; every eighth moment, the first one too
_TALLEST_EVERY: Final = 8
_MOMENT_GAP_S: Final = (60, 110)
_CALM: Final = 0.72  # of the mean rate, between moments

_EMOTES: Final = (
    "otterWave", "otterHype", "otterLol", "gigaNod", "pepperDance", "blobCheer", "sadTuba",
    "bigBrainz", "snackTime", "nopeBird", "clapClap", "toastRise", "zoomies", "mindPop",
    "catGasp", "waitWhat", "coolBeans", "sweatDrop", "heartBurst", "partyYak",
)  # fmt: skip
_SHORT: Final = (
    "lol", "LOL", "gg", "wow", "no way", "yes!", "haha", "hahaha", "nice", "hi", "hello chat",
    "ooh", "omg", "W", "so good", "rip", "same", "true", "wait", "what?", "huh", "yep", "nope",
    "let's go", "LETS GO", "clutch", "oof", "pog", "cute", "ez", "agreed", "love it", "here we go",
    "😂", "😂😂", "❤️", "🔥🔥", "👏", "🎉", "👀", "💀", "🙏", "😮",
)  # fmt: skip
_ENDS: Final = ("", "", "", "!", "!!", "...", " :)", " xD", "??", "~", " <3")
_OPENERS: Final = (
    "honestly", "ok but", "wait", "chat", "I think", "no", "yeah", "lol", "imagine if", "hmm",
    "first time here and", "hot take:", "also", "not gonna lie", "I swear", "maybe", "apparently",
)  # fmt: skip
_WHO: Final = (
    "that", "this song", "the timing", "this build", "the camera", "the left door", "the intro",
    "that jump", "the second one", "my internet", "the boss", "that soup", "the music", "my cat",
    "this part", "the map", "the old route", "that plan", "the score", "the new patch",
)  # fmt: skip
_WHAT: Final = (
    "is so good", "was close", "looks tricky", "reminds me of last week", "never gets old",
    "needs more time", "is a bit loud", "is the best", "makes no sense", "was worth the wait",
    "got me", "is way harder than it looks", "should be faster", "is all luck", "feels cozy",
    "is why I am here", "went better than I hoped", "is half the fun", "saved the run",
)  # fmt: skip
_TAILS: Final = (
    "today", "again", "for sure", "somehow", "right?", "imo", "I love it", "what do you think?",
    "I can't stop laughing", "don't rush it", "try the other way next time", "greetings from work",
    "took me ages to learn that", "and I was eating", "anyone else?", "please show it once more",
)  # fmt: skip
_PASTA: Final = (
    "I came for the stream and stayed for the soup", "this is not a drill, the otter has the keys",
    "if you read this you are now part of the bridge crew", "sir, this is a puzzle game",
    "my grandma jumps higher than that", "one does not simply skip the tutorial",
)  # fmt: skip
_FIRST: Final = (
    "quiet", "neon", "lucky", "tiny", "cosmic", "salty", "brave", "sleepy", "pixel", "mellow",
    "turbo", "misty", "golden", "rusty", "lunar", "witty", "spicy", "gentle", "retro", "velvet",
)  # fmt: skip
_SECOND: Final = (
    "otter", "badger", "comet", "noodle", "falcon", "walrus", "maple", "kettle", "raven", "gecko",
    "pickle", "yeti", "puffin", "biscuit", "lynx", "marmot", "tulip", "wombat", "cactus", "heron",
)  # fmt: skip


def generate(
    *,
    seed: int,
    count: int | None = None,
    rate: float = 1.0,
    kind: Kind = "talk",
    users: int = 600,
) -> Iterator[dict[str, Any]]:
    """Yield `count` comments, or comments without end, at `rate` a second in the mean.

    `users` is how many there are; with fewer than 100, "the top 1 %" is one user. The proportions
    show from about 2,000 comments on.
    """
    chance = random.Random(seed)
    crowd = _Crowd(chance, users)
    texts = _Texts(chance, kind)
    return islice(_lines(chance, rate, crowd, texts), count)


def _lines(
    chance: random.Random, rate: float, crowd: _Crowd, texts: _Texts
) -> Iterator[dict[str, Any]]:
    for second, size in enumerate(_sizes(chance, rate)):
        for t_ms in sorted(chance.randrange(1000) for _ in range(size)):
            user, role = crowd.pick()
            yield {"t_ms": second * 1000 + t_ms, "user": user, "role": role, "text": texts.next()}


def _sizes(chance: random.Random, rate: float) -> Iterator[int]:
    """Yield how many comments each second has."""
    number = 0
    while True:
        for _ in range(chance.randint(*_MOMENT_GAP_S)):
            # A calm second never outdoes a moment, however low the rate.
            yield min(_poisson(chance, rate * _CALM), math.ceil(rate * _TALLEST) - 1)
        tallest = number % _TALLEST_EVERY == 0
        height = _TALLEST if tallest else chance.uniform(3.0, 8.0)
        number += 1
        for part in _MOMENT:
            yield math.ceil(rate * height * part)


def _poisson(chance: random.Random, mean: float) -> int:
    if mean > 50:
        return max(0, round(chance.gauss(mean, math.sqrt(mean))))
    limit, product, count = math.exp(-mean), chance.random(), 0
    while product > limit:
        product *= chance.random()
        count += 1
    return count


class _Crowd:
    """Who writes: a few often, most now and then."""

    def __init__(self, chance: random.Random, users: int) -> None:
        self._chance = chance
        taken: dict[str, None] = {}
        while len(taken) < users:
            number = chance.choice(
                ("", "", str(chance.randrange(100)), str(chance.randrange(9999)))
            )
            taken[chance.choice(_FIRST) + chance.choice(_SECOND) + number] = None
        self._names = list(taken)
        top = max(1, users // 100)
        rest = [1 / (index + 10) ** 0.5 for index in range(users - top)]
        scale = (1 - _TOP_SHARE) / (sum(rest) or 1)
        weights = [_TOP_SHARE / top] * top + [weight * scale for weight in rest]
        self._sums: list[float] = []
        total = 0.0
        for weight in weights:
            total += weight
            self._sums.append(total)
        # Moderators are among those who write most, the broadcaster is one of them.
        self._roles = {name: "subscriber" if chance.random() < 0.45 else "" for name in self._names}
        for name in self._names[: max(1, users // 150)]:
            self._roles[name] = "moderator"
        for name in self._names[top : top + users // 50]:
            self._roles[name] = "vip"
        self._roles[self._names[0]] = "broadcaster"

    def pick(self) -> tuple[str, str]:
        """Return (user, role) of the next comment."""
        (name,) = self._chance.choices(self._names, cum_weights=self._sums)
        return name, self._roles[name]


class _Texts:
    """What is written: repeats of what is in the air, and new lines."""

    def __init__(self, chance: random.Random, kind: Kind) -> None:
        self._chance = chance
        self._kind = kind
        self._recent: deque[str] = deque(maxlen=_RECENT)
        self._known: dict[str, None] = {}

    def next(self) -> str:
        """Return the next text."""
        if self._recent and self._chance.random() < _REPEATS[self._kind]:
            # From the lines, not from the distinct texts: what is popular becomes more so.
            text = self._chance.choice(self._recent)
        else:
            text = self._new()
        self._recent.append(text)
        if self._kind == "burst" and self._chance.random() < _INVISIBLE_SHARE:
            return f"{text[: MAX_CHARS - 2]} {INVISIBLE}"
        return text

    def _new(self) -> str:
        """Return a text that was not there lately."""
        write = self._kind_of_line()
        for _ in range(20):
            text = write()
            if text not in self._known:
                break
        self._known[text] = None
        if len(self._known) > _REMEMBERED:
            del self._known[next(iter(self._known))]
        return text

    def _kind_of_line(self) -> Callable[[], str]:
        # Chosen once per line: choosing again after a text that was known would leave mostly long
        # lines in the end, because there are only so many short ones.
        if self._kind == "burst":
            return self._pasta
        share = self._chance.random()
        if share < 0.66:
            return self._short
        return self._remark if share < 0.86 else self._sentence if share < 0.995 else self._pasta

    def _short(self) -> str:
        words = self._chance.choices(_SHORT + _EMOTES, k=self._chance.choice((1, 2, 2, 2)))
        return " ".join(words) + self._chance.choice(_ENDS)

    def _remark(self) -> str:
        pick = self._chance.choice
        end = pick(("", "", "!", " " + pick(_EMOTES), " " + pick(_SHORT)))
        return f"{pick(_WHO)} {pick(_WHAT)}{end}"

    def _sentence(self) -> str:
        pick = self._chance.choice
        words = " ".join(pick(each) for each in (_OPENERS, _WHO, _WHAT, _TAILS))
        return words + pick(("", "", " " + pick(_EMOTES)))

    def _pasta(self) -> str:
        chance = self._chance
        if chance.random() < 0.4:
            phrase = chance.choice(_PASTA)
        else:
            phrase = " ".join(chance.choices(_EMOTES, k=chance.choice((1, 2, 3))))
        times = chance.choice((1, 1, 2, 3, 5, 8))
        return " ".join([phrase] * times)[:MAX_CHARS].rstrip()

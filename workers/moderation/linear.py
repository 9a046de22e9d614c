"""The second stage: a linear model over words, which knows abuse that no list of terms names.

Comes in: a comment. Goes out: the probability that it is offensive and the words that say so. The
weights are those of alt-profanity-check 1.9.1 (see NOTICE), read out of their pickles by
`deploy/extract_linear.py` into `linear.bin`: a line that names the format, a line of JSON, then,
zlib-compressed, the words and little-endian float32 arrays, one of tf-idf weights and one for each
of five linear SVMs. Each SVM's value goes through a sigmoid of its own; the answer is their mean.

The model counts words and knows no order, no negation and no irony: it is sure of itself about one
rude word alone, so what it finds is shown to moderators, and deleted only where it is surest
(docs/moderating.md has the measurements). Reading the file takes 25 ms and 6 MB; a comment of 40
characters 5 us, without numpy.
"""

from __future__ import annotations

import hashlib
import math
import re
import string
import sys
import zlib
from array import array
from collections.abc import Iterable, Sequence
from importlib import resources
from typing import Final, NamedTuple

import msgspec

from workers.moderation.normalise import MASK, Normalised
from workers.moderation.pipeline import Judged, Verdict

MAGIC: Final = b"uproar-linear 1\n"
CATEGORY: Final = "toxic"
SPAN_SHARE: Final = 0.3  # of the heaviest word's weight: from there on a word is shown

HEAVY: Final = 8.0  # the pull of a word that is abuse when said to somebody

_YOU: Final = frozenset({"you", "u", "your", "ur", "youre", "yourself", "ya", "yall"})
_FILLERS: Final = frozenset({"a", "an", "are", "re", "r", "such", "the", "is", "so", "all"})
_APART: Final = re.compile(r"[.!?,;:\n-]")
_WORD: Final = re.compile(r"\b\w\w+\b")  # as the model was trained
_RUN: Final = re.compile(r"(.)\1\1+")


class ModelError(ValueError):
    """A file of weights that can't be used; the message says why."""


class _Head(msgspec.Struct):
    """The line of JSON that opens the file."""

    source: str
    licence: str
    words: int
    words_bytes: int
    intercept: list[float]
    sigmoid_a: list[float]
    sigmoid_b: list[float]
    body_sha256: str


class _Word(NamedTuple):
    """A word's tf-idf weight, its coefficients, and their mean times that weight."""

    idf: float
    weights: tuple[float, ...]
    pull: float


class LinearModel:
    """The weights, ready to score. Never changes."""

    def __init__(self, data: bytes) -> None:
        """Read the bytes of a linear.bin; raises ModelError."""
        head, body = _parts(data)
        self.source = head.source
        try:
            words = body[: head.words_bytes].decode().split("\n")
        except UnicodeDecodeError as error:
            raise ModelError("the model's words are no UTF-8; run `make models`") from error
        numbers = array("f", body[head.words_bytes :])
        if sys.byteorder == "big":
            numbers.byteswap()
        count, rows = head.words, len(head.intercept)
        if len(words) != count or len(numbers) != count * (rows + 1):
            raise ModelError("the model has more or fewer weights than words; run `make models`")
        columns = [numbers[row * count : (row + 1) * count] for row in range(rows + 1)]
        self._words = {
            word: _Word(idf, tuple(weights), idf * sum(weights) / rows)
            for word, idf, *weights in zip(words, *columns, strict=True)
        }
        self._rows = tuple(zip(head.sigmoid_a, head.sigmoid_b, head.intercept, strict=True))

    @classmethod
    def load(cls) -> LinearModel:
        """Return the model that comes with this package; raises ModelError."""
        try:
            data = (resources.files(__package__) / "linear.bin").read_bytes()
        except OSError as error:
            raise ModelError(f"{error.filename} can't be read; run `make models`") from error
        return cls(data)

    def __len__(self) -> int:
        return len(self._words)

    def score(self, text: str) -> float:
        """Return the probability (0…1) that the text is offensive, as the original does."""
        return self.score_words(_WORD.findall(text.lower()))

    def score_words(self, words: Iterable[str]) -> float:
        """Return the same for words that are cut and in lower case already."""
        known = self._words
        counts: dict[str, int] = {}
        for word in words:
            if word in known:
                counts[word] = counts.get(word, 0) + 1
        sums = [0.0] * len(self._rows)
        square = 0.0
        for word, count in counts.items():
            idf, weights, _ = known[word]
            value = idf * count
            square += value * value
            for row, weight in enumerate(weights):
                sums[row] += value * weight
        norm = math.sqrt(square) or 1.0
        total = 0.0
        for (a, b, intercept), found in zip(self._rows, sums, strict=True):
            total += 1.0 / (1.0 + math.exp(a * (found / norm + intercept) + b))
        return total / len(self._rows)

    def pull(self, word: str) -> float:
        """Return how much a word speaks for (above 0) or against; 0 for an unknown one."""
        found = self._words.get(word)
        return found.pull if found else 0.0

    def known(self, word: str) -> str:
        """Return the word of the model that a reading's word stands for, else the word itself.

        Letters drawn out are taken as two, then as one. MASK stands for the letter that speaks most
        for: nobody masks a harmless word.
        """
        if word in self._words:
            return word
        if MASK in word:
            spelled = [word.replace(MASK, letter) for letter in string.ascii_lowercase]
            return max(spelled, key=self.pull)
        if _RUN.search(word):
            for fewer in (r"\1\1", r"\1"):
                squeezed = _RUN.sub(fewer, word)
                if squeezed in self._words:
                    return squeezed
        return word


class Linear:
    """The stage."""

    name = "linear"

    def __init__(self, model: LinearModel, *, flag_at: float, delete_at: float) -> None:
        self._model = model
        self._flag_at = flag_at
        self._delete_at = delete_at

    def judge(self, comment: Judged) -> Verdict | None:
        """Return a verdict with the probability of the worst reading; None for the exempt."""
        if comment.trusted:
            return None
        model = self._model
        score, worst, words = -1.0, comment.readings[0], [""]
        for reading in comment.readings:
            covered = comment.covered(reading)
            found = [
                "" if covered and _inside(at, word, covered) else model.known(word)
                for at, word in _placed(reading.text)
            ]
            value = model.score_words(found)
            if value > score:
                score, worst, words = value, reading, found
        action = ""
        if self._flag_at <= score:
            action = "flag"
        if self._delete_at <= score and self._aimed(comment.text, worst, words):
            action = "delete"
        spans = self._spans(worst, words) if action else ()
        return Verdict(action or "allow", f"{self.name}: {score:.2f}", CATEGORY, score, spans)

    def _aimed(self, text: str, reading: Normalised, words: Sequence[str]) -> bool:
        """Return whether a heavy word stands beside a `you`, with no punctuation between.

        Swearing is not abuse: of 3,888 comments of real chat 68 are at 0.98 or above, nearly all
        of them by people who are excited, and 3 of them pass here (docs/moderating.md).
        """
        places = _placed(reading.text)

        def heavy(one: int, other: int) -> bool:
            if not 0 <= one < other < len(words):
                return False
            (first, word), (second, _) = places[one], places[other]
            between = text[reading.span(first, first + len(word))[1] : reading.spans[second]]
            pull = max(self._model.pull(words[one]), self._model.pull(words[other]))
            return pull >= HEAVY and not _APART.search(between)

        for at, word in enumerate(words):
            if word in _YOU:
                after = at + 1
                while after < min(len(words) - 1, at + 3) and words[after] in _FILLERS:
                    after += 1
                if heavy(at - 1, at) or heavy(at, after):
                    return True
        return False

    def _spans(self, reading: Normalised, words: Sequence[str]) -> tuple[tuple[int, int], ...]:
        """Return where the words that speak for it stand in the original text."""
        pulls = [self._model.pull(word) for word in words]
        least = max(pulls, default=0.0) * SPAN_SHARE
        return tuple(
            reading.span(at, at + len(word))
            for (at, word), pull in zip(_placed(reading.text), pulls, strict=True)
            if pull > 0 and pull >= least
        )


def _placed(text: str) -> list[tuple[int, str]]:
    """Return the words of a reading with where each begins."""
    placed = []
    at = 0
    for word in text.split(" "):
        placed.append((at, word))
        at += len(word) + 1
    return placed


def _inside(at: int, word: str, covered: Sequence[tuple[int, int]]) -> bool:
    return any(start <= at and at + len(word) <= end for start, end in covered)


def _parts(data: bytes) -> tuple[_Head, bytes]:
    """Return the head and the unpacked body, whose hash is right."""
    if not data.startswith(MAGIC):
        raise ModelError(f"not a model of the format {MAGIC.decode().strip()}; run `make models`")
    line, _, packed = data[len(MAGIC) :].partition(b"\n")
    try:
        head = msgspec.json.decode(line, type=_Head)
        # Bounded: five float32 arrays and the words are below 1 MB.
        body = zlib.decompressobj().decompress(packed, 16 << 20)
    except (msgspec.DecodeError, zlib.error) as error:
        raise ModelError(f"the model is damaged: {error}; run `make models`") from error
    if hashlib.sha256(body).hexdigest() != head.body_sha256:
        raise ModelError("the model is damaged: its hash is another; run `make models`")
    if not head.intercept or len({*map(len, (head.intercept, head.sigmoid_a, head.sigmoid_b))}) > 1:
        raise ModelError("the model's head has a hole; run `make models`")
    return head, body

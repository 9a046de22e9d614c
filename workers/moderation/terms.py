"""Blocked terms: a list that people write, and the search for it in what people say.

Comes in: lines, one term each. Blank lines and lines that begin with `#` say nothing. A term is a
word or a phrase and stands for itself between word boundaries, in any spelling that
`workers.moderation.normalise` folds to the same. A `*` at an end takes the boundary there away:
`foo*` is in `foobar`, `*foo` in `barfoo`, `*foo*` in both.

Goes out: the first match, with its place in the original text.

A reading is words joined by single spaces, so a boundary is a space: it is put into the pattern,
and whatever the automaton (Aho-Corasick) finds in the padded reading is a match. A match takes
about 5 us for a plain line of 40 characters, whatever the number of terms.
"""

from __future__ import annotations

import itertools
import re
import string
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Final, NamedTuple, TypeAlias

from ahocorasick_rs import AhoCorasick

from workers.moderation.normalise import MASK, Normalised, normalise, readings, without_spaces

TERMS: Final = 100_000  # in all; building them takes about a second
TERM_CHARS: Final = 500  # of a line: as long as a comment
TERM_LETTERS: Final = 2  # letters and digits after folding: fewer would be in half of all comments
FILE_BYTES: Final = 64 << 20  # of a file: no terms list is longer

Spans: TypeAlias = Sequence[tuple[int, int]]  # (start, end) in the text of a reading

_STRETCHED: Final = re.compile(r"([^\W\d_])\1\1")


class TermsError(ValueError):
    """A list that can't be used; the message names file and line and says what to do."""


class Match(NamedTuple):
    """A term as its line says it, and where it was found: text[start:end] of the original."""

    term: str
    start: int
    end: int


def nothing(_: Normalised) -> Spans:
    """Cover no part of a reading."""
    return ()


class Terms:
    """A list of terms, ready to be searched for. Never changes; `load` a new one."""

    def __init__(self, lines: Iterable[str], source: str = "terms") -> None:
        """Read the lines; raises TermsError. `source` names them in the messages."""
        self._terms: dict[str, str] = {}  # pattern: term, the first of those that are the same
        self._stamps: dict[Path, tuple[int, int] | None] = {}
        self._add(lines, source)
        self._build()

    @classmethod
    def load(cls, files: list[Path]) -> Terms:
        """Return the terms of all files together; a file that is not there has none.

        Raises TermsError for a line that is no term and for a file that is no UTF-8 text, and
        OSError for one that can't be read.
        """
        terms = cls([])
        for file in files:
            # The stamp first: what is written while we read shows as a change.
            terms._stamps[file] = stamp = _stamp(file)
            if stamp is None:
                continue
            if stamp[1] > FILE_BYTES:
                raise TermsError(f"{file}: {stamp[1]} bytes; a list has at most {FILE_BYTES}")
            try:
                text = file.read_text("utf-8-sig")
            except UnicodeDecodeError as error:
                line = error.object.count(b"\n", 0, error.start) + 1
                raise TermsError(f"{file}:{line}: not UTF-8; save the file as UTF-8") from error
            except FileNotFoundError:  # gone since; the next look sees it
                continue
            terms._add(text.split("\n"), str(file))
        terms._build()
        return terms

    def changed(self, files: list[Path]) -> bool:
        """Return whether `files` differ from what `load` read, by name, time and size."""
        return self._stamps != {file: _stamp(file) for file in files}

    def __len__(self) -> int:
        return len(self._terms)

    def match(self, text: str) -> Match | None:
        """Return the first term found in the text, None when there is none. Never raises."""
        return self.search(readings(text))

    def search(
        self, found: Iterable[Normalised], covered: Callable[[Normalised], Spans] = nothing
    ) -> Match | None:
        """Return the first term in a text's readings that is not inside what `covered` returns."""
        if not self._terms:
            return None
        for reading in found:
            protected: Spans | None = None
            for term, start, end in self._matches(reading.text):
                if protected is None:  # asked only when something matched
                    protected = covered(reading)
                if not any(first <= start and end <= last for first, last in protected):
                    return Match(term, *reading.span(start, end))
        return None

    def cover(self, reading: Normalised) -> Spans:
        """Return the parts of a reading that the terms cover, whole words, as (start, end)."""
        text = reading.text
        spans = []
        for _, start, end in self._matches(text) if self._terms else ():
            after = text.find(" ", end)
            spans.append((text.rfind(" ", 0, start) + 1, len(text) if after < 0 else after))
        return spans

    def _add(self, lines: Iterable[str], source: str) -> None:
        for number, line in enumerate(lines, 1):
            term = line.strip()
            if not term or term.startswith("#"):
                continue
            try:
                pattern = _pattern(term)
            except ValueError as error:
                raise TermsError(f"{source}:{number}: {error}") from error
            if self._terms.setdefault(pattern, term) == term and len(self._terms) > TERMS:
                raise TermsError(f"{source}:{number}: more than {TERMS:,} terms; shorten the list")

    def _build(self) -> None:
        patterns = list(self._terms)
        self._names = list(self._terms.values())
        self._plain = AhoCorasick(patterns, store_patterns=False)
        squeezed = [_squeeze(pattern) for pattern in patterns]
        self._runs = [runs for _, runs in squeezed]
        self._squeezed = AhoCorasick([text for text, _ in squeezed], store_patterns=False)

    def _matches(self, text: str) -> Iterator[tuple[str, int, int]]:
        """Yield (term, start, end) of the matches in a reading's text, as it stands first."""
        padded = f" {text} "
        for finder in (self._find, self._find_stretched):
            for term, start, end in finder(padded):
                # Without the spaces that stand for boundaries, and without the padding.
                yield (
                    term,
                    start + (padded[start] == " ") - 1,
                    end - (padded[end - 1] == " ") - 1,
                )

    def _find(self, padded: str) -> Iterator[tuple[str, int, int]]:
        """Yield (term, start, end) in the padded reading."""
        if MASK in padded:
            # One letter at a time for all masks of the line: they are mostly one vowel.
            candidates = [padded.replace(MASK, letter) for letter in string.ascii_lowercase]
        else:
            candidates = [padded]
        for candidate in candidates:
            found = self._plain.find_matches_as_indexes(candidate, overlapping=True)
            for index, start, end in found:
                yield self._names[index], start, end

    def _find_stretched(self, padded: str) -> Iterator[tuple[str, int, int]]:
        """The same where letters are drawn out: three or more stand for any smaller number.

        Runs of equal characters are one character on both sides; then their lengths are compared,
        so that `fooooo` is `foo` and `fo`, and `foo` is not `fo`.
        """
        if not _STRETCHED.search(padded):
            return
        squeezed, runs = _squeeze(padded)
        for index, start, end in self._squeezed.find_matches_as_indexes(squeezed, overlapping=True):
            wanted = self._runs[index]
            if all(
                has == wants or (has > max(wants, 2) and char.isalpha())
                for has, wants, char in zip(
                    runs[start:end], wanted, squeezed[start:end], strict=True
                )
            ):
                place = sum(runs[:start])
                yield self._names[index], place, place + sum(runs[start:end])


def _pattern(term: str) -> str:
    """Return what is searched for; raises ValueError with what is wrong with the term."""
    if len(term) > TERM_CHARS:
        raise ValueError(f"a term of {len(term)} characters; at most {TERM_CHARS} are allowed")
    bare = term.strip("*")
    if not bare.strip():
        raise ValueError("only wildcards: this would match every comment; write a word")
    if "*" in bare:
        raise ValueError(
            f"{term!r}: a `*` stands only at the beginning or the end; write the word in full, "
            "masked letters are matched by themselves"
        )
    folded = normalise(bare).text
    if sum(char != " " for char in folded) < TERM_LETTERS:
        raise ValueError(
            f"{term!r} is shorter than {TERM_LETTERS} letters or digits; write a longer term"
        )
    before = "" if term.startswith("*") or without_spaces(folded[0]) else " "
    after = "" if term.endswith("*") or without_spaces(folded[-1]) else " "
    return f"{before}{folded}{after}"


def _squeeze(text: str) -> tuple[str, list[int]]:
    """Return the text with each run of one character as that character, and the runs' lengths."""
    runs = [(char, sum(1 for _ in run)) for char, run in itertools.groupby(text)]
    return "".join([char for char, _ in runs]), [length for _, length in runs]


def _stamp(file: Path) -> tuple[int, int] | None:
    """Return (modification time in ns, bytes), None for a file that is not there."""
    try:
        stat = file.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    return stat.st_mtime_ns, stat.st_size

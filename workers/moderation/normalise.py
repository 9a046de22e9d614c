"""Folds a line of chat to what a reader sees in it, so that one term matches its many spellings.

Comes in: any text. Goes out: one or a few *readings*, each lower-case words joined by single
spaces, with a map back into the text. The first reading takes the line as it stands:

- compatibility forms and accents go (NFKD), so do invisible code points and stacked marks;
- letters that look like Latin ones become them, whatever their script;
- everything that is neither letter nor digit separates words; scripts written without spaces are
  apart from those with.

Where the line looks written around something there are more: runs of single letters are joined
(`f.o.o`), digits and symbols inside words become letters (`f0o`; `1`, `!` and `|` once as i and
once as l), and a `*` or `#` inside a word becomes MASK, which stands for any one letter.

What no reading undoes: swapped, dropped and reversed letters, words split in the middle (`fo o`),
a lone letter before spelled ones (`a f o o` reads `afoo`), percent-encoding. Stretched letters
(`fooooo`) are for the matcher: see `workers.moderation.terms`.

A line of 40 plain ASCII characters costs 3 us, any other about 20.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Final, Literal

MASK: Final = "\x1a"  # any one letter; no control character survives folding

CACHE: Final = 20_000  # folded code points remembered: 2 MB; busy rooms use a few hundred

# Code points that show nothing and are not of category Cf.
_INVISIBLE: Final = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u2065\u3164\ufe00-\ufe0f\uffa0\ufff0-\ufff8"
    "\U000e0000-\U000e0fff]"
)
# Combining marks of no script; those of a script (vowels in Thai or Hindi) belong to its words.
_ACCENT: Final = re.compile(
    "[\u0300-\u036f\u0483-\u0489\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff\ufe20-\ufe2f]"
)

# Letters that look like Latin ones, after NFKD and casefold. Where the two cases of a letter look
# like different ones the lower case wins: it is what text decorators emit.
_LOOKALIKES: Final[dict[str, str]] = {
    char: latin
    for latin, chars in {
        "a": "\u0251\u03b1\u0430\u1d00\u13aa\ua4ee",
        "b": "\u0253\u0299\u03b2\u0432\u044c\u13f4\ua4d0",
        "c": "\xa2\u0188\u0441\u03f2\u1d04\u13df\ua4da",
        "d": "\u0111\u0256\u0257\u0501\u1d05\u13a0\u2202\ua4d3",
        "e": "\u0247\u025b\u03b5\u0435\u0454\u1d07\u13ac\u20ac\ua4f0",
        "f": "\u0192\ua730\ua4dd\u03dd",
        "g": "\u0261\u0260\u0262\u0581\u13c0\ua4d6",
        "h": "\u0127\u0266\u029c\u04bb\u043d\u0570\u13bb\ua4e7",
        "i": "\u0131\u0268\u026a\u03b9\u0456\u04cf\xa1\u13a5\ua4f2",
        "j": "\u0249\u0458\u03f3\u1d0a\u13ab\ua4d9",
        "k": "\u0199\u03ba\u043a\u1d0b\u13e6\ua4d7",
        "l": "\u0142\u019a\u029f\u13de\u2c61\ua4e1",
        "m": "\u043c\u1d0d\u13b7\ua4df",
        "n": "\u014b\u0273\u0274\u03b7\u043f\u0578\ua4e0",
        "o": "\xf8\u0275\u03bf\u03c3\u043e\u0585\u1d0f\ua4f3",
        "p": "\u01a5\u03c1\u0440\u1d18\u13e2\ua4d1",
        "q": "\u024b\u051b\u0566",
        "r": "\u024d\u0280\u0433\u13a1\ua4e3",
        "s": "\u0455\ua731\u0282\u13da\ua4e2",
        "t": "\u0167\u01ad\u03c4\u0442\u1d1b\u13a2\ua4d4",
        "u": "\u0289\u03c5\u057d\u1d1c\u028b\ua4f4",
        "v": "\u03bd\u0475\u1d20\u13d9\ua4e6",
        "w": "\u03c9\u0448\u0461\u051d\u1d21\u13b3\ua4ea",
        "x": "\u03c7\u0445\xd7\ua4eb",
        "y": "\u01b4\u03b3\u0443\u04af\u028f\u13a9\ua4ec",
        "z": "\u01b6\u0225\u03b6\u1d22\u13c3\ua4dc",
        "ae": "\xe6",
        "oe": "\u0153",
        "th": "\xfe",
    }.items()
    for char in chars
}
# Negative and squared letters have no decomposition: 26 each from these on.
_LETTER_SIGNS: Final = (0x1F150, 0x1F170)

_DIGIT_LETTERS: Final = str.maketrans("034578@$+*#", "oeastbast" + MASK * 2)
_AS_I: Final = {**_DIGIT_LETTERS, **str.maketrans("1!|", "iii")}
_AS_L: Final = {**_DIGIT_LETTERS, **str.maketrans("1!|", "lll")}

# A word with letters and something that may stand for one. `!` ends a sentence more often than a
# word, and `*` at an end is emphasis, so a word begins and ends with something else. The
# look-behind keeps a long word from being tried at each of its characters.
_DISGUISED: Final = re.compile(
    r"(?<![a-z0-9@$])(?=[0-9@$]*[a-z])(?=[a-z]*[0-9@$!|+*#])"
    r"[a-z0-9@$](?:[a-z0-9@$!|+*#]*[a-z0-9$+])?"
)
# Three single letters or more with the same one to three characters between each two.
_SPELLED: Final = re.compile(
    r"(?<![^\W_])[^\W_](?P<between>[\W_]{1,3})[^\W_](?:(?P=between)[^\W_])+(?![^\W_])"
)
# ASCII that may have a second reading; says yes too often rather than too seldom.
_SUSPECT: Final = re.compile(
    r"[a-z][0-9@$!|+*#]+[a-z0-9$+]|[0-9@$][a-z]|[a-z][0-9$+]"
    r"|(?<![a-z0-9])[a-z0-9]([^a-z0-9]{1,3})[a-z0-9]\1[a-z0-9](?![a-z0-9])"
)
_SEPARATORS: Final = {
    code: " " for code in range(128) if not chr(code).isalnum() and chr(code) != MASK
}
_ASCII_WORDS: Final = {
    code: chr(code).lower() if chr(code).isalnum() else " " for code in range(128)
}
_ASCII_FOLDED: Final = {  # what `fold` makes of ASCII
    code: chr(code).lower() if "!" <= chr(code) <= "~" else " " for code in range(128)
}


class Normalised:
    """One reading of a text: folded words joined by single spaces."""

    __slots__ = ("_source", "_spans", "text")

    def __init__(self, text: str, source: str, spans: list[int] | None = None) -> None:
        self.text = text
        self._source = source
        self._spans = spans

    @property
    def spans(self) -> list[int]:
        """For each character of `text`, the index in the original that it comes from; rising."""
        if self._spans is None:  # a plain ASCII line: made only when something matched
            self._spans = _words(*fold(self._source))[1]
        return self._spans

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Return text[start:end] (not empty) as (start, end) in the original."""
        return self.spans[start], self.spans[end - 1] + 1


def normalise(text: str) -> Normalised:
    """Return the first reading: the line as it stands. Never raises, whatever the text."""
    if text.isascii():
        return Normalised(" ".join(text.translate(_ASCII_WORDS).split()), text)
    words, spans = _words(*fold(text))
    return Normalised(words, text, spans)


def readings(text: str) -> list[Normalised]:
    """Return all readings, the one of `normalise` first; four at most. Never raises."""
    if text.isascii() and not _SUSPECT.search(text.translate(_ASCII_FOLDED)):
        return [normalise(text)]
    folded, spans = fold(text)
    words, places = _words(folded, spans)
    found = [Normalised(words, text, places)]
    joined, spans = _join(folded, spans)
    for letters in (_AS_I, _AS_L):
        words, places = _words(_decode(joined, letters), spans)
        if all(words != reading.text for reading in found):
            found.append(Normalised(words, text, places))
    return found


def fold(text: str) -> tuple[str, list[int]]:
    """Return the text with each code point folded, and where each of its characters comes from."""
    out: list[str] = []
    spans: list[int] = []
    last = " "
    for index, char in enumerate(text):
        for part in _folds[char]:
            if part > "~":
                if last < "\x7f" and unicodedata.category(part)[0] == "M":
                    continue  # a mark of another script on a Latin letter decorates
                if last != " " and without_spaces(part) != without_spaces(last):
                    out.append(" ")
                    spans.append(index)
            elif last > "~" and without_spaces(last):
                out.append(" ")
                spans.append(index)
            out.append(part)
            spans.append(index)
            last = part
    return "".join(out), spans


def without_spaces(char: str) -> bool:
    """Return whether a folded letter's script is written without spaces between words."""
    return (
        char >= "\u2e80"
        or "\u0e00" <= char <= "\u0eff"
        or "\u1000" <= char <= "\u109f"
        or "\u1100" <= char <= "\u11ff"
        or "\u1780" <= char <= "\u17ff"
    )


class _Folds(dict[str, str]):
    """What each code point folds to: nothing, a space, or letters, digits, marks, ASCII signs."""

    def __missing__(self, char: str) -> str:
        if len(self) >= CACHE:
            self.clear()
        self[char] = folded = _fold_char(char)
        return folded


_folds = _Folds()


def _fold_char(char: str) -> str:
    if _INVISIBLE.match(char) or unicodedata.category(char) == "Cf":
        return ""
    for first in _LETTER_SIGNS:
        if first <= ord(char) < first + 26:
            return chr(ord("a") + ord(char) - first)
    # Composed where marks are part of a letter, as in kana and Hangul.
    form: Literal["NFKC", "NFKD"] = "NFKC" if without_spaces(char) else "NFKD"
    folded = ""
    for part in unicodedata.normalize(form, unicodedata.normalize(form, char).casefold()):
        category = unicodedata.category(part)
        if _ACCENT.match(part):
            continue
        if category == "Nd":
            folded += str(unicodedata.decimal(part))
        elif part in _LOOKALIKES:
            folded += _LOOKALIKES[part]
        elif category[0] in "LNM" or "!" <= part <= "~":
            folded += part
        else:
            folded += " "
    return folded


def _join(text: str, spans: list[int]) -> tuple[str, list[int]]:
    """Join runs of single letters into words."""
    pieces: list[str] = []
    places: list[int] = []
    done = 0
    for run in _SPELLED.finditer(text):
        start, end = run.span()
        step = 1 + len(run["between"])
        pieces += (text[done:start], text[start:end:step])
        places += spans[done:start] + spans[start:end:step]
        done = end
    if not done:
        return text, spans
    return "".join(pieces) + text[done:], places + spans[done:]


def _decode(text: str, letters: dict[int, int]) -> str:
    """Read disguised words; the length stays, so the map of the text holds."""
    return _DISGUISED.sub(lambda word: word[0].translate(letters), text)


def _words(text: str, spans: list[int]) -> tuple[str, list[int]]:
    """Turn what separates words into single spaces."""
    spaced = text.translate(_SEPARATORS)
    if "  " not in spaced and spaced == spaced.strip(" "):
        return spaced, spans
    kept = [
        index
        for index, char in enumerate(spaced)
        if char != " " or (index > 0 and spaced[index - 1] != " ")
    ]
    if kept and spaced[kept[-1]] == " ":
        kept.pop()
    return "".join([spaced[index] for index in kept]), [spans[index] for index in kept]

"""The first stage: what people wrote down as unwanted.

Comes in: a comment. Goes out: the strongest of what its checks found: blocked terms (for everybody,
deleted), and for viewers and vips links, shouting, repetition within a comment, and the same text
again and again by one user. What each of those leads to is a setting; `allow` leaves it out. The
same text from many users is no spam but what a room is for, so nothing here counts over a room.
"""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Iterator
from typing import Final

from uproar.config import Moderation
from workers.moderation.lists import Lists
from workers.moderation.normalise import fold, normalise
from workers.moderation.pipeline import Judged, Spans, Verdict, strongest

WRITERS: Final = 50_000  # whose last texts are remembered, 0.5 KB each; the quietest give way
TEXTS: Final = 8  # of each
DUPLICATE_CHARS: Final = 8  # shorter ones (`LUL`) are laughter, not spam
REPEATED_CHARS: Final = 50
REPEATED_UNIT: Final = 5  # words; what is repeated is no longer

# What follows `http://` or `www.` is a link whatever it is, past `user@`; a bare name only with an
# ending people use, because `wait.what` is none.
_LINK: Final = re.compile(
    r"(?:https?://(?:[^\s/@]*@)?|www\.)(?P<host>[^\s/?#@:]+)"
    r"|(?<![\w@.-])(?P<bare>(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)+"
    r"(?:com|net|org|info|biz|edu|gov|io|co|me|tv|gg|ly|ru|cn|de|fr|uk|eu|us|to|cc|be|in|jp|kr|br"
    r"|xyz|top|site|online|shop|store|club|live|link|click|app|dev|fun|icu|vip|win|bet|stream)"
    r")(?![\w-])"
)


class Rules:
    """The stage. One owner: it remembers who wrote what."""

    name = "rules"

    def __init__(self, settings: Moderation, lists: Lists) -> None:
        self._settings = settings
        self._lists = lists
        self._roles = frozenset(settings.link_roles)
        self._domains = tuple(domain.lower().lstrip(".") for domain in settings.link_domains)
        self._written: OrderedDict[tuple[str, str], dict[str, list[int]]] = OrderedDict()

    def judge(self, comment: Judged) -> Verdict | None:
        """Return the strongest of what was found."""
        found = list(self._checks(comment))
        return strongest(found) if found else None

    def _checks(self, comment: Judged) -> Iterator[Verdict]:
        match = self._lists.match(comment)
        if match:
            spans = ((match.start, match.end),)
            yield Verdict("delete", f"term: {match.term}", "term", 1.0, spans)
        settings = self._settings
        if settings.links != "allow" and not comment.trusted and comment.role not in self._roles:
            links = self._links(comment.text)
            if links:
                yield Verdict(settings.links, f"link: {links[0][0][:100]}", "link", 1.0, links[1])
        if comment.trusted:
            return
        if settings.caps != "allow":
            share = caps(comment.text, settings.caps_letters)
            if share > settings.caps_share:
                yield Verdict(settings.caps, f"capitals: {share:.0%}", "caps", share)
        if settings.repetition != "allow" and len(comment.text) >= REPEATED_CHARS:
            times = repeated(comment.readings[0].text.split())
            if times >= settings.repetition_times:
                rule = f"repeated: {times} times in a row"
                yield Verdict(settings.repetition, rule, "repetition", 1.0)
        if settings.duplicates != "allow" and comment.user:
            times = self._times(comment)
            # Once is enough for a moderator to look; a deletion has to be done every time.
            again = times > settings.duplicates_times and settings.duplicates != "delete"
            if times >= settings.duplicates_times and not again:
                rule = f"duplicate: {times} times within {settings.duplicates_s:g} s"
                yield Verdict(settings.duplicates, rule, "duplicate", 1.0)

    def _links(self, text: str) -> tuple[list[str], Spans] | None:
        """Return hosts and places of the links to domains that are not allowed."""
        if "." not in text and text.isascii():
            return None
        folded, places = fold(text)
        hosts: list[str] = []
        spans: list[tuple[int, int]] = []
        for link in _LINK.finditer(folded):
            group = "host" if link["host"] else "bare"
            start, end = link.span(group)
            # As written, not as folded: a look-alike of an allowed domain is another domain.
            host = text[places[start] : places[end - 1] + 1].lower().rstrip(".")
            if not any(host == d or host.endswith(f".{d}") for d in self._domains):
                hosts.append(link[group])
                spans.append((places[link.start()], places[link.end() - 1] + 1))
        return (hosts, tuple(spans)) if hosts else None

    def _times(self, comment: Judged) -> int:
        """Return how often this user wrote this text within the time, this one counted."""
        text = normalise(comment.text).text or comment.text.strip()
        if len(text) < DUPLICATE_CHARS:
            return 1
        key = comment.stream, comment.user
        texts = self._written.setdefault(key, {})
        self._written.move_to_end(key)
        if len(self._written) > WRITERS:
            self._written.popitem(last=False)
        since = comment.ts - self._settings.duplicates_s * 1000
        times = [*[at for at in texts.pop(text, ()) if at > since][-99:], comment.ts]
        texts[text] = times
        while len(texts) > TEXTS:
            del texts[next(iter(texts))]
        return len(times)


def caps(text: str, letters: int) -> float:
    """Return the share of capitals among the letters that have a case; 0.0 for too few letters."""
    upper = sum(map(str.isupper, text))
    cased = upper + sum(map(str.islower, text))
    return upper / cased if cased >= letters else 0.0


def repeated(words: list[str]) -> int:
    """Return how often some words (1 to REPEATED_UNIT of them) stand in a row; linear."""
    most = 1 if words else 0
    for unit in range(1, REPEATED_UNIT + 1):
        same = 0
        for first, second in zip(words, words[unit:], strict=False):
            same = same + 1 if first == second else 0
            most = max(most, same // unit + 1)
    return most

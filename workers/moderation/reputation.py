"""The third stage: what somebody has been doing lately.

Comes in: comments that the stages before took away, and from the log what was done about whom. Goes
out: a strike for each such comment; at so many within a while a timeout, the next time a longer
one, then a shadow ban, then timeouts again (somebody in the shadow is to notice nothing).

Everything is keyed by the comment that caused it and dated by that comment's time, so a repeat
changes nothing, the order of reading does not matter, and a restarted worker decides alike. What
was said while a timeout already ran had been on its way, and costs nothing. A moderator's unban or
unshadow_ban wipes the slate.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

from uproar.events import Sanction
from workers.moderation.pipeline import Judged, Verdict

ACTOR: Final = "moderation"
CATEGORY: Final = "reputation"
PEOPLE: Final = 100_000  # remembered; 0.5 KB each; those quiet for longest give way
_ENDS: Final = frozenset({"unban", "unshadow_ban"})


class _Past:
    """One user in one stream. Times are unix ms."""

    __slots__ = ("forgiven", "sanctions", "strikes")

    def __init__(self) -> None:
        self.strikes: dict[bytes, int] = {}  # cause: when
        self.sanctions: dict[int, int] = {}  # when: until; a shadow ban is over at once
        self.forgiven = -1


class Ladder(NamedTuple):
    """How many strikes within what time lead where; times in seconds."""

    strikes: int
    strikes_s: float
    timeouts_s: Sequence[float]
    forget_s: float


class Reputation:
    """The stage. One owner."""

    name = "reputation"

    def __init__(self, ladder: Ladder) -> None:
        self._ladder = ladder
        self._people: OrderedDict[tuple[str, str], _Past] = OrderedDict()

    def judge(self, comment: Judged) -> Verdict | None:
        """Return a strike, a timeout or a shadow ban for a comment that was taken away."""
        found = comment.strongest
        if found is None or found[1].action != "delete" or not comment.user or comment.trusted:
            return None
        past, now = self._past(comment.stream, comment.user), comment.ts
        earlier = {at: until for at, until in past.sanctions.items() if at < now}
        if any(now < until for until in earlier.values()):
            return None
        past.strikes[comment.comment_id] = now
        ladder = self._ladder
        since = max(now - ladder.strikes_s * 1000, past.forgiven, *earlier, -1)
        count = sum(since < at <= now for at in past.strikes.values())
        if count < ladder.strikes:
            rule = f"strike {count} of {ladder.strikes}"
            return Verdict("strike", rule, CATEGORY, count / ladder.strikes)
        steps = sum(at > max(now - ladder.forget_s * 1000, past.forgiven) for at in earlier)
        rule = f"{ladder.strikes} strikes within {ladder.strikes_s:g} s"
        if steps == len(ladder.timeouts_s) or not ladder.timeouts_s:
            past.sanctions[now] = now
            return Verdict("shadow_ban", rule, CATEGORY, 1.0)
        seconds = ladder.timeouts_s[min(steps, len(ladder.timeouts_s) - 1)]
        until = past.sanctions[now] = now + int(seconds * 1000)
        return Verdict("timeout", rule, CATEGORY, 1.0, until=until)

    def learn(
        self, stream: str, sanction: Sanction, actor: str, ts: int, cause: tuple[bytes, int] | None
    ) -> None:
        """Take in a SANCTION of the log. `cause` is the comment behind it: its id and time.

        Without a cause (the store has none) the event stands for itself.
        """
        if sanction.action in _ENDS:
            past = self._past(stream, sanction.user_id)
            past.forgiven = max(past.forgiven, ts)
            past.sanctions = {at: end for at, end in past.sanctions.items() if at > ts}
        elif actor == ACTOR:
            comment_id, at = cause or (ts.to_bytes(16), ts)
            past = self._past(stream, sanction.user_id)
            if at <= past.forgiven:
                return
            if sanction.action == "strike":
                past.strikes[comment_id] = at
            elif sanction.action in ("timeout", "shadow_ban"):
                past.sanctions[at] = sanction.until or at

    def forget(self, streams: Collection[str]) -> None:
        """Know nothing of some streams' people."""
        for key in [key for key in self._people if key[0] in streams]:
            del self._people[key]

    def _past(self, stream: str, user: str) -> _Past:
        key = stream, user
        past = self._people.get(key)
        if past is None:
            past = self._people[key] = _Past()
            if len(self._people) > PEOPLE:
                self._people.popitem(last=False)
        else:
            self._people.move_to_end(key)
            self._forget(past)
        return past

    def _forget(self, past: _Past) -> None:
        """Drop what no decision will ask for, measured from the newest that is known."""
        newest = max([*past.strikes.values(), *past.sanctions, 0])
        strikes_from = newest - self._ladder.strikes_s * 1000
        sanctions_from = newest - self._ladder.forget_s * 1000
        past.strikes = {cause: at for cause, at in past.strikes.items() if at > strikes_from}
        past.sanctions = {
            at: until
            for at, until in past.sanctions.items()
            if at > sanctions_from or until > newest
        }

"""A room: who may write what in one stream now. Sans-I/O.

Comes in: what stands (`uproar.standing`) and the texts of the last minutes. Goes out: refusals, who
sees a comment, and its mask. Moderators, broadcasters and services pass the modes; bans and
timeouts reach everybody but broadcasters and services.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection
from hashlib import blake2b
from typing import Final, NamedTuple

from uproar.config import Sampling as SamplingSettings
from uproar.emotes import emotes_only
from uproar.events import MODERATING_ROLES, SOVEREIGN_ROLES, Visibility
from uproar.ipc import Draft, Submission, Traits
from uproar.standing import Standing
from workers.sampling import Sampler

UNIQUE_MS: Final = 600_000
UNIQUE_TEXTS: Final = 50_000  # of one stream; the oldest give way


class Refusal(NamedTuple):
    """Why a submission does not become a record."""

    code: str
    message: str
    retry_after_ms: int | None = None


class Room:
    """One stream as ingest sees it."""

    def __init__(self, standing: Standing, settings: SamplingSettings, key: bytes) -> None:
        self.standing = standing
        self.sampler = Sampler(settings, standing.ratio, key)
        self.resolving: set[bytes] = set()  # held comments whose decision is on its way
        self._texts: OrderedDict[bytes, int] = OrderedDict()

    def refuses(
        self, submission: Submission, draft: Draft, last: int, now: int, emotes: Collection[str]
    ) -> Refusal | None:
        """Return why a comment may not be written now; `last` is the author's newest one's time."""
        standing, user = self.standing, submission.actor
        if standing.ended:
            return Refusal("frozen", "this stream has ended")
        reached = draft.user.role not in SOVEREIGN_ROLES
        if reached and user in standing.bans:
            return Refusal("banned", "you are banned from this stream")
        until = standing.timeout_until(user, now) if reached else None
        if until is not None:
            wait = until - now
            return Refusal("timed_out", f"you may write again in {-(-wait // 1000)} s", wait)
        if submission.role in MODERATING_ROLES:
            return None
        mode = standing.mode
        if mode.get("frozen"):
            return Refusal("frozen", "nobody may write in this stream now")
        slow_ms = mode.get("slow_s", 0) * 1000
        if slow_ms and last and now - last < slow_ms:
            return Refusal("slow_mode", f"slow mode: {slow_ms // 1000} s", last + slow_ms - now)
        refusal = self._of_traits(submission.traits or Traits(), now)
        if refusal:
            return refusal
        if mode.get("emote_only") and not emotes_only(draft.text, emotes):
            return Refusal("not_allowed", "this stream takes emotes and emoji only")
        least = mode.get("min_chars", 0)
        if len(draft.text.strip()) < least:
            return Refusal("not_allowed", f"a comment has at least {least} characters here")
        if mode.get("unique") and self._repeats(draft.text, now):
            return Refusal("duplicate", "somebody has just written the same")
        return None

    def _of_traits(self, traits: Traits, now: int) -> Refusal | None:
        mode = self.standing.mode
        followers = mode.get("followers_only", False)
        if followers is not False:
            minutes = 0 if followers is True else followers
            since = traits.follows_since
            if since is None:
                return Refusal("not_allowed", "only followers may write in this stream now")
            wait = since * 1000 + minutes * 60_000 - now
            if wait > 0:
                return Refusal("not_allowed", f"you follow for less than {minutes} min", wait)
        if mode.get("subscribers_only") and not traits.subscriber:
            return Refusal("not_allowed", "only subscribers may write in this stream now")
        age_s = mode.get("min_account_age_s", 0)
        if age_s:
            made = traits.created_at
            if made is None or made * 1000 + age_s * 1000 > now:
                return Refusal("not_allowed", f"accounts younger than {age_s} s may not write here")
        return None

    def visibility(self, submission: Submission, *, flagged: bool) -> Visibility:
        """Return who sees a comment that is admitted."""
        hold = self.standing.mode.get("hold", False)
        # First, so that a shadow-banned author is told `held` where anyone else would be.
        if submission.role not in MODERATING_ROLES and (
            hold is True or (hold == "flagged" and flagged)
        ):
            return Visibility.HELD
        if submission.actor in self.standing.shadows:
            return Visibility.SHADOW
        return Visibility.ALL

    def wrote(self, text: str, ts: int) -> None:
        """Remember a text that stands in the log, while unique chat is on."""
        if self.standing.mode.get("unique"):
            digest = _digest(text)
            self._texts.pop(digest, None)
            self._texts[digest] = ts
            while len(self._texts) > UNIQUE_TEXTS or (
                next(iter(self._texts.values())) < ts - UNIQUE_MS
            ):
                self._texts.popitem(last=False)

    def _repeats(self, text: str, now: int) -> bool:
        at = self._texts.get(_digest(text))
        return at is not None and now - at <= UNIQUE_MS


def _digest(text: str) -> bytes:
    """The same for texts that differ in case and spacing only."""
    return blake2b(" ".join(text.casefold().split()).encode(), digest_size=12).digest()

"""The stages as the settings want them, with the lists and the past that they decide by. Sans-I/O.

The worker, `uproar moderate`, the benchmark, and ingest in streams that hold what is flagged all
judge through this.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from uproar import ids
from uproar.config import Moderation
from uproar.events import Comment, Event
from workers.moderation.linear import Linear, LinearModel
from workers.moderation.lists import Lists
from workers.moderation.pipeline import Decision, Judged, Pipeline, Stage
from workers.moderation.reputation import Ladder, Reputation
from workers.moderation.rules import Rules

NONCE: Final = "moderation:"


class Moderator:
    """Lists, past and pipeline of one process. One owner."""

    def __init__(self, settings: Moderation) -> None:
        """Load what the stages need; raises linear.ModelError."""
        self.lists = Lists()
        self.reputation = Reputation(
            Ladder(settings.strikes, settings.strikes_s, settings.timeouts_s, settings.forget_s)
        )
        makers: dict[str, Callable[[], Stage]] = {
            "rules": lambda: Rules(settings, self.lists),
            "linear": lambda: Linear(
                LinearModel.load(), flag_at=settings.flag_at, delete_at=settings.delete_at
            ),
            "reputation": lambda: self.reputation,
        }
        self.pipeline = Pipeline([makers[name]() for name in settings.stages])

    def decide(self, stream: str, comment: Comment, ts: int, *, vouched: bool = False) -> Decision:
        """Return the decision on a published comment; `ts` (unix ms) is its record's.

        What a service wrote in somebody's name (`vouched`: an import, a replay) is judged by its
        text alone: it earns that somebody no strike.
        """
        return self.pipeline.decide(
            Judged(
                comment.text,
                stream=stream,
                user="" if vouched else comment.user.id,
                role=comment.user.role,
                comment_id=comment.id,
                ts=ts,
                protected=self.lists.covered,
            )
        )

    def decide_text(self, text: str, *, stream: str = "", role: str = "viewer") -> Decision:
        """Return the decision on a text of somebody without a past."""
        return self.pipeline.decide(
            Judged(text, stream=stream, role=role, protected=self.lists.covered)
        )

    def learn(self, stream: str, event: Event, nonce: str = "") -> None:
        """Take in a TERMS or SANCTION event; others say nothing. Raises terms.TermsError.

        `nonce` is the record's, where it is known: it names the comment that caused a sanction.
        """
        if event.type == "TERMS":
            self.lists.set(stream, event.data, event.ts)
        elif event.type == "SANCTION":
            self.reputation.learn(stream, event.data, event.actor, event.ts, cause_of(nonce))


def nonce_of(comment_id: bytes, act: str) -> str:
    """Return the nonce of what is done because of a comment: the same whenever it is done."""
    return f"{NONCE}{ids.to_text(comment_id)}:{act}"


def cause_of(nonce: str) -> tuple[bytes, int] | None:
    """Return the comment's id and time (unix ms) behind a nonce, None when it names none.

    In the log a nonce has what ingest put before it: it begins with `s:` for a service.
    """
    _, _, rest = nonce.partition(NONCE)
    try:
        comment_id = ids.from_text(rest.partition(":")[0])
    except ValueError:
        return None
    return comment_id, ids.split(comment_id)[0]

"""The stages in their order, and what becomes of a comment when all have judged it. Sans-I/O.

Comes in: a comment. Goes out: a decision. A stage is anything with a name and `judge`; each sees
what those before it found, and the strongest action wins. So a stage is replaced by another of the
same shape, and `moderation.stages` leaves out those that are not wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Final, NamedTuple, Protocol, TypeAlias

from uproar.events import MODERATING_ROLES
from workers.moderation.normalise import Normalised, readings

# What a verdict may ask for, the weakest first. A `strike` goes with a deletion and is never a
# decision by itself. `hold` is for who asks before publication; for the worker, which comes after
# it, it is as `flag`.
ACTIONS: Final = ("allow", "flag", "strike", "hold", "delete", "timeout", "shadow_ban")
_STRENGTH: Final = {action: strength for strength, action in enumerate(ACTIONS)}
SANCTIONS: Final = frozenset({"timeout", "shadow_ban"})

Spans: TypeAlias = tuple[tuple[int, int], ...]
Protected: TypeAlias = Callable[[str, Normalised], Sequence[tuple[int, int]]]


class Verdict(NamedTuple):
    """What one stage found.

    `rule` says what matched, `category` of which kind it is, `score` (0…1) how sure that is;
    `spans` are (start, end) in code points of the comment's text. `until` (unix ms) ends a timeout.
    """

    action: str
    rule: str = ""
    category: str = ""
    score: float = 0.0
    spans: Spans = ()
    until: int | None = None


def strongest(verdicts: Sequence[Verdict]) -> Verdict:
    """Return the verdict with the strongest action; of equals the surest, then the first."""
    return max(verdicts, key=lambda verdict: (_STRENGTH[verdict.action], verdict.score))


class Judged:
    """A comment before the stages. An empty `user` is somebody without a past.

    `protected(stream, reading)` says which parts of a reading the stream's allowed terms cover.
    """

    def __init__(
        self, text: str, *, stream: str = "", user: str = "", role: str = "viewer",
        comment_id: bytes = b"", ts: int = 0, protected: Protected | None = None,
    ) -> None:  # fmt: skip
        self.text = text
        self.stream = stream
        self.user = user
        self.role = role
        self.comment_id = comment_id
        self.ts = ts  # unix ms
        self.verdicts: list[tuple[str, Verdict]] = []
        self._protected = protected

    @property
    def trusted(self) -> bool:
        """Whether the author's role exempts from all but blocked terms."""
        return self.role in MODERATING_ROLES

    @cached_property
    def readings(self) -> list[Normalised]:
        """What a reader may see in the text, made once for all stages."""
        return readings(self.text)

    def covered(self, reading: Normalised) -> Sequence[tuple[int, int]]:
        """Return the protected parts of a reading, as (start, end) in it."""
        return self._protected(self.stream, reading) if self._protected else ()

    @property
    def strongest(self) -> tuple[str, Verdict] | None:
        """(stage, verdict) of the strongest action so far."""
        if not self.verdicts:
            return None
        best = strongest([verdict for _, verdict in self.verdicts])
        return next(found for found in self.verdicts if found[1] is best)


class Decision(NamedTuple):
    """What becomes of a comment: the strongest verdict, of which stage, and all of them."""

    action: str
    stage: str = ""
    rule: str = ""
    category: str = ""
    score: float = 0.0
    spans: Spans = ()
    verdicts: tuple[tuple[str, Verdict], ...] = ()

    @property
    def removal(self) -> Verdict | None:
        """The verdict that takes the comment away, None where it may stay."""
        return next((found for _, found in self.verdicts if found.action == "delete"), None)

    @property
    def sanction(self) -> Verdict | None:
        """The verdict on the author, None without one."""
        return next((found for _, found in self.verdicts if found.action in SANCTIONS), None)

    @property
    def strike(self) -> Verdict | None:
        """The verdict that counts this comment against its author; a sanction counts it too."""
        return next((found for _, found in self.verdicts if found.action == "strike"), None)

    @property
    def categories(self) -> dict[str, float]:
        """The highest score of every category that a stage looked for."""
        scores: dict[str, float] = {}
        for _, found in self.verdicts:
            if found.category:
                scores[found.category] = max(found.score, scores.get(found.category, 0.0))
        return scores


class Stage(Protocol):
    """One way of judging a comment. Called once for each comment, in the order of the log."""

    name: str

    def judge(self, comment: Judged) -> Verdict | None:
        """Return what was found, None for nothing. Never raises, whatever the text."""


class Pipeline:
    """Stages in their order."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = tuple(stages)

    def decide(self, comment: Judged) -> Decision:
        """Return the decision on a comment."""
        for stage in self.stages:
            verdict = stage.judge(comment)
            if verdict is not None:
                comment.verdicts.append((stage.name, verdict))
        strongest = comment.strongest
        if strongest is None:
            return Decision("allow")
        stage_name, verdict = strongest
        if verdict.action == "allow":
            return Decision("allow", verdicts=tuple(comment.verdicts))
        return Decision(verdict.action, stage_name, *verdict[1:5], tuple(comment.verdicts))

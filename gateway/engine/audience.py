"""An audience of the reference engine: which bytes of a message are for which member. Sans-I/O.

Comes in: a payload and who may take it. Goes out: frames, each with those it is for. Of an audience
with a window the members are on it or wait: who is on it has got every compressed message since a
keyframe, and nothing else compressed; who waits gets messages that refer to nothing, and hops on
at the next keyframe. What is not worth compressing goes to all as it is, beside the window.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Generic, NamedTuple, Protocol, TypeVar

from gateway.engine import HURRY_MEMBERS, HURRY_S, HURRY_SHARE, KEYFRAME_S, Form
from uproar import deflate
from uproar.frames import Opcode, encode

FRAMINGS: Final = {"text": Opcode.TEXT, "binary": Opcode.BINARY, "raw": None}


class Member(Protocol):
    """What an audience knows of a connection."""

    # The audience whose window it is on: one at most, as its inflater remembers one sender.
    window: Audience[Any] | None


M = TypeVar("M", bound=Member)


class Message(NamedTuple):
    """The bytes of one message in an audience's form."""

    frame: bytes
    compressed: bool
    window: bool = False  # who gets it is on the window from here on


class Audience(Generic[M]):
    """Members, and how they are sent to."""

    def __init__(self, number: int, form: Form) -> None:
        """Raises ValueError for a form that there is not."""
        if form.framing not in FRAMINGS or form.compression not in ("none", "each", "window"):
            raise ValueError(f"{form} is no form of an audience")
        if form.framing == "raw" and form.compression != "none":
            raise ValueError("what goes out without frames can't be compressed")
        self.number = number
        self.form = form
        self.members: dict[M, None] = {}  # in the order they joined
        self._window = deflate.Window()
        self._keyframe_at = 0.0
        self.sent = 0  # bytes that members took

    def join(self, member: M) -> None:
        """Take a member in; with a window it waits."""
        self.members[member] = None

    def leave(self, member: M) -> None:
        """Let a member go, off the window too."""
        self.members.pop(member, None)
        if member.window is self:
            member.window = None
        if not self.members:
            self._window = deflate.Window()  # a used one holds 270 KB

    def alone(self, payload: bytes) -> Message:
        """Return a message that refers to no other."""
        if self.form.compression != "none" and len(payload) >= deflate.MIN_BYTES:
            small = deflate.compress(payload, deflate.level_for(len(self.members)))
            if len(small) < len(payload):
                return self._message(small, compressed=True)
        return self._message(payload)

    def messages(
        self, payload: bytes, takers: Sequence[M], now: float
    ) -> list[tuple[Message, Sequence[M]]]:
        """Return the messages for `takers`, the members that can be sent to at `now`.

        Everybody else drops off the window where it goes on.
        """
        if self.form.compression != "window":
            return [(self.alone(payload), takers)]
        if len(payload) < deflate.WINDOW_MIN_BYTES:
            return [(self._message(payload), takers)]
        on = [member for member in takers if member.window is self]
        waiting = [member for member in takers if member.window is not self]
        for member in self.members:
            if member.window is self:
                member.window = None  # whoever is given this message is on it again
        if not takers:
            return []
        keyframe = bool(waiting) and self._due(now, on=len(on), waiting=len(waiting))
        if keyframe:
            self._keyframe_at = now
        level = deflate.level_for(len(self.members))
        small = self._window.message(payload, level, keyframe=keyframe)
        shared = self._message(small, compressed=True, window=True)
        if keyframe:
            return [(shared, takers)]
        return [(shared, on), *([(self.alone(payload), waiting)] if waiting else ())]

    def _due(self, now: float, *, on: int, waiting: int) -> bool:
        """Whether a keyframe is worth what it costs those who are on the window."""
        age = now - self._keyframe_at
        many = waiting >= max(HURRY_MEMBERS, len(self.members) / HURRY_SHARE)
        return not on or age >= KEYFRAME_S or (many and age >= HURRY_S)

    def _message(
        self, payload: bytes, compressed: bool = False, *, window: bool = False
    ) -> Message:
        opcode = FRAMINGS[self.form.framing]
        frame = payload if opcode is None else encode(opcode, payload, compressed=compressed)
        return Message(frame, compressed, window)

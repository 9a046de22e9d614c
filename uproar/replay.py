"""Plays a chat log into a stream: every comment acknowledged, or told why not.

Comes in: JSON lines {t_ms, user, role, text}. Goes out: the same comments over the native WebSocket
under a service token that names their authors. A comment keeps its nonce however often it is sent,
so a cut or a busy server costs time and no comment.
"""

from __future__ import annotations

import math
import random
import secrets
import sys
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from tqdm import tqdm

from uproar import wire
from uproar.client import Disconnected, State, Viewer, stream_url
from uproar.wire import Command, Event

WINDOW: Final = 256  # comments sent and not yet answered
BATCH: Final = 50  # commands in one message; the server takes 100
GIVE_UP_S: Final = 60.0  # without any answer while one is due
SEND_AGAIN_S: Final = 10.0  # without an answer to this comment; twice ingest's own deadline

_ROLES: Final = frozenset({"vip", "moderator", "broadcaster"})


class Line(msgspec.Struct):
    """One line of a chat log; `t_ms` is the time since the stream began."""

    t_ms: int
    user: str
    text: str
    role: str = ""


class Outcome(NamedTuple):
    """What became of the comments; `rejected` counts by code, `reasons` has a message of each."""

    sent: int
    acknowledged: int
    rejected: Counter[str]
    reasons: dict[str, str]
    unanswered: int
    seconds: float


_decode = msgspec.json.Decoder(Line).decode


def read(lines: Iterable[bytes]) -> tuple[list[Line], list[str]]:
    """Return the lines in time order, and a sentence for each that can't be played."""
    good: list[Line] = []
    bad: list[str] = []
    for number, raw in enumerate(lines, 1):
        if not raw.strip():
            continue
        try:
            line = _decode(raw)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            bad.append(f"line {number} is skipped: {error}")
            continue
        if not 1 <= len(line.user) <= 64:
            bad.append(f"line {number} is skipped: `user` must have 1 to 64 characters")
        else:
            # IRC logs keep `/me waves` as a CTCP frame; viewers only ever saw what is inside.
            line.text = line.text.removeprefix("\x01ACTION ").rstrip("\x01")
            good.append(line)
    good.sort(key=lambda line: line.t_ms)  # stable: equal times stay in file order
    return good, bad


def command(line: Line, nonce: str) -> Command:
    """Return the COMMENT that a line stands for; `ts` is left to the server."""
    role = line.role if line.role in _ROLES else "viewer"
    return wire.comment(line.text, nonce, user={"id": line.user, "name": line.user, "role": role})


class Sender:
    """Sends comments through a window and follows their answers.

    `take` counts an answer; `due` gives what is to be sent (again) now. Without sockets: the caller
    moves the commands and the events. Times are seconds of one monotonic clock.
    """

    def __init__(self, window: int = WINDOW) -> None:
        self.acknowledged = 0
        self.rejected: Counter[str] = Counter()
        self.reasons: dict[str, str] = {}  # the first message of each code
        self._window = window
        self._open: dict[str, Command] = {}  # sent or to be sent, in order, unanswered
        self._again_at: dict[str, float] = {}

    @property
    def unanswered(self) -> int:
        """Comments handed over and without a final answer."""
        return len(self._open)

    @property
    def full(self) -> bool:
        """Whether the window takes no more now."""
        return len(self._open) >= self._window

    @property
    def next_due(self) -> float:
        """When `due` will have something again."""
        return min(self._again_at.values(), default=math.inf)

    def add(self, comment: Command, now: float) -> None:
        """Take a comment; it is due at once."""
        self._open[comment["nonce"]] = comment
        self._again_at[comment["nonce"]] = now

    def due(self, now: float) -> Iterator[list[Command]]:
        """Yield batches of comments to send now, in the order they were added."""
        ready = [nonce for nonce, at in self._again_at.items() if at <= now]
        for start in range(0, len(ready), BATCH):
            batch = ready[start : start + BATCH]
            for nonce in batch:
                self._again_at[nonce] = now + SEND_AGAIN_S
            yield [self._open[nonce] for nonce in batch]

    def restart(self, now: float) -> None:
        """Make all that is unanswered due: the connection is a new one."""
        for nonce in self._again_at:
            self._again_at[nonce] = now

    def take(self, event: Event, now: float) -> bool:
        """Count an ACK or REJECTED; return whether it finished a comment."""
        nonce = event.get("nonce")
        if nonce not in self._open:
            return False
        if event["type"] == "ACK":
            self.acknowledged += 1
        elif event["type"] != "REJECTED":
            return False
        elif event["code"] == "unavailable":
            # Jitter: the whole window was refused at one moment.
            wait = event.get("retry_after_ms", 500) / 1000
            self._again_at[nonce] = now + wait * random.uniform(1.0, 1.3)
            return False
        else:
            self.rejected[event["code"]] += 1
            self.reasons.setdefault(event["code"], event["message"])
        del self._open[nonce], self._again_at[nonce]
        return True


def play(lines: list[Line], speed: float, viewer: Viewer, progress: tqdm) -> Outcome:
    """Play lines through a connected viewer that reconnects; `speed` 0: as fast as acknowledged.

    Raises Disconnected after a terminal close code. Ends early when nothing is answered for 60 s.
    """
    sender = Sender()
    waiting = deque(lines)
    run = secrets.token_hex(4)
    start = answered_at = time.monotonic()
    first_ms = lines[0].t_ms if lines else 0
    sent = 0
    while waiting or sender.unanswered:
        now = time.monotonic()
        next_at = now
        while waiting and not sender.full:
            if speed > 0:
                next_at = start + (waiting[0].t_ms - first_ms) / 1000 / speed
                if next_at > now:
                    break
            sent += 1
            sender.add(command(waiting.popleft(), f"{run}-{sent}"), now)
        if viewer.core.state is State.OPEN and viewer.core.session is not None:
            for batch in sender.due(now):
                try:
                    viewer.send(batch)
                except Disconnected:
                    break  # healed by recv; what was not answered is sent again then
        pause = sender.next_due - now
        if next_at > now:
            pause = min(pause, next_at - now)
        for event in viewer.recv(min(max(pause, 0.0), 0.5)):
            now = time.monotonic()
            if event["type"] == "WELCOME":
                sender.restart(now)
            elif event["type"] in ("ACK", "REJECTED"):
                answered_at = now
                if sender.take(event, now):
                    progress.update()
        if not sender.unanswered:
            answered_at = time.monotonic()
        elif time.monotonic() - answered_at > GIVE_UP_S:
            break
    return Outcome(
        sent,
        sender.acknowledged,
        sender.rejected,
        sender.reasons,
        sender.unanswered + len(waiting),
        time.monotonic() - start,
    )


def replay(file: Path, stream: str, speed: float, url: str, token: str) -> int:
    """Play a file; print what became of it. Returns 0 when all was acknowledged, else 1.

    `url` is that of the server, as http(s) or ws(s). `speed` is a factor of the log's own time; 0
    sends as fast as comments are acknowledged.
    """
    try:
        with file.open("rb") as source:
            lines, bad = read(source)
    except OSError as error:
        print(f"{file}: can't be read: {error.strerror}", file=sys.stderr)
        return 1
    for sentence in bad:
        print(f"{file}: {sentence}", file=sys.stderr)
    try:
        viewer = Viewer(
            stream_url(url, stream),
            codec="msgpack",
            token=token,
            reconnect=True,
            backlog=0,
            rate=5,  # the fewest comments back: only the answers matter here
            backoff_max_s=2.0,
        )
        viewer.connect(30.0)
    except (OSError, ValueError) as error:
        print(f"{url}: nothing was played: {error}", file=sys.stderr)
        return 1
    with tqdm(total=len(lines), unit=" comments", disable=None) as progress:
        try:
            outcome = play(lines, speed, viewer, progress)
        except Disconnected as error:
            print(f"{url}: the replay was ended: {error}", file=sys.stderr)
            return 1
        finally:
            viewer.close()
    for code, reason in outcome.reasons.items():
        print(f"{stream}: rejected as {code}: {reason}", file=sys.stderr)
    print(report(outcome, len(bad)))
    return 0 if outcome.acknowledged == len(lines) else 1


def report(outcome: Outcome, skipped: int) -> str:
    """Return the summary as one line a reader and a script can use."""
    rejected = ", ".join(f"{code} {count}" for code, count in sorted(outcome.rejected.items()))
    parts = [
        f"sent {outcome.sent}",
        f"acknowledged {outcome.acknowledged}",
        f"rejected {outcome.rejected.total()}" + (f" ({rejected})" if rejected else ""),
    ]
    if outcome.unanswered:
        parts.append(f"unanswered {outcome.unanswered}")
    if skipped:
        parts.append(f"skipped {skipped}")
    return ", ".join(parts) + f", {outcome.seconds:.1f} s"

"""How do comments come in? At an even pace whatever the server does, and every answer is counted.

An open loop: what is due is sent, also when answers are late, so a slow server is not spared. When
the generator itself is late the comments go out behind time, stamped as they go, and `late_s` says
by how much at most.
"""

from __future__ import annotations

import secrets
import time
from array import array
from collections import Counter
from typing import Final

from tqdm import tqdm

from uproar import chatgen, wire
from uproar.events import ROLES
from uproar.swarm import Member, Swarm, stamp
from uproar.wire import Command, Event

AUTHORS: Final = 600
LINES: Final = 5000  # of generated chat; then they come again
SEED: Final = 11
MESSAGE: Final = 100  # commands in one message; the server takes no more


class Pace:
    """`total` comments at `rate` a second; `elapsed` are seconds since the first."""

    def __init__(self, rate: float, total: int) -> None:
        self.rate = rate
        self.total = total

    def due(self, elapsed: float) -> int:
        """Return how many should have been sent by now."""
        return min(self.total, int(elapsed * self.rate) + 1)

    def late_s(self, sent: int, elapsed: float) -> float:
        """Return by how much the next one is behind time."""
        return max(0.0, elapsed - sent / self.rate)

    def next_s(self, sent: int, elapsed: float) -> float:
        """Return the seconds until the next one is due."""
        return max(0.0, sent / self.rate - elapsed)


class Load:
    """Sends `rate` comments a second for `seconds` through several service members.

    A comment is a message of its own unless so many are due at once that they are put together.
    `latencies` are seconds from sending to ACK, `acked` the ids acknowledged. A REJECTED is final:
    nothing is sent twice.
    """

    def __init__(
        self, swarm: Swarm, url: str, token: str, *, rate: float, seconds: float, senders: int
    ) -> None:
        self.pace = Pace(rate, int(rate * seconds))
        self.sent = 0
        self.late_s = 0.0
        self.latencies = array("d")
        self.acked: set[str] = set()
        self.shown = 0  # of these, to all: the others were sampled out or held
        self.newest = -1  # the largest offset acknowledged
        self.repeated_acks = 0
        self.rejected: Counter[str] = Counter()
        self.last_answer = 0.0  # monotonic
        self._began = 0.0
        self._sent_at: dict[str, float] = {}
        self._turn = 0
        self._own = secrets.token_hex(2)  # or a second load of a stream would repeat the first
        self._lines = [
            (line["text"], _author(line["user"], line["role"]))
            for line in chatgen.generate(seed=SEED, count=LINES, users=AUTHORS)
        ]
        # A backend that writes need not read the room: of that it gets 5 comments a second.
        self.senders: list[Member] = [
            swarm.add(url, codec="msgpack", token=token, backlog=0, rate="5", on_event=self._take)
            for _ in range(senders)
        ]

    @property
    def ready(self) -> bool:
        """Whether all senders are connected."""
        return all(sender.live for sender in self.senders)

    @property
    def unanswered(self) -> int:
        """Comments sent and without ACK or REJECTED."""
        return len(self._sent_at)

    @property
    def finished(self) -> bool:
        """Whether everything has been sent and answered."""
        return self.sent == self.pace.total and not self._sent_at

    def begin(self) -> None:
        """Start the clock."""
        self._began = time.monotonic()

    def send_due(self) -> float:
        """Send what is due; return the seconds until the next comment is."""
        elapsed = time.monotonic() - self._began
        due = self.pace.due(elapsed) - self.sent
        if due > 0:
            self.late_s = max(self.late_s, self.pace.late_s(self.sent, elapsed))
        while due > 0:
            # One message a sender and pass: small ones while the pace is kept.
            count = min(due, MESSAGE, max(1, due // len(self.senders)))
            sender = self.senders[self._turn % len(self.senders)]
            self._turn += 1
            commands = [self._command(self.sent + number) for number in range(count)]
            try:
                sender.send(commands if count > 1 else commands[0])
            except BufferError:
                for command in commands:
                    del self._sent_at[command["nonce"]]
                return 0.01  # the server has stopped reading: the pace is behind from here on
            self.sent += count
            due -= count
        return self.pace.next_s(self.sent, time.monotonic() - self._began)

    def _command(self, number: int) -> Command:
        nonce = f"{self._own}-{number:x}"
        self._sent_at[nonce] = time.monotonic()
        text, author = self._lines[number % LINES]
        return wire.comment(stamp(text), nonce, user=author)

    def _take(self, member: Member, event: Event, now: float) -> None:
        kind = event["type"]
        if kind == "ACK":
            sent = self._sent_at.pop(event["nonce"], None)
            if sent is None:
                self.repeated_acks += 1
                return
            self.latencies.append(now - sent)
            self.acked.add(event["id"])
            self.shown += event["shown"] == "all"
            self.newest = max(self.newest, event["offset"])
            self.last_answer = now
        elif kind == "REJECTED" and self._sent_at.pop(event["nonce"], None) is not None:
            self.rejected[event["code"]] += 1
            self.last_answer = now


def _author(user: str, role: str) -> dict[str, str]:
    """An author as a service names one; a chat log also has roles that the system has not."""
    named = {"id": user, "name": user}
    return {**named, "role": role} if role in ROLES else named


def run(swarm: Swarm, load: Load, label: str, drain_s: float) -> float:
    """Send everything and wait for every answer; return seconds from first sending to last answer.

    Raises RuntimeError when sending takes three times as long as it should, or when answers are
    missing `drain_s` after it.
    """
    load.begin()
    began = time.monotonic()
    shown = 0
    total = load.pace.total
    with tqdm(total=total, desc=label, unit="", disable=None, leave=False) as bar:
        give_up = began + 3 * total / load.pace.rate + drain_s
        while load.sent < total:
            if time.monotonic() > give_up:
                raise RuntimeError(f"the server took only {load.sent} of {total} comments")
            swarm.step(load.send_due())
            if load.sent - shown >= load.pace.rate / 4:
                bar.update(load.sent - shown)
                shown = load.sent
        bar.update(total - shown)
        if not swarm.run(lambda: load.finished, drain_s):
            raise RuntimeError(f"{load.unanswered} comments had no answer after {drain_s:g} s")
    return load.last_answer - began

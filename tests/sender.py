"""A service that sends comments at a rate through a swarm, and never gives one up."""

from __future__ import annotations

import time

from uproar.swarm import Member, Swarm


class Sender:
    """Sends at a rate through one member of the swarm; keeps what is not acknowledged."""

    def __init__(self, swarm: Swarm, url: str, token: str, rate: float) -> None:
        self.rate = rate  # comments a second
        self.acknowledged: dict[str, tuple[str, int]] = {}  # nonce → (id, offset)
        self.shown: dict[int, str] = {}  # offset → what the ACK said
        self.refused: dict[str, int] = {}
        self._open: dict[str, dict] = {}
        self._again: list[tuple[float, str]] = []
        self._count = 0
        self._due = 0.0
        self.member = swarm.add(
            url, codec="msgpack", token=token, backlog=0, backoff_s=0.05, on_event=self._on_event
        )

    @property
    def open(self) -> int:
        """Comments without an acknowledgement."""
        return len(self._open)

    def pump(self) -> None:
        """Send what is due now; bounded, so a long outage is no flood afterwards."""
        now = time.monotonic()
        due = [nonce for at, nonce in self._again if at <= now]
        self._again = [(at, nonce) for at, nonce in self._again if at > now]
        batch = [self._open[nonce] for nonce in due if nonce in self._open]
        self._due = max(self._due, now - 0.1)
        while self._due <= now and len(self._open) < 2000:
            self._due += 1 / self.rate
            self._count += 1
            nonce = f"n{self._count}"
            user = {"id": f"u{self._count % 200}", "name": f"User {self._count % 200}"}
            command = {"type": "COMMENT", "text": f"c{self._count}", "nonce": nonce, "user": user}
            self._open[nonce] = command
            batch.append(command)
        self._send(batch)

    def resend_late(self) -> None:
        """Send again everything that is open."""
        self._send(list(self._open.values()))

    def _send(self, batch: list[dict]) -> None:
        if self.member.live:
            for at in range(0, len(batch), 100):
                self.member.send(batch[at : at + 100])

    def _on_event(self, member: Member, event: dict, now: float) -> None:
        if event["type"] == "WELCOME":
            self._again = []
            self.resend_late()
        elif event["type"] == "ACK":
            known = self.acknowledged.setdefault(event["nonce"], (event["id"], event["offset"]))
            assert known == (event["id"], event["offset"]), "one nonce, two comments"
            self.shown[event["offset"]] = event["shown"]
            self._open.pop(event["nonce"], None)
        elif event["type"] == "REJECTED":
            assert event["code"] == "unavailable", event
            self.refused[event["code"]] = self.refused.get(event["code"], 0) + 1
            self._again.append((now + event["retry_after_ms"] / 1000, event["nonce"]))

    def play(self, swarm: Swarm, seconds: float) -> None:
        """Run the swarm and send for so long."""
        end = time.monotonic() + seconds

        def over() -> bool:
            self.pump()
            return time.monotonic() >= end

        swarm.run(over, seconds + 5)

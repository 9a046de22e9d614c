"""Webhooks: what happens in the room, told to the platform's own backend.

Comes in: the log. Goes out: signed POSTs with batches of events, at least once and in order per
target (docs/rooms.md, "Webhooks"). Each target has its own bounded outbox and its own thread, so a
target that hangs delays nothing else: neither the other targets nor, since an event is given up
after `webhooks.give_up_s`, the trimming of the log.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import ipaddress
import logging
import os
import random
import socket
import ssl
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from uproar import __version__, ids, status
from uproar.auth import load_key
from uproar.config import Webhooks as Settings
from uproar.consumer import Poll, Share
from uproar.events import Event, PoisonedRecord, to_event
from uproar.lag import Lag
from uproar.log import LogUnavailable, open_log
from uproar.logs import event
from uproar.metrics import Metrics
from workers.process import Process

logger = logging.getLogger(__name__)

GROUP: Final = "webhooks"
POLL_RECORDS: Final = 2048
BATCH: Final = 100  # events of one POST
COMMIT_EVERY_S: Final = 2.0
TOLD: Final = frozenset(
    {"COMMENT_DELETED", "CLEARED", "SANCTION", "STREAM_STARTED", "STREAM_ENDED"}
)
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")  # an IPv4 address in its last 4 bytes

_encode = msgspec.json.Encoder().encode


class Note(NamedTuple):
    """One event on its way to a target; `body` is its JSON, `since` when it was (monotonic)."""

    offset: int
    body: bytes
    since: float
    partition: int = 0


class DeliveryFailed(Exception):
    """A target did not take a batch; the message says why."""


class Outbox:
    """What waits for one target, in order. Sans-I/O; times are monotonic seconds.

    Policy `drop_oldest`: with `size` events waiting the oldest gives way; so does one that has
    been tried for `give_up_s`. Both are counted in `dropped`.
    """

    def __init__(self, settings: Settings, chance: random.Random | None = None) -> None:
        self._settings = settings
        self._chance = chance or random.Random()
        self._notes: deque[Note] = deque()
        self._failures = 0
        self.due = 0.0  # when the next try may be made
        self.delivered = 0
        self.dropped = 0

    def __len__(self) -> int:
        return len(self._notes)

    @property
    def oldest(self) -> dict[int, int]:
        """The offset of the first event that waits, by partition."""
        return {note.partition: note.offset for note in reversed(self._notes)}

    def add(self, note: Note) -> None:
        """Take one more event."""
        if len(self._notes) >= self._settings.queue:
            self._notes.popleft()
            self.dropped += 1
        self._notes.append(note)

    def batch(self, now: float) -> list[Note]:
        """Return what is to be sent now; it stays until `done`."""
        while self._notes and self._notes[0].since <= now - self._settings.give_up_s:
            self._notes.popleft()
            self.dropped += 1
        if now < self.due:
            return []
        return [self._notes[n] for n in range(min(BATCH, len(self._notes)))]

    def done(self, sent: list[Note]) -> None:
        """Say that a batch was taken; some of it may have been dropped meanwhile."""
        self._failures = 0
        taken = {(note.partition, note.offset) for note in sent}
        while self._notes and (self._notes[0].partition, self._notes[0].offset) in taken:
            self._notes.popleft()
            self.delivered += 1

    def failed(self, now: float) -> float:
        """Say that a try failed; return the seconds until the next.

        Between half of and the whole of a time that doubles, so that many do not come in step.
        """
        settings = self._settings
        most = min(settings.backoff_max_s, settings.backoff_s * 2.0 ** min(self._failures, 30))
        self._failures += 1
        wait = most * self._chance.uniform(0.5, 1.0)
        self.due = now + wait
        return wait


def note_of(epoch: str, stream: str, found: Event, since: float, partition: int = 0) -> Note | None:
    """Return what targets are told of an event, None for what they are not told."""
    if found.type not in TOLD:
        return None
    told: dict[str, Any] = {
        "id": f"{epoch}-{found.offset}",
        "type": found.type,
        "stream": stream,
        "offset": found.offset,
        "ts": found.ts,
    }
    for field, value in msgspec.structs.asdict(found.data).items():
        if value is not None:
            told[field] = ids.to_text(value) if isinstance(value, bytes) else value
    told["by"] = told.get("by") or found.actor
    return Note(found.offset, _encode(told), since, partition)


def body_of(notes: list[Note]) -> bytes:
    """Return the body of one POST."""
    return b'{"events":[' + b",".join(note.body for note in notes) + b"]}"


def signed(key: bytes, timestamp: int, body: bytes) -> str:
    """Return the signature of a body: HMAC-SHA256 of `{timestamp}.{body}`, in hexadecimal."""
    return hmac.new(key, f"{timestamp}.".encode() + body, hashlib.sha256).hexdigest()


def deliver(url: str, key: bytes, body: bytes, settings: Settings) -> None:
    """POST a body to a target within `settings.timeout_s`; raises DeliveryFailed.

    The address that was looked at is the one that is connected to, and no redirection is followed:
    a target can't lead to where it may not be.
    """
    parts = urlsplit(url)
    host = parts.hostname or ""
    port = parts.port or (443 if parts.scheme == "https" else 80)
    timestamp = int(time.time())
    headers = {
        "Content-Type": "application/json",
        "User-Agent": f"uproar/{__version__}",
        "Uproar-Timestamp": str(timestamp),
        "Uproar-Signature": f"v1={signed(key, timestamp, body)}",
    }
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        address = address_of(host, port, allow_private=settings.allow_private)
        sock = socket.create_connection((address, port), settings.timeout_s)
    except OSError as error:
        raise DeliveryFailed(f"can't be reached: {error.strerror or error}") from error
    # For the whole exchange: a socket's own timeout starts anew with every byte.
    clock = threading.Timer(settings.timeout_s, _shut, (sock,))
    clock.daemon = True
    clock.start()
    connection = http.client.HTTPConnection(host, port)
    try:
        if parts.scheme == "https":
            sock = ssl.create_default_context().wrap_socket(sock, server_hostname=host)
        connection.sock = sock
        connection.request("POST", path, body, headers)
        found = connection.getresponse().status
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DeliveryFailed(f"gave no answer: {error or type(error).__name__}") from error
    finally:
        clock.cancel()
        connection.close()
        sock.close()
    if not 200 <= found < 300:
        raise DeliveryFailed(f"answered {found}; 2xx is taken for yes")


def address_of(host: str, port: int, *, allow_private: bool) -> str:
    """Return an address of a host; raises DeliveryFailed where one of its addresses is private."""
    found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    if not found:
        raise DeliveryFailed("has no address")
    for text in [] if allow_private else found:
        if not public(text):
            raise DeliveryFailed(
                f"{host} is at {text}, which is no public address; "
                "set webhooks.allow_private to let it"
            )
    return found[0]


def public(text: str) -> bool:
    """Whether an IP address is one of the open Internet, however it is wrapped."""
    address = ipaddress.ip_address(text.partition("%")[0])
    inner: ipaddress.IPv4Address | None = None
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if address.teredo is not None:
            return False
    if inner is not None:
        return inner.is_global and not inner.is_multicast
    return address.is_global and not address.is_multicast


class Target:
    """One URL, its outbox and the thread that empties it."""

    def __init__(self, url: str, key: bytes, settings: Settings, stop: threading.Event) -> None:
        parts = urlsplit(url)
        self.name = f"{parts.scheme}://{parts.netloc}"  # a path may hold a secret
        self._url = url
        self._key = key
        self._settings = settings
        self._stop = stop
        self._lock = threading.Lock()  # guards the outbox
        self._wake = threading.Event()
        self._outbox = Outbox(settings)
        self.reason = ""
        self.failures = 0
        self.thread = threading.Thread(target=self.run, name="webhook", daemon=True)

    def add(self, notes: list[Note]) -> None:
        """Take more events; never blocks for long."""
        with self._lock:
            for note in notes:
                self._outbox.add(note)
        self._wake.set()

    def counts(self) -> tuple[int, int, int]:
        """Return (waiting, delivered, dropped)."""
        with self._lock:
            return len(self._outbox), self._outbox.delivered, self._outbox.dropped

    def oldest(self) -> dict[int, int]:
        """Return the offset of the first event that waits, by partition."""
        with self._lock:
            return self._outbox.oldest

    def run(self) -> None:
        """Deliver until stopped."""
        while not self._stop.is_set():
            now = time.monotonic()
            with self._lock:
                notes = self._outbox.batch(now)
                wait = min(1.0, max(0.01, self._outbox.due - now)) if len(self._outbox) else 1.0
            if notes:
                self._try(notes)
            else:
                self._wake.wait(wait)
                self._wake.clear()

    def _try(self, notes: list[Note]) -> None:
        try:
            deliver(self._url, self._key, body_of(notes), self._settings)
        except DeliveryFailed as error:
            self.failures += 1
            with self._lock:
                wait = self._outbox.failed(time.monotonic())
            if self.reason != str(error):
                self.reason = str(error)
                event(
                    logger, "webhook_failed", level=logging.WARNING,
                    target=self.name, why=self.reason, again_s=round(wait, 2),
                )  # fmt: skip
            return
        with self._lock:
            self._outbox.done(notes)
        if self.reason:
            self.reason = ""
            event(logger, "webhook_back", target=self.name)


class Webhooks:
    """The loop and what it needs."""

    def __init__(self, process: Process) -> None:
        config = process.config
        self.stop = process.stop
        self.log = open_log(config)
        self.share = Share(self.log, GROUP, self.begin)
        self.lag = Lag(self.log, GROUP, self.share.positions, self.stop)
        self.epochs: dict[int, str] = {}
        self.give_up_s = config.webhooks.give_up_s
        key = load_key(config.webhook_key_path)
        self.targets = [
            Target(url, key, config.webhooks, self.stop) for url in config.webhooks.targets
        ]

    def begin(self, partition: int) -> int:
        """Return where the last incarnation stood, but for what would be given up at once."""
        self.epochs[partition] = self.log.epoch(partition)
        return max(
            self.log.position(GROUP, partition),
            self.log.before_ts(partition, int((time.time() - self.give_up_s) * 1000)),
        )

    def start(self) -> None:
        """Take up reading and let the targets' threads run."""
        self.share.start(self.stop)
        for target in self.targets:
            target.thread.start()

    def run(self) -> None:
        """Read until stopped."""
        commit_at = 0.0
        while not self.stop.is_set():
            notes = [
                note
                for poll in self.share.poll(0.25, POLL_RECORDS, self.stop)
                for note in self._notes(poll)
            ]
            if notes:
                for target in self.targets:
                    target.add(notes)
            if time.monotonic() >= commit_at:
                self.commit()
                commit_at = time.monotonic() + COMMIT_EVERY_S

    def _notes(self, poll: Poll) -> Iterator[Note]:
        """What targets are told of a poll."""
        for counted in poll.records:
            if counted.record.type not in TOLD:
                continue
            try:
                found = to_event(counted.offset, counted.record)
            except PoisonedRecord as error:
                self.share.set_aside(poll.partition, counted, error)
                continue
            # Its time runs from its own, whatever happened to us since.
            since = time.monotonic() - max(0.0, time.time() - found.ts / 1000)
            epoch = self.epochs[poll.partition]
            note = note_of(epoch, counted.record.stream, found, since, poll.partition)
            if note is not None:
                yield note

    def commit(self) -> None:
        """Store the positions below which no target has anything waiting."""
        waiting = [target.oldest() for target in self.targets]
        try:
            for partition, position in self.share.positions().items():
                below = [oldest[partition] - 1 for oldest in waiting if partition in oldest]
                self.log.commit(GROUP, partition, min([position, *below]))
        except LogUnavailable:
            return  # a later one covers it

    def counts(self) -> tuple[int, ...]:
        """Return what waits at, was delivered to, and was dropped by all targets together."""
        return tuple(sum(each) for each in zip(*(t.counts() for t in self.targets), strict=True))


def metrics_of(webhooks: Webhooks) -> Metrics:
    """Return the metrics of the webhooks, read when asked."""
    metrics, counts = Metrics(), webhooks.counts
    metrics.read("uproar_webhooks_waiting", lambda: counts()[0])
    metrics.read("uproar_webhooks_delivered_total", lambda: counts()[1])
    metrics.read(
        "uproar_webhooks_failures_total", lambda: sum(one.failures for one in webhooks.targets)
    )
    metrics.read(
        "uproar_drops_total",
        lambda: {"webhook": counts()[2], "poisoned": webhooks.share.poisoned},
    )
    webhooks.lag.tell(metrics)
    return metrics


def _shut(sock: socket.socket) -> None:
    try:
        sock.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # it is closed already


def work(process: Process) -> None:
    """The process: `python -m workers webhooks`."""
    webhooks = Webhooks(process)
    metrics = metrics_of(webhooks)
    closer = status.serve(
        process.config.socket("status-webhooks"),
        lambda: {
            "name": "webhooks",
            "pid": os.getpid(),
            "ready": True,
            "reason": "; ".join(
                f"{target.name} {target.reason}" for target in webhooks.targets if target.reason
            ),
            "metrics": metrics.text(),
        },
    )
    webhooks.start()
    if not process.stop.is_set():
        webhooks.lag.start()
        process.ready()
        webhooks.run()
        webhooks.commit()
    webhooks.share.close()
    closer.close()

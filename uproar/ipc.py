"""The link to ingest: framed msgpack batches over a Unix or TCP socket.

A frame is u32 length of the body, u32 number, u32 CRC-32 of the body, then the body: a msgpack
array of submissions (to ingest) or answers (from it). Every submission gets exactly one answer,
found by its `ref`; the link bounds how many wait, sends those without an answer again after a
reconnect (their nonces make that harmless), and answers `unavailable` itself when the deadline
passes or ingest is away. Nothing hangs.
"""

from __future__ import annotations

import logging
import socket
import struct
import threading
import time
import zlib
from collections.abc import Callable
from typing import Any, NamedTuple

import msgspec

from uproar.events import User
from uproar.logs import event

logger = logging.getLogger(__name__)

HEAD = struct.Struct("<III")
FRAME_MAX = 8 << 20
BATCH_MAX = 500
BATCH_BYTES = 1 << 20  # of data in one frame: far below FRAME_MAX, whatever clients send
STALL_S = 1.0  # a socket that takes nothing for so long is given up
LATE_LOOK_S = 0.25  # between two looks for submissions past their deadline


class Draft(msgspec.Struct, array_like=True, frozen=True):
    """What a COMMENT is made of before ingest has given it id and ts (`ts`: a service's own)."""

    user: User
    text: str
    reply_to: bytes | None = None
    ts: int | None = None


class Traits(msgspec.Struct, array_like=True, frozen=True):
    """What a token says of its holder that modes ask for (unix seconds)."""

    follows_since: int | None = None
    subscriber: bool = False
    created_at: int | None = None


class Submission(msgspec.Struct, array_like=True, frozen=True):
    """One event that somebody wants in the log; `data` is a Draft for COMMENT, else its data."""

    ref: int
    type: str
    stream: str
    actor: str
    role: str
    nonce: str
    data: msgspec.Raw
    traits: Traits | None = None


class Answer(msgspec.Struct, array_like=True, frozen=True):
    """What became of a submission. `code` is empty when it stands in the log, else REJECTED's."""

    ref: int
    code: str = ""
    id: bytes = b""
    offset: int = 0
    shown: int = 0  # 0 all, 1 sampled, 2 held
    remaining: int | None = None
    reset_ms: int | None = None
    message: str = ""
    retry_after_ms: int | None = None


def unavailable(ref: int, message: str, retry_after_ms: int = 1000) -> Answer:
    """Return the answer for what can't be known to be in the log."""
    return Answer(ref, "unavailable", message=message, retry_after_ms=retry_after_ms)


class LinkError(Exception):
    """The other side sent what is no frame of ours; the connection is of no more use."""


encode_body = msgspec.msgpack.Encoder().encode
decode_answers = msgspec.msgpack.Decoder(list[Answer]).decode
decode_submissions = msgspec.msgpack.Decoder(list[Submission]).decode
encode_data = encode_body


def encode_frame(number: int, body: bytes) -> bytes:
    """Return one frame."""
    return HEAD.pack(len(body), number & 0xFFFFFFFF, zlib.crc32(body)) + body


class FrameReader:
    """Cuts a byte stream into frame bodies."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the bodies that are complete now; raises LinkError."""
        self._buffer += data
        bodies = []
        at = 0
        while len(self._buffer) - at >= HEAD.size:
            length, _, crc = HEAD.unpack_from(self._buffer, at)
            if length > FRAME_MAX:
                raise LinkError(f"a frame of {length} bytes; the bound is {FRAME_MAX}")
            if len(self._buffer) - at - HEAD.size < length:
                break
            body = bytes(self._buffer[at + HEAD.size : at + HEAD.size + length])
            if zlib.crc32(body) != crc:
                raise LinkError("a frame whose checksum does not fit")
            bodies.append(body)
            at += HEAD.size + length
        del self._buffer[:at]
        return bodies


class _Waiting(NamedTuple):
    submission: Submission
    done: Callable[[Answer], None]
    deadline: float


def open_socket(address: str, timeout_s: float) -> socket.socket:
    """Connect to `unix:PATH` or `tcp:HOST:PORT`."""
    kind, _, where = address.partition(":")
    if kind == "unix":
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.settimeout(timeout_s)
        try:
            sock.connect(where)
        except BaseException:
            sock.close()
            raise
        return sock
    host, _, port = where.rpartition(":")
    sock = socket.create_connection((host, int(port)), timeout_s)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class IngestLink:
    """The submitting side. Two threads (greenlets in a gateway): one sends, one receives.

    `submit` never blocks. `done` is called exactly once a submission, by the receiving or the
    sending thread, or by `submit` itself when ingest is known to be away.
    """

    def __init__(self, address: str, *, deadline_s: float, pending: int) -> None:
        self._address = address
        self._deadline_s = deadline_s
        self._pending_max = pending
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._waiting: dict[int, _Waiting] = {}  # by ref, in order of submission
        self._outbox: list[Submission] = []
        self.reconnects = -1  # the first connection is none
        self._ref = 0
        self._number = 0
        self._socket: socket.socket | None = None
        self._closed = False
        self._threads = [
            threading.Thread(target=self._receive, name="ingest-link-receive", daemon=True),
            threading.Thread(target=self._send, name="ingest-link-send", daemon=True),
        ]

    def start(self) -> None:
        """Begin connecting."""
        for thread in self._threads:
            thread.start()

    @property
    def connected(self) -> bool:
        """Whether ingest is there now."""
        return self._socket is not None

    @property
    def pending(self) -> int:
        """How many submissions wait for their answer."""
        return len(self._waiting)

    def submit(
        self,
        type_: str,
        stream: str,
        actor: str,
        role: str,
        nonce: str,
        data: Any,
        done: Callable[[Answer], None],
        traits: Traits | None = None,
    ) -> None:
        """Hand one event over; `done` gets the answer."""
        with self._lock:
            if self._socket is None:
                refusal = "the log can't be reached now; send the same nonce again"
            elif len(self._waiting) >= self._pending_max:
                refusal = "too much is waiting for the log; send the same nonce again"
            else:
                self._ref += 1
                submission = Submission(
                    self._ref,
                    type_,
                    stream,
                    actor,
                    role,
                    nonce,
                    msgspec.Raw(encode_data(data)),
                    traits,
                )
                deadline = time.monotonic() + self._deadline_s
                self._waiting[self._ref] = _Waiting(submission, done, deadline)
                self._outbox.append(submission)
                self._wake.set()
                return
        done(unavailable(0, refusal))

    def close(self) -> None:
        """Stop; whatever waits is answered `unavailable`."""
        self._closed = True
        self._wake.set()
        self._drop(self._socket)
        for thread in self._threads:
            if thread.is_alive():
                thread.join(1.0)
        self._answer_late(float("inf"), "the gateway stops")

    def _send(self) -> None:
        while not self._closed:
            # Who is late is looked for only while somebody waits: an idle gateway sleeps.
            self._wake.wait(LATE_LOOK_S if self._waiting else STALL_S)
            self._wake.clear()
            while True:
                with self._lock:
                    sock = self._socket
                    if sock is None or not self._outbox:
                        break
                    batch = self._next_batch()
                    self._number += 1
                try:
                    sock.sendall(encode_frame(self._number, encode_body(batch)))
                except OSError:
                    self._drop(sock)
                    break
            self._answer_late(time.monotonic(), "the log did not answer in time")

    def _next_batch(self) -> list[Submission]:
        """Take from the outbox what goes into one frame."""
        count = size = 0
        for submission in self._outbox[:BATCH_MAX]:
            size += len(submission.data)
            if count and size > BATCH_BYTES:
                break
            count += 1
        batch = self._outbox[:count]
        del self._outbox[:count]
        return batch

    def _receive(self) -> None:
        logged = False
        while not self._closed:
            try:
                sock = open_socket(self._address, 1.0)
            except OSError as error:
                if not logged:
                    logged = True
                    event(logger, "ingest_away", level=logging.WARNING, why=str(error))
                time.sleep(0.05)
                continue
            logged = False
            sock.settimeout(STALL_S)
            with self._lock:
                self._socket = sock
                self._outbox = [waiting.submission for waiting in self._waiting.values()]
                again = len(self._outbox)
            self.reconnects += 1
            event(logger, "ingest_connected", again=again)
            self._wake.set()
            reader = FrameReader()
            try:
                while not self._closed:
                    try:
                        data = sock.recv(1 << 18)
                    except TimeoutError:
                        continue  # nothing to say
                    if not data:
                        break
                    for body in reader.feed(data):
                        for answer in decode_answers(body):
                            self._settle(answer)
            except (OSError, LinkError, msgspec.DecodeError, UnicodeDecodeError) as error:
                event(logger, "ingest_lost", level=logging.WARNING, why=str(error))
            self._drop(sock)

    def _settle(self, answer: Answer) -> None:
        with self._lock:
            waiting = self._waiting.pop(answer.ref, None)
        if waiting is not None:
            _tell(waiting, answer)

    def _answer_late(self, now: float, why: str) -> None:
        late = []
        with self._lock:
            for ref, waiting in self._waiting.items():
                if waiting.deadline > now:
                    break
                late.append(ref)
            gone = [(ref, self._waiting.pop(ref)) for ref in late]
            if gone:
                refs = set(late)
                self._outbox = [item for item in self._outbox if item.ref not in refs]
        for ref, waiting in gone:
            _tell(waiting, unavailable(ref, f"{why}; send the same nonce again"))

    def _drop(self, sock: socket.socket | None) -> None:
        with self._lock:
            if sock is None or self._socket is not sock:
                return
            self._socket = None
        try:
            sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        sock.close()


def _tell(waiting: _Waiting, answer: Answer) -> None:
    """Hand an answer over; a fault of the receiver's must not end the link's thread."""
    try:
        waiting.done(answer)
    except Exception:
        event(logger, "answer_failed", level=logging.ERROR, exc_info=True)

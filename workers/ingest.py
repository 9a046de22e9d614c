"""Ingest: owns the log's partition. Gateways' submissions in, records into the log, answers out.

The main thread owns `Admission` and every socket of a gateway. Two threads only block in its
place: one appends the batch it is given (so a batch is whatever came in during the last append, and
its fsync), one reads the log. Both hand over through bounded queues and wake the main thread.
"""

from __future__ import annotations

import logging
import os
import queue
import selectors
import socket
import threading
import time
from collections import Counter, defaultdict
from pathlib import Path

import msgspec

from uproar import status
from uproar.codes import REJECTIONS
from uproar.events import Event
from uproar.idempotency import READ_BACK_MS
from uproar.ipc import Answer, FrameReader, LinkError, decode_submissions, encode_body, encode_frame
from uproar.log import Log, LogBatch, LogFull, LogUnavailable, groups_of
from uproar.log.valkey import ValkeyLog
from uproar.logs import event
from uproar.metrics import Histogram, Metrics
from uproar.store import StoreUnavailable
from uproar.store.sqlite import SqliteStore
from workers.admission import Admission
from workers.moderation.lists import files_of
from workers.moderation.moderator import Moderator
from workers.process import Process

logger = logging.getLogger(__name__)

READ_RECORDS = 4096
# One append at most in this time: a comment into a quiet stream waits for nothing, and at 1,000 a
# second the whole system takes 850 us a comment in place of 1,520 (`uproar bench acks`).
APPEND_EVERY_S = 0.004
TRIM_EVERY_S = 20.0
OUT_MAX = 16 << 20  # unsent bytes to one gateway; more means it is gone
PARTITION = 0


def address_of(process_config_address: str, fallback: str) -> str:
    """Return where ingest listens: as configured, or on the socket of the data directory."""
    return process_config_address or f"unix:{fallback}"


def now_ms() -> int:
    """Return unix milliseconds."""
    return time.time_ns() // 1_000_000


class Link:
    """One gateway's (or worker's) connection."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.reader = FrameReader()
        self.out = bytearray()
        self.number = 0


class Ingest:
    """The shell around `Admission`: sockets, the appender and the reader."""

    def __init__(self, process: Process) -> None:
        config = process.config
        self.stop = process.stop
        self.config = config
        self.log: Log = ValkeyLog(config)
        self.store = SqliteStore(config.data_dir / "store.db")
        self.admission = Admission(
            config.limits,
            ack_deadline_ms=int(config.ingest.ack_deadline_s * 1000),
            pending_max=config.ingest.pending,
            sampling=config.sampling,
            emotes=config.emotes.keys(),
            streams_open=config.streams.open,
            load=self.load,
            flags=self.flags,
        )
        self.selector = selectors.DefaultSelector()
        self.links: dict[int, Link] = {}
        self.to_append: queue.Queue[tuple[list[bytes], int]] = queue.Queue(1)
        self.from_log: queue.Queue[LogBatch] = queue.Queue(64)
        self.wake_in, self.wake_out = socket.socketpair()
        self.wake_in.setblocking(False)
        self.wake_out.setblocking(False)
        self.appended = 0
        self.append_s = Histogram()
        self.outcomes = Counter(dict.fromkeys(("accepted", *REJECTIONS), 0))
        self._terms_at: dict[str, int] = {}
        self._moderator: Moderator | None = None  # made when a stream first holds what it finds
        self.append_at = 0.0  # monotonic: not before
        self.log_error = ""
        self.log_full = False

    def load(self, stream: str) -> list[Event]:
        """Return what the archive has stored of what stands in a stream."""
        return self.store.standing(stream)

    def flags(self, stream: str, text: str) -> bool:
        """Whether moderation finds a text: asked here for streams that hold what it finds."""
        if self._moderator is None:
            self._moderator = Moderator(self.config.moderation)
        lists = self._moderator.lists
        try:
            lists.refresh(files_of(self.config))
            terms, since = self.admission.terms(stream)
            if self._terms_at.get(stream) != since:
                self._terms_at[stream] = since
                lists.set(stream, terms, since)
        except (OSError, ValueError) as error:  # the lists of before go on
            event(logger, "terms_refused", level=logging.WARNING, why=str(error))
        return self._moderator.decide_text(text, stream=stream).action != "allow"

    def _archived(self) -> int:
        """Up to where the store knows what stands; from there on it is read from the log."""
        try:
            return self.store.position(self.log.epoch(PARTITION))
        except StoreUnavailable:
            return 0

    def catch_up(self) -> None:
        """Read back what decides about the next submission: the last minutes of the log."""
        while not self.stop.is_set():
            try:
                end, ts = self.log.end(PARTITION)
                at = self.log.before_ts(PARTITION, ts - READ_BACK_MS) if end else 0
                at = min(at, self._archived())
                self.admission.position = at
                while at < end and not self.stop.is_set():
                    batches = self.log.read(PARTITION, at, 0.0, READ_RECORDS)
                    if not batches:
                        break
                    for batch in batches:
                        self.admission.landed(batch, now_ms())
                    at = batches[-1].last
                self.log_error = ""
                event(logger, "caught_up", position=self.admission.position)
                return
            except LogUnavailable as error:
                self.log_error = str(error)
                self.stop.wait(0.05)

    def listen(self) -> socket.socket:
        """Open the socket that gateways connect to."""
        address = address_of(self.config.ingest.address, str(self.config.socket("ingest")))
        kind, _, where = address.partition(":")
        if kind == "unix":
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            try:
                Path(where).unlink()
            except FileNotFoundError:
                pass
            listener.bind(where)
            Path(where).chmod(0o600)
        else:
            host, _, port = where.rpartition(":")
            listener = socket.create_server((host, int(port)), reuse_port=False)
        listener.listen(128)
        listener.setblocking(False)
        self.selector.register(listener, selectors.EVENT_READ, self._accept)
        return listener

    def run(self) -> None:
        """Serve until stopped."""
        self.selector.register(self.wake_in, selectors.EVENT_READ, self._drain_wake)
        for target in (self._append_loop, self._read_loop, self._trim_loop):
            threading.Thread(target=target, name=target.__name__, daemon=True).start()
        expire_at = time.monotonic()
        while not self.stop.is_set():
            for key, mask in self.selector.select(self._patience()):
                if isinstance(key.data, Link):
                    self._serve(key.data, mask)
                else:
                    key.data(key.fileobj)
            self._settle_landed()
            if time.monotonic() >= expire_at:
                self._answer(self.admission.expire(now_ms(), everything=self.log_full))
                self.log_full = False
                expire_at = time.monotonic() + 0.1
            self._hand_over()
        for link in list(self.links.values()):
            self._close(link)

    # -- gateways ---------------------------------------------------------------------------------

    def _accept(self, listener: socket.socket) -> None:
        try:
            sock, _ = listener.accept()
        except OSError:
            return
        sock.setblocking(False)
        link = Link(sock)
        self.links[sock.fileno()] = link
        self.selector.register(sock, selectors.EVENT_READ, link)

    def _serve(self, link: Link, mask: int) -> None:
        if mask & selectors.EVENT_WRITE:
            self._flush(link)
        if not mask & selectors.EVENT_READ or link.sock.fileno() < 0:
            return
        try:
            data = link.sock.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(link)
            return
        now = now_ms()
        answers: list[tuple[Link, Answer]] = []
        try:
            for body in link.reader.feed(data):
                for submission in decode_submissions(body):
                    answer = self.admission.submit(link, submission, now)
                    if answer is not None:
                        answers.append((link, answer))
        except (LinkError, msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            event(logger, "link_refused", level=logging.WARNING, why=str(error))
            self._close(link)
            return
        self._answer(answers)

    def _answer(self, answers: list[tuple[Link, Answer]]) -> None:
        by_link: dict[Link, list[Answer]] = defaultdict(list)
        for link, answer in answers:
            by_link[link].append(answer)
        for link, batch in by_link.items():
            if link.sock.fileno() < 0:
                continue
            self.outcomes.update(answer.code for answer in batch if answer.code)
            self.outcomes["accepted"] += [answer.code for answer in batch].count("")
            for at in range(0, len(batch), 2000):
                link.number += 1
                link.out += encode_frame(link.number, encode_body(batch[at : at + 2000]))
            self._flush(link)

    def _flush(self, link: Link) -> None:
        try:
            if link.out:
                sent = link.sock.send(link.out)
                del link.out[:sent]
        except BlockingIOError:
            pass
        except OSError:
            self._close(link)
            return
        if len(link.out) > OUT_MAX:
            self._close(link)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if link.out else 0)
        if self.selector.get_key(link.sock).events != wanted:
            self.selector.modify(link.sock, wanted, link)

    def _close(self, link: Link) -> None:
        if link.sock.fileno() >= 0:
            self.links.pop(link.sock.fileno(), None)
            self.selector.unregister(link.sock)
            link.sock.close()

    # -- the log ----------------------------------------------------------------------------------

    def _hand_over(self) -> None:
        """Give the appender everything that has come in, when it is free and it is time."""
        if self.to_append.empty() and time.monotonic() >= self.append_at:
            records, ts = self.admission.take(self.config.log.batch_records)
            if records:
                self.to_append.put_nowait((records, ts))
                self.append_at = time.monotonic() + APPEND_EVERY_S

    def _patience(self) -> float:
        """How long the selector may wait: until what is waiting may be appended."""
        if not self.admission.waiting or not self.to_append.empty():
            return 0.1
        return min(0.1, max(0.0, self.append_at - time.monotonic()))

    def _append_loop(self) -> None:
        """Append each batch until it stands; a repeat after a lost answer counts once anyway."""
        while not self.stop.is_set():
            try:
                records, ts = self.to_append.get(timeout=0.5)
            except queue.Empty:
                continue
            give_up = time.monotonic() + self.config.ingest.ack_deadline_s
            while not self.stop.is_set():
                began = time.monotonic()
                try:
                    self.log.append(PARTITION, records, ts)
                    self.append_s.observe(time.monotonic() - began)
                    self.appended += len(records)
                    self.log_error = ""
                    break
                except LogUnavailable as error:
                    if not self.log_error:
                        event(logger, "append_failed", level=logging.WARNING, why=str(error))
                    self.log_error = str(error)
                    # A full log takes nothing soon: everybody who waits is told at once.
                    self.log_full = isinstance(error, LogFull)
                    # After the deadline the senders have been answered `unavailable`.
                    if self.log_full or time.monotonic() > give_up:
                        break
                    self.stop.wait(0.02)
            self._wake()

    def _read_loop(self) -> None:
        position = self.admission.position
        while not self.stop.is_set():
            try:
                batches = self.log.read(PARTITION, position, 0.5, READ_RECORDS)
            except LogUnavailable:
                self.stop.wait(0.02)
                continue
            for batch in batches:
                position = batch.last
                while not self.stop.is_set():
                    try:
                        self.from_log.put(batch, timeout=0.5)
                        break
                    except queue.Full:
                        continue
            if batches:
                self._wake()

    def _trim_loop(self) -> None:
        groups = groups_of(self.config)
        while not self.stop.wait(TRIM_EVERY_S):
            try:
                done = min(self.log.position(group, PARTITION) for group in groups)
                old = self.log.before_ts(PARTITION, now_ms() - int(self.config.log.keep_s * 1000))
                self.log.trim(PARTITION, min(done, old))
            except LogUnavailable:
                continue

    def _settle_landed(self) -> None:
        answers: list[tuple[Link, Answer]] = []
        while True:
            try:
                batch = self.from_log.get_nowait()
            except queue.Empty:
                break
            answers += self.admission.landed(batch, now_ms())
        self._answer(answers)

    def _wake(self) -> None:
        try:
            self.wake_out.send(b"\0")
        except BlockingIOError:
            pass  # it is awake already

    def _drain_wake(self, sock: socket.socket) -> None:
        try:
            while sock.recv(4096):
                pass
        except BlockingIOError:
            pass


def metrics_of(ingest: Ingest) -> Metrics:
    """Return the metrics of ingest, read when asked."""
    metrics, admission = Metrics(), ingest.admission
    metrics.read("uproar_comment_seconds", lambda: {"logged": admission.logged})
    metrics.read("uproar_drops_total", lambda: {"poisoned": admission.poisoned})
    metrics.read("uproar_ingest_answers_total", lambda: ingest.outcomes)
    metrics.read("uproar_ingest_appended_total", lambda: ingest.appended)
    metrics.read("uproar_ingest_pending", lambda: admission.pending)
    metrics.read("uproar_ingest_waiting", lambda: admission.waiting)
    metrics.read("uproar_ingest_sampled_streams", lambda: len(admission.ratios()))
    metrics.read("uproar_ingest_sampling_ratio", lambda: min(admission.ratios(), default=1.0))
    metrics.read("uproar_log_append_seconds", lambda: ingest.append_s)
    return metrics


def work(process: Process) -> None:
    """The process: `python -m workers ingest`."""
    ingest = Ingest(process)
    metrics = metrics_of(ingest)
    closer = status.serve(
        process.config.socket("status-ingest"),
        lambda: {
            "name": "ingest",
            "pid": os.getpid(),
            "ready": not ingest.log_error,
            "reason": ingest.log_error,
            "metrics": metrics.text(),
        },
    )
    ingest.catch_up()
    if not process.stop.is_set():
        ingest.listen()
        process.ready()
        ingest.run()
    closer.close()
    ingest.log.close()

"""Ingest: owns the log's partitions. Gateways' submissions in, records into the log, answers out.

The main thread owns every socket of a gateway and one `Lane` with its `Admission` for each
partition that is ours. Other threads only block in its place: one a lane appends the batch it is
given (so a batch is whatever came in during the last append, and its fsync), one reads the log, one
looks which partitions are ours. All hand over through bounded queues and wake the main thread.
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
from uproar.ipc import (
    Answer,
    FrameReader,
    LinkError,
    Submission,
    decode_submissions,
    encode_body,
    encode_frame,
    unavailable,
)
from uproar.log import Log, LogBatch, LogFull, LogUnavailable, Member, groups_of, open_log
from uproar.logs import event
from uproar.metrics import Histogram, Metrics
from uproar.store import StoreUnavailable, open_store
from workers.admission import Admission
from workers.moderation.lists import files_of
from workers.moderation.moderator import Moderator
from workers.process import Process

logger = logging.getLogger(__name__)

READ_RECORDS = 4096
# One append at most in this time: a comment into a quiet stream waits for nothing. On a full
# machine fewer and larger batches are faster, too (docs/decisions.md).
APPEND_EVERY_S = 0.008
TRIM_EVERY_S = 20.0
OUT_MAX = 16 << 20  # unsent bytes to one gateway; more means it is gone
STORE_S = 1.0  # for what stands in a stream (5 ms): all other comments wait meanwhile
GROUP = "ingest"
SHARE_EVERY_S = 0.1  # between two looks at which partitions are ours


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


class Lane:
    """One partition that is ours: what is admitted to it, and the thread that appends.

    `ready_at` is the position from which on it decides as the partition's last owner would have.
    """

    def __init__(self, partition: int, admission: Admission, ready_at: int) -> None:
        self.partition = partition
        self.admission = admission
        self.ready_at = ready_at
        self.read_to = admission.position  # the reader's; the admission follows
        self.to_append: queue.Queue[tuple[list[bytes], int]] = queue.Queue(1)
        self.append_at = 0.0  # monotonic: not before
        self.full = False
        self.gone = threading.Event()

    @property
    def caught_up(self) -> bool:
        """Whether the last minutes of the log have been read back."""
        return self.admission.position >= self.ready_at


class Ingest:
    """The shell around `Admission`: sockets, the appenders, the reader, the share of the group."""

    def __init__(self, process: Process) -> None:
        config = process.config
        self.stop = process.stop
        self.config = config
        self.log: Log = open_log(config)
        self.member: Member | None = None
        self.store = open_store(config, timeout_s=STORE_S)
        self.lanes: dict[int, Lane] = {}
        self.selector = selectors.DefaultSelector()
        self.links: dict[int, Link] = {}
        self.from_log: queue.Queue[tuple[Lane, LogBatch]] = queue.Queue(64)
        self.from_group: queue.Queue[Lane | int] = queue.Queue(64)  # one more lane, or one less
        self.wake_in, self.wake_out = socket.socketpair()
        self.wake_in.setblocking(False)
        self.wake_out.setblocking(False)
        self.appended = 0
        self.append_s = Histogram()
        self.logged = Histogram()  # from accepted to read back, by comment
        self.outcomes = Counter(dict.fromkeys(("accepted", *REJECTIONS), 0))
        self._counting = threading.Lock()  # of what the appenders count
        self._terms_at: dict[str, int] = {}
        self._moderator: Moderator | None = None  # made when a stream first holds what it finds
        self.log_error = ""
        self._poisoned = 0  # in partitions that are no longer ours

    @property
    def pending(self) -> int:
        """Records on their way through the log."""
        return sum(lane.admission.pending for lane in self._ours())

    @property
    def waiting(self) -> int:
        """Records that wait to be appended."""
        return sum(lane.admission.waiting for lane in self._ours())

    def ratios(self) -> list[float]:
        """Return the share of comments shown of each stream that is sampled."""
        return [ratio for lane in self._ours() for ratio in lane.admission.ratios()]

    @property
    def poisoned(self) -> int:
        """Records set aside because nobody can read them."""
        return self._poisoned + sum(lane.admission.poisoned for lane in self._ours())

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
            lane = self.lanes[self.log.partition_of(stream)]
            terms, since = lane.admission.terms(stream)
            if self._terms_at.get(stream) != since:
                self._terms_at[stream] = since
                lists.set(stream, terms, since)
        except (OSError, ValueError) as error:  # the lists of before go on
            event(logger, "terms_refused", level=logging.WARNING, why=str(error))
        return self._moderator.decide_text(text, stream=stream).action != "allow"

    def _archived(self, partition: int) -> int:
        """Up to where the store knows what stands; from there on it is read from the log."""
        try:
            return self.store.position(self.log.epoch(partition))
        except StoreUnavailable:
            return 0

    def _open(self, partition: int) -> Lane:
        """Return a lane that stands where what decides about the next submission begins."""
        end, ts = self.log.end(partition)
        at = self.log.before_ts(partition, ts - READ_BACK_MS) if end else 0
        admission = Admission(
            self.config.limits,
            ack_deadline_ms=int(self.config.ingest.ack_deadline_s * 1000),
            pending_max=self.config.ingest.pending,
            sampling=self.config.sampling,
            emotes=self.config.emotes.keys(),
            streams_open=self.config.streams.open,
            load=self.load,
            flags=self.flags,
        )
        admission.logged = self.logged
        admission.position = min(at, self._archived(partition))
        return Lane(partition, admission, end)

    def catch_up(self) -> None:
        """Join the group and read back what is ours; raises LogRefused."""
        while not self.stop.is_set():
            try:
                if self.member is None:
                    self.log.prepare(appending=True)
                    self.member = self.log.join(GROUP, GROUP)
                for partition in self.member.partitions() - self.lanes.keys():
                    self.lanes[partition] = self._open(partition)
                for lane in self.lanes.values():
                    self._read_back(lane)
                self.log_error = ""
                positions = {lane.partition: lane.admission.position for lane in self._ours()}
                event(logger, "caught_up", positions=positions)
                return
            except LogUnavailable as error:
                self.log_error = str(error)
                self.stop.wait(0.05)

    def _read_back(self, lane: Lane) -> None:
        while not lane.caught_up and not self.stop.is_set():
            batches = self.log.read(lane.partition, lane.read_to, 0.0, READ_RECORDS)
            if not batches:
                lane.ready_at = 0  # the end was none: what is there has been read
                return
            for batch in batches:
                lane.admission.landed(batch, now_ms())
            lane.read_to = batches[-1].last

    def _ours(self) -> list[Lane]:
        """The lanes, for threads that don't own them."""
        return list(self.lanes.values())

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
        for lane in self._ours():
            self._start(lane)
        loops = [self._read_loop, self._share_loop]
        if self.config.log.engine == "valkey":  # Kafka forgets by its retention
            loops.append(self._trim_loop)
        for loop in loops:
            threading.Thread(target=loop, name=loop.__name__, daemon=True).start()
        expire_at = time.monotonic()
        while not self.stop.is_set():
            for key, mask in self.selector.select(self._patience()):
                if isinstance(key.data, Link):
                    self._serve(key.data, mask)
                else:
                    key.data(key.fileobj)
            self._settle_share()
            self._settle_landed()
            if time.monotonic() >= expire_at:
                for lane in self.lanes.values():
                    self._answer(lane.admission.expire(now_ms(), everything=lane.full))
                    lane.full = False
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
                    answer = self._submit(link, submission, now)
                    if answer is not None:
                        answers.append((link, answer))
        except (LinkError, msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
            event(logger, "link_refused", level=logging.WARNING, why=str(error))
            self._close(link)
            return
        self._answer(answers)

    def _submit(self, link: Link, submission: Submission, now: int) -> Answer | None:
        lane = self.lanes.get(self.log.partition_of(submission.stream))
        if lane is None:
            return unavailable(submission.ref, "another ingest has this stream now; send it again")
        if not lane.caught_up:
            return unavailable(submission.ref, "the log is being read back; send it again")
        return lane.admission.submit(link, submission, now)

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
        """Give each appender everything that has come in, when it is free and it is time."""
        now = time.monotonic()
        for lane in self.lanes.values():
            if lane.to_append.empty() and now >= lane.append_at:
                records, ts = lane.admission.take(self.config.log.batch_records)
                if records:
                    lane.to_append.put_nowait((records, ts))
                    lane.append_at = now + APPEND_EVERY_S

    def _patience(self) -> float:
        """How long the selector may wait: until what is waiting may be appended."""
        now, patience = time.monotonic(), 0.1
        for lane in self.lanes.values():
            if lane.admission.waiting and lane.to_append.empty():
                patience = min(patience, max(0.0, lane.append_at - now))
        return patience

    def _start(self, lane: Lane) -> None:
        name = f"append-{lane.partition}"
        threading.Thread(target=self._append_loop, args=(lane,), name=name, daemon=True).start()

    def _append_loop(self, lane: Lane) -> None:
        """Append each batch until it stands; a repeat after a lost answer counts once anyway."""
        while not (self.stop.is_set() or lane.gone.is_set()):
            try:
                records, ts = lane.to_append.get(timeout=0.5)
            except queue.Empty:
                continue
            give_up = time.monotonic() + self.config.ingest.ack_deadline_s
            while not self.stop.is_set():
                began = time.monotonic()
                try:
                    self.log.append(lane.partition, records, ts)
                    with self._counting:
                        self.append_s.observe(time.monotonic() - began)
                        self.appended += len(records)
                    self.log_error = ""
                    break
                except LogUnavailable as error:
                    if not self.log_error:
                        event(logger, "append_failed", level=logging.WARNING, why=str(error))
                    self.log_error = str(error)
                    # A full log takes nothing soon: everybody who waits is told at once.
                    lane.full = isinstance(error, LogFull)
                    # After the deadline the senders have been answered `unavailable`; who sends to
                    # a partition that is no longer ours has been too.
                    if lane.full or time.monotonic() > give_up or lane.gone.is_set():
                        break
                    self.stop.wait(0.02)
            self._wake()

    def _read_loop(self) -> None:
        while not self.stop.is_set():
            lanes = {lane.partition: lane for lane in self._ours()}
            if not lanes:
                self.stop.wait(0.05)
                continue
            try:
                after = {partition: lane.read_to for partition, lane in lanes.items()}
                batches = self.log.read_any(after, 0.5, READ_RECORDS)
            except LogUnavailable:
                self.stop.wait(0.02)
                continue
            for batch in batches:
                lane = lanes[batch.partition]
                lane.read_to = batch.last
                while not self.stop.is_set():
                    try:
                        self.from_log.put((lane, batch), timeout=0.5)
                        break
                    except queue.Full:
                        continue
            if batches:
                self._wake()

    def _trim_loop(self) -> None:
        groups = groups_of(self.config)
        while not self.stop.wait(TRIM_EVERY_S):
            try:
                for partition in [lane.partition for lane in self._ours()]:
                    done = min(self.log.position(group, partition) for group in groups)
                    keep_ms = int(self.config.log.keep_s * 1000)
                    old = self.log.before_ts(partition, now_ms() - keep_ms)
                    self.log.trim(partition, min(done, old))
            except LogUnavailable:
                continue

    def _settle_landed(self) -> None:
        answers: list[tuple[Link, Answer]] = []
        while True:
            try:
                lane, batch = self.from_log.get_nowait()
            except queue.Empty:
                break
            if not lane.gone.is_set():
                answers += lane.admission.landed(batch, now_ms())
        self._answer(answers)

    # -- the group --------------------------------------------------------------------------------

    def _share_loop(self) -> None:
        """Look which partitions are ours, and open those that have become so."""
        assert self.member is not None
        known = set(self.lanes)
        while not self.stop.wait(SHARE_EVERY_S):
            try:
                owned = self.member.partitions()
                for partition in known - owned:
                    known.discard(partition)
                    self._tell(partition)
                for partition in owned - known:
                    lane = self._open(partition)
                    known.add(partition)
                    self._tell(lane)
            except LogUnavailable as error:
                self.log_error = str(error)

    def _tell(self, change: Lane | int) -> None:
        self.from_group.put(change)
        self._wake()

    def _settle_share(self) -> None:
        while True:
            try:
                change = self.from_group.get_nowait()
            except queue.Empty:
                return
            if isinstance(change, Lane):
                self.lanes[change.partition] = change
                self._start(change)
                event(logger, "lane_opened", partition=change.partition, at=change.read_to)
            else:
                lane = self.lanes.pop(change)
                lane.gone.set()
                self._poisoned += lane.admission.poisoned
                self._answer(lane.admission.expire(now_ms(), everything=True))
                event(logger, "lane_closed", partition=change)

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
    metrics = Metrics()
    metrics.read("uproar_comment_seconds", lambda: {"logged": ingest.logged})
    metrics.read("uproar_drops_total", lambda: {"poisoned": ingest.poisoned})
    metrics.read("uproar_ingest_answers_total", lambda: ingest.outcomes)
    metrics.read("uproar_ingest_appended_total", lambda: ingest.appended)
    metrics.read("uproar_ingest_pending", lambda: ingest.pending)
    metrics.read("uproar_ingest_waiting", lambda: ingest.waiting)
    metrics.read("uproar_ingest_sampled_streams", lambda: len(ingest.ratios()))
    metrics.read("uproar_ingest_sampling_ratio", lambda: min(ingest.ratios(), default=1.0))
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

"""Webhooks: what is told, how it is signed, and targets that fail, hang or are private."""

from __future__ import annotations

import hashlib
import hmac
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.system import wait_until
from uproar import ids
from uproar.config import Webhooks as Settings
from uproar.events import Comment, CommentDeleted, Event, Sanction, StreamEnded, StreamStarted, User
from workers.webhooks import (
    BATCH,
    DeliveryFailed,
    Note,
    Outbox,
    Target,
    body_of,
    deliver,
    note_of,
    public,
    signed,
)

KEY = b"k" * 32
COMMENT_ID = ids.build(1_700_000_000_000, 0, ids.new_node())


def settings(**more) -> Settings:
    return Settings(**{"allow_private": True, "timeout_s": 2.0, "backoff_s": 0.01, **more})


def note(offset, since=0.0):
    return Note(offset, b"{}", since)


def offsets(notes):
    return [one.offset for one in notes]


# -- the outbox ------------------------------------------------------------------------------------


def test_an_outbox_keeps_order_until_it_is_told():
    outbox = Outbox(settings())
    for offset in range(1, BATCH + 11):
        outbox.add(note(offset))
    first = outbox.batch(1.0)
    assert offsets(first) == list(range(1, BATCH + 1))
    assert outbox.batch(1.0) == first  # not taken yet
    outbox.done(first)
    assert offsets(outbox.batch(1.0)) == list(range(BATCH + 1, BATCH + 11))
    assert (outbox.oldest, outbox.delivered, outbox.dropped) == ({0: BATCH + 1}, BATCH, 0)


def test_a_full_outbox_drops_the_oldest_and_counts():
    outbox = Outbox(settings(queue=3))
    for offset in range(1, 6):
        outbox.add(note(offset))
    assert offsets(outbox.batch(0.0)) == [3, 4, 5]
    assert outbox.dropped == 2


def test_what_was_dropped_while_it_was_sent_is_not_counted_as_delivered():
    outbox = Outbox(settings(queue=2))
    outbox.add(note(1))
    sent = outbox.batch(0.0)
    outbox.add(note(2))
    outbox.add(note(3))
    outbox.done(sent)
    assert (outbox.delivered, outbox.dropped, outbox.oldest) == (0, 1, {0: 2})


def test_the_back_off_doubles_with_jitter_up_to_its_bound():
    outbox = Outbox(settings(backoff_s=1.0, backoff_max_s=60.0), random.Random(1))
    outbox.add(note(1, since=0.0))
    now = 0.0
    for most in (1, 2, 4, 8, 16, 32, 60, 60):
        wait = outbox.failed(now)
        assert most / 2 <= wait <= most
        assert outbox.batch(now + wait - 0.001) == []
        now += wait
        assert offsets(outbox.batch(now)) == [1]
    outbox.done(outbox.batch(now))
    assert 0.5 <= outbox.failed(now) <= 1.0  # a success lets it start anew


def test_an_event_is_given_up_after_its_time():
    outbox = Outbox(settings(give_up_s=600.0))
    outbox.add(note(1, since=0.0))
    outbox.add(note(2, since=100.0))
    assert offsets(outbox.batch(599.9)) == [1, 2]
    assert offsets(outbox.batch(600.0)) == [2]
    assert (outbox.oldest, outbox.dropped) == ({0: 2}, 1)


# -- what is told ----------------------------------------------------------------------------------


def test_what_targets_are_told_of():
    user = User("ann", "Ann")
    told = [
        note_of("e1", "demo", Event(offset, type_, 1000 + offset, "mod", 15, 0, data), 0.0)
        for offset, (type_, data) in enumerate(
            [
                ("COMMENT", Comment(COMMENT_ID, user, "hi", 1)),
                ("COMMENT_DELETED", CommentDeleted(COMMENT_ID, "", "rude")),
                ("SANCTION", Sanction("bob", "timeout", "mod", "caps", 5000)),
                ("STREAM_STARTED", StreamStarted("A title", "host")),
                ("STREAM_ENDED", StreamEnded("host")),
            ]
        )
    ]
    assert told[0] is None
    bodies = json.loads(body_of(told[1:]))["events"]
    assert bodies[0] == {
        "id": "e1-1", "type": "COMMENT_DELETED", "stream": "demo", "offset": 1, "ts": 1001,
        "comment_id": ids.to_text(COMMENT_ID), "by": "mod", "reason": "rude",
    }  # fmt: skip
    assert [(one["type"], one["by"]) for one in bodies[1:]] == [
        ("SANCTION", "mod"), ("STREAM_STARTED", "host"), ("STREAM_ENDED", "host"),
    ]  # fmt: skip
    assert (bodies[1]["user_id"], bodies[1]["action"], bodies[1]["until"]) == (
        "bob", "timeout", 5000,
    )  # fmt: skip


def test_the_signature_is_what_the_docs_say():
    expected = hmac.new(KEY, b'1700000000.{"events":[]}', hashlib.sha256).hexdigest()
    assert signed(KEY, 1_700_000_000, b'{"events":[]}') == expected


# -- targets ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0",
        "100.64.0.1", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0", "fc00::1",
        "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a9fe:a9fe", "2002:7f00:1::",
        "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    ],
)  # fmt: skip
def test_private_addresses_are_known_in_every_wrapping(address):
    assert not public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "2606:4700:4700::1111", "::ffff:1.1.1.1"])
def test_public_addresses_are_let(address):
    assert public(address)


class Receiver:
    """A backend on loopback: what it got, and what it answers."""

    def __init__(self) -> None:
        self.got: list[tuple[dict[str, str], bytes]] = []
        self.answers: list[int] = []
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.got.append((dict(self.headers), body))
                self.send_response(receiver.answers.pop(0) if receiver.answers else 204)
                self.send_header("Location", "http://127.0.0.1:1/elsewhere")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/hook?a=b"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)

    def offsets(self) -> list[int]:
        return [one["offset"] for _, body in self.got for one in json.loads(body)["events"]]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.close()


@pytest.fixture
def hanging() -> Iterator[str]:
    """A target that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"http://127.0.0.1:{server.getsockname()[1]}/"


def test_a_delivery_can_be_verified_by_its_receiver(receiver):
    body = body_of([Note(1, b'{"offset":1}', 0.0)])
    deliver(receiver.url, KEY, body, settings())
    headers, got = receiver.got[0]
    timestamp = headers["Uproar-Timestamp"]
    expected = hmac.new(KEY, timestamp.encode() + b"." + got, hashlib.sha256).hexdigest()
    assert headers["Uproar-Signature"] == f"v1={expected}"
    assert abs(int(timestamp) - time.time()) < 5
    assert headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("status", [302, 400, 410, 500])
def test_only_2xx_is_yes_and_redirections_are_not_followed(receiver, status):
    receiver.answers = [status]
    with pytest.raises(DeliveryFailed, match=f"answered {status}"):
        deliver(receiver.url, KEY, b"{}", settings())
    assert len(receiver.got) == 1


def test_a_private_target_is_refused_before_anything_is_sent(receiver):
    for url in (receiver.url, receiver.url.replace("127.0.0.1", "localhost")):
        with pytest.raises(DeliveryFailed, match=r"no public address; set webhooks\.allow_private"):
            deliver(url, KEY, b"{}", settings(allow_private=False))
    assert receiver.got == []


def test_a_try_ends_at_its_deadline_however_the_target_stalls(hanging):
    began = time.monotonic()
    with pytest.raises(DeliveryFailed, match="gave no answer"):
        deliver(hanging, KEY, b"{}", settings(timeout_s=0.3))
    assert time.monotonic() - began < 2
    # One byte now and then never runs into a socket's own timeout.
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip() -> None:
            sock, _ = server.accept()
            with sock:
                try:
                    for byte in b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000:
                        sock.sendall(bytes([byte]))
                        time.sleep(0.05)
                except OSError:
                    return

        thread = threading.Thread(target=drip)
        thread.start()
        began = time.monotonic()
        with pytest.raises(DeliveryFailed):
            deliver(f"http://127.0.0.1:{server.getsockname()[1]}/", KEY, b"{}",
                    settings(timeout_s=0.4))  # fmt: skip
        assert time.monotonic() - began < 2
        thread.join(10)


def test_nobody_there_and_no_http(receiver):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(DeliveryFailed, match="can't be reached"):
        deliver(f"http://127.0.0.1:{port}/", KEY, b"{}", settings())
    with pytest.raises(DeliveryFailed):
        deliver(receiver.url.replace("http:", "https:"), KEY, b"{}", settings())


def test_a_target_is_tried_again_until_it_takes_everything_in_order(receiver):
    stop = threading.Event()
    receiver.answers = [500, 503, 204, 500]
    target = Target(receiver.url, KEY, settings(), stop)
    target.thread.start()
    try:
        for offset in range(1, 301):
            target.add([Note(offset, b'{"offset":%d}' % offset, time.monotonic())])
        wait_until(lambda: target.counts()[1] == 300, 10, "everything is delivered")
        seen = list(dict.fromkeys(receiver.offsets()))  # a batch that failed came more than once
        assert seen == list(range(1, 301))
        assert (target.failures, target.counts(), target.reason) == (3, (0, 300, 0), "")
    finally:
        stop.set()
        target.thread.join(5)


def test_a_hanging_target_delays_no_other(receiver, hanging):
    stop = threading.Event()
    slow = Target(hanging, KEY, settings(timeout_s=1.0, queue=50), stop)
    quick = Target(receiver.url, KEY, settings(), stop)
    for target in (slow, quick):
        target.thread.start()
    try:
        began = time.monotonic()
        for offset in range(1, 201):
            for target in (slow, quick):
                target.add([Note(offset, b'{"offset":%d}' % offset, time.monotonic())])
        wait_until(lambda: quick.counts()[1] == 200, 5, "the quick one has everything")
        assert time.monotonic() - began < 1.0  # while the first try of the other still runs
        waiting, delivered, dropped = slow.counts()
        assert (waiting, delivered, dropped) == (50, 0, 150)
    finally:
        stop.set()
        for target in (slow, quick):
            target.thread.join(5)

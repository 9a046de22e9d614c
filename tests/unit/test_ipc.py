"""The link to ingest: frames, and one answer for each submission whatever the other side does."""

import random
import socket
import tempfile
import threading
import time
import zlib
from pathlib import Path

import msgspec
import pytest

from tests.system import wait_until
from uproar.events import User
from uproar.ipc import (
    FRAME_MAX,
    HEAD,
    Answer,
    Draft,
    FrameReader,
    IngestLink,
    LinkError,
    decode_submissions,
    encode_body,
    encode_frame,
)

DRAFT = Draft(User("u", "U"), "hi")


def test_frames_come_out_whole_however_they_are_cut():
    bodies = [b"", b"x", b"y" * 70_000, bytes(range(256))]
    stream = b"".join(encode_frame(number, body) for number, body in enumerate(bodies))
    chance = random.Random(4)
    for _ in range(50):
        reader, found, at = FrameReader(), [], 0
        while at < len(stream):
            step = chance.choice([1, 3, 11, 12, 13, 1000, 100_000])
            found += reader.feed(stream[at : at + step])
            at += step
        assert found == bodies


def test_a_frame_is_little_endian_length_number_and_checksum():
    assert encode_frame(7, b"abc")[:12] == HEAD.pack(3, 7, zlib.crc32(b"abc"))
    assert encode_frame(2**32 + 5, b"")[4:8] == b"\x05\0\0\0"


def test_a_broken_frame_ends_the_connection():
    whole = encode_frame(1, b"abc")
    for at in (8, 11, 12, 14):
        broken = bytearray(whole)
        broken[at] ^= 1
        with pytest.raises(LinkError, match="checksum"):
            FrameReader().feed(bytes(broken))
    with pytest.raises(LinkError, match="the bound is"):
        FrameReader().feed(HEAD.pack(FRAME_MAX + 1, 0, 0))


class Server:
    """What stands where ingest does: real sockets, and answers when the test says so."""

    def __init__(self, where, kind="unix"):
        self.where = where
        self.kind = kind
        self.connections = []  # a list of submissions each, in the order they came
        self.frames = []  # sizes
        self.sockets = []
        self.reading = True
        self.auto = False
        self._listener = None
        self.listen()

    @property
    def address(self):
        return f"{self.kind}:{self.where}"

    @property
    def first(self):
        """What came over the first connection; nothing before it is accepted."""
        return self.connections[0] if self.connections else []

    def listen(self):
        if self.kind == "unix":
            Path(self.where).unlink(missing_ok=True)
            self._listener = socket.socket(socket.AF_UNIX)
            self._listener.bind(self.where)
        else:
            self._listener = socket.create_server(("127.0.0.1", 0))
            self.where = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self._listener.listen(8)
        self._accepts = threading.Thread(target=self._accept, args=(self._listener,), daemon=True)
        self._accepts.start()

    def _accept(self, listener):
        while True:
            try:
                sock, _ = listener.accept()
            except OSError:
                return
            got = []
            self.sockets.append(sock)
            self.connections.append(got)
            if self.reading:
                threading.Thread(target=self._read, args=(sock, got), daemon=True).start()

    def _read(self, sock, got):
        reader = FrameReader()
        try:
            while data := sock.recv(65_536):
                for body in reader.feed(data):
                    self.frames.append(len(body))
                    found = decode_submissions(body)
                    got += found
                    if self.auto:
                        self.answer(*[Answer(one.ref, offset=one.ref) for one in found], sock=sock)
        except OSError:
            pass

    def answer(self, *answers, sock=None):
        (sock or self.sockets[-1]).sendall(encode_frame(1, encode_body(answers)))

    def hang_up(self):
        """End as a killed process does: nobody listens, all connections are gone."""
        # A thread that waits in accept keeps a closed socket listening; shutdown wakes it.
        try:
            self._listener.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # closed before
        self._listener.close()
        self._accepts.join(5)
        for sock in self.sockets:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
            sock.close()
        self.sockets.clear()


@pytest.fixture(params=["unix", "tcp"])
def server(request):
    with tempfile.TemporaryDirectory(prefix="up") as path:
        running = Server(f"{path}/i.sock", request.param)
        yield running
        running.hang_up()


@pytest.fixture
def unix_server():
    with tempfile.TemporaryDirectory(prefix="up") as path:
        running = Server(f"{path}/i.sock")
        yield running
        running.hang_up()


@pytest.fixture
def open_link():
    links = []

    def make(address, *, deadline_s=5.0, pending=1000):
        link = IngestLink(address, deadline_s=deadline_s, pending=pending)
        links.append(link)
        link.start()
        return link

    yield make
    for link in links:
        link.close()


class Answers(dict):
    """Answers by nonce; a second one for the same submission is a failure of the link's."""

    def of(self, nonce):
        def done(answer):
            assert nonce not in self, "a second answer"
            self[nonce] = answer

        return done


def submit(link, answers, nonce, data=DRAFT):
    link.submit("COMMENT", "s", "u", "viewer", nonce, data, answers.of(nonce))


def connected(link):
    wait_until(lambda: link.connected, 5, "the link connects")
    return link


def test_every_submission_gets_its_own_answer(server, open_link):
    link = connected(open_link(server.address))
    answers = Answers()
    for number in range(1000):
        submit(link, answers, f"n{number}")
    wait_until(lambda: len(server.first) == 1000, 5, "all arrive")
    got = server.first
    assert [one.nonce for one in got] == [f"n{number}" for number in range(1000)]
    one = got[0]
    assert (one.type, one.stream, one.actor, one.role) == ("COMMENT", "s", "u", "viewer")
    assert msgspec.msgpack.decode(got[0].data, type=Draft) == DRAFT
    server.answer(*[Answer(one.ref, offset=int(one.nonce[1:])) for one in reversed(got)])
    wait_until(lambda: len(answers) == 1000, 5, "all are answered")
    assert all(answer.offset == int(nonce[1:]) for nonce, answer in answers.items())
    assert link.pending == 0
    server.answer(Answer(1), Answer(10**9))  # again, and one of nobody's
    submit(link, answers, "last")
    wait_until(lambda: len(got) == 1001, 5, "the link lives")


def test_ingest_away_is_answered_at_once(unix_server, open_link):
    unix_server.hang_up()
    link = open_link(unix_server.address)
    answers = Answers()
    submit(link, answers, "n")
    assert answers["n"].code == "unavailable" and answers["n"].retry_after_ms > 0
    assert "same nonce" in answers["n"].message
    unix_server.listen()
    connected(link)


def test_after_a_reconnect_what_has_no_answer_is_sent_again_in_order(unix_server, open_link):
    link = connected(open_link(unix_server.address))
    answers = Answers()
    for number in range(5):
        submit(link, answers, f"n{number}")
    wait_until(lambda: len(unix_server.first) == 5, 5, "all arrive")
    unix_server.answer(Answer(unix_server.first[1].ref))
    wait_until(lambda: "n1" in answers, 5, "one is answered")
    unix_server.hang_up()
    wait_until(lambda: not link.connected, 5, "the link notices")
    assert link.pending == 4 and len(answers) == 1
    unix_server.auto = True
    unix_server.listen()
    wait_until(lambda: len(answers) == 5, 5, "all are answered")
    again = unix_server.connections[1]
    assert [one.nonce for one in again] == ["n0", "n2", "n3", "n4"]
    assert all(not answer.code for answer in answers.values())


def test_the_deadline_answers_those_whom_ingest_does_not(unix_server, open_link):
    link = connected(open_link(unix_server.address, deadline_s=0.3))
    answers = Answers()
    began = time.monotonic()
    submit(link, answers, "n")
    wait_until(lambda: answers, 3, "it is answered")
    assert 0.3 <= time.monotonic() - began < 1.5
    assert answers["n"].code == "unavailable"
    unix_server.answer(Answer(unix_server.first[0].ref))  # late: nobody waits any more
    submit(link, answers, "m")
    wait_until(lambda: "m" in answers, 3, "the link lives")
    assert link.pending == 0


def test_an_ingest_that_stopped_reading_keeps_nobody_waiting(unix_server, open_link):
    """Its socket fills up; the deadline used to wait with the sender."""
    unix_server.reading = False
    link = connected(open_link(unix_server.address, deadline_s=0.5))
    answers = Answers()
    big = Draft(User("u", "U"), "x" * 60_000)
    for number in range(50):
        submit(link, answers, f"n{number}", big)
    wait_until(lambda: len(answers) == 50, 6, "all are answered")
    assert {answer.code for answer in answers.values()} == {"unavailable"}


def test_what_waits_is_bounded(unix_server, open_link):
    link = connected(open_link(unix_server.address, pending=10))
    answers = Answers()
    for number in range(12):
        submit(link, answers, f"n{number}")
    assert sorted(answers) == ["n10", "n11"]
    assert answers["n10"].code == "unavailable" and link.pending == 10


def test_no_frame_comes_near_the_bound_whatever_clients_write(unix_server, open_link):
    """500 texts of 64 KB in one frame would be refused, sent again, refused again."""
    unix_server.auto = True
    link = open_link(unix_server.address)
    connected(link)
    answers = Answers()
    big = Draft(User("u", "U"), "x" * 64_000)
    for number in range(300):
        submit(link, answers, f"n{number}", big)
    wait_until(lambda: len(answers) == 300, 10, "all are answered")
    assert all(not answer.code for answer in answers.values())
    assert max(unix_server.frames) <= FRAME_MAX / 4
    assert len(unix_server.connections) == 1


@pytest.mark.parametrize(
    "garbage",
    [
        b"\xff" * 64,
        encode_frame(1, b"\xc1"),
        encode_frame(1, encode_body([["no", "answer"]])),
        encode_frame(1, b"\x91\x92\x01\xa2\xff\xfe"),
    ],
    ids=["no frame", "no msgpack", "no answer", "no UTF-8"],
)
def test_garbage_from_the_other_side_means_a_new_connection(unix_server, open_link, garbage):
    link = connected(open_link(unix_server.address))
    answers = Answers()
    submit(link, answers, "n")
    wait_until(lambda: unix_server.first, 5, "it arrives")
    unix_server.auto = True
    unix_server.sockets[0].sendall(garbage)
    wait_until(lambda: answers, 5, "it is answered on the next connection")
    assert not answers["n"].code and len(unix_server.connections) == 2


def test_a_receiver_that_fails_costs_its_own_answer_only(unix_server, open_link, caplog):
    unix_server.auto = True
    link = connected(open_link(unix_server.address))
    link.submit("COMMENT", "s", "u", "viewer", "n", DRAFT, lambda answer: 1 // 0)
    answers = Answers()
    submit(link, answers, "m")
    wait_until(lambda: answers, 5, "the next is answered")
    assert "answer_failed" in {record.getMessage() for record in caplog.records}


def test_close_answers_all_who_wait(unix_server, open_link):
    link = connected(open_link(unix_server.address))
    answers = Answers()
    submit(link, answers, "n")
    began = time.monotonic()
    link.close()
    assert time.monotonic() - began < 3
    assert answers["n"].code == "unavailable" and not link.connected
    submit(link, answers, "m")
    assert answers["m"].code == "unavailable"
    assert not any(thread.is_alive() for thread in link._threads)

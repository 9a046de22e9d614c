"""The moderation worker in a running system: what it does stands in the log, once."""

from __future__ import annotations

import os
import queue
import signal
import urllib.request

import psutil
import pytest

from tests.system import System, wait_until
from uproar import ids
from uproar.events import Terms, User, decode_record, to_event
from uproar.ipc import Draft, IngestLink
from uproar.log import open_log

DEADLINE_S = 15.0


class Room:
    """Puts comments into a running system as a gateway would, and reads what the log says."""

    def __init__(self, system: System) -> None:
        self.system = system
        config = system.config
        self.log = open_log(config)
        self.link = IngestLink(f"unix:{config.socket('ingest')}", deadline_s=5.0, pending=100)
        self.link.start()
        wait_until(lambda: self.link.connected, DEADLINE_S, "ingest")
        self.number = 0

    def close(self) -> None:
        self.link.close()
        self.log.close()

    def submit(self, type_, stream, actor, role, data):
        answers: queue.SimpleQueue = queue.SimpleQueue()
        self.number += 1
        self.link.submit(type_, stream, actor, role, f"n{self.number}", data, answers.put)
        answer = answers.get(timeout=10)
        assert not answer.code, answer
        return answer

    def say(self, stream, user, text, role="viewer"):
        """Have a comment in the log; return its id."""
        draft = Draft(User(user, user.upper(), role), text)
        return self.submit("COMMENT", stream, user, role, draft).id

    def terms(self, stream, *blocked, allowed=()):
        self.submit("TERMS", stream, "mod", "moderator", Terms(blocked, allowed, "mod"))

    def events(self, stream):
        """All of a stream's events, with their nonces."""
        found, at = [], 0
        partition = self.log.partition_of(stream)
        end, _ = self.log.end(partition)
        while at < end:
            for batch in self.log.read(partition, at, 1.0, 10_000):
                for offset, raw in enumerate(batch.records, batch.first):
                    record = decode_record(raw)
                    if record.stream == stream:
                        found.append((to_event(offset, record), record.nonce))
                at = batch.last
        return found

    def of(self, stream, type_):
        return [e.data for e, _ in self.events(stream) if e.type == type_]

    def deleted(self, stream):
        return {data.comment_id: data for data in self.of(stream, "COMMENT_DELETED")}

    def sanctions(self, stream):
        return self.of(stream, "SANCTION")

    def until(self, condition, what):
        return wait_until(condition, DEADLINE_S, what)


@pytest.fixture
def room(system):
    made = Room(system)
    yield made
    made.close()


def kill(system, room):
    """Kill the worker and wait until another serves."""
    pid = _pid(system)
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: _pid(system) not in (None, pid), DEADLINE_S, "another moderation process")


def _pid(system):
    """The worker's process, None while there is none."""
    for process in psutil.Process(system.process.pid).children(recursive=True):
        try:
            if process.cmdline()[1:4] == ["-m", "workers", "moderation"]:
                return process.pid
        except psutil.Error:
            continue  # gone meanwhile
    return None


def test_a_streams_terms_and_what_they_allow(room):
    room.terms("mod-terms", "*zork*", allowed=["zorkthorpe"])
    bad = room.say("mod-terms", "ann", "a z\u043erkish thing")
    fine = room.say("mod-terms", "ann", "Zorkthorpe United")
    elsewhere = room.say("mod-elsewhere", "ann", "zork")
    last = room.say("mod-terms", "bob", "zork")
    room.until(lambda: last in room.deleted("mod-terms"), "the deletion")
    assert set(room.deleted("mod-terms")) == {bad, last}
    assert room.deleted("mod-terms")[bad].reason == "term: *zork*"
    assert elsewhere not in room.deleted("mod-elsewhere")
    assert fine not in room.deleted("mod-terms")


def test_flags_are_for_moderators_and_name_the_words(room):
    text = "what a stupid idiot"
    flagged = room.say("mod-flags", "ann", text)
    aimed = room.say("mod-flags", "ann", "you are stupid")
    room.say("mod-flags", "boss", "you are stupid", role="moderator")
    room.until(lambda: aimed in room.deleted("mod-flags"), "the deletion")
    found = room.of("mod-flags", "FLAGGED")
    assert [flag.comment.id for flag in found] == [flagged]
    assert found[0].category == "toxic"
    assert found[0].score >= 0.9
    assert {text[start:end] for start, end in found[0].spans} == {"stupid", "idiot"}
    assert set(room.deleted("mod-flags")) == {aimed}


def test_three_strikes_over_a_killed_worker_make_a_timeout_and_each_act_stands_once(system, room):
    stream = "mod-strikes"
    room.terms(stream, "zork")
    said = []
    for number in range(3):
        said.append(room.say(stream, "ann", f"zork number {number}"))
        room.until(lambda: said[-1] in room.deleted(stream), "the deletion")
        if number < 2:
            kill(system, room)
    done = room.until(
        lambda: [s for s in room.sanctions(stream) if s.action == "timeout"], "the timeout"
    )
    assert len(done) == 1
    assert done[0].until == ids.split(said[-1])[0] + 300_000
    assert done[0].by == "moderation"
    strikes = [s for s in room.sanctions(stream) if s.action == "strike"]
    assert [s.user_id for s in strikes] == ["ann"] * 3
    nonces = [(e.type, nonce) for e, nonce in room.events(stream) if "moderation:" in nonce]
    assert len(nonces) == len(set(nonces))
    expected = [f"moderation:{ids.to_text(one)}:delete" for one in said]
    assert [n.rpartition("s:")[2] for kind, n in nonces if kind == "COMMENT_DELETED"] == expected


def test_a_killed_worker_still_knows_a_streams_terms(system, room):
    room.terms("mod-restart", "zork")
    kill(system, room)
    bad = room.say("mod-restart", "ann", "zork")
    room.until(lambda: bad in room.deleted("mod-restart"), "the deletion")


def test_it_says_how_it_is_doing(system, room):
    bad = room.say("mod-figures", "ann", "you are stupid")
    room.until(lambda: bad in room.deleted("mod-figures"), "the deletion")

    def seen():
        with urllib.request.urlopen(system.info["admin"].rstrip("/") + "/metrics", timeout=5) as a:
            text = a.read().decode()
        return (
            'action="delete",stage="linear"' in text
            and "uproar_moderation_queue_records" in text
            and "uproar_moderation_decision_seconds_count" in text
        )

    room.until(seen, "the figures")

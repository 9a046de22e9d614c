"""The swarm against another implementation's server: what members record, how they come back."""

from __future__ import annotations

import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit import ws_peer
from tests.unit.engine_driver import ENGINES, Engine
from tests.unit.ws_peer import Peer
from uproar import swarm as swarms
from uproar import wire
from uproar.swarm import Member, Swarm, stamp, stamp_of

DEADLINE_S = 20.0


@pytest.fixture
def peer() -> Iterator[Peer]:
    with ws_peer.running() as running:
        yield running


@pytest.fixture
def swarm() -> Iterator[Swarm]:
    with Swarm(seed=1) as one:
        yield one


def talk(peer: Peer, count: int, start: int = 0) -> threading.Thread:
    def run() -> None:
        for index in range(start, start + count):
            peer.add(stamp(f"{index}"))

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def comment_at(offset: int) -> dict[str, Any]:
    return {"type": "COMMENT", "offset": offset, "text": "x", "user": {"id": "u"}}


def offsets_of(peer: Peer) -> list[int]:
    return [event["offset"] for event in peer.events]


def test_all_members_see_the_same_in_the_same_order(peer: Peer, swarm: Swarm) -> None:
    peer.add("from before")
    members = [
        swarm.add(peer.url, codec="msgpack" if index % 2 else "json", decode=index % 4 < 2,
                  measure=index < 4, deflate=index % 3 == 0)
        for index in range(80)
    ]  # fmt: skip
    assert swarm.run(lambda: all(member.live for member in members), DEADLINE_S)
    writer = talk(peer, 50)
    assert swarm.run(lambda: all(member.comments == 50 for member in members), DEADLINE_S)
    writer.join()
    live = offsets_of(peer)[1:]
    for index, member in enumerate(members):
        assert member.core.deflated == (index % 3 == 0)
        assert member.position == live[-1]
        assert member.repeats == 0
        assert member.recovered == [None]
        assert member.messages == 51
        if index % 4 < 2:
            assert member.offsets == live
            assert member.historical == offsets_of(peer)[:1]
        else:
            assert member.offsets == []
        if index < 4:
            assert len(member.latencies) == 50
            assert all(0 < seconds < DEADLINE_S for seconds in member.latencies)
        assert 0 < member.silence_s < DEADLINE_S


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("how", ["the server cuts", "the member cuts", "the server closes"])
def test_members_that_are_cut_come_back_by_themselves(
    peer: Peer, swarm: Swarm, how: str, decode: bool
) -> None:
    members = [swarm.add(peer.url, decode=decode, backoff_s=0.02) for _ in range(10)]
    assert swarm.run(lambda: all(member.live for member in members), DEADLINE_S)
    talk(peer, 5).join()
    assert swarm.run(lambda: all(member.comments == 5 for member in members), DEADLINE_S)
    sessions = [member.session for member in members]
    if how == "the server cuts":
        peer.cut_all()
    elif how == "the server closes":
        peer.close_all(1001)
    else:
        for member in members:
            member.cut()
    talk(peer, 5, 5).join()
    assert swarm.run(lambda: all(member.comments == 10 for member in members), DEADLINE_S)
    for member, session in zip(members, sessions, strict=True):
        assert member.recovered == [None, True]
        assert member.session != session
        assert member.position == offsets_of(peer)[-1]
        assert member.repeats == 0
        if decode:
            assert member.offsets == offsets_of(peer)


def test_member_told_not_to_comes_back_only_when_asked(peer: Peer, swarm: Swarm) -> None:
    member = swarm.add(peer.url, reconnect=False)
    assert swarm.run(lambda: member.live, DEADLINE_S)
    peer.add("one")
    assert swarm.run(lambda: member.comments == 1, DEADLINE_S)
    member.cut()
    assert member.session is None
    peer.add("two")
    assert not swarm.run(lambda: member.live, 0.3)
    while member.session is None or member.session.startswith("g1"):  # until another gateway's
        member.reconnect()
        assert swarm.run(lambda: member.live, DEADLINE_S)
    assert swarm.run(lambda: member.comments == 2, DEADLINE_S)
    assert member.offsets == offsets_of(peer)


def test_refusals_are_final_and_block_nobody(
    peer: Peer, swarm: Swarm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swarms, "CONNECTING", 2)
    peer.on_connect = [(4004, "no such stream")] * 5
    members = [swarm.add(peer.url) for _ in range(12)]
    assert swarm.run(
        lambda: all(member.live or member.closed is not None for member in members), DEADLINE_S
    )
    codes = [member.closed.code for member in members if member.closed is not None]
    assert codes == [4004] * 5
    assert swarm._connecting == 0


def test_dead_port_is_tried_again_until_it_lives(swarm: Swarm) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        member = swarm.add(f"ws://127.0.0.1:{taken.getsockname()[1]}/stream/a", backoff_s=0.01)
        assert swarm.run(lambda: member.core._attempts > 3, DEADLINE_S)
    assert member.closed is None or "reach" in member.closed.reason
    assert swarm._connecting <= 1


def test_events_and_commands_of_a_member(peer: Peer, swarm: Swarm) -> None:
    seen: list[tuple[str, bool]] = []

    def note(member: Member, event: dict[str, Any], now: float) -> None:
        seen.append((event["type"], abs(time.monotonic() - now) < 1))

    member = swarm.add(peer.url, codec="msgpack", on_event=note)
    with pytest.raises(ConnectionError):
        member.send(wire.PING)
    assert swarm.run(lambda: member.live, DEADLINE_S)
    member.send([wire.comment("one", "n1"), wire.comment("two", "n2")])
    assert swarm.run(lambda: sum(kind == "ACK" for kind, _ in seen) == 2, DEADLINE_S)
    peer.broadcast([{"type": "GAP", "from": 106, "to": 140, "reason": "too_slow"}])
    assert swarm.run(lambda: bool(member.gaps), DEADLINE_S)
    assert member.gaps == [(106, 140)]
    assert member.position == 140
    assert all(fresh for _, fresh in seen)
    assert [command["nonce"] for command in peer.commands] == ["n1", "n2"]


def test_repeats_and_disorder_show(peer: Peer, swarm: Swarm) -> None:
    """`Once and in order` is judged by these counters: a wrong server must move them."""
    exact, cheap = swarm.add(peer.url), swarm.add(peer.url, decode=False)
    assert swarm.run(lambda: exact.live and cheap.live, DEADLINE_S)
    one, two = peer.add("one"), peer.add("two")
    peer.broadcast([two])
    peer.broadcast([one, two])
    late, early = comment_at(peer.offset + 9), comment_at(peer.offset + 6)
    peer.broadcast([late, early])
    peer.first += 9
    three = peer.add("three")
    assert swarm.run(lambda: exact.position == cheap.position == three["offset"], DEADLINE_S)
    assert exact.offsets == [each["offset"] for each in (one, two, late, three)]
    assert (exact.repeats, cheap.repeats) == (4, 4)
    assert (exact.comments, cheap.comments) == (4, 4)


def test_malformed_messages_end_the_member(peer: Peer, swarm: Swarm) -> None:
    member = swarm.add(peer.url)
    assert swarm.run(lambda: member.live, DEADLINE_S)
    peer.broadcast([{"type": "COMMENT", "text": "without an offset"}])
    assert swarm.run(lambda: member.closed is not None, DEADLINE_S)
    assert member.closed is not None
    assert member.closed.code == 1007


def test_silence_counts_comments_only(peer: Peer, swarm: Swarm) -> None:
    member = swarm.add(peer.url)
    assert swarm.run(lambda: member.live, DEADLINE_S)
    peer.add("one")
    assert swarm.run(lambda: member.comments == 1, DEADLINE_S)
    start = time.monotonic()
    while time.monotonic() - start < 0.2:
        peer.broadcast([{"type": "VIEWERS", "count": 1, "position": peer.offset}])
        swarm.run(lambda: False, 0.02)
    assert member.silence_s >= 0.2
    member.reset_silence()
    assert member.silence_s < 0.2


def test_members_that_leave_are_gone(peer: Peer, swarm: Swarm) -> None:
    member = swarm.add(peer.url)
    assert swarm.run(lambda: member.live, DEADLINE_S)
    connection = peer.connections[0]
    member.leave()
    ws_peer.until(lambda: not peer.connections)
    assert connection.close_code == 1000
    assert not swarm.run(lambda: member.live, 0.2)


@pytest.mark.parametrize("kind", ENGINES)
def test_members_read_the_shared_window_of_an_engine(swarm: Swarm, kind: str) -> None:
    """They come one by one, some are cut off and come back; each reads what it should."""
    engine = Engine(kind, ("uproar.v1.json",))
    chance = random.Random(1)
    audiences = {form: engine.tell("audience", "text", form) for form in ("none", "window")}
    sent: dict[str, list[int]] = {}  # by session
    got: dict[str, list[int]] = {}

    def note(member: Member, event: dict[str, Any], now: float) -> None:
        if event["type"] == "WELCOME":
            got[event["session"]] = []
        elif event["type"] == "COMMENT":
            got[str(member.session)].append(event["offset"])

    members: list[Member] = []
    offset = 100
    for step in range(250):
        if step % 5 == 0 and len(members) < 30:
            url = f"ws://127.0.0.1:{engine.port}/stream/demo"
            deflate = len(members) % 3 > 0
            members.append(swarm.add(url, deflate=deflate, backoff_s=0.01, on_event=note))
        if step % 10 == 9:
            chance.choice(members).cut()
        swarm.step(0.005)
        while (opened := engine.arrived("Opened")) is not None:
            sid, compression = opened[1], opened[4]
            welcome = ws_peer.VECTORS["welcome"](
                epoch="e1", offset=offset, session="#" * 12, recovered=False, ping_s=30.0
            )
            greeting = json.dumps([welcome])
            at = len(greeting[: greeting.index("#")].encode())
            engine.tell("admit", [sid], audiences[compression], greeting, at)
            sent[f"{sid:012x}"] = []
        offset += 3
        comments = [comment_at(offset) for _ in range(chance.choice([1, 1, 40]))]
        for number, event in enumerate(comments):
            event["offset"] += number
        offset = comments[-1]["offset"]
        for audience in audiences.values():
            sids = engine.tell("sids", audience)
            apart = [sid for sid in sids if chance.random() < 0.05]
            assert engine.tell("broadcast", audience, json.dumps(comments), apart) == []
            for sid in apart:
                assert engine.tell("send", sid, json.dumps(comments))
            for sid in sids:
                sent[f"{sid:012x}"] += [event["offset"] for event in comments]

    def settled() -> bool:
        standing = [str(member.session) for member in members if member.live]
        return all(got[session] == sent[session] for session in standing)

    assert swarm.run(settled, DEADLINE_S)
    standing = [str(member.session) for member in members if member.live]
    assert len(standing) > 20
    assert {member.core.deflated for member in members} == {True, False}
    for session, offsets in got.items():
        assert offsets == sent[session][: len(offsets)], "cut off, but nothing missing before"
    assert not any(member.repeats or member.gaps for member in members)
    assert all(member.closed is None or member.closed.code == 1006 for member in members)
    packed = [member.bytes for member in members if member.core.deflated]
    plain = [member.bytes for member in members if not member.core.deflated]
    assert sum(packed) / len(packed) < sum(plain) / len(plain) / 3
    engine.close()


def test_stamps() -> None:
    before = time.monotonic()
    sent = stamp_of(stamp("hello ~ there"))
    assert sent is not None
    assert before - 1e-6 <= sent <= time.monotonic()
    assert stamp_of("hello") is None
    assert stamp_of("hello ~ there") is None

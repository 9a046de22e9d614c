"""Server-sent events on a running system: what a viewer by EventSource sees, misses and is told."""

from __future__ import annotations

import json
import time

import pytest

from tests.event_source import EventSource
from tests.integration.raw import Bystanders, Socket, http, token_for
from tests.system import System, wait_until
from uproar.swarm import Swarm


def source(system: System, stream: str, *lines: str, query: str = "", **more) -> EventSource:
    path = f"/stream/{stream}/events" + (f"?{query}" if query else "")
    return EventSource(system.info["http"], path, *lines, **more)


def post(system: System, stream: str, *texts: str) -> list[int]:
    status, answer = system.call(
        "POST", f"/stream/{stream}/comments", [{"text": text} for text in texts], role="service"
    )
    assert status == 201, answer
    return [one["offset"] for one in answer]


def again(system: System, stream: str, last_id: str) -> EventSource:
    """Connect as an EventSource does after a cut."""
    return source(system, stream, f"Last-Event-ID: {last_id}", query="backlog=5")


def test_a_stream_of_events_says_what_a_websocket_says(system):
    (historical,) = post(system, "sse", "before")
    with source(system, "sse") as one, Socket(system, "sse") as other:
        assert one.headers["content-type"] == "text/event-stream"
        assert one.headers["cache-control"] == "no-store"
        assert one.headers["x-accel-buffering"] == "no"
        assert "transfer-encoding" not in one.headers and "content-length" not in one.headers
        assert one.event("WELCOME")["user"] is None
        other.event("WELCOME")
        assert 1000 <= one.parser.retry_ms <= 3000
        assert one.seen[0]["type"] == "WELCOME"
        assert one.event("COMMENT", offset=historical)["historical"] is True
        offsets = post(system, "sse", *(f"comment {number} 🎉\u2028" for number in range(20)))
        doomed = one.event("COMMENT", offset=offsets[3])["id"]
        status, answer = system.call("DELETE", f"/stream/sse/comments/{doomed}", role="moderator")
        assert status == 200, answer
        deleted = one.event("COMMENT_DELETED", comment_id=doomed)
        assert deleted["offset"] == answer["offset"]
        other.event("COMMENT_DELETED", comment_id=doomed)
        placed = [[event for event in seen if "offset" in event] for seen in (one.seen, other.seen)]
        assert placed[0][1:] == placed[1][1:], "the same events in the same order"
        assert one.offsets() == offsets
        assert one.last_id.endswith(f"-{answer['offset']}")


def test_a_token_makes_it_somebodys(system):
    token = token_for(system, "ada", role="moderator")
    for lines, query in (((f"Authorization: Bearer {token}",), ""), ((), f"access_token={token}")):
        with source(system, "sse-token", *lines, query=query) as one:
            assert one.event("WELCOME")["user"]["id"] == "ada"


def test_a_cut_is_healed_by_the_last_event_id(system):
    posted, seen, last_id = [], [], ""
    with source(system, "sse-cut", query="backlog=0") as one:
        one.event("WELCOME")
        for _ in range(15):
            posted += post(system, "sse-cut", *(["talk"] * 4))
            if len(posted) % 3 == 0:
                one.event("COMMENT", offset=posted[-1])
    seen, last_id = one.offsets(), one.last_id
    for _ in range(10):
        posted += post(system, "sse-cut", "missed", "missed too")
        with again(system, "sse-cut", last_id) as one:
            welcome = one.event("WELCOME")
            assert welcome["recovered"] is True
            assert f"{welcome['epoch']}-{welcome['offset']}" == last_id
            posted += post(system, "sse-cut", "live again")
            one.event("COMMENT", offset=posted[-1])
            seen += one.offsets()
            last_id = one.last_id
    assert seen == posted


def test_a_deletion_while_away_is_told_and_the_comment_not_shown(system):
    with source(system, "sse-away") as one:
        one.event("WELCOME")
        (kept,) = post(system, "sse-away", "kept")
        shown = one.event("COMMENT", offset=kept)["id"]
    post(system, "sse-away", "gone")
    with Socket(system, "sse-away") as other:
        gone = other.event("COMMENT", text="gone")["id"]
    for comment in (shown, gone):
        system.call("DELETE", f"/stream/sse-away/comments/{comment}", role="moderator")
    away = one.last_id

    def shows_nothing() -> bool:
        with again(system, "sse-away", away) as back:
            for comment in (shown, gone):
                back.event("COMMENT_DELETED", comment_id=comment)
            return back.offsets() == []

    # A gateway that has not heard of the deletion yet shows the comment, and then deletes it.
    wait_until(shows_nothing, 5, "the comment stays away")


def test_a_foreign_place_is_not_recovered_but_welcome(system):
    (known,) = post(system, "sse-foreign", "talk")
    for last_id in ("0badc0ffee00-5", f"x-{known}"):
        with again(system, "sse-foreign", last_id) as one:
            assert one.event("WELCOME")["recovered"] is False
            assert one.event("COMMENT", offset=known)["historical"] is True


def test_refusals_are_problems(system):
    bystanders = Bystanders(system, "sse-bad")
    good = token_for(system, "ada")
    elsewhere = token_for(system, "ada", streams=["other"])
    path = "/stream/sse-bad/events"
    try:
        for asked, lines, status in (
            (path, ("Authorization: Bearer x",), 401),
            (path, (f"Authorization: Bearer {good[:-4]}AAAA",), 401),
            (path, (f"Authorization: Bearer {token_for(system, 'ada', ttl_s=-60)}",), 401),
            (f"{path}?access_token=x", (), 401),
            (path, (f"Authorization: Bearer {elsewhere}",), 403),
            ("/stream/Not%20one/events", (), 404),
            ("/stream/sse-bad/events/", (), 404),
            (f"{path}?rate=10", (), 400),
            (f"{path}?offset=x&epoch=e", (), 400),
            (f"{path}?backlog=-1", (), 400),
            (path, ("Last-Event-ID: nonsense",), 400),
            (path, ("Last-Event-ID: e-99999999999999999",), 400),
        ):
            assert http(system, "GET", asked, b"", *lines).problem()["status"] == status, asked
        assert http(system, "POST", path).problem()["status"] == 405
        head = http(system, "HEAD", path)
        assert (head.status, head.headers["content-type"]) == (200, "text/event-stream")
        with Socket(system, "sse-bad", path=path) as one:
            assert one.closed()[0] == 4004, "no WebSocket lives there"
        bystanders.check()
    finally:
        bystanders.close()


def test_whoever_talks_on_it_is_cut_off(system):
    with source(system, "sse-talk") as one:
        one.event("WELCOME")
        try:
            one.sock.sendall(b"x" * 1_000_000)
        except OSError:
            pass
        one.to_end()
    with source(system, "sse-talk") as one:
        one.sock.sendall(b"\r\n")
        one.event("WELCOME")
        post(system, "sse-talk", "a stray line end harms nobody")
        one.event("COMMENT", text="a stray line end harms nobody")


def test_viewers_by_events_are_counted(system):
    def connections() -> int:
        return system.call("GET", "/stream/sse-count")[1]["connections"]

    sources = [source(system, "sse-count") for _ in range(5)]
    wait_until(lambda: connections() == 5, 10, "all are counted")
    for one in sources:
        one.sock.close()
    wait_until(lambda: connections() == 0, 10, "and gone")


def test_many_viewers_share_ticks_with_other_dialects(system):
    with Swarm(seed=1) as swarm:
        members = [
            swarm.add(system.stream("sse-many"), codec="msgpack" if n % 2 else "json", backlog=0)
            for n in range(10)
        ]
        sources = [source(system, "sse-many", query="backlog=0") for _ in range(10)]
        for one in sources:
            one.event("WELCOME")
        assert swarm.run(lambda: all(member.live for member in members), 10)
        posted = []
        for _ in range(20):
            posted += post(system, "sse-many", *(["all the same"] * 10))
        assert swarm.run(lambda: all(member.offsets == posted for member in members), 10)
        for one in sources:
            one.event("COMMENT", offset=posted[-1])
            assert one.offsets() == posted
            one.sock.close()


def test_an_expired_token_is_told_by_a_close_event():
    with System(auth__leeway_s=0) as own:
        token = token_for(own, "ada", ttl_s=2)
        with source(own, "sse-expiry", f"Authorization: Bearer {token}") as one:
            one.event("WELCOME")
            one.to_end()
            assert one.close_event["code"] == 4001
            assert "expired" in one.close_event["reason"]


def answers(system: System) -> bool:
    """Whether the gateways do: a connection to one that was just killed is reset."""
    try:
        return all(system.call("GET", "/streams")[0] == 200 for _ in range(5))
    except OSError:
        return False


def test_a_killed_gateway_costs_nothing():
    with System(server__gateways=2) as own:
        posted, seen, last_id = [], [], ""
        for number in range(3):
            # The connection of before stands on a gateway that is killed under it.
            with source(own, "sse-kill", *([f"Last-Event-ID: {last_id}"] if last_id else []),
                        query="backlog=0") as one:  # fmt: skip
                assert one.event("WELCOME")["recovered"] is (True if last_id else None)
                posted += post(own, "sse-kill", "one", "two", "three")
                one.event("COMMENT", offset=posted[-1])
                posted += post(own, "sse-kill", f"on its way {number}")
                own.kill9(one.gateway)
                one.to_end()
                seen += one.offsets()
                last_id = one.last_id
            wait_until(lambda: answers(own), 10, "the gateways answer")
        with again(own, "sse-kill", last_id) as one:
            assert one.event("WELCOME")["recovered"] is True
            posted += post(own, "sse-kill", "the end")
            one.event("COMMENT", text="the end")
            seen += one.offsets()
        assert seen == posted


def test_one_that_never_reads_delays_nobody_and_is_coalesced_or_cut():
    with System(gateway__queue_bytes=65_536, gateway__idle_s=8, server__gateways=1) as own:
        slow = source(own, "sse-slow", query="backlog=0", buffer=4096)
        stuck = source(own, "sse-slow", query="backlog=0", buffer=4096)
        slow.event("WELCOME")
        stuck.event("WELCOME")
        with source(own, "sse-slow", query="backlog=0") as quick, Swarm(seed=1) as swarm:
            quick.event("WELCOME")
            member = swarm.add(own.stream("sse-slow"), backlog=0)
            assert swarm.run(lambda: member.live, 10)
            posted = []
            text = "🎉" * 490
            for _ in range(40):
                posted += post(own, "sse-slow", *[text] * 100)
                last = posted[-1]
                assert swarm.run(lambda last=last: member.position >= last, 10), (
                    "a WebSocket is delayed"
                )
                quick.event("COMMENT", offset=posted[-1])
            assert quick.offsets() == member.offsets == posted
            gap = slow.event("GAP")
            newest = slow.event("COMMENT", offset=posted[-1])
            told = slow.offsets()
            assert gap["reason"] == "too_slow" and newest["text"] == text
            assert told == sorted(set(told))
            missed = set(posted) - set(told)
            gaps = [(one["from"], one["to"]) for one in slow.seen if one["type"] == "GAP"]
            assert missed
            assert all(any(low < offset <= high for low, high in gaps) for offset in missed)

            def connections() -> int:
                swarm.step(0.01)
                return own.call("GET", "/stream/sse-slow")[1]["connections"]

            wait_until(lambda: connections() == 3, 30, "the one that reads nothing is cut")
            slow.sock.close()
            stuck.sock.close()


def test_drain_says_goodbye():
    own = System(server__gateways=1).start()
    try:
        with source(own, "sse-drain") as one:
            one.event("WELCOME")
            began = time.monotonic()
            own.process.terminate()
            one.event("RECONNECT")
            one.to_end()
            assert one.close_event["code"] == 1001
            assert time.monotonic() - began < 10
    finally:
        own.stop()
        own.remove()


@pytest.mark.parametrize("origin", ["https://here.example", "https://elsewhere.example"])
def test_only_known_origins_read(origin):
    with System(server__origins=json.dumps(["https://here.example"])) as own:
        path = "/stream/sse-origin/events"
        if origin == "https://here.example":
            with source(own, "sse-origin", f"Origin: {origin}") as one:
                one.event("WELCOME")
                assert one.headers["access-control-allow-origin"] == origin
        else:
            assert http(own, "GET", path, b"", f"Origin: {origin}").problem()["status"] == 403

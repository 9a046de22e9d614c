"""The room: every act, seen by every role, over WebSocket and SSE and two gateways.

TABLE is the contract. Each row is an act and what viewer, author, shadow-banned author and
moderator get of it, live; and which of its texts stand for whom in the end. That end is then read
in all other ways: backlog, resume from three places, history, replay window, export.
"""

from __future__ import annotations

import hmac
import json
import socket
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

from tests.event_source import EventSource
from tests.system import System, wait_until
from uproar.auth import load_key, make_token
from uproar.client import Disconnected, Viewer
from workers.webhooks import COMMIT_EVERY_S, signed

STREAM = "room"
CODECS = ("json", "msgpack", "sse")
ROLES = ("viewer", "author", "shadow", "moderator")
EPHEMERAL = {"VIEWERS", "REACTIONS", "BANNER", "PONG"}
PER_MINUTE = 30


class Row(NamedTuple):
    """One act. `live`: what everybody gets of it; `but`: what some roles get instead."""

    name: str
    act: Callable[[Room], None]
    live: str
    but: dict[str, str] = {}
    stands: dict[str, tuple[str, ...]] = {}  # text: roles that see it in the end


class Listener:
    """A watcher by server-sent events, with as much of `Viewer` as these tests use."""

    def __init__(
        self,
        url: str,
        *,
        token: str | None,
        backlog: int = 50,
        epoch: str | None = None,
        offset: int | None = None,
    ) -> None:
        parts = urlsplit(url)
        lines = [f"Authorization: Bearer {token}"] if token else []
        lines += [f"Last-Event-ID: {epoch}-{offset}"] if epoch is not None else []
        path = f"{parts.path}/events?backlog={backlog}"
        self.source = EventSource(f"http://{parts.netloc}", path, *lines)
        self.core = self
        self.repeats = 0
        self._at = 0

    def connect(self, deadline_s: float) -> dict[str, Any]:
        if self.source.status != 200:
            raise OSError(f"answered {self.source.status}")
        self.welcome = self.source.event("WELCOME")
        self._at = 1
        return self.welcome

    def recv(self, deadline_s: float) -> list[dict[str, Any]]:
        if self._at == len(self.source.seen):
            try:
                self.source.read(deadline_s)
            except AssertionError:
                return []
        found = self.source.seen[self._at :]
        self._at = len(self.source.seen)
        return found

    @property
    def epoch(self) -> str:
        return self.source.last_id.rpartition("-")[0]

    @property
    def position(self) -> int:
        return int(self.source.last_id.rpartition("-")[2])

    def close(self) -> None:
        self.source.sock.close()


class Room:
    """One stream of a running system, and those who watch it: each role in each way."""

    def __init__(self, system: System, stream: str = STREAM) -> None:
        self.system = system
        self.stream = stream
        self.key = load_key(system.data / "signing.key")
        self.texts: dict[str, str] = {}  # comment id: text
        self.answers: dict[str, dict[str, Any]] = {}  # text: what its author was told
        self.watchers: dict[tuple[str, str], Any] = {}
        self.heard: dict[tuple[str, str], list[dict[str, Any]]] = {}
        self.talks: dict[str, Viewer] = {}  # the connection a user writes through

    def token(self, user: str, role: str | None = None, **more: Any) -> str:
        role = role or ("moderator" if user == "moderator" else "viewer")
        return make_token(self.key, sub=user, name=user.title(), role=role, **more)

    def connect(self, user: str, codec: str = "json", gateway: str = "", **options: Any) -> Any:
        """Connect as a user (`viewer`: anonymous), to a certain gateway where one is named."""
        token = None if user == "viewer" else self.token(user)
        until = time.monotonic() + 20
        while time.monotonic() < until:
            url = self.system.stream(self.stream)
            viewer: Any = None
            try:
                if codec == "sse":
                    viewer = Listener(url, token=token, **options)
                else:
                    viewer = Viewer(url, codec=codec, token=token, **options)
                welcome = viewer.connect(5)
            except (Disconnected, OSError):
                if viewer is not None:
                    viewer.close()
                time.sleep(0.05)
                continue
            if welcome["session"].startswith(f"{gateway}-" if gateway else ""):
                return viewer
            viewer.close()
        raise AssertionError(f"never came to {gateway}")

    def watch(self) -> None:
        """Each role in each way, and of each role watchers on both gateways."""
        for number, role in enumerate(ROLES):
            for turn, codec in enumerate(CODECS):
                viewer = self.connect(role, codec, f"g{(number + turn) % 2 + 1}")
                self.watchers[role, codec] = viewer
                self.heard[role, codec] = []
                self.start = viewer.core.epoch, viewer.core.position

    # -- what people do ---------------------------------------------------------------------------

    def call(self, method: str, path: str, body: Any = None, *, user: str = "moderator") -> Any:
        status, answer = self.system.call(
            method, f"/stream/{self.stream}{path}", body, token=self.token(user)
        )
        assert status in (200, 201), (method, path, answer)
        return answer

    def write(self, user: str, text: str) -> dict[str, Any]:
        """Write over WebSocket; return ACK or REJECTED."""
        if user not in self.talks:
            self.talks[user] = self.connect(user, backlog=0)
        viewer = self.talks[user]
        nonce = viewer.send_comment(text)
        told = viewer.wait_for(lambda found: found.get("nonce") == nonce, 10)
        if told["type"] == "ACK":
            self.texts[told["id"]] = text
        self.answers[text] = told
        return told

    def say(self, user: str, text: str, shown: str = "all") -> None:
        told = self.write(user, text)
        assert told.get("shown") == shown, told

    def refused(self, user: str, text: str, code: str) -> None:
        told = self.write(user, text)
        assert (told["type"], told.get("code")) == ("REJECTED", code), told

    def id_of(self, text: str) -> str:
        return next(id_ for id_, known in self.texts.items() if known == text)

    def delete(self, text: str) -> None:
        self.call("DELETE", f"/comments/{self.id_of(text)}")

    def restore(self, text: str) -> None:
        self.call("POST", f"/comments/{self.id_of(text)}/restore")

    def sanction(self, user: str, action: str, **body: Any) -> None:
        self.call("POST", f"/users/{user}/{action}", body)

    def pin(self, text: str) -> None:
        self.call("POST", "/pin", {"comment_id": self.id_of(text)})

    def resolve(self, text: str, action: str) -> None:
        self.call("POST", f"/held/{self.id_of(text)}", {"action": action})

    def mode(self, **changes: Any) -> None:
        self.call("PATCH", "/mode", changes)

    # -- what is seen -----------------------------------------------------------------------------

    def label(self, found: dict[str, Any]) -> str:
        """An event in words of the table."""
        kind = found["type"]
        if "comment_id" in found:
            id_ = found["comment_id"]
            return f"{kind} {self.texts.get(id_, id_)}"
        if kind == "COMMENT":
            hidden = f" ({found['visibility']})" if "visibility" in found else ""
            return f"{kind} {found['text']}{hidden}"
        if kind == "SANCTION":
            return f"{kind} {found['action']} {found['user_id']}"
        if kind == "USER_REMOVED":
            return f"{kind} {found['user_id']}"
        return str(kind)

    def until(self, last: Callable[[dict[str, Any]], bool]) -> dict[tuple[str, str], list[str]]:
        """What each watcher got up to and without the event that `last` knows."""
        seen: dict[tuple[str, str], list[str]] = {}
        for who, viewer in self.watchers.items():
            got: list[dict[str, Any]] = []
            deadline = time.monotonic() + 10
            while not any(last(found) for found in got):
                assert time.monotonic() < deadline, (who, [self.label(found) for found in got])
                got += viewer.recv(1.0)
            kept = [found for found in got if found["type"] not in EPHEMERAL]
            assert last(kept[-1]), kept
            self.heard[who] += kept
            seen[who] = [self.label(found) for found in kept[:-1]]
        return seen

    def barrier(self) -> dict[tuple[str, str], list[str]]:
        """What each watcher got until now: a service's word goes to all."""
        word = f"mark {time.monotonic_ns()}"
        body = {"text": word}
        status, answer = self.system.call(
            "POST", f"/stream/{self.stream}/comments", body, role="service"
        )
        assert status == 201, answer
        self.texts[answer["id"]] = word
        return self.until(lambda found: found.get("text") == word)

    def hang_up(self) -> None:
        """Close all connections."""
        for viewer in [*self.watchers.values(), *self.talks.values()]:
            viewer.close()
        self.watchers.clear()
        self.talks.clear()

    def talk_anew(self, user: str) -> None:
        """Let a user write through a new connection from here on."""
        if user in self.talks:
            self.talks.pop(user).close()


def planted_and_cleared(room: Room) -> None:
    room.say("author", "before the clear")
    room.call("DELETE", "/comments")


def deleted(room: Room) -> None:
    room.say("author", "gone")
    room.delete("gone")


def restored(room: Room) -> None:
    room.say("author", "back")
    room.delete("back")
    room.restore("back")


def timed_out(room: Room) -> None:
    room.say("tim", "early")
    room.sanction("tim", "timeout", seconds=600, reason="caps")
    room.refused("tim", "too late", "timed_out")


def banned(room: Room) -> None:
    room.say("bob", "bad")
    room.sanction("bob", "ban")
    with pytest.raises(Disconnected) as ended:  # his sessions end, wherever they are
        room.talks.pop("bob").wait_for(lambda found: False, 10)
    assert ended.value.closed.code == 4003
    room.refused("bob", "again", "banned")


def shadowed(room: Room) -> None:
    room.sanction("shadow", "shadow_ban")
    room.say("shadow", "unseen")
    room.say("shadow", "unseen and deleted")
    room.delete("unseen and deleted")


def shadow_lifted(room: Room) -> None:
    room.sanction("lou", "shadow_ban")
    room.say("lou", "in the shadow")
    room.sanction("lou", "unshadow_ban")
    room.say("lou", "in the light")


def unbanned(room: Room) -> None:
    room.sanction("tim", "unban")
    room.say("tim", "sorry")


def held(room: Room) -> None:
    room.mode(hold=True)
    room.say("author", "wait", "held")
    room.say("author", "no", "held")
    room.say("shadow", "in the queue", "held")  # as anyone else would be told


def approved(room: Room) -> None:
    room.resolve("wait", "approve")


def denied(room: Room) -> None:
    room.resolve("no", "deny")
    room.mode(hold=False)


def pinned(room: Room) -> None:
    room.pin("plain")
    room.call("DELETE", "/pin")
    room.pin("back")
    room.pin("plain")


def pinned_then_purged(room: Room) -> None:
    room.say("pat", "look at me")
    room.pin("look at me")
    room.sanction("pat", "ban")
    room.pin("plain")


def listed(room: Room) -> None:
    room.call("PUT", "/terms", {"blocked": ["xyzzy*"]})


def kicked(room: Room) -> None:
    room.sanction("nobody", "kick")


OWN_HELD = "MODE/COMMENT wait/COMMENT no"
TABLE = (
    Row("clear", planted_and_cleared, "COMMENT before the clear/CLEARED"),
    Row("plain", lambda room: room.say("author", "plain"), "COMMENT plain",
        stands={"plain": ROLES}),
    Row("deleted", deleted, "COMMENT gone/COMMENT_DELETED gone"),
    Row("restored", restored, "COMMENT back/COMMENT_DELETED back/COMMENT_RESTORED back",
        stands={"back": ROLES}),
    Row("timeout", timed_out, "COMMENT early/USER_REMOVED tim",
        {"moderator": "COMMENT early/SANCTION timeout tim/USER_REMOVED tim"}),
    Row("ban", banned, "COMMENT bad/USER_REMOVED bob",
        {"moderator": "COMMENT bad/SANCTION ban bob/USER_REMOVED bob"}),
    Row("shadow ban", shadowed, "COMMENT_DELETED unseen and deleted",
        {"shadow": "COMMENT unseen/COMMENT unseen and deleted/COMMENT_DELETED unseen and deleted",
         "moderator": "SANCTION shadow_ban shadow/COMMENT unseen (shadow)"
                      "/COMMENT unseen and deleted (shadow)/COMMENT_DELETED unseen and deleted"},
        {"unseen": ("shadow", "moderator")}),
    Row("shadow lifted", shadow_lifted, "COMMENT in the light",
        {"moderator": "SANCTION shadow_ban lou/COMMENT in the shadow (shadow)"
                      "/SANCTION unshadow_ban lou/COMMENT in the light"},
        {"in the shadow": ("moderator",), "in the light": ROLES}),
    Row("unban", unbanned, "COMMENT sorry",
        {"moderator": "SANCTION unban tim/COMMENT sorry"}, {"sorry": ROLES}),
    Row("held", held, "MODE",
        {"author": "MODE/COMMENT wait/COMMENT no", "shadow": "MODE/COMMENT in the queue",
         "moderator": "MODE/COMMENT wait (held)/HELD wait/COMMENT no (held)/HELD no"
                      "/COMMENT in the queue (held)/HELD in the queue"},
        {"in the queue": ("shadow", "moderator")}),
    Row("approved", approved, "COMMENT_APPROVED wait",
        {"moderator": "HELD_RESOLVED wait/COMMENT_APPROVED wait"}, {"wait": ROLES}),
    Row("denied", denied, "COMMENT_DELETED no/MODE",
        {"moderator": "HELD_RESOLVED no/COMMENT_DELETED no/MODE"}),
    Row("pinned", pinned,
        "COMMENT_PINNED plain/COMMENT_UNPINNED plain/COMMENT_PINNED back/COMMENT_PINNED plain"),
    Row("pinned, then purged", pinned_then_purged,
        "COMMENT look at me/COMMENT_PINNED look at me/USER_REMOVED pat/COMMENT_UNPINNED look at me"
        "/COMMENT_PINNED plain",
        {"moderator": "COMMENT look at me/COMMENT_PINNED look at me/SANCTION ban pat"
                      "/USER_REMOVED pat/COMMENT_UNPINNED look at me/COMMENT_PINNED plain"}),
    Row("terms", listed, "", {"moderator": "TERMS"}),
    Row("kick", kicked, "", {"moderator": "SANCTION kick nobody"}),
    Row("mode", lambda room: room.mode(slow_s=7, min_chars=2), "MODE"),
)  # fmt: skip
STANDS = {text: roles for row in TABLE for text, roles in row.stands.items()}


def expected(role: str) -> list[str]:
    """The texts that stand for a role in the end."""
    return sorted(text for text, roles in STANDS.items() if role in roles)


@pytest.fixture(scope="module")
def running() -> Iterator[System]:
    with System(limits__per_minute__viewer=PER_MINUTE, gateway__drain_s=0.05) as system:
        yield system


@pytest.fixture(scope="module")
def room(running: System) -> Iterator[Room]:
    """The stream with every act done; the rows are checked on the way."""
    room = Room(running)
    status, opened = running.call("POST", "/stream", {"id": STREAM, "title": "All"}, role="service")
    assert status == 201, opened
    room.watch()
    room.half = {}
    for number, row in enumerate(TABLE):
        row.act(room)
        for who, got in room.barrier().items():
            wanted = row.but.get(who[0], row.live)
            assert got == [word for word in wanted.split("/") if word], (row.name, who)
        if number == len(TABLE) // 2:
            room.half = {who: (v.core.epoch, v.core.position) for who, v in room.watchers.items()}
    yield room
    room.hang_up()


def texts_of(comments: list[dict[str, Any]]) -> list[str]:
    return sorted(one["text"] for one in comments if not one["text"].startswith("mark "))


def folded(events: list[dict[str, Any]]) -> list[str]:
    """What a client shows after some events, deletions applied as docs/protocol.md says."""
    shown: dict[str, tuple[str, str]] = {}
    for found in events:
        kind = found["type"]
        if kind == "COMMENT":
            shown[found["id"]] = (found["text"], found["user"]["id"])
        elif kind in ("COMMENT_RESTORED", "COMMENT_APPROVED"):
            comment = found["comment"]
            shown[comment["id"]] = (comment["text"], comment["user"]["id"])
        elif kind == "COMMENT_DELETED":
            shown.pop(found["comment_id"], None)
        elif kind == "USER_REMOVED":
            shown = {id_: one for id_, one in shown.items() if one[1] != found["user_id"]}
        elif kind == "CLEARED":
            shown.clear()
    return sorted(text for text, _ in shown.values() if not text.startswith("mark "))


def cells() -> list[Any]:
    return [pytest.param(role, codec) for role in ROLES for codec in CODECS]


# -- the table -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("role", "codec"), cells())
def test_live(room: Room, role: str, codec: str) -> None:
    assert folded(room.heard[role, codec]) == expected(role)
    assert room.watchers[role, codec].core.repeats == 0
    offsets = [found["offset"] for found in room.heard[role, codec]]
    assert offsets == sorted(set(offsets))


@pytest.mark.parametrize(("role", "codec"), cells())
@pytest.mark.parametrize("gateway", ["g1", "g2"])
def test_backlog(room: Room, role: str, codec: str, gateway: str) -> None:
    viewer = room.connect(role, codec, gateway, backlog=100)
    got = [found for found in viewer.recv(5) if found["type"] == "COMMENT"]
    viewer.close()
    assert texts_of(got) == expected(role)
    assert all(found["historical"] for found in got)
    hidden = {found["text"]: found.get("visibility") for found in got}
    if role == "moderator":
        assert (hidden["unseen"], hidden["in the queue"]) == ("shadow", "held")
    else:
        assert not any(hidden.values())


@pytest.mark.parametrize(("role", "codec"), cells())
@pytest.mark.parametrize("gateway", ["g1", "g2"])
def test_resume(room: Room, role: str, codec: str, gateway: str) -> None:
    """From the beginning, and from the middle of the story with what was shown until then."""
    for epoch, offset in (room.start, room.half[role, codec]):
        viewer = room.connect(role, codec, gateway, epoch=epoch, offset=offset)
        assert viewer.core.welcome["recovered"] is True
        got = [found for found in viewer.recv(5) if found["type"] not in EPHEMERAL]
        viewer.close()
        heard = [found for found in room.heard[role, codec] if found["offset"] <= offset]
        assert folded(heard + got) == expected(role)
        # Nothing that the role was not to get, and nothing again that is deleted.
        live = {(found["type"], found["offset"]) for found in room.heard[role, codec]}
        assert {(found["type"], found["offset"]) for found in got} <= live
        assert not {"gone", "no", "early", "bad"} & {found.get("text") for found in got}


def read(room: Room, role: str, path: str) -> Any:
    token = None if role == "viewer" else room.token(role)
    status, page = room.system.call("GET", f"/stream/{STREAM}{path}", token=token)
    assert status == 200, page
    return page


@pytest.mark.parametrize("role", ROLES)
def test_history_and_replay_window(room: Room, role: str) -> None:
    history = read(room, role, "/comments?limit=1000")["comments"]
    window = read(room, role, "/comments?limit=1000&from_ms=0&to_ms=9007199254740991")["comments"]
    assert texts_of(history) == expected(role)
    assert window == history[::-1]
    ends = [history[0]["id"]]
    while (page := read(room, role, f"/comments?limit=3&before={ends[-1]}"))["comments"]:
        ends += [one["id"] for one in page["comments"]]
    assert ends == [one["id"] for one in history]
    hidden = {one["text"]: one.get("visibility") for one in history}
    assert {text: word for text, word in hidden.items() if word} == (
        {"unseen": "shadow", "in the shadow": "shadow", "in the queue": "held"}
        if role == "moderator"
        else {}
    )


@pytest.mark.parametrize("role", ROLES)
def test_export_and_stats(room: Room, role: str) -> None:
    headers = {} if role == "viewer" else {"Authorization": f"Bearer {room.token(role)}"}
    url = room.system.info["http"] + f"/stream/{STREAM}/export"
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
        assert answer.headers["Content-Type"] == "application/x-ndjson"
        lines = [json.loads(line) for line in answer]
    assert texts_of(lines) == expected(role)
    history = read(room, role, "/comments?limit=1000")["comments"]
    assert lines == history[::-1]
    stats = read(room, role, "/stats?bucket=1h")
    assert sum(bucket["comments"] for bucket in stats["buckets"]) == len(history)
    assert sum(bucket["deletions"] for bucket in stats["buckets"]) == 4
    assert max(bucket["authors"] for bucket in stats["buckets"]) >= 4


def test_a_shadow_banned_author_cannot_tell(room: Room) -> None:
    """Everything the shadow-banned author got has the shape of what the other author got."""
    unseen, plain = room.answers["unseen"], room.answers["plain"]
    assert unseen.keys() == plain.keys()
    assert unseen["shown"] == plain["shown"] == "all"
    assert unseen["limit"].keys() == plain["limit"].keys()
    assert unseen["limit"]["remaining"] == PER_MINUTE - 1
    later = room.answers["unseen and deleted"]["limit"]
    assert later["remaining"] == PER_MINUTE - 2
    assert room.answers["in the queue"]["shown"] == room.answers["wait"]["shown"] == "held"
    own = {
        role: [
            found for found in room.heard[role, "json"] if found.get("user", {}).get("id") == role
        ]
        for role in ("author", "shadow")
    }
    assert {frozenset(found) for found in own["shadow"]} == {
        frozenset(found) for found in own["author"]
    }
    said = json.dumps([room.heard["shadow", codec] for codec in CODECS])
    assert "shadow_ban" not in said
    assert '"visibility"' not in said
    welcomes = []
    for role in ("author", "shadow"):
        viewer = room.connect(role)
        welcomes.append(viewer.core.welcome)
        viewer.close()
    assert welcomes[0].keys() == welcomes[1].keys()
    assert welcomes[1]["limits"]["remaining"] == PER_MINUTE - 3
    # REST tells the same as the socket.
    room.mode(slow_s=0)
    try:
        told = {
            user: room.call("POST", "/comments", {"text": "by REST"}, user=user)
            for user in ("author", "shadow")
        }
        assert told["author"].keys() == told["shadow"].keys()
        assert told["author"]["shown"] == told["shadow"]["shown"]
        for answer in told.values():
            room.texts[answer["id"]] = "by REST"
            room.call("DELETE", f"/comments/{answer['id']}")
    finally:
        room.mode(slow_s=7)


def test_first_decision_wins_and_acts_are_listed(room: Room) -> None:
    path = f"/stream/{STREAM}/held/{room.id_of('wait')}"
    status, problem = room.system.call("POST", path, {"action": "deny"}, role="moderator")
    assert (status, problem["code"]) == (409, "conflict")
    waiting = room.call("GET", "/held")
    assert [item["comment"]["text"] for item in waiting["held"]] == ["in the queue"]
    acts = room.call("GET", "/audit?limit=1000")["acts"]
    assert [act["type"] for act in acts][-1] == "STREAM_STARTED"
    assert all(act["by"] and act["ts"] and act["offset"] for act in acts)
    done = [(act["action"], act["user_id"]) for act in acts if act["type"] == "SANCTION"]
    assert done[::-1] == [
        ("timeout", "tim"), ("ban", "bob"), ("shadow_ban", "shadow"), ("shadow_ban", "lou"),
        ("unshadow_ban", "lou"), ("unban", "tim"), ("ban", "pat"), ("kick", "nobody"),
    ]  # fmt: skip
    of_author = room.call("GET", "/users/author/comments?limit=1000")["comments"]
    fates = {one["text"]: one["deleted"] for one in of_author}
    assert fates == {
        "before the clear": True, "plain": False, "gone": True, "back": False, "wait": False,
        "no": True, "by REST": True,
    }  # fmt: skip


# -- who may ---------------------------------------------------------------------------------------


def acts_of(room: Room) -> list[tuple[str, str, Any]]:
    plain = room.id_of("plain")
    return [
        ("POST", "/end", None), ("DELETE", "/comments", None),
        ("DELETE", f"/comments/{plain}", None),
        ("POST", f"/comments/{room.id_of('gone')}/restore", None),
        ("POST", "/pin", {"comment_id": plain}), ("DELETE", "/pin", None),
        ("PATCH", "/mode", {"frozen": True}), ("GET", "/terms", None),
        ("PUT", "/terms", {"blocked": ["word"]}), ("GET", "/held", None),
        ("POST", f"/held/{room.id_of('in the queue')}", {"action": "approve"}),
        ("GET", "/audit", None), ("GET", "/users/author/comments", None),
        *[("POST", f"/users/author/{action}", {"seconds": 5} if action == "timeout" else None)
          for action in ("timeout", "ban", "unban", "shadow_ban", "unshadow_ban", "kick")],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("role", "streams", "status"),
    [
        ("viewer", None, 403), ("vip", None, 403), (None, None, 401),
        ("moderator", ("other",), 403), ("broadcaster", ("other",), 403),
    ],
)  # fmt: skip
def test_others_may_nothing_and_nothing_is_done(
    room: Room, role: str | None, streams: tuple[str, ...] | None, status: int
) -> None:
    before = room.call("GET", "/audit?limit=1000")
    token = None if role is None else room.token("eve", role, streams=streams)
    for method, path, body in acts_of(room):
        found, problem = room.system.call(method, f"/stream/{STREAM}{path}", body, token=token)
        assert found == status, (method, path, problem)
        assert problem["status"] == status
    found, _ = room.system.call("POST", "/stream", {"id": STREAM}, token=token)
    assert found == status
    assert room.call("GET", "/audit?limit=1000") == before


@pytest.mark.parametrize("role", ["broadcaster", "service"])
def test_a_moderator_does_not_reach_those_above(room: Room, role: str) -> None:
    comments = f"/stream/{STREAM}/comments"
    user = f"the-{role}"
    token = room.token(user, role)
    status, said = room.system.call("POST", comments, {"text": "hi"}, token=token)
    assert status == 201, said
    status, problem = room.system.call(
        "POST", f"/stream/{STREAM}/users/{user}/ban", None, role="moderator"
    )
    assert (status, problem["code"]) == (403, "not_allowed")
    room.call("DELETE", f"/comments/{said['id']}")


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "word"),
    [
        ("POST", "/users/u/timeout", {"seconds": -1}, 400, "seconds"),
        ("POST", "/users/u/timeout", {"seconds": 315_360_000}, 400, "seconds"),
        ("POST", "/users/u/timeout", {"seconds": 1.5}, 400, "seconds"),
        ("POST", "/users/u/timeout", {}, 400, "seconds"),
        ("POST", "/users/u/ban", {"seconds": 5}, 400, "seconds"),
        ("POST", "/users/u/ban", {"volume": 11}, 400, "volume"),
        ("POST", "/users/u/ban", {"reason": "x" * 501}, 400, "reason"),
        ("POST", f"/users/{'u' * 65}/ban", None, 400, "user id"),
        ("POST", "/users/u/banish", None, 404, "path"),
        ("POST", "/pin", {"comment_id": "no id"}, 404, "comment"),
        ("POST", "/pin", {"comment_id": "d7c388d0-e6ae-11f1-bbb1-990e29dd20e1"}, 404, "comment"),
        ("POST", "/pin", {"comment_id": "x", "seconds": 0}, 400, "seconds"),
        ("PATCH", "/mode", {}, 400, "slow_s"),
        ("PATCH", "/mode", {"slow_s": 121}, 400, "slow_s"),
        ("PATCH", "/mode", {"frozen": 1}, 400, "frozen"),
        ("PATCH", "/mode", {"volume": 11}, 400, "volume"),
        ("PUT", "/terms", {"blocked": ["fine", "***"]}, 400, "blocked:2"),
        ("PUT", "/terms", {"blocked": [], "allowed": ["a\nb"]}, 400, "allowed:1"),
        ("PUT", "/terms", {"blocked": ["x" * 501]}, 400, "blocked:1"),
        ("PUT", "/terms", {"blocked": ["a"] * 100_001}, 400, "100,000"),
        ("PUT", "/terms", {"blocks": []}, 400, "block"),
        ("POST", "/held/d7c388d0-e6ae-11f1-bbb1-990e29dd20e1", {"action": "deny"}, 404, "comment"),
        ("GET", "/stats?bucket=1y", None, 400, "bucket"),
        ("GET", "/stats?bucket=1s&from_ms=0", None, 400, "buckets"),
        ("GET", "/audit?limit=0", None, 400, "limit"),
    ],
)  # fmt: skip
def test_an_act_that_is_refused(
    room: Room, method: str, path: str, body: Any, status: int, word: str
) -> None:
    found, problem = room.system.call(method, f"/stream/{STREAM}{path}", body, role="moderator")
    assert (found, problem["status"]) == (status, status), problem
    assert word in problem["detail"]
    assert len(problem["detail"]) < 400


@pytest.mark.parametrize(
    ("text", "path", "body", "word"),
    [
        ("gone", "/pin", {"comment_id": None}, "deleted"),
        ("unseen", "/pin", {"comment_id": None}, "not shown to all"),
        ("in the queue", "/pin", {"comment_id": None}, "not shown to all"),
        ("plain", "/comments/{}/restore", None, "not deleted"),
        ("no", "/comments/{}/restore", None, "never shown"),
        ("unseen and deleted", "/comments/{}/restore", None, "never shown"),
        ("before the clear", "/comments/{}/restore", None, "clear is final"),
    ],
)
def test_an_act_that_comes_too_late(room: Room, text: str, path: str, body: Any, word: str) -> None:
    if body:
        body = {"comment_id": room.id_of(text)}
    status, problem = room.system.call(
        "POST", f"/stream/{STREAM}{path.format(room.id_of(text))}", body, role="moderator"
    )
    assert (status, problem["code"]) == (409, "conflict"), problem
    assert word in problem["detail"]


def test_the_same_act_with_the_same_nonce_is_done_once(room: Room) -> None:
    before = room.call("GET", "/audit")["acts"][0]["offset"]
    offsets = {
        room.call("POST", "/users/zoe/shadow_ban", {"nonce": "twice"})["offset"] for _ in range(3)
    }
    status, by_header = room.system.call(
        "POST", f"/stream/{STREAM}/users/zoe/shadow_ban", None,
        token=room.token("moderator"), headers={"Idempotency-Key": "twice"},
    )  # fmt: skip
    assert status == 200
    assert {*offsets, by_header["offset"]} == offsets
    assert len(offsets) == 1
    acts = room.call("GET", "/audit")["acts"]
    assert sum(act["offset"] > before for act in acts) == 1
    room.sanction("zoe", "unshadow_ban")


def test_a_hundred_thousand_terms(room: Room) -> None:
    terms = [f"term{number:06d}" for number in range(100_000)]
    told = room.call("PUT", "/terms", {"blocked": terms})
    assert len(told["blocked"]) == 100_000
    assert room.call("GET", "/terms")["blocked"] == terms
    # The one record of 1.1 MB reaches a moderator, and what follows it as well.
    room.call("PUT", "/terms", {"blocked": ["xyzzy*"]})
    moderator = room.watchers["moderator", "json"]
    for count in (100_000, 1):
        found = moderator.wait_for(lambda found: found["type"] == "TERMS", 10)
        assert len(found["blocked"]) == count
    room.barrier()


# -- what stands survives --------------------------------------------------------------------------


def stands(room: Room, who: str) -> None:
    """Bans, shadow bans, modes and the pin are what the table left, on both gateways."""
    for gateway in ("g1", "g2"):
        viewer = room.connect("viewer", "json", gateway)
        welcome = viewer.core.welcome
        viewer.close()
        assert welcome["mode"] == {"slow_s": 7, "min_chars": 2}, (who, gateway)
        assert welcome["pinned"]["comment"]["text"] == "plain", (who, gateway)
    for user, code in (("bob", "banned"), ("pat", "banned")):
        room.talk_anew(user)
        assert wait_until(
            lambda user=user: (told := room.write(user, "let me in"))["type"] == "REJECTED"
            and told["code"] != "unavailable" and told,
            20, f"{user} is refused",
        )["code"] == code, who  # fmt: skip
    # The shadow-banned author is told yes, and nobody else hears it.
    room.talk_anew("shadow")
    text = f"still unseen after {who}"
    wait_until(
        lambda: room.write("shadow", text)["type"] == "ACK", 20, "the shadow-banned author writes"
    )
    history = texts_of(read(room, "viewer", "/comments?limit=1000")["comments"])
    assert text not in history
    assert text in texts_of(read(room, "shadow", "/comments?limit=1000")["comments"])


def test_state_flushed_in_the_middle(room: Room, running: System) -> None:
    running.empty_state()
    stands(room, "a flush")
    status, info = running.call("GET", f"/stream/{STREAM}")
    assert status == 200
    assert (info["mode"]["slow_s"], info["pinned"]["comment"]["text"]) == (7, "plain")
    seen = room.barrier()  # and the watchers who were there all the time go on
    assert not any(
        label for (role, _), labels in seen.items() for label in labels
        if "unseen after" in label and role in ("viewer", "author")
    )  # fmt: skip


def test_ingest_and_gateways_killed(room: Room, running: System) -> None:
    room.hang_up()
    for name in ("ingest", "g1", "g2"):
        old = running.kill9(name)
        wait_until(lambda name=name, old=old: running.pid_of(name) not in (0, old), 20, name)
    stands(room, "the kills")


def test_an_ended_stream_takes_no_more(room: Room) -> None:
    room.watch()
    room.call("POST", "/end")
    room.until(lambda found: found["type"] == "STREAM_ENDED")
    room.refused("author", "too late for this", "frozen")
    status, again = room.system.call("POST", f"/stream/{STREAM}/end", None, role="moderator")
    assert (status, again["code"]) == (409, "conflict")
    opened = [
        room.system.call("POST", "/stream", {"id": STREAM, "title": "Again"}, role="broadcaster")
        for _ in range(2)
    ]
    assert [status for status, _ in opened] == [201, 200]
    room.until(lambda found: found["type"] == "STREAM_STARTED")
    room.say("author", "open again")


# -- where only opened streams exist, and a backend is told ----------------------------------------


class Backend:
    """A platform's backend on loopback that takes webhooks."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.requests: list[tuple[str, str, bytes]] = []
        self.works = True
        self.refused: list[float] = []  # when, monotonic
        backend = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                signature = self.headers["Uproar-Signature"]
                backend.requests.append((self.headers["Uproar-Timestamp"], signature, body))
                if backend.works:
                    backend.events += json.loads(body)["events"]
                else:
                    backend.refused.append(time.monotonic())
                self.send_response(204 if backend.works else 500)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/told"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.05,))
        self.thread.start()

    def types(self, stream: str) -> list[str]:
        """What was told of a stream, each event once (it is at least once), in order."""
        seen = {found["id"]: found for found in self.events if found["stream"] == stream}
        return [
            found["type"] + (f" {found['action']}" if "action" in found else "")
            for found in seen.values()
        ]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join(5)


@pytest.fixture(scope="module")
def backend() -> Iterator[Backend]:
    made = Backend()
    yield made
    made.close()


@pytest.fixture(scope="module")
def closed(backend: Backend) -> Iterator[System]:
    """Only opened streams exist; one webhook target works and one hangs."""
    with socket.create_server(("127.0.0.1", 0)) as hanging:
        targets = [backend.url, f"http://127.0.0.1:{hanging.getsockname()[1]}/"]
        with System(
            streams__open="false",
            webhooks__targets=json.dumps(targets),
            webhooks__allow_private="true",
            webhooks__timeout_s=1.0,
            gateway__drain_s=0.05,
        ) as system:
            yield system


def test_only_opened_streams_exist(closed: System) -> None:
    room = Room(closed, "opened")
    for path in ("", "/comments", "/mode", "/stats", "/export"):
        status, problem = closed.call("GET", f"/stream/opened{path}")
        assert (status, problem["code"]) == (404, "unknown_stream"), path
    for method, path, body in (
        ("POST", "/comments", {"text": "hi"}), ("PATCH", "/mode", {"slow_s": 1}),
        ("POST", "/end", None),
    ):  # fmt: skip
        status, problem = closed.call(method, f"/stream/opened{path}", body, role="moderator")
        assert (status, problem["code"]) == (404, "unknown_stream"), path
    for options in ({}, {"epoch": closed.info["epoch"], "offset": 0}):
        viewer = Viewer(closed.stream("opened"), **options)
        with pytest.raises(Disconnected) as refused:
            viewer.connect(10)
        assert refused.value.closed.code == 4004
    status, opened = closed.call("POST", "/stream", {"id": "opened"}, role="broadcaster")
    assert status == 201, opened
    # At once and on both gateways, one of which had it open as unknown.
    for gateway in ("g1", "g2"):
        viewer = room.connect("viewer", "json", gateway)
        viewer.close()
    room.say("author", "hello")
    status, info = closed.call("GET", "/stream/opened")
    assert (status, info["started_at"]) == (200, opened["started_at"])
    room.call("POST", "/end")
    assert closed.call("GET", "/stream/opened")[0] == 200  # it exists, and its history stays
    room.hang_up()


def test_a_backend_is_told(closed: System, backend: Backend) -> None:
    room = Room(closed, "told")
    assert closed.call("POST", "/stream", {"id": "told", "title": "T"}, role="service")[0] == 201
    room.say("author", "first")
    room.delete("first")
    room.sanction("eve", "ban", reason="spam")
    wait_until(lambda: len(backend.types("told")) == 3, 10, "the backend is told")
    # The backend is away for longer than positions are kept back, then the worker dies: what it
    # had read and not delivered is told all the same, and what comes meanwhile.
    backend.works = False
    room.sanction("eve", "shadow_ban")
    tries = backend.refused
    wait_until(lambda: tries and tries[-1] - tries[0] > COMMIT_EVERY_S, 15, "some tries fail")
    old = closed.kill9("webhooks")
    backend.works = True
    room.sanction("eve", "unban")
    wait_until(lambda: closed.pid_of("webhooks") not in (0, old), 20, "webhooks is back")
    room.call("POST", "/end")
    expected = [
        "STREAM_STARTED", "COMMENT_DELETED", "SANCTION ban", "SANCTION shadow_ban",
        "SANCTION unban", "STREAM_ENDED",
    ]  # fmt: skip
    wait_until(lambda: "STREAM_ENDED" in backend.types("told"), 15, "the end is told")
    assert backend.types("told") == expected
    told = {found["type"]: found for found in backend.events if found["stream"] == "told"}
    assert told["STREAM_STARTED"]["title"] == "T"
    assert told["COMMENT_DELETED"]["comment_id"] == room.id_of("first")
    assert told["COMMENT_DELETED"]["by"] == "moderator"
    key = load_key(closed.data / "webhook.key")
    for timestamp, signature, body in backend.requests:
        assert hmac.compare_digest(signature, f"v1={signed(key, int(timestamp), body)}")
    room.hang_up()

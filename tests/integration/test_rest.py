"""REST: every refusal is a problem object, and history is whole whichever way it is read."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.integration.raw import (
    Bystanders,
    Socket,
    dial,
    http,
    read_answer,
    token_for,
)
from tests.system import System, wait_until

STREAM = "rest"
COMMENTS = f"/stream/{STREAM}/comments"
BODY_BYTES = 1 << 20
HISTORY = 157


@pytest.fixture(scope="module")
def bystanders(system: System) -> Iterator[Bystanders]:
    watching = Bystanders(system, STREAM)
    yield watching
    watching.close()


@pytest.fixture(autouse=True)
def undisturbed(bystanders: Bystanders) -> Iterator[None]:
    """After each case viewers of the stream get the next comment, and nothing has died."""
    yield
    bystanders.check()


@pytest.fixture(scope="module")
def told(system: System) -> list[dict[str, Any]]:
    """A stream `told` with HISTORY comments, as acknowledged, in order."""
    said: list[dict[str, Any]] = []
    for first in range(0, HISTORY, 40):
        batch = [{"text": f"no. {n}"} for n in range(first, min(first + 40, HISTORY))]
        status, answers = system.call("POST", "/stream/told/comments", batch, role="service")
        assert status == 201, answers
        assert all(answer.keys() == {"nonce", "id", "offset", "shown"} for answer in answers)
        said += [
            {**answer, "text": one["text"]} for answer, one in zip(answers, batch, strict=True)
        ]
    return said


def bearer(system: System, role: str) -> str:
    return f"Authorization: Bearer {system.tokens[role]}"


# -- refusals --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        (b"hello", 400, "bad_request", "malformed"),
        (b"", 400, "bad_request", "body"),
        (b"5", 400, "bad_request", "expected"),
        (b"{}", 400, "bad_request", "text"),
        (b'{"text":5}', 400, "bad_request", "text"),
        (b'{"text":"a","volume":11}', 400, "bad_request", "volume"),
        (b'{"text":"\\ud800"}', 400, "bad_request", "body"),
        (b'{"text":"\xff"}', 400, "bad_request", "body"),
        (b"[" * 100_000, 400, "bad_request", "body"),
        (b'{"text":' + b"[" * 100_000, 400, "bad_request", "body"),
        (b'{"text":"   "}', 422, "empty", "visible"),
        (b'{"text":"a\\u0000b"}', 400, "bad_request", "control"),
        (b'{"text":"' + b"x" * 501 + b'"}', 422, "too_long", "500"),
        (b'{"text":"' + b"x" * 65_000 + b'"}', 422, "too_long", "500"),
        (b'{"text":"a","nonce":""}', 400, "bad_request", "nonce"),
        (b'{"text":"a","nonce":"' + b"n" * 65 + b'"}', 400, "bad_request", "nonce"),
        (b'{"text":"a","reply_to":"x"}', 400, "bad_request", "reply_to"),
        (b'{"text":"a","ts":1e400}', 400, "bad_request", "body"),
        (b'{"text":"a","ts":' + b"9" * 30 + b"}", 400, "bad_request", "ts"),
        (b'{"text":"a","user":{"id":"x","name":"y"}}', 403, "not_allowed", "service"),
        (b'{"text":"a","user":{"id":5}}', 400, "bad_request", "user"),
        (b'[{"text":"a"}' + b',{"text":"a"}' * 500 + b"]", 413, "too_big", "500"),
    ],
)
def test_a_comment_that_is_refused(
    system: System, body: bytes, status: int, code: str, words: str
) -> None:
    token = token_for(system, "refused-rest")
    answer = http(system, "POST", COMMENTS, body, f"Authorization: Bearer {token}")
    problem = answer.problem()
    assert (answer.status, problem["code"]) == (status, code)
    assert words in problem["detail"]
    assert len(problem["detail"]) < 400


def test_a_body_above_the_limit(system: System) -> None:
    auth = bearer(system, "viewer")
    big = b'{"text":"' + b"x" * BODY_BYTES + b'"}'
    answer = http(system, "POST", COMMENTS, big, auth)
    assert answer.status == 413
    assert answer.problem()["code"] == "too_big"
    # Announced only: the answer does not wait for it.
    with dial(system) as sock:
        head = f"POST {COMMENTS} HTTP/1.1\r\nHost: a\r\n{auth}\r\n"
        sock.sendall(f"{head}Content-Length: 1000000000000\r\n\r\n".encode())
        assert read_answer(sock).status == 413
        assert sock.recv(1) == b""
    # In chunks, without a length and without an end.
    with dial(system) as sock:
        head = (
            f"POST {COMMENTS} HTTP/1.1\r\nHost: a\r\n{auth}\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        sock.sendall(head.encode())
        chunk = b"10000\r\n" + b" " * 65_536 + b"\r\n"
        try:
            for _ in range(1000):
                sock.sendall(chunk)
        except OSError:
            return  # cut off before we had sent 64 MB
        assert read_answer(sock).status == 413


def test_a_body_nobody_reads_is_not_read_to_its_end(system: System) -> None:
    with dial(system) as sock:  # no such path: nobody asks for the body
        sock.sendall(b"POST /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000000\r\n\r\n")
        assert read_answer(sock).status == 404
        assert sock.recv(1) == b""
    with dial(system) as sock:  # a small one is, so the connection can be used again
        for _ in range(2):
            sock.sendall(b"POST /nothing HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello")
            assert read_answer(sock).status == 404


def test_an_array_with_one_bad_item(system: System) -> None:
    items = [
        {"text": "first", "nonce": "a1"},
        {"text": " ", "nonce": "a2"},
        {"text": "x", "volume": 11},
        17,
        {"text": "last", "nonce": "a5"},
    ]
    status, results = system.call("POST", COMMENTS, items, token=token_for(system, "array"))
    assert status == 207
    assert [result.get("code") for result in results] == [
        None, "empty", "bad_request", "bad_request", None,
    ]  # fmt: skip
    assert results[0]["nonce"] == "a1"
    assert results[0]["offset"] < results[4]["offset"]
    assert "volume" in results[2]["message"]
    texts = [found["text"] for found in system.history(STREAM)]
    assert texts.count("first") == texts.count("last") == 1
    assert system.call("POST", COMMENTS, [], role="viewer") == (201, [])


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", COMMENTS, {"GET", "POST"}),
        ("PATCH", COMMENTS, {"GET", "POST"}),
        ("POST", f"/stream/{STREAM}", {"GET"}),
        ("GET", "/session", {"POST"}),
        ("PATCH", f"{COMMENTS}/x", {"DELETE"}),
        ("BREW", "/", {"GET"}),
    ],
)
def test_a_method_that_is_not_served(
    system: System, method: str, path: str, allow: set[str]
) -> None:
    answer = http(system, method, path)
    assert answer.status == 405
    answer.problem()
    assert set(answer.headers["allow"].split(", ")) >= allow
    assert method not in answer.headers["allow"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nothing", 404),
        ("GET", "/stream/UPPER", 404),
        ("GET", f"/stream/{'a' * 65}/comments", 404),
        ("GET", "/stream/a%20b", 404),
        ("GET", "/stream/a%2Fb", 404),
        ("GET", f"{COMMENTS}?limit=0", 400),
        ("GET", f"{COMMENTS}?limit=1001", 400),
        ("GET", f"{COMMENTS}?limit=x", 400),
        ("GET", f"{COMMENTS}?limit=%C2%B2", 400),
        ("GET", f"{COMMENTS}?from_ms=-1", 400),
        ("GET", f"{COMMENTS}?before=x", 404),
        ("GET", f"{COMMENTS}?before=", 404),
        ("GET", f"{COMMENTS}?after=%C2%B2-1", 404),
        ("GET", f"{COMMENTS}?after=1-{'9' * 28}", 404),
        ("GET", f"{COMMENTS}?before={'9' * 28}-1", 404),
        ("GET", f"{COMMENTS}?before={uuid.uuid1()}", 404),
        ("GET", f"{COMMENTS}?before=1-1&after=1-1", 400),
        ("GET", f"{COMMENTS}?before=1-1&from_ms=1", 400),
        ("GET", f"{COMMENTS}?" + "&".join(f"a{n}=1" for n in range(60)), 400),
        ("GET", "/assets/..%2f..%2fetc%2fpasswd", 404),
        ("GET", "/assets/../../etc/passwd", 404),
        ("GET", "/assets/%2e%2e/pyproject.toml", 404),
        ("GET", "/assets//etc/passwd", 404),
        ("GET", "/assets/__init__.py", 404),
        ("GET", "/assets/page.js%00", 404),
        ("GET", "//etc/passwd", 404),
    ],
)
def test_an_address_that_is_none(system: System, method: str, path: str, status: int) -> None:
    answer = http(system, method, path)
    assert answer.status == status
    answer.problem()


def test_who_may_not(system: System, bystanders: Bystanders) -> None:
    bystanders.check()
    newest = system.call("GET", f"{COMMENTS}?limit=1")[1]["comments"][0]
    path = f"{COMMENTS}/{newest['id']}"
    answer = http(system, "DELETE", path)
    assert answer.status == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    assert answer.problem()["code"] == "read_only"
    assert http(system, "DELETE", path, b"", "Authorization: Bearer x").problem()["code"] == (
        "unauthorized"
    )
    assert http(system, "DELETE", path, b"", bearer(system, "viewer")).problem()["status"] == 403
    other = token_for(system, "mod", role="moderator", streams=("elsewhere",))
    answer = http(system, "DELETE", path, b"", f"Authorization: Bearer {other}")
    assert answer.problem()["status"] == 403
    for unknown in (str(uuid.uuid1()), "x", "%C3%A9"):
        answer = http(system, "DELETE", f"{COMMENTS}/{unknown}", b"", bearer(system, "moderator"))
        assert answer.problem()["status"] == 404
    assert newest["id"] in [found["id"] for found in system.history(STREAM)]


def test_a_comment_of_another_stream_can_not_be_deleted(
    system: System, told: list[dict[str, Any]]
) -> None:
    path = f"{COMMENTS}/{told[0]['id']}"
    assert http(system, "DELETE", path, b"", bearer(system, "moderator")).status == 404
    assert len(system.history("told")) == HISTORY


def test_a_moderator_deletes_and_everybody_learns(system: System, bystanders: Bystanders) -> None:
    status, said = system.call("POST", COMMENTS, {"text": "delete me"}, role="service")
    assert status == 201
    status, answer = system.call("DELETE", f"{COMMENTS}/{said['id']}", role="moderator")
    assert status == 200, answer
    for viewer in bystanders.viewers.values():
        viewer.event("COMMENT", text="delete me")
        gone = viewer.event("COMMENT_DELETED", comment_id=said["id"])
        assert gone["offset"] == answer["offset"]
    assert "delete me" not in [found["text"] for found in system.history(STREAM)]


def test_the_eleventh_comment_in_a_minute(system: System) -> None:
    token = token_for(system, "eager-rest")
    for number in range(10):
        assert system.call("POST", COMMENTS, {"text": f"e {number}"}, token=token)[0] == 201
    answer = http(system, "POST", COMMENTS, b'{"text":"11"}', f"Authorization: Bearer {token}")
    assert answer.status == 429
    problem = answer.problem()
    assert problem["code"] == "rate_limited"
    assert 0 < problem["retry_after_ms"] <= 60_000
    assert int(answer.headers["retry-after"]) == -(-problem["retry_after_ms"] // 1000)


@pytest.mark.parametrize(
    "body", [b"{}", b'{"name":""}', b'{"name":5}', b'{"name":"a\\u0000"}', b"x"]
)
def test_a_guest_without_a_name(system: System, body: bytes) -> None:
    assert http(system, "POST", "/session", body).problem()["status"] in (400, 422)


# -- what is around the answers --------------------------------------------------------------------


@pytest.mark.parametrize(
    "path", ["/", f"/stream/{STREAM}", COMMENTS, "/assets/page.js", "/nothing"]
)
def test_head_is_get_without_a_body(system: System, path: str) -> None:
    got, headed = http(system, "GET", path), http(system, "HEAD", path)
    assert headed.status == got.status
    assert headed.headers["content-type"] == got.headers["content-type"]
    assert headed.headers["content-length"] == got.headers["content-length"]
    assert headed.body == b""


def test_pages(system: System) -> None:
    page = http(system, "GET", f"/stream/{STREAM}", b"", "Accept: text/html,*/*")
    assert page.status == 200
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["vary"] == "Accept"
    policy = page.headers["content-security-policy"]
    assert "default-src 'self'" in policy
    assert "unsafe" not in policy
    info = http(system, "GET", f"/stream/{STREAM}", b"", "Accept: application/json")
    assert info.headers["vary"] == "Accept"
    assert json.loads(info.body)["id"] == STREAM
    for answer in (page, info):
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_preflight_of_a_page_elsewhere(system: System) -> None:
    answer = http(
        system, "OPTIONS", COMMENTS, b"", "Origin: https://any.example",
        "Access-Control-Request-Method: POST", "Access-Control-Request-Headers: authorization",
    )  # fmt: skip
    assert answer.status == 204
    assert "content-length" not in answer.headers
    assert answer.headers["access-control-allow-origin"] == "https://any.example"
    assert "Authorization" in answer.headers["access-control-allow-headers"]
    assert "POST" in answer.headers["access-control-allow-methods"]


# -- history ---------------------------------------------------------------------------------------


def pages(system: System, way: str, limit: int, more: str = "") -> Iterator[list[dict[str, Any]]]:
    """Yield the pages of `told`, from a place on, until there are no more."""
    cursor = {"before": "", "after": "&after=0-0"}[way]
    while True:
        path = f"/stream/told/comments?limit={limit}{more}{cursor}"
        status, page = system.call("GET", path)
        assert status == 200, page
        assert len(page["comments"]) <= limit
        yield page["comments"]
        if page["next"] is None:
            return
        cursor = f"&{way}={page['next']}"


@pytest.mark.parametrize("limit", [1, 10, 50, 157, 1000])
@pytest.mark.parametrize("way", ["before", "after"])
def test_all_rows_page_by_page(
    system: System, told: list[dict[str, Any]], way: str, limit: int
) -> None:
    offsets: list[int] = []
    for page in pages(system, way, limit):
        found = [comment["offset"] for comment in page]
        assert found == sorted(found, reverse=True), "newest first, both ways"
        offsets += found if way == "before" else found[::-1]
    expected = [comment["offset"] for comment in told]
    assert offsets == (expected[::-1] if way == "before" else expected)


def test_a_comment_id_is_a_place(system: System, told: list[dict[str, Any]]) -> None:
    middle = told[80]["id"]
    older = system.call("GET", f"/stream/told/comments?limit=3&before={middle}")[1]["comments"]
    assert [found["id"] for found in older] == [told[n]["id"] for n in (79, 78, 77)]
    newer = system.call("GET", f"/stream/told/comments?limit=3&after={middle}")[1]["comments"]
    assert [found["id"] for found in newer] == [told[n]["id"] for n in (83, 82, 81)]
    first, last = told[0]["id"], told[-1]["id"]
    for query in (f"before={first}", f"after={last}"):
        answer = system.call("GET", f"/stream/told/comments?{query}")
        assert answer == (200, {"comments": [], "next": None})


@pytest.mark.parametrize("limit", [7, 1000])
def test_a_window_is_in_order_and_has_its_edges(
    system: System, told: list[dict[str, Any]], limit: int
) -> None:
    everything = system.history("told")
    from_ms, to_ms = everything[30]["ts"], everything[-20]["ts"]
    expected = [found["id"] for found in everything if from_ms <= found["ts"] < to_ms]
    including = [found["id"] for found in everything if from_ms <= found["ts"] <= to_ms]
    found: list[str] = []
    cursor = ""
    while True:
        window = f"from_ms={from_ms}&to_ms={to_ms}&limit={limit}{cursor}"
        status, page = system.call("GET", f"/stream/told/comments?{window}")
        assert status == 200, page
        found += [comment["id"] for comment in page["comments"]]
        if page["next"] is None:
            break
        cursor = f"&after={page['next']}"
    assert found in (expected, including)
    assert found, "the window is not empty"


def test_what_was_acknowledged_is_in_the_very_next_answer(system: System) -> None:
    # Open connections stay with the gateway they fell to: most pairs of them are of both.
    url = urlsplit(system.info["http"])
    connections = [HTTPConnection(url.hostname, url.port, timeout=10) for _ in range(6)]
    auth = {"Authorization": f"Bearer {system.tokens['service']}"}

    def ask(number: int, method: str, path: str, body: str | None = None) -> Any:
        connection = connections[number % len(connections)]
        connection.request(method, path, body, auth)
        return json.loads(connection.getresponse().read())

    def told(number: int) -> None:
        said = ask(number, "POST", COMMENTS, json.dumps({"text": f"mine {number}"}))
        for other in range(1, len(connections)):
            newest = ask(number + other, "GET", f"{COMMENTS}?limit=1")["comments"][0]
            assert (newest["text"], newest["id"]) == (f"mine {number}", said["id"])

    pauses = {system.pid_of("coordinator"): 0.1, system.pid_of("archive"): 0.25}
    try:
        for number in range(20):
            told(number)
        # For a moment nothing but the log has it: no gateway may answer as if it were not there.
        for number in range(20, 24):
            timers = [
                threading.Timer(pause_s, os.kill, (pid, signal.SIGCONT))
                for pid, pause_s in pauses.items()
            ]
            for pid, timer in zip(pauses, timers, strict=True):
                os.kill(pid, signal.SIGSTOP)
                timer.start()
            told(number)
            for timer in timers:
                timer.join()
    finally:
        for pid in pauses:
            os.kill(pid, signal.SIGCONT)
        for connection in connections:
            connection.close()


def test_what_a_viewer_has_seen_can_be_deleted_at_once(system: System) -> None:
    with Socket(system, STREAM, token=token_for(system, "quick")) as viewer:
        viewer.event("WELCOME")
        for number in range(5):
            viewer.send({"type": "COMMENT", "text": f"quick {number}", "nonce": f"q{number}"})
            seen = viewer.event("COMMENT", text=f"quick {number}")
            status, answer = system.call("DELETE", f"{COMMENTS}/{seen['id']}", role="moderator")
            assert status == 200, answer
            viewer.event("COMMENT_DELETED", comment_id=seen["id"])


def test_a_slow_body_is_cut_off_and_delays_nobody(system: System, bystanders: Bystanders) -> None:
    with dial(system) as sock:
        head = f"POST {COMMENTS} HTTP/1.1\r\nHost: a\r\n{bearer(system, 'viewer')}\r\n"
        sock.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        began = time.monotonic()
        bystanders.check()
        sock.settimeout(15)
        answer = read_answer(sock)
        assert answer.status == 408
        answer.problem()
        assert 5 < time.monotonic() - began < 14


def test_one_that_does_not_take_its_answers(system: System, bystanders: Bystanders) -> None:
    wait_until(lambda: len(system.history("told")) == HISTORY, 5, "the history is there")
    with dial(system) as sock:
        ask = b"GET /stream/told/comments?limit=1000 HTTP/1.1\r\nHost: a\r\n\r\n"
        sock.settimeout(0.2)
        try:
            for _ in range(5000):
                sock.sendall(ask)
        except TimeoutError:
            pass
        bystanders.check()

"""Replay: what is read, what is sent again, and a whole run against another server."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.unit import ws_peer
from tests.unit.ws_peer import Peer, rejected
from uproar import replay as replays
from uproar import wire
from uproar.replay import SEND_AGAIN_S, Sender, command, read, replay


@pytest.fixture
def peer() -> Iterator[Peer]:
    with ws_peer.running() as running:
        yield running


def log(path: Path, count: int, step_ms: int = 10) -> Path:
    lines = [
        {"t_ms": 5000 + index * step_ms, "user": f"u{index % 7}", "role": "", "text": f"{index}"}
        for index in range(count)
    ]
    file = path / "chat.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf-8")
    return file


def texts(peer: Peer) -> list[str]:
    return [event["text"] for event in peer.events]


# Without sockets


def test_lines_are_read_in_time_order_and_bad_ones_named() -> None:
    raw = [
        b'{"t_ms":20,"user":"b","role":"vip","text":"second"}\n',
        b"\n",
        b'{"t_ms":10,"user":"a","role":"","text":"first"}\n',
        b"not json\n",
        b'{"t_ms":1,"text":"nobody"}\n',
        b'{"t_ms":20,"user":"c","text":"third"}\n',
        b'{"t_ms":"x","user":"a","text":"y"}\n',
        b'{"t_ms":1,"user":"","text":"y"}\n',
        b'{"t_ms":1,"user":"\xff","text":"y"}\n',
    ]
    lines, bad = read(raw)
    assert [line.text for line in lines] == ["first", "second", "third"]
    assert [sentence.split(" is skipped: ")[0] for sentence in bad] == [
        f"line {number}" for number in (4, 5, 7, 8, 9)
    ]
    assert "user" in bad[1]


@pytest.mark.parametrize(
    ("role", "shown"),
    [("", "viewer"), ("subscriber", "viewer"), ("service", "viewer"), ("vip", "vip"),
     ("moderator", "moderator"), ("broadcaster", "broadcaster")],
)  # fmt: skip
def test_roles(role: str, shown: str) -> None:
    (line,), _ = read([json.dumps({"t_ms": 1, "user": "u", "role": role, "text": "hi"}).encode()])
    assert command(line, "n") == {
        "type": "COMMENT",
        "text": "hi",
        "nonce": "n",
        "user": {"id": "u", "name": "u", "role": shown},
    }


def test_what_irc_wraps_is_unwrapped() -> None:
    raw = {"t_ms": 1, "user": "u", "text": "\x01ACTION waves at chat\x01"}
    (line,), bad = read([json.dumps(raw).encode()])
    assert (line.text, bad) == ("waves at chat", [])


def due(sender: Sender, now: float) -> list[str]:
    return [each["nonce"] for batch in sender.due(now) for each in batch]


def test_sender_sends_again_by_the_same_nonce() -> None:
    sender = Sender(window=3)
    for nonce in "abc":
        assert not sender.full
        sender.add(wire.comment("x", nonce), 0.0)
    assert sender.full
    assert due(sender, 0.0) == ["a", "b", "c"]
    assert due(sender, 1.0) == []
    assert sender.take({"type": "ACK", "nonce": "b"}, 1.0)
    assert not sender.take({"type": "ACK", "nonce": "b"}, 1.0)
    assert not sender.take(rejected("unavailable", nonce="a", retry_after_ms=1000), 1.0)
    assert due(sender, 1.9) == []
    assert due(sender, 2.4) == ["a"]
    assert due(sender, SEND_AGAIN_S + 0.1) == ["c"]
    sender.restart(11.0)
    assert due(sender, 11.0) == ["a", "c"]
    assert sender.take(rejected("too_long", nonce="c"), 11.0)
    assert sender.take({"type": "ACK", "nonce": "a"}, 11.0)
    assert not sender.take({"type": "REJECTED", "nonce": None, "code": "bad_request"}, 11.0)
    assert (sender.acknowledged, sender.rejected, sender.unanswered) == (2, {"too_long": 1}, 0)


def test_batches_are_bounded() -> None:
    sender = Sender(window=1000)
    for index in range(120):
        sender.add(wire.comment("x", f"{index}"), 0.0)
    assert [len(batch) for batch in sender.due(0.0)] == [50, 50, 20]


# Whole runs


def test_a_log_is_played_whole_and_in_order(
    peer: Peer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = log(tmp_path, 700)
    with file.open("ab") as more:
        more.write(b"{broken\n")
    assert replay(file, "DEMO", 0, peer.base, "s.e.r") == 0
    assert texts(peer) == [f"{index}" for index in range(700)]
    assert peer.events[3]["user"] == {"id": "u3", "name": "u3", "role": "viewer"}
    assert peer.headers[0]["Authorization"] == "Bearer s.e.r"
    assert peer.headers[0]["Sec-WebSocket-Protocol"] == "uproar.v1.msgpack"
    said = capsys.readouterr()
    assert "line 701 is skipped" in said.err
    assert "sent 700, acknowledged 700, rejected 0, skipped 1, " in said.out


def test_speed_is_a_factor_of_the_logs_time(peer: Peer, tmp_path: Path) -> None:
    start = time.monotonic()
    assert replay(log(tmp_path, 11, step_ms=500), "demo", 10.0, peer.base, "t") == 0
    assert 0.5 <= time.monotonic() - start < 5.0


def test_unavailable_is_sent_again_and_the_rest_is_told(
    peer: Peer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    peer.answers = [rejected("unavailable", retry_after_ms=20) for _ in range(5)]
    assert replay(log(tmp_path, 20), "demo", 0, peer.base, "t") == 0
    assert sorted(texts(peer), key=int) == [f"{index}" for index in range(20)]
    nonces = [each["nonce"] for each in peer.commands]
    assert len(nonces) == 25
    assert len(set(nonces)) == 20
    peer.answers = [rejected("too_long"), rejected("denied")]
    assert replay(log(tmp_path, 20), "demo", 0, peer.base, "t") == 1
    said = capsys.readouterr()
    assert "acknowledged 18, rejected 2 (denied 1, too_long 1)" in said.out
    assert "demo: rejected as too_long: no" in said.err


def test_cut_in_the_middle_costs_no_comment(peer: Peer, tmp_path: Path) -> None:
    """What the cut left unanswered is sent again with the same nonce, on the next connection."""
    obey = peer.obey

    def cut_once(connection: Any, given: dict[str, Any]) -> None:
        if len(peer.commands) == 40:
            peer.silent = 10  # lost with the connection
        obey(connection, given)
        if len(peer.commands) == 50:
            connection.socket.shutdown(2)

    peer.obey = cut_once  # type: ignore[method-assign]
    start = time.monotonic()
    assert replay(log(tmp_path, 200), "demo", 0, peer.base, "t") == 0
    assert time.monotonic() - start < SEND_AGAIN_S / 2, "it waited instead of sending again"
    assert len(peer.targets) == 2
    assert "offset=" in peer.targets[1]
    assert set(texts(peer)) == {f"{index}" for index in range(200)}


def test_nobody_answers(
    peer: Peer, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replays, "GIVE_UP_S", 0.3)
    peer.silent = 10_000
    assert replay(log(tmp_path, 300), "demo", 0, peer.base, "t") == 1
    assert len(peer.commands) == 256  # the window
    assert "sent 256, acknowledged 0, rejected 0, unanswered 300" in capsys.readouterr().out


def test_refusals_are_sentences(
    peer: Peer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert replay(tmp_path / "none.jsonl", "demo", 0, peer.base, "t") == 1
    assert "none.jsonl: can't be read: No such file" in capsys.readouterr().err
    peer.on_connect = [(4001, "the token has expired; get a new one")]
    assert replay(log(tmp_path, 1), "demo", 0, peer.base, "t") == 1
    assert "4001: the token has expired" in capsys.readouterr().err
    assert replay(log(tmp_path, 1), "demo", 0, "nonsense", "t") == 1
    assert "not a URL" in capsys.readouterr().err

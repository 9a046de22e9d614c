"""The shared window as clients that are not ours read it: Chromium, Node's `ws`, `websockets`.

An engine alone, by a fixed schedule: 20 clients come one by one, every now and then one gets a
message rendered for it alone, and for a while everybody does each seventh time, so that the next
message is a keyframe; then keyframes come as the engine thinks right. Every client must have read
exactly what was meant for it.
"""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.unit.engine_driver import ENGINES, ROOT, Engine

WS = "8.23.0"  # of the Node package
INSTALL_S = 60.0
CLIENTS = 20
JOIN_MS = 35
MESSAGES = 200
EVERY_S = 0.015
APART = 0.05  # of the members get a message rendered for them
SCRIPT = Path(__file__).with_name("window_client.js")
CODE = 4000


def sum_of(text: str) -> int:
    """FNV-1a with 32 bits."""
    value = 0x811C9DC5
    for byte in text.encode():
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


class Schedule(threading.Thread):
    """Lets who connects join, sends, and remembers what each must have got; then closes all."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(daemon=True)
        self.expected: dict[str, list[str]] = {}
        self.compression: set[str] = set()
        self._engine = engine
        self._chance = random.Random(7)
        self._said = [self._text(number) for number in range(3)]
        self._ended = False
        self.fault: Exception | None = None

    def _text(self, number: int) -> str:
        """A tick of chat: alike enough for references, together more than the window holds."""
        words = ["schöner", "Stream", "🎉", "LUL", "hello", "everybody", "what", "a", "save", "GG"]
        return json.dumps(
            [
                {
                    "type": "COMMENT",
                    "offset": 1000 + number,
                    "user": {"id": f"u{self._chance.randrange(50)}"},
                    "text": " ".join(self._chance.choices(words, k=5)),
                }
                for _ in range(self._chance.choice([1, 1, 2, 5, 20]))
            ],
            ensure_ascii=False,
        )

    def run(self) -> None:
        try:
            self._play()
        except Exception as fault:
            self.fault = fault
            self._engine.kill()  # or the clients would wait for ever

    def _play(self) -> None:
        engine, chance = self._engine, self._chance
        audiences = {
            "a.v1": engine.tell("audience", "text", "window"),
            "a.v2": engine.tell("audience", "binary", "window"),
        }
        members: dict[str, dict[int, str]] = {protocol: {} for protocol in audiences}
        said = 0
        while not self._ended and (said < MESSAGES or len(self.expected) < CLIENTS):
            self._admit(audiences, members)
            text = self._text(said)
            self._said.append(text)
            said += 1
            for protocol, audience in audiences.items():
                everybody = said % 7 == 0 and said < MESSAGES // 2
                apart = [sid for sid in members[protocol] if everybody or chance.random() < APART]
                full = engine.tell("broadcast", audience, text, apart)
                assert full == []
                for sid, name in members[protocol].items():
                    if sid not in apart:
                        self.expected[name].append(text)
                for sid in apart:
                    own = f"for one: {text}"
                    engine.tell("send", sid, own)
                    self.expected[members[protocol][sid]].append(own)
            time.sleep(EVERY_S)
        for protocol in members:
            for sid in members[protocol]:
                engine.tell("close", sid, CODE, "the end")

    def _admit(self, audiences: dict[str, int], members: dict[str, dict[int, str]]) -> None:
        """Let in who has connected since the last message."""
        while (opened := self._engine.arrived("Opened")) is not None:
            _, sid, path, protocol, compression, _ = opened
            self.compression.add(compression)
            name = path.removeprefix("/c/")
            backlog = " ".join(self._said[-5:])
            prepared = self._engine.tell("prepare", audiences[protocol], backlog)
            greeting = f"hello {name}, you are ############"
            at = greeting.index("#")
            full = self._engine.tell("admit", [sid], audiences[protocol], greeting, at, prepared)
            assert full == []
            members[protocol][sid] = name
            self.expected[name] = [greeting.replace("#" * 12, f"{sid:012x}"), backlog]

    def stop(self) -> None:
        """End early, where the clients have failed."""
        self._ended = True
        self.join(10.0)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    running = Engine(request.param)
    yield running
    running.close()


@pytest.fixture
def schedule(engine: Engine) -> Iterator[Schedule]:
    one = Schedule(engine)
    yield one
    if one.is_alive():
        one.stop()


def check(schedule: Schedule, found: dict[str, dict[str, Any]]) -> None:
    """Every message of every client, in order."""
    schedule.join(10.0)
    assert schedule.fault is None, f"the schedule broke: {schedule.fault!r}"
    assert not schedule.is_alive()
    assert schedule.compression == {"window"}
    assert sorted(found, key=int) == [str(number) for number in range(CLIENTS)]
    sums = {text: sum_of(text) for texts in schedule.expected.values() for text in set(texts)}
    for name, expected in schedule.expected.items():
        got = found[name]
        assert got["code"] == CODE, f"client {name} ended with {got['code']}"
        assert "permessage-deflate" in got["extensions"]
        for number, text in enumerate(expected):
            heard = got["sums"][number] if number < len(got["sums"]) else "nothing"
            assert heard == sums[text], f"client {name}, message {number}: not {text[:80]}"
        assert len(got["sums"]) == len(expected)
    assert min(len(expected) for expected in schedule.expected.values()) > MESSAGES / 2


def test_chromium(engine: Engine, schedule: Schedule, chromium: Any) -> None:
    page = chromium.new_page()
    try:
        page.goto(f"http://127.0.0.1:{engine.port}/")
        schedule.start()
        found = page.evaluate(
            f"{SCRIPT.read_text()}\nwatch(WebSocket, 'ws://127.0.0.1:{engine.port}', "
            f"{CLIENTS}, {JOIN_MS})"
        )
    finally:
        page.close()
    check(schedule, found)


def node_with_ws() -> Path:
    """Return the folder where `ws` is installed, for Node; skips where it can't be."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("needs node and npm (apt-get install nodejs npm)")
    folder = ROOT / "build" / f"ws-{WS}"
    if not (folder / "node_modules" / "ws").exists():
        folder.mkdir(parents=True, exist_ok=True)
        installed = subprocess.run(
            [npm, "install", "--no-audit", "--no-fund", "--no-save", f"ws@{WS}"],
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=INSTALL_S,
        )
        if installed.returncode:
            pytest.skip(f"npm could not install ws {WS}: {installed.stderr.strip()[-200:]}")
    return folder


def test_node_with_ws(engine: Engine, schedule: Schedule) -> None:
    folder = node_with_ws()
    schedule.start()
    ended = subprocess.run(
        [
            "node", "-e",
            f"{SCRIPT.read_text()}\nwatch(require('ws'), 'ws://127.0.0.1:{engine.port}', {CLIENTS},"
            f" {JOIN_MS}).then((found) => console.log(JSON.stringify(found)))",
        ],
        cwd=folder, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    check(schedule, json.loads(ended.stdout))


def test_websockets(engine: Engine, schedule: Schedule) -> None:
    found: dict[str, dict[str, Any]] = {}

    def watch(name: str, protocol: str) -> None:
        url = f"ws://127.0.0.1:{engine.port}/c/{name}"
        sums = []
        with connect(url, subprotocols=[protocol]) as client:  # type: ignore[list-item]
            extensions = client.response.headers.get("Sec-WebSocket-Extensions", "")
            try:
                while True:
                    message = client.recv(timeout=20)
                    text = message.decode() if isinstance(message, bytes) else message
                    assert isinstance(message, str) == (protocol == "a.v1")
                    sums.append(sum_of(text))
            except ConnectionClosed:
                code = client.close_code
        found[name] = {"code": code, "extensions": extensions, "sums": sums}

    schedule.start()
    threads = []
    for number in range(CLIENTS):
        protocol = "a.v2" if number % 2 else "a.v1"
        threads.append(threading.Thread(target=watch, args=(str(number), protocol)))
        threads[-1].start()
        time.sleep(JOIN_MS / 1000)
    for thread in threads:
        thread.join(30)
    check(schedule, found)

"""WebSocket and HTTP over raw sockets: every byte that goes out is the test's own."""

from __future__ import annotations

import base64
import json
import os
import socket
import struct
import time
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import msgpack

from tests.system import System
from uproar.auth import load_key, make_token

WAIT_S = 10.0
TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


def token_for(system: System, sub: str, **claims: Any) -> str:
    """Return a good token of a user."""
    return make_token(load_key(system.data / "signing.key"), sub=sub, name=sub, **claims)


def frame(
    opcode: int,
    payload: bytes,
    *,
    fin: bool = True,
    reserved: int = 0,
    masked: bool = True,
    size: int | None = None,
) -> bytes:
    """Return one frame; `size` is the length that its header claims."""
    size = len(payload) if size is None else size
    first = (0x80 if fin else 0) | reserved << 4 | opcode
    mask_bit = 0x80 if masked else 0
    if size < 126:
        head = bytes((first, mask_bit | size))
    elif size < 1 << 16:
        head = struct.pack("!BBH", first, mask_bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, mask_bit | 127, size)
    # A mask of zeros leaves the payload as it is.
    return head + (bytes(4) if masked else b"") + payload


def dial(system: System) -> socket.socket:
    """Return a TCP connection to a gateway."""
    url = urlsplit(system.info["http"])
    return socket.create_connection((url.hostname, url.port), WAIT_S)


class Answer:
    """An HTTP answer: status, headers (lower case), body."""

    def __init__(self, head: bytes, body: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        self.status = int(lines[0].split(" ")[1])
        self.headers = {
            name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])
        }
        self.body = body

    def problem(self) -> dict[str, Any]:
        """Return the problem object, checked for what every one of them has."""
        assert self.headers["content-type"] == "application/problem+json", self.headers
        found: dict[str, Any] = json.loads(self.body)
        assert found["status"] == self.status
        assert found["title"] and found["code"]
        assert " " in found["detail"], "a sentence"
        return found


def read_answer(sock: socket.socket, *, head: bool = False) -> Answer:
    """Read one HTTP answer; AssertionError where the connection ends before it does."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = sock.recv(65536)
        assert piece, f"hung up within the head: {data!r}"
        data += piece
    lines, _, body = data.partition(b"\r\n\r\n")
    answer = Answer(lines, body)
    size = 0 if head else int(answer.headers.get("content-length", 0))
    while len(answer.body) < size:
        piece = sock.recv(65536)
        assert piece, "hung up within the body"
        answer.body += piece
    return answer


def http(system: System, method: str, path: str, body: bytes = b"", *lines: str) -> Answer:
    """Send one HTTP request and return the answer."""
    with dial(system) as sock:
        head = [f"{method} {path} HTTP/1.1", "Host: test", "Connection: close", *lines]
        if body:
            head.append(f"Content-Length: {len(body)}")
        sock.sendall("\r\n".join([*head, "", ""]).encode("latin-1") + body)
        return read_answer(sock, head=method == "HEAD")


def upgrade(path: str, *lines: str, without: str = "", method: str = "GET") -> bytes:
    """Return the bytes of a handshake; `without` leaves one header away."""
    head = [
        "Host: test",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        "Sec-WebSocket-Version: 13",
    ]
    head = [line for line in head if not without or not line.startswith(without + ":")]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *head, *lines, "", ""]).encode("latin-1")


class Socket:
    """One WebSocket connection to a stream, past its handshake."""

    def __init__(
        self,
        system: System,
        stream: str,
        *lines: str,
        token: str | None = None,
        codec: str | None = None,
        query: str = "",
        path: str | None = None,
    ) -> None:
        self.msgpack = codec == "msgpack"
        self.sock = dial(system)
        if token:
            lines = (*lines, f"Authorization: Bearer {token}")
        if codec:
            lines = (*lines, f"Sec-WebSocket-Protocol: uproar.v1.{codec}")
        target = (path or f"/stream/{stream}") + (f"?{query}" if query else "")
        self.sock.sendall(upgrade(target, *lines))
        self._data = b""
        while b"\r\n\r\n" not in self._data:
            piece = self.sock.recv(4096)
            assert piece, "hung up during the handshake"
            self._data += piece
        self.head, _, self._data = self._data.partition(b"\r\n\r\n")
        assert self.head.startswith(b"HTTP/1.1 101"), self.head
        self.seen: list[Any] = []
        self.frames: list[tuple[int, bytes]] = []
        self.close_frame: tuple[int, str] | None = None
        self._parse()

    def __enter__(self) -> Socket:
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    def send(self, *commands: dict[str, Any]) -> None:
        """Send commands, one message each."""
        for command in commands:
            if self.msgpack:
                self.sock.sendall(frame(BINARY, msgpack.packb(command)))
            else:
                self.sock.sendall(frame(TEXT, json.dumps(command).encode()))

    def raw(self, data: bytes) -> None:
        """Send bytes; a server that has hung up already is no failure yet."""
        try:
            self.sock.sendall(data)
        except (BrokenPipeError, ConnectionResetError):
            pass

    def until(self, fits: Callable[[Any], bool], seconds: float = WAIT_S) -> Any:
        """Return the first event that fits, of those seen and those to come."""
        at = 0
        until = time.monotonic() + seconds
        while True:
            for event in self.seen[at:]:
                if fits(event):
                    return event
            at = len(self.seen)
            assert self.close_frame is None, f"closed: {self.close_frame}"
            assert self._read(until), f"hung up; seen: {self.seen[-3:]}"

    def event(self, kind: str, **fields: Any) -> dict[str, Any]:
        """Return the first JSON event of a type with these fields."""
        wanted = {"type": kind, **fields}
        found: dict[str, Any] = self.until(lambda event: wanted.items() <= event.items())
        return found

    def closed(self, seconds: float = WAIT_S) -> tuple[int, str]:
        """Return code and reason of the close frame; the server must hang up behind its answer."""
        until = time.monotonic() + seconds
        while self.close_frame is None:
            assert self._read(until), f"hung up without a close frame; seen: {self.seen[-3:]}"
        try:
            assert self._read(until) is False
        except ConnectionResetError:
            pass
        assert self.close_frame[1], "a reason"
        return self.close_frame

    def _read(self, until: float) -> bool:
        self.sock.settimeout(max(0.01, until - time.monotonic()))
        try:
            piece = self.sock.recv(65536)
        except TimeoutError:
            raise AssertionError(f"nothing in time; seen: {self.seen[-3:]}") from None
        self._data += piece
        self._parse()
        return bool(piece)

    def _parse(self) -> None:
        while (parsed := self._frame()) is not None:
            assert self.close_frame is None, "a frame after the close frame"
            opcode, payload = parsed
            self.frames.append(parsed)
            if opcode == CLOSE:
                self.close_frame = struct.unpack_from("!H", payload)[0], payload[2:].decode()
                self.raw(frame(CLOSE, payload[:2]))
            elif opcode == TEXT:
                self.seen += json.loads(payload)
            elif opcode == BINARY:
                self.seen += msgpack.unpackb(payload, strict_map_key=False)[3]

    def _frame(self) -> tuple[int, bytes] | None:
        data = self._data
        if len(data) < 2:
            return None
        assert not data[1] & 0x80, "a server masks nothing"
        size, start = data[1], 2
        if size >= 126:
            start = 4 if size == 126 else 10
            if len(data) < start:
                return None
            size = int.from_bytes(data[2:start], "big")
        if len(data) < start + size:
            return None
        self._data = data[start + size :]
        return data[0] & 0x0F, data[start : start + size]


class Bystanders:
    """Viewers of one stream, one on each gateway, whom no other client's input may disturb."""

    def __init__(self, system: System, stream: str) -> None:
        self.system, self.stream = system, stream
        self.viewers: dict[str, Socket] = {}
        self.told = 0
        self.pids = self._pids()
        gateways = sum(name.startswith("g") for name in self.pids)
        until = time.monotonic() + 30
        while len(self.viewers) < gateways:
            assert time.monotonic() < until, "the kernel gave every connection to one gateway"
            viewer = Socket(system, stream)
            gateway = viewer.event("WELCOME")["session"].partition("-")[0]
            if gateway in self.viewers:
                viewer.sock.close()
            else:
                self.viewers[gateway] = viewer

    def check(self) -> None:
        """Everybody still gets comments, and no process has died."""
        self.told += 1
        text = f"still there {self.told}"
        status, answer = self.system.call(
            "POST", f"/stream/{self.stream}/comments", {"text": text}, role="service"
        )
        assert status == 201, answer
        for viewer in self.viewers.values():
            assert viewer.event("COMMENT", text=text)["offset"] == answer["offset"]
        assert self._pids() == self.pids, "a process has died"

    def close(self) -> None:
        """Hang up."""
        for viewer in self.viewers.values():
            viewer.sock.close()

    def _pids(self) -> dict[str, int]:
        listed = json.loads((self.system.data / "run" / "pids.json").read_text())["processes"]
        return {entry["name"]: entry["pid"] for entry in listed}

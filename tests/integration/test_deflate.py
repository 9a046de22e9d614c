"""permessage-deflate on a running system: who gets what compressed, and what may come so."""

from __future__ import annotations

import json

import msgpack
import pytest
from websockets.sync.client import ClientConnection, connect

from tests.integration.raw import BINARY, PING, TEXT, Bystanders, Socket, frame, http, upgrade
from tests.system import System
from uproar import deflate
from uproar.swarm import Swarm

OFFER = "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits"
EACH = f"{OFFER}; server_no_context_takeover"
LONG = "a long comment that is worth it, " * 10
RSV1 = 4


class Deflated(Socket):
    """A connection that offered; `rsv1` says of each message whether it came compressed."""

    def __init__(self, *args, offer=OFFER, **kwargs):
        self.rsv1 = []
        self._inflater = deflate.Inflater()
        self._alone = offer == EACH
        super().__init__(args[0], args[1], offer, *args[2:], **kwargs)

    def _frame(self):
        first = self._data[:1]
        parsed = super()._frame()
        if parsed is None or parsed[0] not in (TEXT, BINARY):
            return parsed
        opcode, payload = parsed
        self.rsv1.append(bool(first[0] & 0x40))
        if not self.rsv1[-1]:
            return opcode, payload
        if self._alone:
            return opcode, deflate.inflate(payload, 1 << 20)
        return opcode, self._inflater.message(payload, 1 << 20)


def post(system: System, stream: str, text: str) -> int:
    status, answer = system.call(
        "POST", f"/stream/{stream}/comments", {"text": text}, role="service"
    )
    assert status == 201, answer
    return answer["offset"]


@pytest.mark.parametrize("offer", [OFFER, EACH])
@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_what_is_shared_and_worth_it_is_compressed_and_nothing_else(system, codec, offer):
    alone = offer == EACH
    stream = f"deflate-{codec}-{alone:d}"
    for number in range(5):
        post(system, stream, f"{number} {LONG}")
    with (
        Deflated(system, stream, codec=codec, offer=offer) as one,
        Socket(system, stream, codec=codec) as plain,
    ):
        head = one.head.decode()
        answer = "server_no_context_takeover; " if alone else ""
        answer = f"permessage-deflate; {answer}client_no_context_takeover"
        assert f"Sec-WebSocket-Extensions: {answer}\r\n" in f"{head}\r\n"
        assert b"Sec-WebSocket-Extensions" not in plain.head
        is_comment = "COMMENT" if codec == "json" else 1

        def live(event):
            kind = event["type"] if codec == "json" else event[0]
            return kind == is_comment and LONG in str(event)

        one.until(live)
        assert one.rsv1[0] is False, "WELCOME is for one viewer"
        before = len(one.seen)
        post(system, stream, f"shared {LONG}")
        one.until(lambda event: live(event) and "shared" in str(event))
        plain.until(lambda event: live(event) and "shared" in str(event))
        assert one.rsv1[-1], "a tick worth it comes compressed"
        post(system, stream, "hi")
        one.until(lambda event: "hi" in str(event)[-80:] and event not in one.seen[:before])
        assert one.rsv1[-1] is not alone, "a small tick only in the window"


def test_viewers_with_and_without_it_see_the_same(system):
    stream = "deflate-mixed"
    with Swarm(seed=1) as swarm:
        members = [
            swarm.add(
                system.stream(stream), codec="msgpack" if number & 1 else "json",
                deflate=bool(number & 2), backlog=0,
            )
            for number in range(12)
        ]  # fmt: skip
        assert swarm.run(lambda: all(member.live for member in members), 10)
        assert [member.core.deflated for member in members] == [bool(n & 2) for n in range(12)]
        posted = [post(system, stream, f"{number} {LONG}") for number in range(30)]
        assert swarm.run(lambda: all(member.offsets == posted for member in members), 10)
        assert not any(member.repeats or member.gaps for member in members)
        for codec in (0, 1):
            # Most of a member's bytes are the 30 comments: a third is left of them.
            assert members[2 + codec].bytes < 0.75 * members[codec].bytes


# -- from the client ------------------------------------------------------------------------------


def compressed(command, *, opcode=TEXT, **more):
    payload = json.dumps(command).encode() if opcode == TEXT else msgpack.packb(command)
    return frame(opcode, deflate.compress(payload), reserved=RSV1, **more)


def comment(text, nonce):
    return {"type": "COMMENT", "text": text, "nonce": nonce}


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_commands_may_come_compressed_whole_or_in_fragments(system, codec):
    opcode = BINARY if codec == "msgpack" else TEXT
    stream = f"inflate-{codec}"
    with Deflated(system, stream, codec=codec, token=system.tokens["service"]) as one:
        whole = compressed(comment(LONG, "n1"), opcode=opcode)
        one.raw(whole * 2)  # the same again: no context is kept
        payload = comment(LONG, "n2")
        raw = json.dumps(payload).encode() if codec == "json" else msgpack.packb(payload)
        small = deflate.compress(raw)
        one.raw(frame(opcode, small[:9], fin=False, reserved=RSV1))
        one.raw(frame(PING, b"between"))
        one.raw(frame(0, small[9:20], fin=False) + frame(0, small[20:]))
        one.send(comment("plain", "n3"))
        for nonce in ("n1", "n2", "n3"):
            one.until(
                lambda event, nonce=nonce: nonce in (event.values() if codec == "json" else event)
            )


BEGUN = frame(TEXT, deflate.compress(b"text")[:2], fin=False, reserved=RSV1)
REFUSED = {
    "a bomb": (frame(TEXT, deflate.compress(bytes(30 << 20)), reserved=RSV1), 1009),
    "a bomb of 65,537 bytes": (compressed(" " * 65_536), 1009),
    "not deflate": (frame(TEXT, b"plain text", reserved=RSV1), 1007),
    "cut off": (frame(TEXT, deflate.compress(LONG.encode())[:-3], reserved=RSV1), 1007),
    "more behind the end": (
        frame(TEXT, bytes.fromhex("f348cdc9c9070000") + b"more", reserved=RSV1), 1007,
    ),
    "no UTF-8": (frame(TEXT, deflate.compress(b"\xff\xfe"), reserved=RSV1), 1007),
    "a compressed ping": (frame(PING, b"x", reserved=RSV1), 1002),
    "RSV1 on a later fragment": (BEGUN + frame(0, b"x", reserved=RSV1), 1002),
    "RSV2": (frame(TEXT, b"x", reserved=2), 1002),
}  # fmt: skip


def test_what_is_malformed_closes_with_its_code_and_disturbs_nobody(system):
    bystanders = Bystanders(system, "deflate-bad")
    try:
        for name, (data, code) in REFUSED.items():
            with Deflated(system, "deflate-bad", token=system.tokens["viewer"]) as one:
                one.event("WELCOME")
                one.raw(data)
                assert one.closed()[0] == code, name
            bystanders.check()
        with Socket(system, "deflate-bad") as one:
            one.raw(compressed({"type": "PING"}))
            assert one.closed()[0] == 1002, "it was not agreed on"
        with Deflated(system, "deflate-bad") as one:
            # Many small bombs, each within the limit: counted like any commands.
            one.raw(frame(TEXT, deflate.compress(b" " * 65_000), reserved=RSV1) * 2000)
            assert one.closed()[0] == 4029
        bystanders.check()
    finally:
        bystanders.close()


def test_who_wants_a_smaller_window_may_compress_and_gets_plain_messages(system):
    offer = "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=10"
    with Socket(system, "deflate-small", offer, token=system.tokens["service"]) as one:
        assert one.head.endswith(b"client_no_context_takeover; server_max_window_bits=10")
        for number in range(3):
            one.raw(compressed(comment(LONG, f"n{number}")))
            one.event("ACK", nonce=f"n{number}")
            assert one.event("COMMENT", text=LONG)


@pytest.mark.parametrize("offer", ["permessage-deflate; x", "other"])
def test_what_can_not_be_met_is_answered_without(system, offer):
    with Socket(system, "deflate-none", f"Sec-WebSocket-Extensions: {offer}") as one:
        assert b"Sec-WebSocket-Extensions" not in one.head
        one.event("WELCOME")


def test_offers_in_two_headers_are_one_list(system):
    lines = ["x; y", "permessage-deflate; server_max_window_bits=15"]
    lines = [f"Sec-WebSocket-Extensions: {line}" for line in lines]
    with Socket(system, "deflate-two", *lines) as one:
        assert b"server_max_window_bits=15\r\n" in one.head + b"\r\n"


def test_a_malformed_header_is_a_bad_request(system):
    request = upgrade("/stream/s", "Sec-WebSocket-Extensions: permessage-deflate; a=").decode()
    lines = [line for line in request.split("\r\n")[2:] if line]
    answer = http(system, "GET", "/stream/s", b"", *(x for x in lines if "close" not in x))
    assert answer.status == 400
    assert "Sec-WebSocket-Extensions" in answer.problem()["detail"]


# -- another implementation -----------------------------------------------------------------------


def receive_all(client: ClientConnection, texts: list[str]) -> None:
    """Receive until each of these was in a message."""
    seen = ""
    while not all(text in seen for text in texts):
        seen += str(client.recv(timeout=10))


@pytest.mark.parametrize("codec", ["json", "msgpack"])
def test_websockets_with_its_default_offer(system, codec):
    stream = f"interop-{codec}"
    with connect(
        system.stream(stream),
        subprotocols=[f"uproar.v1.{codec}"],
        additional_headers={"Authorization": f"Bearer {system.tokens['service']}"},
    ) as client:
        assert [type(one).__name__ for one in client.protocol.extensions] == ["PerMessageDeflate"]
        for number in range(20):
            command = comment(f"{number} {LONG} 🎉", f"n{number}")
            client.send(json.dumps(command) if codec == "json" else msgpack.packb(command))
        receive_all(client, [f"n{number}" for number in range(20)])
        post(system, stream, f"the last {LONG}")
        receive_all(client, [f"the last {LONG}"])

"""Whose connection it is, behind balancers that are trusted and others that are not."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator

import pytest

from gateway.engine.forwarded import Proxies
from tests.unit.engine_driver import ENGINES, WAIT_S, Client, Engine
from uproar.config import ConfigError, load

PER_ADDRESS = 2
OURS = ["127.0.0.0/8", "10.1.0.0/20", "2001:db8:5::/48"]
SAID = [
    ("", "127.0.0.1"),
    ("192.0.2.7", "192.0.2.7"),
    ("  192.0.2.7 ", "192.0.2.7"),
    ("203.0.113.9, 192.0.2.7", "192.0.2.7"),  # the viewer's own word stands left of what we add
    ("203.0.113.9, 192.0.2.7, 10.1.15.255", "192.0.2.7"),
    ("192.0.2.7,10.1.16.0", "10.1.16.0"),  # one beyond the network
    ("10.1.0.1, 127.0.0.5", "10.1.0.1"),  # all are ours: the farthest
    ("192.0.2.7:5123", "192.0.2.7"),
    ("2001:db8::1", "2001:db8::1"),
    ("[2001:DB8:0::1]:443", "2001:db8::1"),
    ("[2001:db8::1]", "2001:db8::1"),
    ("192.0.2.7, 2001:db8:5:ffff::9", "192.0.2.7"),
    ("192.0.2.7, 2001:db8:6::9", "2001:db8:6::9"),
    ("::ffff:192.0.2.7", "192.0.2.7"),
    ("unknown", "127.0.0.1"),
    ("192.0.2.7, unknown", "127.0.0.1"),
    ("192.0.2.7, unknown, 10.1.0.1", "10.1.0.1"),
    ("192.0.2.7,", "127.0.0.1"),
    ("192.0.2.07", "127.0.0.1"),
    ("192.0.2.7:80:90", "127.0.0.1"),
    ("[192.0.2.7", "192.0.2.7"),
    ("fe80::1%lo", "127.0.0.1"),
    ("1" * 300, "127.0.0.1"),
]


@pytest.fixture(scope="module", params=ENGINES)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def engine(kind: str) -> Iterator[Engine]:
    running = Engine(kind, connections_per_address=PER_ADDRESS)
    yield running
    running.close()


def forwarded(said: str) -> str:
    return f"X-Forwarded-For: {said}"


def asked(engine: Engine, *lines: str) -> str:
    """Ask `/who` and return the body."""
    with socket.create_connection(("127.0.0.1", engine.port), WAIT_S) as sock:
        head = ["GET /who HTTP/1.1", "Host: a", "Connection: close", *lines, "", ""]
        sock.sendall("\r\n".join(head).encode())
        data = b""
        while more := sock.recv(4096):
            data += more
    return data.partition(b"\r\n\r\n")[2].decode()


def refused(engine: Engine, *lines: str) -> bool:
    """Whether one more is refused."""
    try:
        Client(engine, "/x", *lines)
    except AssertionError as error:
        assert b"HTTP/1.1 503 " in error.args[0]
        return True
    return False


def test_the_nearest_that_is_not_ours_is_the_viewer(engine: Engine) -> None:
    engine.tell("trust_proxies", OURS)
    for said, viewer in SAID:
        client = Client(engine, "/x", forwarded(said))
        assert client.address == viewer, said
        assert asked(engine, forwarded(said)) == f"http {viewer}", said
        client.sock.close()
        engine.event("Closed", client.sid)


def test_several_headers_are_one(engine: Engine) -> None:
    engine.tell("trust_proxies", OURS)
    lines = (forwarded("203.0.113.9"), forwarded("192.0.2.7"))
    assert Client(engine, "/x", *lines).address == "192.0.2.7"
    assert asked(engine, *lines) == "http 192.0.2.7"


@pytest.mark.parametrize("trusted", [[], ["10.0.0.0/8", "::1/128", "127.0.0.2/32"]])
def test_the_word_of_others_counts_for_nothing(engine: Engine, trusted: list[str]) -> None:
    engine.tell("trust_proxies", trusted)
    lines = (forwarded("192.0.2.7"), "X-Forwarded-Proto: https")
    assert Client(engine, "/x", *lines).address == "127.0.0.1"
    assert asked(engine, *lines) == "http 127.0.0.1"
    assert not refused(engine, forwarded("192.0.2.8"))
    assert refused(engine, forwarded("192.0.2.9")), "a new name is no new address"
    assert refused(engine), "nor does it free the real one"


def test_behind_a_balancer_each_viewer_is_counted_by_itself(engine: Engine) -> None:
    engine.tell("trust_proxies", ["127.0.0.1/32"])
    many = [Client(engine, "/x", forwarded(f"192.0.2.{n}")) for n in range(10)]
    assert len({client.address for client in many}) == 10
    mine = forwarded("203.0.113.9, 192.0.2.3")
    second = Client(engine, "/x", mine)
    assert refused(engine, mine), "two of this address are there"
    assert refused(engine, mine, forwarded("203.0.113.9"), forwarded("192.0.2.3"))
    assert not refused(engine), "the balancer's own address has nobody"
    second.sock.close()
    engine.event("Closed", second.sid)
    assert Client(engine, "/x", mine).address == "192.0.2.3"


def test_where_the_balancer_ends_tls_the_scheme_is_https(engine: Engine) -> None:
    engine.tell("trust_proxies", ["127.0.0.1/32"])
    assert asked(engine, "X-Forwarded-Proto: https") == "https 127.0.0.1"
    assert asked(engine, "X-Forwarded-Proto: gopher") == "http 127.0.0.1"


@pytest.mark.parametrize("kind", ENGINES[1:])
def test_both_engines_find_the_same_viewer(kind: str) -> None:
    """Random lists: what the compiled one finds is what the Python one does."""
    engine = Engine(kind)
    chance = random.Random(7)
    networks = ["127.0.0.0/8", "10.0.0.0/9", "0.0.0.0/3", "2001:db8::/33", "::/1"]
    pieces = [
        "10.1.2.3", "10.200.0.1", "192.0.2.1", "31.0.0.1", "32.0.0.1", "2001:db8::1",
        "2001:db8:8000::1", "[::1]:80", "::", "8000::", "", "x", ":", "[", "]", "1.2.3.4:", "::1:",
        "1.2.3", "\t10.0.0.1", "::ffff:10.0.0.1", "é",
    ]  # fmt: skip
    for _ in range(300):
        chosen = chance.sample(networks, chance.randrange(1, 5))
        if "127.0.0.0/8" not in chosen:
            chosen.append("127.0.0.1/32")
        said = ",".join(chance.choices(pieces, k=chance.randrange(1, 6)))
        engine.tell("trust_proxies", chosen)
        client = Client(engine, "/x", forwarded(said))
        expected = Proxies(chosen).viewer("127.0.0.1", said)
        assert client.address == ("local" if expected == "::" else expected), (chosen, said)
        client.sock.close()
        engine.event("Closed", client.sid)
    engine.close()


def test_what_is_no_network_is_refused_with_its_place() -> None:
    flags = {"server.trusted_proxies": ["10.0.0.0/8", "balancer.example"]}
    with pytest.raises(ConfigError, match=r"server\.trusted_proxies\[1\]: .*balancer\.example"):
        load(environ={}, flags=flags)
    with pytest.raises(ConfigError, match="host bits"):
        load(environ={}, flags={"server.trusted_proxies": ["10.0.0.1/8"]})

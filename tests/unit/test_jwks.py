"""Key sets: which keys are taken, how they are fetched, and what a bad server or a flood costs."""

import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from uproar.auth import AuthError, Verifier
from uproar.config import ConfigError, load
from uproar.jwks import SET_BYTES, BadKey, KeySet, fetch, is_plain, parse

RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()
ROOT = Path(__file__).parents[2]


def entry(private, **more):
    kinds = {rsa.RSAPrivateKey: RSAAlgorithm, ec.EllipticCurvePrivateKey: ECAlgorithm}
    kind = next((k for base, k in kinds.items() if isinstance(private, base)), OKPAlgorithm)
    made = json.loads(kind.to_jwk(private.public_key()))
    made.pop("key_ops", None)
    return {**made, **more}


def document(*entries):
    return json.dumps({"keys": list(entries)}).encode()


def signed(kid, private=EC, algorithm="ES256"):
    return jwt.encode({"sub": "u"}, private, algorithm=algorithm, headers={"kid": kid})


def wait_for(condition, deadline_s=10.0):
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.005)


class Answers(BaseHTTPRequestHandler):
    """Serves what the test has put on the server."""

    def do_GET(self):
        self.server.asked.append(self.path)
        status, body = self.server.answer
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass


@contextmanager
def platform(*entries):
    """A platform's server with these keys."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    server.answer, server.asked = (200, document(*entries)), []
    server.url = f"http://127.0.0.1:{server.server_port}/keys?v=1"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


@contextmanager
def reading(source, **more):
    found = KeySet(source, **more)
    found.load()
    found.start()
    try:
        yield found
    finally:
        found.close()


# -- which keys ------------------------------------------------------------------------------------


def test_each_type_has_its_algorithm():
    keys = parse(document(entry(RSA, kid="r"), entry(EC, kid="e", use="sig"), entry(ED)))
    assert [key[:2] for key in keys] == [("r", "RS256"), ("e", "ES256"), (None, "EdDSA")]
    assert not any(key.own for key in keys)


UNUSABLE = {
    "a shared secret": {"kty": "oct", "k": "a2trawowa2trawowa2trawowa2trawowa2trawow"},
    "for encryption": entry(EC, use="enc"),
    "for signing": entry(EC, key_ops=["sign"]),
    "another hash": entry(RSA, alg="RS512"),
    "a shared secret's algorithm": entry(RSA, alg="HS256"),
    "a private key": json.loads(ECAlgorithm.to_jwk(EC)),
    "another curve": entry(ec.generate_private_key(ec.SECP384R1())),
    "short": entry(rsa.generate_private_key(65537, 1024)),
    "slow": entry(RSA, e="-" * 342),
    "off the curve": entry(EC, x="AAAA"),
    "a kid that is no text": entry(EC, kid=5),
    "numbers for text": entry(EC, x=5, y=[]),
    "empty": {},
    "null": None,
    "a type that is a list": {"kty": ["RSA"]},
}


@pytest.mark.parametrize("name", sorted(UNUSABLE))
def test_a_key_that_can_t_be_used_costs_itself_alone(name):
    assert [key.kid for key in parse(document(UNUSABLE[name], entry(EC, kid="e")))] == ["e"]
    with pytest.raises(BadKey, match="no key for"):
        parse(document(UNUSABLE[name]))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (b"", "no JSON"),
        (b"<html>", "no JSON"),
        (b"\xff\xfe\xfa", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"[]", "no {"),
        (b'{"keys": {}}', "no {"),
        (b'{"keys": []}', "no key for"),
        (document(*[{}] * 65), "more than 64"),
        (b" " * (SET_BYTES + 1), "longer than"),
    ],
)
def test_a_document_that_is_no_key_set_is_a_sentence(text, said):
    with pytest.raises(BadKey, match=said):
        parse(text)


# -- fetching --------------------------------------------------------------------------------------


def test_a_set_is_fetched_and_used():
    with platform(entry(EC, kid="e")) as server, reading(server.url) as found:
        verifier = Verifier(b"k" * 32, sets=[found])
        wait_for(lambda: found.keys)
        assert verifier.check(signed("e")).sub == "u"
        assert server.asked == ["/keys?v=1"]


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((404, b""), "answered 404"),
        ((302, b""), "answered 302; set the address it redirects to"),
        ((500, document(entry(EC))), "answered 500"),
        ((200, b"x" * (SET_BYTES + 1)), "longer than"),
    ],
)
def test_a_bad_answer_is_a_sentence(answer, said):
    with platform() as server:
        server.answer = answer
        with pytest.raises(BadKey, match=said):
            parse(fetch(server.url, 5.0))
        assert len(server.asked) == 1


def test_a_refused_connection_is_a_sentence():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening
        with pytest.raises(BadKey, match=r"can't be fetched: .*refused"):
            fetch(f"http://127.0.0.1:{taken.getsockname()[1]}/", 5.0)


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\n\r\n"])
@pytest.mark.parametrize("drip", [b"", b"a"])
def test_a_server_that_never_ends_is_given_up_at_the_deadline(start, drip):
    """Silent, or one byte now and then, which a socket's timeout alone would wait for for ever."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stop, until = threading.Event(), time.monotonic() + 3.0

        def serve():
            link, _ = listener.accept()
            with link:
                try:
                    link.sendall(start)
                    while not stop.wait(0.05) and time.monotonic() < until:
                        link.sendall(drip)
                except OSError:
                    pass

        thread = threading.Thread(target=serve)
        thread.start()
        began = time.monotonic()
        try:
            with pytest.raises(BadKey, match=r"within 0\.4 s|timed out"):
                fetch(f"http://127.0.0.1:{listener.getsockname()[1]}/", 0.4)
            assert 0.35 < time.monotonic() - began < 2.5
        finally:
            stop.set()
            thread.join(10)


def test_a_flood_of_unknown_keys_costs_one_reading():
    with platform(entry(EC, kid="e")) as server, reading(server.url, cooldown_s=60.0) as found:
        verifier = Verifier(b"k" * 32, sets=[found])
        wait_for(lambda: found.keys)
        for number in range(2000):
            with pytest.raises(AuthError, match="not among the platform's"):
                verifier.check(signed(f"k{number % 50}"))
        assert verifier.check(signed("e")).sub == "u"
        assert len(server.asked) == found.readings == 1


def test_readings_keep_their_distance_and_a_new_key_is_found():
    with platform(entry(EC, kid="old")) as server, reading(server.url, cooldown_s=0.4) as found:
        verifier = Verifier(b"k" * 32, sets=[found])
        wait_for(lambda: found.keys)
        server.answer = (200, document(entry(EC, kid="old"), entry(ED, kid="new")))
        made = signed("new", ED, "EdDSA")
        began, floods = time.monotonic(), 0
        while True:
            try:
                verifier.check(made)
                break
            except AuthError:
                floods += 1
                assert time.monotonic() - began < 10
        assert floods > 100
        assert len(server.asked) <= 1 + (time.monotonic() - began + 0.4) // 0.4
        assert verifier.check(signed("old")).sub == "u"


def test_the_last_good_keys_are_kept():
    with (
        platform(entry(EC, kid="e")) as server,
        reading(server.url, refresh_s=0.02, cooldown_s=0.02) as found,
    ):
        wait_for(lambda: found.keys)
        kept = found.keys
        for answer in ((500, b""), (200, b"<html>"), (200, document({"kty": "oct", "k": "aa"}))):
            server.answer = answer
            wait_for(lambda: found.error)
            asked = len(server.asked)
            wait_for(lambda before=asked: len(server.asked) > before + 2)
            assert found.keys is kept
            server.answer = (200, document(entry(EC, kid="e")))
            wait_for(lambda: not found.error)
        server.answer = (200, document(entry(ED, kid="d")))
        wait_for(lambda: [key.kid for key in found.keys] == ["d"])


def test_the_last_good_keys_survive_a_restart_while_the_platform_is_away(tmp_path):
    kept = tmp_path / "jwks.json"
    with platform(entry(EC, kid="e")) as server, reading(server.url, kept=kept) as found:
        wait_for(kept.exists)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["jwks.json"]
    with reading(server.url, kept=kept) as found:
        assert Verifier(b"k" * 32, sets=[found]).check(signed("e")).sub == "u"
        wait_for(lambda: found.error)
        assert Verifier(b"k" * 32, sets=[found]).check(signed("e")).sub == "u"
    other = KeySet(server.url + "2", kept=kept)
    other.load()
    assert other.keys == ()  # another URL's keys would be another's word
    for damage in ("", "[]", "{", json.dumps({"url": server.url})):
        kept.write_text(damage)
        damaged = KeySet(server.url, kept=kept)
        damaged.load()
        assert damaged.keys == ()


def test_a_file_is_read_anew(tmp_path):
    path = tmp_path / "set.json"
    path.write_bytes(document(entry(EC, kid="e")))
    with reading(str(path), refresh_s=0.02, cooldown_s=0.02) as found:
        assert [key.kid for key in found.keys] == ["e"]
        path.unlink()
        wait_for(lambda: "No such file" in found.error)
        assert [key.kid for key in found.keys] == ["e"]
        path.write_bytes(document(entry(EC, kid="f")))
        wait_for(lambda: [key.kid for key in found.keys] == ["f"])


IN_GATEWAY = """
from gevent import monkey
monkey.patch_all()
import socket, sys, time
import gevent
from uproar.auth import AuthError, Verifier
from uproar.config import load

url, data, token = sys.argv[1:4]
silent = socket.create_server(("127.0.0.1", 0))  # takes connections, never answers
silent_url = "http://127.0.0.1:%d/" % silent.getsockname()[1]

worst, stop = 0.0, False
def heartbeat():
    global worst
    last = time.monotonic()
    while not stop:
        gevent.sleep(0.005)
        worst, last = max(worst, time.monotonic() - last - 0.005), time.monotonic()

def verifier(url, **more):
    flags = {"data": data, "auth.jwks_url": url, **{"auth." + k: v for k, v in more.items()}}
    return Verifier.from_config(load(environ={}, flags=flags))

beat = gevent.spawn(heartbeat)
hanging = verifier(silent_url, jwks_timeout_s=0.5, jwks_cooldown_s=0.1)
began = time.monotonic()
try:
    hanging.check(token)
except AuthError as error:
    print(error)
assert time.monotonic() - began < 0.3, "a check waited for the key set"
with gevent.Timeout(10):
    while "within" not in hanging._sets[0].error and "timed out" not in hanging._sets[0].error:
        gevent.sleep(0.005)
hanging.close()
good = verifier(url)
with gevent.Timeout(10):
    while True:
        try:
            claims = good.check(token)
            break
        except AuthError:
            gevent.sleep(0.005)
good.close()
stop = True
beat.join()
print(claims.sub, "worst", round(worst, 3))
assert worst < 0.4, worst
"""


def in_gateway(url, data, token, **env):
    return subprocess.run(
        [sys.executable, "-c", IN_GATEWAY, url, str(data), token],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(ROOT), **env},
    )


def test_in_a_gateway_nothing_waits_for_the_key_set(tmp_path):
    """The same thread is a greenlet there: a server that hangs must not hold up the hub."""
    with platform(entry(EC, kid="e")) as server:
        done = in_gateway(server.url, tmp_path, signed("e"))
    assert done.returncode == 0, done.stderr
    assert "read again, try later" in done.stdout and "u worst" in done.stdout


def test_tls_is_checked_against_the_system_s_certificates(tmp_path):
    import datetime
    import ipaddress
    import ssl

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.serialization import (
        Encoding,
        NoEncryption,
        PrivateFormat,
    )

    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "platform")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(EC.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(
            x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False
        )
        .sign(EC, hashes.SHA256())
    )
    file = tmp_path / "tls.pem"
    private = EC.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    file.write_bytes(private + certificate.public_bytes(Encoding.PEM))
    with platform(entry(EC, kid="e")) as server:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(file)
        server.socket = context.wrap_socket(server.socket, server_side=True)
        server.handle_error = lambda *arguments: None
        url = server.url.replace("http:", "https:")
        done = in_gateway(url, tmp_path, signed("e"), SSL_CERT_FILE=str(file))
        assert done.returncode == 0, done.stderr
        assert "u worst" in done.stdout
        with pytest.raises(BadKey, match="CERTIFICATE_VERIFY_FAILED"):
            fetch(url, 5.0)


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/keys", "file:///etc/passwd", "host/keys", "https://", "https:///keys",
        "HTTPS://host/", "http://user:secret@host/", "http://host:99999/", "http://host:x/",
        "http://host:0/", "http://ho st/", "http://h/\r\nX: y", "http://h\u00f6st/", "http://[::1/",
    ],
)  # fmt: skip
def test_only_http_urls_of_a_host_are_taken(url):
    with pytest.raises(ConfigError, match=r"auth\.jwks_url: write https://") as refusal:
        load(environ={}, flags={"auth.jwks_url": url})
    assert "secret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("url", "plain"),
    [
        ("https://id.example/keys", False),
        ("http://127.0.0.1:5000/keys", False),
        ("http://[::1]/keys", False),
        ("http://localhost/keys", False),
        ("http://id.example/keys", True),
        ("http://10.0.0.1/keys", True),
    ],
)
def test_where_keys_would_cross_a_network_in_the_open(url, plain):
    assert load(environ={}, flags={"auth.jwks_url": url}).auth.jwks_url == url
    assert is_plain(url) is plain

"""Public keys of the platform: from PEM files, and from a key set (JWKS, RFC 7517) kept up to date.

Comes in: PEM files, a JSON document from a URL or a file. Goes out: `Key`s, each bound to the one
algorithm that its type allows, so a token never chooses how it is checked. Symmetric keys in a set
are left out: who can read a set could sign with them.

A `KeySet` is read again by one daemon thread (a greenlet where gevent has patched threads). Nothing
that checks a token ever waits for it.
"""

from __future__ import annotations

import functools
import http.client
import ipaddress
import json
import logging
import os
import random
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias
from urllib.parse import urlsplit

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey

from uproar.logs import event

log = logging.getLogger(__name__)

PublicKey: TypeAlias = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey

SET_BYTES: Final = 256 << 10  # large providers publish some 5 KB
SET_KEYS: Final = 64
RSA_BITS: Final = 2048  # RFC 7518 section 3.3
RSA_BITS_MAX: Final = 8192  # what checking costs grows with the square
RSA_EXPONENT_MAX: Final = 1 << 32  # and with this; 65537 is the usual one


class BadKey(Exception):
    """A key or key set that can't be used; the message says why and what to do."""


class Key(NamedTuple):
    """What checks a signature: its name (`kid`), its one algorithm, and the key itself."""

    kid: str | None
    algorithm: str
    key: PublicKey | bytes
    own: bool = False  # the signing key of this system, not one of the platform's


def read_pem(path: Path) -> Key:
    """Return the public key of a PEM file, named by the file without suffix; raises BadKey."""
    try:
        pem = path.read_bytes()
    except OSError as error:
        raise BadKey(f"{path}: the public key can't be read: {error.strerror}") from error
    if b"PRIVATE KEY" in pem:
        raise BadKey(
            f"{path}: this is a private key, which belongs to who signs alone; give the public "
            "one: openssl pkey -in KEY.pem -pubout"
        )
    if b"BEGIN CERTIFICATE" in pem:
        raise BadKey(
            f"{path}: this is a certificate; give its public key: "
            "openssl x509 -in CERT.pem -pubkey -noout"
        )
    try:
        key = serialization.load_pem_public_key(pem)
        return Key(path.stem, algorithm_of(key), key)  # type: ignore[arg-type]  # just checked
    except BadKey as error:
        raise BadKey(f"{path}: {error}") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise BadKey(
            f"{path}: no public key in PEM form; it begins with -----BEGIN PUBLIC KEY-----"
        ) from error


def algorithm_of(key: object) -> str:
    """Return the one algorithm that a key is for; raises BadKey."""
    if isinstance(key, RSAPublicKey):
        if not RSA_BITS <= key.key_size <= RSA_BITS_MAX:
            bits = f"{RSA_BITS} to {RSA_BITS_MAX} bits, not {key.key_size}"
            raise BadKey(f"an RSA key has {bits}; make another")
        if key.public_numbers().e >= RSA_EXPONENT_MAX:
            raise BadKey("an RSA key with so large an exponent is slow to check; make another")
        return "RS256"
    if isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        return "ES256"
    if isinstance(key, Ed25519PublicKey):
        return "EdDSA"
    raise BadKey("keys are RSA, EC on P-256 or Ed25519; make one of these")


def parse(document: bytes) -> tuple[Key, ...]:
    """Return the usable keys of a key set; raises BadKey when there are none.

    A key for encryption, of another algorithm or damaged is left out, as RFC 7517 section 5 asks.
    """
    if len(document) > SET_BYTES:
        raise BadKey(f"the key set is longer than {SET_BYTES:,} bytes")
    try:
        tree = json.loads(document)
    except (ValueError, RecursionError):
        raise BadKey("the key set is no JSON") from None
    entries = tree.get("keys") if isinstance(tree, dict) else None
    if not isinstance(entries, list):
        raise BadKey('the key set is no {"keys": […]}')
    if len(entries) > SET_KEYS:
        raise BadKey(f"the key set has more than {SET_KEYS} keys; remove old ones")
    keys = tuple(key for entry in entries if (key := _entry(entry)) is not None)
    if not keys:
        raise BadKey("the key set has no key for RS256, ES256 or EdDSA signatures")
    return keys


def _entry(entry: Any) -> Key | None:
    if not isinstance(entry, dict) or entry.get("kty") not in ("RSA", "EC", "OKP"):
        return None
    operations = entry.get("key_ops", ["verify"])
    if entry.get("use", "sig") != "sig" or not isinstance(operations, list):
        return None
    kid = entry.get("kid")
    if "verify" not in operations or not (kid is None or isinstance(kid, str)):
        return None
    # `alg` is compared, never followed: the key's type decides.
    try:
        key = jwt.PyJWK({name: value for name, value in entry.items() if name != "alg"}).key
        algorithm = algorithm_of(key)
    except Exception:  # however an entry is damaged, it costs itself alone
        return None
    return Key(kid, algorithm, key) if entry.get("alg", algorithm) == algorithm else None


class KeySet:
    """The keys of one URL or file: read in the background, the last good ones kept.

    `want` asks for another reading because of an unknown key. Readings are at least `cooldown_s`
    apart, so a flood of unknown keys costs no more than one reading in that time.
    """

    def __init__(
        self,
        source: str,
        refresh_s: float = 300.0,
        cooldown_s: float = 30.0,
        timeout_s: float = 5.0,
        *,
        kept: Path | None = None,
    ) -> None:
        """`source` is a URL or a path; `kept`: where a URL's last good keys survive a restart."""
        self.source = source
        self.keys: tuple[Key, ...] = ()
        self.readings = 0
        self.error = ""  # why the last reading failed
        self._refresh_s, self._cooldown_s, self._timeout_s = refresh_s, cooldown_s, timeout_s
        self._kept = kept
        self._document = b""
        self._wanted = threading.Event()
        self._closed = threading.Event()

    def load(self) -> None:
        """Take what is at hand: the file, which raises BadKey, or a URL's keys of last time."""
        if is_url(self.source):
            self._recall()
            return
        self._read()
        if self.error:
            raise BadKey(self.error)

    def start(self) -> None:
        """Begin to read, at once and then now and then."""
        threading.Thread(target=self._run, name="jwks", daemon=True).start()

    def want(self) -> None:
        """Ask for a reading soon. Returns at once."""
        self._wanted.set()

    def close(self) -> None:
        """Stop reading; a reading under way still ends by its deadline."""
        self._closed.set()
        self._wanted.set()

    def _run(self) -> None:
        while not self._closed.is_set():
            began = time.monotonic()
            self._wanted.clear()
            self._read()
            # Spread by a tenth, so that a fleet does not ask in step.
            pause_s = self._cooldown_s if self.error else self._refresh_s * random.uniform(0.9, 1.0)
            self._wanted.wait(pause_s)
            self._closed.wait(max(0.0, began + self._cooldown_s - time.monotonic()))

    def _read(self) -> None:
        self.readings += 1
        try:
            document = fetch(self.source, self._timeout_s) if is_url(self.source) else self._file()
            if document != self._document:
                self.keys = parse(document)
                self._document = document
                event(log, "keys_read", source=self.source, keys=len(self.keys))
                self._keep()
            self.error = ""
        except BadKey as error:
            self._failed(f"{self.source}: {error}")
        except Exception as error:  # whatever a server may answer, the next reading must come
            self._failed(f"{self.source}: the key set can't be read: {error!r}")

    def _failed(self, sentence: str) -> None:
        self.error = sentence
        event(log, "keys_not_read", level=logging.WARNING, reason=sentence, kept=len(self.keys))

    def _file(self) -> bytes:
        try:
            with Path(self.source).open("rb") as file:
                return file.read(SET_BYTES + 1)
        except OSError as error:
            raise BadKey(f"the key set can't be read: {error.strerror}") from error

    # -- the last good keys of a URL, on disk -----------------------------------------------------

    def _recall(self) -> None:
        """Begin with what was good before a restart: the platform may be away just now."""
        try:
            tree = json.loads(self._kept.read_bytes()) if self._kept is not None else {}
            if tree.get("url") == self.source:  # another URL's keys would be another's word
                self.keys = parse(json.dumps(tree["set"]).encode())
        except (OSError, ValueError, KeyError, AttributeError, RecursionError, BadKey):
            pass  # none kept, or damaged: the first reading brings them

    def _keep(self) -> None:
        if self._kept is None or not is_url(self.source):
            return
        new = self._kept.with_name(f"{self._kept.name}.{os.getpid()}")
        try:
            fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
            with os.fdopen(fd, "w", encoding="utf-8") as file:
                json.dump({"url": self.source, "set": json.loads(self._document)}, file)
            new.replace(self._kept)
        except OSError as error:
            event(log, "keys_not_kept", level=logging.WARNING, reason=str(error))


def is_url(source: str) -> bool:
    """Whether a source is a URL, not a path."""
    return source.startswith(("http://", "https://"))


def is_plain(url: str) -> bool:
    """Whether keys would cross a network unprotected: http to a host that is not this one."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    return parts.scheme == "http" and not local


def fetch(url: str, timeout_s: float) -> bytes:
    """Return the document at a URL, all of it within `timeout_s`; raises BadKey.

    Redirects are not followed: the configured host is the one whose word counts.
    """
    parts = urlsplit(url)
    host, secure = parts.hostname or "", parts.scheme == "https"
    end = time.monotonic() + timeout_s
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    try:
        link = socket.create_connection((host, parts.port or (443 if secure else 80)), timeout_s)
    except OSError as error:
        raise BadKey(f"the key set can't be fetched: {error}") from error
    # A socket's timeout counts from each byte; this ends a server that sends one now and then.
    twin = link.dup()
    watchdog = threading.Timer(max(0.0, end - time.monotonic()), _hang_up, [twin])
    watchdog.daemon = True
    watchdog.start()
    connection = http.client.HTTPConnection(host, timeout=timeout_s)
    try:
        connection.sock = link
        if secure:
            connection.sock = _tls().wrap_socket(link, server_hostname=host)
        headers = {"Host": parts.netloc, "Accept": "application/json", "Connection": "close"}
        connection.request("GET", path, headers=headers)
        answer = connection.getresponse()
        if answer.status != http.client.OK:
            raise BadKey(
                f"the key set can't be fetched: the server answered {answer.status}"
                + ("; set the address it redirects to" if 300 <= answer.status < 400 else "")
            )
        document = answer.read(SET_BYTES + 1)
    except (OSError, http.client.HTTPException) as error:
        if time.monotonic() >= end:
            raise BadKey(f"the key set did not come within {timeout_s:g} s") from error
        raise BadKey(f"the key set can't be fetched: {error or type(error).__name__}") from error
    finally:
        watchdog.cancel()
        connection.close()
        link.close()
        twin.close()
    if time.monotonic() >= end:  # a connection that the watchdog ended may look like a short answer
        raise BadKey(f"the key set did not come within {timeout_s:g} s")
    return document


@functools.cache
def _tls() -> ssl.SSLContext:
    """The system's certificates, read once: that keeps a gateway from its viewers for 20 ms."""
    return ssl.create_default_context()


def _hang_up(link: socket.socket) -> None:
    try:
        link.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # gone already

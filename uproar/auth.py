"""Tokens: JWTs that say who somebody is, in which role, and in which streams.

Comes in: a compact JWT. Goes out: `Claims`, or AuthError with a sentence that is safe to show. The
signing key (HS256) is 32 random bytes in a file of mode 0600, made at the first start; the public
keys of a platform come from `uproar.jwks`. Each key is bound to one algorithm (RFC 8725 section
3.1): what a token says of itself picks among keys, never how a key is used. docs/tokens.md.
"""

from __future__ import annotations

import binascii
import functools
import hashlib
import hmac
import os
import re
import secrets
import time
from base64 import urlsafe_b64decode
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import jwt
import msgspec

from uproar import jwks
from uproar.config import Config
from uproar.events import MODERATING_ROLES, ROLES, User
from uproar.jwks import Key, KeySet

ALGORITHM: Final = "HS256"
TOKEN_CHARS: Final = 8192  # a request head has 16 KB
TRIES: Final = 4  # keys a token without `kid` is tried with: each costs some 50 us
HEADERS: Final = 64  # different ones that are remembered: an issuer's tokens share theirs
LATEST_S: Final = 253_402_300_799  # the end of the year 9999; milliseconds of today are above it

_COMPACT: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]*)")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # C0, C1, lone surrogates


class AuthError(Exception):
    """A token that is refused; the message says why and shows nothing of the token."""


class Claims(msgspec.Struct, frozen=True):
    """Who a session belongs to. Times are unix seconds; None: never, or not said."""

    sub: str
    name: str
    role: str = "viewer"
    streams: tuple[str, ...] | None = None  # None: all
    expires: int | None = None
    color: str | None = None
    badges: tuple[str, ...] | None = None
    follows_since: int | None = None  # None: no follower
    subscriber: bool = False
    created_at: int | None = None  # when the account was made

    @property
    def moderates(self) -> bool:
        """Whether the role sees what only moderators see."""
        return self.role in MODERATING_ROLES

    def allows(self, stream: str) -> bool:
        """Whether the token is good for a stream."""
        return self.streams is None or stream in self.streams

    def user(self) -> User:
        """The author that others see."""
        return User(self.sub, self.name, self.role, self.color, self.badges)


def load_key(path: Path) -> bytes:
    """Return the signing key, making it on first use; raises AuthError with the remedy."""
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        pass
    except OSError as error:
        raise AuthError(f"{path}: the signing key can't be made: {error.strerror}") from error
    else:
        with os.fdopen(fd, "wb") as file:
            file.write(secrets.token_hex(32).encode())
    try:
        key = path.read_bytes().strip()
    except OSError as error:
        raise AuthError(f"{path}: the signing key can't be read: {error.strerror}") from error
    if len(key) < 32:
        raise AuthError(
            f"{path}: a signing key has at least 32 bytes; remove the file for a new one"
        )
    return key


def make_token(
    key: bytes,
    *,
    sub: str,
    name: str,
    role: str = "viewer",
    streams: tuple[str, ...] | None = None,
    ttl_s: float | None = 3600.0,
    **more: Any,
) -> str:
    """Return a signed token; raises AuthError for claims that `check` would refuse."""
    claims: dict[str, Any] = {"sub": sub, "name": name, "role": role, **more}
    claims["streams"] = "*" if streams is None else list(streams)
    if ttl_s is not None:
        claims["exp"] = int(time.time() + ttl_s)
    _claims(claims)
    return jwt.encode(claims, key, algorithm=ALGORITHM)


class _Header(msgspec.Struct, frozen=True):
    """What a token says of its signature. `jku`, `jwk`, `x5u` and the rest are ignored."""

    alg: str
    kid: str | None = None
    crit: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


class Verifier:
    """Checks tokens and remembers the good ones, so a client that reconnects costs a look-up.

    What is remembered is bounded, holds no longer than the token, and is forgotten when a key set
    changes. `check` never waits: key sets are read in the background.
    """

    def __init__(
        self,
        key: bytes,
        leeway_s: float = 5.0,
        cache: int = 10_000,
        *,
        keys: Sequence[Key] = (),
        sets: Sequence[KeySet] = (),
        issuer: str = "",
        audience: str = "",
    ) -> None:
        """`key` is the signing key; `keys` and `sets` the platform's. Empty `issuer`: any."""
        self._mac = hmac.new(key, digestmod="sha256")
        self._own = Key(None, ALGORITHM, key, own=True)
        self._leeway_s = leeway_s
        self._keys = tuple(keys)
        self._sets = tuple(sets)
        self._issuer, self._audience = issuer, audience
        self._jws = jwt.PyJWS(algorithms=[ALGORITHM, "RS256", "ES256", "EdDSA"])
        self._cache: OrderedDict[bytes, Claims] = OrderedDict()
        self._cache_size = cache
        self._cached_for = tuple(found.keys for found in self._sets)

    @classmethod
    def from_config(cls, config: Config) -> Verifier:
        """Return one with all keys of the configuration, its key sets being read from now on.

        Raises AuthError that names the file. The keys of a URL may come some moments later.
        """
        keys, sets = platform_keys(config)
        for found in sets:
            found.start()
        return cls(
            load_key(config.key_path),
            config.auth.leeway_s,
            keys=keys,
            sets=sets,
            issuer=config.auth.issuer,
            audience=config.auth.audience,
        )

    def close(self) -> None:
        """Stop reading key sets."""
        for found in self._sets:
            found.close()

    def check(self, token: str, now: float | None = None) -> Claims:
        """Return the claims (`now` in unix seconds, None for the clock's); raises AuthError."""
        if len(token) > TOKEN_CHARS:
            raise AuthError(f"the token is longer than {TOKEN_CHARS:,} characters")
        moment = time.time() if now is None else now
        name = hashlib.blake2b(token.encode("utf-8", "replace"), digest_size=16).digest()
        claims = self._remembered(name)
        if claims is None:
            claims = self._checked(token, moment)
            if len(self._cache) >= self._cache_size:
                self._cache.popitem(last=False)
            self._cache[name] = claims
        elif claims.expires is not None and claims.expires + self._leeway_s <= moment:
            self._cache.pop(name, None)
            raise AuthError("the token has expired; get a new one")
        return claims

    def _remembered(self, name: bytes) -> Claims | None:
        for found, known in zip(self._sets, self._cached_for, strict=True):
            if found.keys is not known:  # a key may have been withdrawn
                self._cache.clear()
                self._cached_for = tuple(found.keys for found in self._sets)
                return None
        return self._cache.get(name)

    def _checked(self, token: str, moment: float) -> Claims:
        header = _header(token)
        for key in self._candidates(header):
            payload = self._payload(token, key)
            if payload is None:
                continue
            raw = _document(payload)
            self._check_times(raw, moment)
            self._check_parties(raw, key)
            return _claims(raw)
        raise _refused("its signature does not fit")

    def _payload(self, token: str, key: Key) -> bytes | None:
        """Return what a key has signed, None where it has not; raises AuthError."""
        if key is self._own:
            # Every guest comes with one: 5 us, where PyJWT takes 26.
            signed, _, signature = token.rpartition(".")
            made = self._mac.copy()
            made.update(signed.encode())
            if not hmac.compare_digest(made.digest(), _unbase64(signature)):
                return None
            return _unbase64(signed.partition(".")[2])
        try:
            payload: bytes = self._jws.decode(token, key.key, algorithms=[key.algorithm])
        except jwt.InvalidSignatureError:
            return None
        except jwt.PyJWTError as error:
            raise _refused("it is no valid JWT") from error
        return payload

    def _candidates(self, header: _Header) -> list[Key]:
        """Return the keys that may have signed a token; raises AuthError when there are none."""
        if header.alg.lower() == "none":
            raise _refused("it is not signed")
        if header.crit is not msgspec.UNSET:
            raise _refused("it demands an extension (`crit`) that is not known here")
        if header.alg == ALGORITHM:
            return [self._own]  # one key: its tokens need no name
        keys = [*self._keys, *(key for found in self._sets for key in found.keys)]
        fitting = [key for key in keys if key.algorithm == header.alg]
        if header.kid is not None:
            named = [key for key in fitting if key.kid == header.kid][:TRIES]
            if named:
                return named
        elif len(fitting) > TRIES:
            raise _refused(f"it names no key (`kid`), and {len(fitting)} could have signed it")
        elif fitting:
            return fitting
        if self._sets and header.alg in ("RS256", "ES256", "EdDSA"):
            for found in self._sets:
                found.want()
            raise _refused("its key is not among the platform's; they are read again, try later")
        if fitting:
            raise _refused("the key that it names (`kid`) is not known here")
        takes = sorted({ALGORITHM, *(key.algorithm for key in keys)})
        raise _refused(f"it must be signed with {' or '.join(takes)}")

    def _check_times(self, raw: dict[str, Any], moment: float) -> None:
        expires, begins = _time(raw, "exp"), _time(raw, "nbf")
        issued = _time(raw, "iat")
        if expires is not None and expires + self._leeway_s <= moment:
            raise AuthError("the token has expired; get a new one")
        if begins is not None and begins - self._leeway_s > moment:
            raise AuthError("the token is not valid yet (`nbf`); set the clocks right")
        if issued is not None and issued - self._leeway_s > moment:
            raise AuthError("the token is from the future (`iat`); set the clocks right")

    def _check_parties(self, raw: dict[str, Any], key: Key) -> None:
        """Refuse what another issuer made, or made for others. Own tokens need name neither."""
        issuer, audience = raw.get("iss"), raw.get("aud")
        if self._issuer and issuer != self._issuer and not (key.own and issuer is None):
            raise AuthError("the token is of another issuer (`iss`)")
        if audience is None:
            if self._audience and not key.own:
                raise AuthError("the token names no audience (`aud`); it must be the one set here")
        elif not self._audience or self._audience not in (
            audience if isinstance(audience, list) else [audience]
        ):
            raise AuthError("the token is for another audience (`aud`)")


def platform_keys(config: Config) -> tuple[list[Key], list[KeySet]]:
    """Return the keys of `auth.keys`, and the key sets with what is known of them here and now.

    Raises AuthError that names the setting and the file. A URL is not asked yet: `KeySet.start`.
    """
    settings = config.auth
    every_s = settings.jwks_refresh_s, settings.jwks_cooldown_s, settings.jwks_timeout_s
    sets = []
    if settings.jwks_url:
        sets.append(KeySet(settings.jwks_url, *every_s, kept=config.jwks_path))
    if settings.jwks_file:
        sets.append(KeySet(str(Path(settings.jwks_file).expanduser()), *every_s))
    setting = "auth.keys"
    try:
        keys = [jwks.read_pem(Path(name).expanduser()) for name in settings.keys]
        setting = "auth.jwks_file"
        for found in sets:
            found.load()
    except jwks.BadKey as error:
        raise AuthError(f"{setting}: {error}") from error
    return keys, sets


def _refused(reason: str) -> AuthError:
    return AuthError(f"the token is not one of ours: {reason}")


def _unbase64(text: str) -> bytes:
    """Return what a part of a compact JWT holds; raises AuthError."""
    try:
        return urlsafe_b64decode(text + "=" * (-len(text) % 4))
    except binascii.Error as error:
        raise _refused("it is no valid JWT") from error


def _header(token: str) -> _Header:
    found = _COMPACT.fullmatch(token)
    if found is None:
        raise _refused("it is no valid JWT")
    return _read_header(found[1])


@functools.lru_cache(HEADERS)
def _read_header(text: str) -> _Header:
    try:
        return _decode_header(_unbase64(text))
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _refused("it is no valid JWT") from error


_decode_header: Final = msgspec.json.Decoder(_Header).decode


def _document(payload: bytes) -> dict[str, Any]:
    try:
        raw = msgspec.json.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _refused("its claims are no sound JSON") from error
    if not isinstance(raw, dict):
        raise _refused("its claims are no JSON object")
    return raw


def _time(raw: dict[str, Any], claim: str, *, null: bool = False) -> int | None:
    """Return a claim in unix seconds, None where it is absent or may be null; raises AuthError."""
    value = raw.get(claim)
    if value is None and (null or claim not in raw):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= LATEST_S:
        raise AuthError(f"the claim `{claim}` must be a time in unix seconds")
    return int(value)


def _claims(raw: dict[str, Any]) -> Claims:
    sub, role = raw.get("sub"), raw.get("role", "viewer")
    name = raw.get("name", sub)
    if not isinstance(sub, str) or not 1 <= len(sub) <= 64 or not printable(sub):
        raise AuthError("the claim `sub` must be 1 to 64 characters without controls")
    if not isinstance(name, str) or not 1 <= len(name) <= 64 or not printable(name):
        raise AuthError("the claim `name` must be 1 to 64 characters without controls")
    if role not in ROLES:
        raise AuthError(f"the claim `role` must be one of {', '.join(ROLES)}")
    streams = raw.get("streams", "*")
    if streams == "*":
        allowed = None
    elif isinstance(streams, list) and all(isinstance(item, str) for item in streams):
        allowed = tuple(item.lower() for item in streams)
    else:
        raise AuthError('the claim `streams` must be "*" or a list of stream ids')
    color, badges, subscriber = raw.get("color"), raw.get("badges"), raw.get("subscriber", False)
    if color is not None and not (isinstance(color, str) and len(color) <= 32 and printable(color)):
        raise AuthError("the claim `color` must be a string of at most 32 characters")
    if badges is not None and not (
        isinstance(badges, list)
        and len(badges) <= 16
        and all(isinstance(item, str) and len(item) <= 64 and printable(item) for item in badges)
    ):
        raise AuthError("the claim `badges` must be a list of at most 16 strings")
    if not isinstance(subscriber, bool):
        raise AuthError("the claim `subscriber` must be true or false")
    return Claims(
        sub=sub,
        name=name,
        role=role,
        streams=allowed,
        expires=_time(raw, "exp"),
        color=color,
        badges=tuple(badges) if badges else None,
        follows_since=_time(raw, "follows_since", null=True),
        subscriber=subscriber,
        created_at=_time(raw, "created_at", null=True),
    )


def printable(text: str) -> bool:
    """Whether a text is free of C0 and C1 controls and of lone surrogates."""
    return _CONTROL.search(text) is None

"""Tokens: JWTs that say who somebody is, in which role, and in which streams.

Comes in: a compact JWT. Goes out: `Claims`, or AuthError with a sentence that is safe to show. The
signing key is 32 random bytes in a file of mode 0600, made at the first start.
"""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path
from typing import Any

import jwt
import msgspec

from uproar.events import MODERATING_ROLES, ROLES, User

ALGORITHM = "HS256"


class AuthError(Exception):
    """A token that is refused; the message says why and shows nothing of the token."""


class Claims(msgspec.Struct, frozen=True):
    """Who a session belongs to. `expires` is unix seconds, None for never."""

    sub: str
    name: str
    role: str = "viewer"
    streams: tuple[str, ...] | None = None  # None: all
    expires: int | None = None
    color: str | None = None
    badges: tuple[str, ...] | None = None

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


class Verifier:
    """Checks tokens against one key and remembers the good ones for a while.

    The cache is bounded and keyed by the whole token, so a client that reconnects costs a look-up.
    """

    def __init__(self, key: bytes, leeway_s: float = 5.0, cache: int = 10_000) -> None:
        self._key = key
        self._leeway_s = leeway_s
        self._cache: dict[str, Claims] = {}
        self._cache_size = cache

    def check(self, token: str, now: float | None = None) -> Claims:
        """Return the claims; raises AuthError."""
        if len(token) > 8192:
            raise AuthError("the token is longer than 8,192 characters")
        if not token.isascii():
            raise AuthError("the token is not one of ours: it is no valid JWT")
        claims = self._cache.get(token)
        if claims is None:
            try:
                claims = _claims(
                    jwt.decode(
                        token,
                        self._key,
                        algorithms=[ALGORITHM],
                        leeway=self._leeway_s,
                        options={"require": ["sub"], "verify_aud": False},
                    )
                )
            except jwt.ExpiredSignatureError as error:
                raise AuthError("the token has expired; get a new one") from error
            except jwt.PyJWTError as error:
                raise AuthError("the token is not one of ours: " + _reason(error)) from error
            if len(self._cache) >= self._cache_size:
                self._cache.clear()
            self._cache[token] = claims
        if claims.expires is not None:
            moment = time.time() if now is None else now
            if claims.expires + self._leeway_s < moment:
                raise AuthError("the token has expired; get a new one")
        return claims


def _reason(error: jwt.PyJWTError) -> str:
    if isinstance(error, jwt.InvalidSignatureError):
        return "its signature does not fit"
    if isinstance(error, jwt.InvalidAlgorithmError):
        return f"it must be signed with {ALGORITHM}"
    return "it is no valid JWT"


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
    expires, color, badges = raw.get("exp"), raw.get("color"), raw.get("badges")
    if color is not None and not (isinstance(color, str) and len(color) <= 32 and printable(color)):
        raise AuthError("the claim `color` must be a string of at most 32 characters")
    if badges is not None and not (
        isinstance(badges, list)
        and len(badges) <= 16
        and all(isinstance(item, str) and len(item) <= 64 and printable(item) for item in badges)
    ):
        raise AuthError("the claim `badges` must be a list of at most 16 strings")
    return Claims(
        sub=sub,
        name=name,
        role=role,
        streams=allowed,
        expires=int(expires) if expires is not None else None,
        color=color,
        badges=tuple(badges) if badges else None,
    )


def printable(text: str) -> bool:
    """Whether a text is free of C0 and C1 controls and of lone surrogates."""
    return not any(
        ord(char) < 0x20 or 0x7F <= ord(char) < 0xA0 or 0xD800 <= ord(char) < 0xE000
        for char in text
    )

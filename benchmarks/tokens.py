"""What does checking a token cost? `python -m benchmarks.tokens`, CPU microseconds by algorithm.

`checked` is a token that was never seen, as a viewer brings it with the first connection; `cached`
one that was checked before. Median of 7 rounds, one thread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, Final

import click
import jwt
import msgspec
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from benchmarks import host
from uproar.auth import Verifier
from uproar.jwks import Key

ROUNDS: Final = 7
CHECKS, LOOKUPS = 400, 20_000  # in a round


def measure() -> dict[str, dict[str, float]]:
    """Return microseconds `checked` and `cached`, and the token's length, by algorithm."""
    secret = b"k" * 64
    private: dict[str, Any] = {
        "RS256": rsa.generate_private_key(65537, 2048),
        "ES256": ec.generate_private_key(ec.SECP256R1()),
        "EdDSA": ed25519.Ed25519PrivateKey.generate(),
    }
    keys = [Key(name, name, key.public_key()) for name, key in private.items()]
    claims = {"sub": "u1", "name": "Ann", "role": "viewer", "streams": "*"}
    claims["exp"] = int(time.time()) + 3600  # type: ignore[assignment]
    found = {}
    for name, key in {"HS256": secret, **private}.items():
        tokens = [
            jwt.encode({**claims, "jti": str(n)}, key, algorithm=name, headers={"kid": name})
            for n in range(CHECKS)
        ]
        # With room for one token, each of several is new whenever it comes.
        fresh, warm = Verifier(secret, keys=keys, cache=1), Verifier(secret, keys=keys)
        found[name] = {
            "checked_us": _median_us(lambda c=fresh.check, t=tokens: [c(x) for x in t], CHECKS),  # type: ignore[misc]
            "cached_us": _median_us(
                lambda c=warm.check, t=tokens[0]: [c(t) for _ in range(LOOKUPS)],  # type: ignore[misc]
                LOOKUPS,
            ),
            "characters": len(tokens[0]),
        }
    return found


def _median_us(work: Callable[[], object], count: int) -> float:
    rounds = []
    for _ in range(ROUNDS):
        began = time.process_time()
        work()
        rounds.append((time.process_time() - began) / count * 1e6)
    return statistics.median(rounds)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
def main(as_json: bool) -> None:
    """Measure what checking a token costs."""
    found = measure()
    if as_json:
        click.echo(msgspec.json.encode({"host": host.block(), "tokens": found}).decode())
        return
    click.echo(f"{'':8}{'checked':>12}{'cached':>12}{'length':>10}")
    for name, row in found.items():
        checked, cached = f"{row['checked_us']:.0f} us", f"{row['cached_us']:.1f} us"
        click.echo(f"{name:8}{checked:>12}{cached:>12}{row['characters']:>10}")


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.tokens")

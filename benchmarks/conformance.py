"""Does an engine speak WebSocket as RFC 6455 says? The Autobahn cases against an echo built on it.

    python -m benchmarks.conformance [--cases 1.* 2.*]

Without cases 9 (messages of many MiB), 12 and 13 (compression, which is not spoken). The cases come
from the package `kosoku`; the echo is a process of its own. Exit code 1 where a case fails.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any, Final

import click

CASES: Final = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*")
MESSAGE_BYTES: Final = 1 << 20  # the largest message of these cases has 64 KiB
PARALLEL: Final = 4
START_S: Final = 15.0


def echo() -> None:
    """Serve the engine alone on a free port and print the port: every message goes back."""
    from gevent import monkey

    monkey.patch_all()

    import socket

    import gevent

    from gateway.engine import EngineEvent, EngineLimits, Received
    from gateway.engine.reference import ReferenceEngine

    def back(batch: list[EngineEvent]) -> None:
        for what in batch:
            if isinstance(what, Received):
                text = isinstance(what.data, str)
                payload = what.data.encode() if isinstance(what.data, str) else what.data
                engine.send(what.sid, engine.frame(payload, text=text))

    def no_http(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("404 Not Found", [("Content-Length", "0")])
        return []

    limits = EngineLimits(
        handshake_s=5.0,
        handshake_bytes=16_384,
        message_bytes=MESSAGE_BYTES,
        connections=1000,
        connections_per_address=1000,
        queue_bytes=16 << 20,
        queue_s=30.0,
        idle_s=60.0,
    )
    engine = ReferenceEngine(limits, (), back)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    engine.start(listener, no_http)
    print(listener.getsockname()[1], flush=True)
    # Its parent holds the other end of stdin: when that is gone, so is this.
    gevent.os.tp_read(0, 1)
    engine.stop()


class Echo:
    """The echo process, for as long as the `with` lasts."""

    def __enter__(self) -> int:
        """Start it; return its port. Raises RuntimeError where it does not come up."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.conformance", "--echo"],
            cwd=Path(__file__).parents[1],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the echo did not start: exit code {self._process.wait(START_S)}")
        return int(line)

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=START_S)


def run(cases: list[str]) -> list[Any]:
    """Return the results of the cases against the echo."""
    from kosoku import FailureError, run_fuzzingclient

    async def drive(port: int) -> list[Any]:
        try:
            return list(
                await run_fuzzingclient(f"ws://127.0.0.1:{port}", cases, concurrency=PARALLEL)
            )
        except FailureError as failure:
            return list(failure.results)

    with Echo() as port:
        return asyncio.run(drive(port))


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--cases", multiple=True, default=CASES, help="Repeatable, as 7.* or 1.1.1.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--echo", "as_echo", is_flag=True, hidden=True)
def main(cases: tuple[str, ...], as_json: bool, as_echo: bool) -> None:
    """Run the Autobahn cases against the reference engine."""
    if as_echo:
        echo()
        return
    try:
        results = run(list(cases))
    except ImportError:
        click.echo("uproar: the cases come with kosoku: pip install kosoku==0.1.0", err=True)
        sys.exit(2)
    failed = [result for result in results if not result.passed]
    # Autobahn has words for what RFC 6455 leaves open: NON-STRICT, INFORMATIONAL.
    verdicts = Counter(str(result.behavior.value) for result in results)
    found = {"engine": "reference", "cases": len(results), "verdicts": dict(verdicts)}
    if as_json:
        click.echo(json.dumps({**found, "failed": [_described(result) for result in failed]}))
    else:
        words = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
        click.echo(f"reference engine: {len(results)} cases: {words}; {len(failed)} failed")
        for result in failed:
            click.echo("  " + ": ".join(_described(result).values()))
    if failed or not results:
        sys.exit(1)


def _described(result: Any) -> dict[str, str]:
    return {
        "case": str(result.case_id),
        "messages": f"{result.behavior.value}, {result.result}",
        "close": f"{result.behavior_close.value}, {result.result_close}",
    }


if __name__ == "__main__":
    main(prog_name="python -m benchmarks.conformance")

"""Does an engine speak WebSocket as RFC 6455 says? The Autobahn cases against an echo built on it.

    python -m benchmarks.conformance [--engine fast] [--cases 1.*] [--cases 2.*] [--all]

Without cases 9 (messages of many MiB), 12 and 13 (compression), which take minutes; `--all` runs
all 517. The cases come from the package `kosoku`; the echo is a process of its own. Exit code 1
where a case fails.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import click

CASES: Final = ("1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*")
SLOW: Final = ("9.*", "12.*", "13.*")
ENGINES: Final = ("reference", "fast")
MESSAGE_BYTES: Final = 16 << 20  # the largest message of the cases
FRAGMENTS: Final = 1 << 20  # cases 9 cut 4 MiB into pieces of 64 bytes
PARALLEL: Final = 4
START_S: Final = 15.0


def echo(kind: str) -> None:
    """Serve the engine alone on a free port and print the port: every message goes back."""
    from gevent import monkey

    monkey.patch_all()

    import socket

    import gevent

    from gateway.engine import Engine, EngineEvent, EngineLimits, Form, Opened, Received

    audiences: dict[tuple[str, str], int] = {}
    compression: dict[int, str] = {}

    def back(batch: list[EngineEvent]) -> None:
        for what in batch:
            if isinstance(what, Opened):
                compression[what.sid] = what.request.compression_out
            elif isinstance(what, Received):
                # An audience of one, for as long as one message takes: text stays text.
                text = isinstance(what.data, str)
                form = ("text" if text else "binary", compression[what.sid])
                if form not in audiences:
                    audiences[form] = engine.audience(Form(*form))
                payload = what.data.encode() if isinstance(what.data, str) else what.data
                engine.join(what.sid, audiences[form])
                engine.broadcast(audiences[form], payload)
                engine.leave(what.sid, audiences[form])

    def no_http(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        start_response("404 Not Found", [("Content-Length", "0")])
        return []

    limits = EngineLimits(
        handshake_s=5.0,
        handshake_bytes=16_384,
        message_bytes=MESSAGE_BYTES,
        fragments=FRAGMENTS,
        connections=1000,
        connections_per_address=1000,
        queue_bytes=64 << 20,
        queue_s=30.0,
        idle_s=60.0,
        commands_per_second=1_000_000,
        accepts_per_second=1000,
    )
    engine: Engine
    if kind == "fast":
        from gateway.engine.fast import FastEngine

        engine = FastEngine(limits, (), back)
    else:
        from gateway.engine.reference import ReferenceEngine

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

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def __enter__(self) -> int:
        """Start it; return its port. Raises RuntimeError where it does not come up."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.conformance", "--echo", "--engine", self._kind],
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


def run(kind: str, cases: list[str]) -> list[Any]:
    """Return the results of the cases against the echo of an engine."""
    from kosoku import FailureError, run_fuzzingclient

    async def drive(port: int) -> list[Any]:
        try:
            return list(
                await run_fuzzingclient(f"ws://127.0.0.1:{port}", cases, concurrency=PARALLEL)
            )
        except FailureError as failure:
            return list(failure.results)

    _mend()
    with Echo(kind) as port:
        return asyncio.run(drive(port))


def _mend() -> None:
    """Give cases 12 and 13 bytes: kosoku 0.1.0 hands them what came uncompressed as text."""
    import kosoku._caseindex as index

    index.initialize_shims()
    from kosoku.cases import CASES as classes

    def mended(original: Callable[[Any, bytes, bool], None]) -> Callable[[Any, Any, bool], None]:
        def on_message(case: Any, message: str | bytes, binary: bool) -> None:
            if isinstance(message, str):
                message = message.encode("latin-1" if binary else "utf-8")
            original(case, message, binary)

        return on_message

    case: Any
    for name, case in classes.items():
        if name.startswith(("12.", "13.")):
            case.onMessage = mended(case.onMessage)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--engine", "kind", type=click.Choice(ENGINES), default="reference")
@click.option("--cases", multiple=True, default=CASES, help="Repeatable, as 7.* or 1.1.1.")
@click.option("--all", "everything", is_flag=True, help="All 517 cases, which take minutes.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
@click.option("--echo", "as_echo", is_flag=True, hidden=True)
def main(kind: str, cases: tuple[str, ...], everything: bool, as_json: bool, as_echo: bool) -> None:
    """Run the Autobahn cases against an engine."""
    if as_echo:
        echo(kind)
        return
    try:
        results = run(kind, [*CASES, *SLOW] if everything else list(cases))
    except ImportError:
        click.echo("uproar: the cases come with kosoku: pip install kosoku==0.1.0", err=True)
        sys.exit(2)
    failed = [result for result in results if not result.passed]
    # Autobahn has words for what RFC 6455 leaves open: NON-STRICT, INFORMATIONAL.
    verdicts = Counter(str(result.behavior.value) for result in results)
    found = {"engine": kind, "cases": len(results), "verdicts": dict(verdicts)}
    if as_json:
        click.echo(json.dumps({**found, "failed": [_described(result) for result in failed]}))
    else:
        words = ", ".join(f"{count} {verdict}" for verdict, count in sorted(verdicts.items()))
        click.echo(f"{kind} engine: {len(results)} cases: {words}; {len(failed)} failed")
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

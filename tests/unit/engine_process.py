"""An engine alone in a process of its own, led over stdin, telling what happens on stdout.

    python -m tests.unit.engine_process reference '{"handshake_s": 2.0, …}' a.v1 a.v2

Comes in, a line each: `[method, argument…]`, payloads as text, a form as its fields, what `prepare`
gave as its number. Goes out, a line each: the port, then `["done", result]` for each line taken,
and `[event, field…]` for what the engine hands up. `/raw` is a request that is handed over,
`/who` is answered with the scheme and the address that it seems to come from.
"""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402
from collections.abc import Iterable  # noqa: E402
from typing import Any  # noqa: E402
from zlib import crc32  # noqa: E402

from gevent.fileobject import FileObject  # noqa: E402

from gateway.engine import (  # noqa: E402
    Arrived,
    Engine,
    EngineEvent,
    EngineLimits,
    Form,
    Handover,
    Opened,
    Received,
    Request,
)


def tell(*what: Any) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def up(batch: list[EngineEvent]) -> None:
    """Hand up what happened."""
    for what in batch:
        if isinstance(what, Opened | Arrived):
            sids = [what.sid] if isinstance(what, Opened) else what.sids
            request = what.request
            for sid in sids:
                said = (request.path, request.subprotocol, request.compression, request.address)
                tell("Opened", sid, *said)
        elif isinstance(what, Received):
            if what.data == "raise":
                raise RuntimeError("asked to")
            data = what.data.encode() if isinstance(what.data, str) else what.data
            tell("Received", what.sid, len(what.data), type(what.data).__name__, crc32(data))
        else:
            tell(type(what).__name__, *what)


def app(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
    """Answer everything that is no upgrade."""
    if environ["PATH_INFO"] == "/raw":
        start_response("200 OK", [("Content-Type", "text/plain")])
        request = Request("/raw", "", {}, environ["REMOTE_ADDR"], None, dialect="raw")
        return Handover(request, b"welcome\n", lambda code, reason: f"{code} {reason}\n".encode())
    if environ["PATH_INFO"] == "/who":
        said = f"{environ['wsgi.url_scheme']} {environ['REMOTE_ADDR']}".encode()
        start_response("200 OK", [("Content-Length", str(len(said)))])
        return [said]
    start_response("200 OK", [("Content-Type", "text/html"), ("Content-Length", "2")])
    return [b"ok"]


def engine_named(name: str, limits: EngineLimits, subprotocols: tuple[str, ...]) -> Engine:
    """Return an engine that hands up to `up`."""
    if name == "fast":
        from gateway.engine.fast import FastEngine

        return FastEngine(limits, subprotocols, up)
    from gateway.engine.reference import ReferenceEngine

    return ReferenceEngine(limits, subprotocols, up)


def main() -> None:
    """Serve until stdin ends."""
    name, limits, *subprotocols = sys.argv[1:]
    engine = engine_named(name, EngineLimits(**json.loads(limits)), tuple(subprotocols))
    listener = socket.create_server(("127.0.0.1", 0), backlog=256)
    listener.setblocking(False)
    engine.start(listener, app)
    tell(listener.getsockname()[1])
    prepared: list[Any] = [None]

    def admit(
        sids: list[int], audience: int, greeting: str, sid_at: int = -1, backlog: int = 0
    ) -> list[int]:
        return engine.admit(sids, audience, greeting.encode(), sid_at, prepared[backlog])

    def prepare(audience: int, payload: str) -> int:
        prepared.append(engine.prepare(audience, payload.encode()))
        return len(prepared) - 1

    own = {
        "admit": admit,
        "prepare": prepare,
        "audience": lambda *form: engine.audience(Form(*form)),
        "send": lambda sid, payload: engine.send(sid, payload.encode()),
        "broadcast": lambda audience, payload, skip=(): engine.broadcast(
            audience, payload.encode(), skip
        ),
        "connections": lambda: [engine.connections, engine.sockets],
        "charged": lambda sid, times: [engine.charge(sid) for _ in range(times)],
        "reactions": lambda: sorted(
            [counter, kind, sum_]
            for counter, kinds in engine.reactions().items()
            for kind, sum_ in kinds.items()
        ),
    }
    for line in FileObject(sys.stdin.buffer, "rb"):
        method, *arguments = json.loads(line)
        tell("done", (own.get(method) or getattr(engine, method))(*arguments))
    engine.stop()


if __name__ == "__main__":
    main()

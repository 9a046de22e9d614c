"""An engine alone in a process of its own, led over stdin, telling what happens on stdout.

Comes in, a line each: `[method, argument…]`, payloads as text. Goes out, a line each: the port,
then `["done", result]` for each line taken, and `[event, field…]` for what the engine hands up.
"""

from gevent import monkey

monkey.patch_all()

import json  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402
from typing import Any  # noqa: E402

from gevent.fileobject import FileObject  # noqa: E402

from gateway.engine import EngineEvent, EngineLimits, Opened, Received  # noqa: E402
from gateway.engine.reference import ReferenceEngine  # noqa: E402


def tell(*what: Any) -> None:
    """Write one line."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


def up(batch: list[EngineEvent]) -> None:
    """Hand up what happened."""
    for what in batch:
        if isinstance(what, Opened):
            tell("Opened", what.sid, what.request.path, what.request.subprotocol)
        elif isinstance(what, Received):
            if what.data == "raise":
                raise RuntimeError("asked to")
            tell("Received", what.sid, len(what.data), type(what.data).__name__)
        else:
            tell(type(what).__name__, *what)


def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    """Answer everything that is no upgrade."""
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]


def main() -> None:
    """Serve until stdin ends."""
    engine = ReferenceEngine(EngineLimits(**json.loads(sys.argv[1])), ("a.v1", "a.v2"), up)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    engine.start(listener, app)
    tell(listener.getsockname()[1])
    for line in FileObject(sys.stdin.buffer, "rb"):
        method, *arguments = json.loads(line)
        if method in ("send", "broadcast"):
            arguments[1] = engine.frame(arguments[1].encode(), text=True)
        if method == "connections":
            tell("done", [engine.connections, engine.sockets])
        else:
            tell("done", getattr(engine, method)(*arguments))
    engine.stop()


if __name__ == "__main__":
    main()

"""`python -m gateway --config FILE --name NAME --listen-fd N [--ready-fd N]`: one process."""

from gevent import monkey

monkey.patch_all()

import argparse  # noqa: E402
import socket  # noqa: E402
import sys  # noqa: E402

from gateway.server import serve  # noqa: E402
from uproar import config as configuration  # noqa: E402
from uproar import logs  # noqa: E402


def main() -> int:
    """Serve on the inherited listening socket."""
    parser = argparse.ArgumentParser(prog="python -m gateway")
    parser.add_argument("--config")
    parser.add_argument("--name", default="g1")
    parser.add_argument("--listen-fd", type=int, required=True)
    parser.add_argument("--ready-fd", type=int)
    arguments = parser.parse_args()
    try:
        config = configuration.load(arguments.config)
    except configuration.ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    logs.configure(arguments.name)
    listener = socket.socket(fileno=arguments.listen_fd)
    listener.setblocking(False)
    serve(config, arguments.name, listener, arguments.ready_fd)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`python -m workers ROLE --config FILE [--ready-fd N]`: one worker process."""

from __future__ import annotations

import argparse
import sys

from uproar import config as configuration
from uproar import logs
from workers import process


def main() -> int:
    """Run the role that is asked for."""
    parser = argparse.ArgumentParser(prog="python -m workers")
    roles = ("ingest", "coordinator", "archive", "moderation", "webhooks")
    parser.add_argument("role", choices=roles)
    parser.add_argument("--config")
    parser.add_argument("--ready-fd", type=int)
    arguments = parser.parse_args()
    try:
        config = configuration.load(arguments.config)
    except configuration.ConfigError as error:
        print(error, file=sys.stderr)
        return 2
    logs.configure(arguments.role)
    if arguments.role == "ingest":
        from workers.ingest import work
    elif arguments.role == "coordinator":
        from workers.coordinator import work
    elif arguments.role == "archive":
        from workers.archive import work
    elif arguments.role == "webhooks":
        from workers.webhooks import work
    else:
        from workers.moderation.worker import work
    return process.run(arguments.role, config, arguments.ready_fd, work)


if __name__ == "__main__":
    sys.exit(main())

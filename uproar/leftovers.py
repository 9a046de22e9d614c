"""The list of running processes on disk, and the end of those that outlived their supervisor.

`{run}/pids.json` names each child with its pid, creation time and command line. Children die with
their supervisor (PR_SET_PDEATHSIG), so this is the second net: for systems without that call. Only
a process on which all three fit is ended; a pid that was used again by somebody else is left alone.
"""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path
from typing import Any

import psutil

from uproar.errors import ServeError
from uproar.logs import event

log = logging.getLogger(__name__)

TERMINATE_S = 2.0  # for a leftover to go by itself
KILL_S = 5.0  # and to be gone after SIGKILL
CLOCK_S = 1.0  # psutil derives creation times from the boot time, which moves with the clock


def entry(name: str, role: str, pid: int, argv: list[str], restarts: int) -> dict[str, Any]:
    """Return what the list says of one running process."""
    try:
        created = psutil.Process(pid).create_time()
    except psutil.Error:
        created = 0.0  # gone already: never matches anything
    return {
        "name": name,
        "role": role,
        "pid": pid,
        "created": created,
        "argv": argv,
        "restarts": restarts,
    }


def write(file: Path, entries: list[dict[str, Any]]) -> None:
    """Replace the list in one step, readable by the owner alone."""
    new = file.with_name(file.name + ".new")
    fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(fd, "w", encoding="utf-8") as stream:
        json.dump({"supervisor": os.getpid(), "processes": entries}, stream, indent=1)
    new.replace(file)


def read(file: Path) -> list[dict[str, Any]]:
    """Return the entries, none for a list that is missing or damaged."""
    try:
        entries = json.loads(file.read_text("utf-8"))["processes"]
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return [item for item in entries if isinstance(item, dict)] if isinstance(entries, list) else []


def end(file: Path) -> list[str]:
    """End what the list names and is still running; return their names.

    Raises ServeError when one does not go away: two of a kind must never run on one directory.
    """
    running = [(item, process) for item in read(file) if (process := _process(item)) is not None]
    for item, process in running:
        event(log, "leftover_ended", level=logging.WARNING, process=item["name"], pid=process.pid)
        _signal(process, kill=False)
    processes = [process for _, process in running]
    _, alive = psutil.wait_procs(processes, timeout=TERMINATE_S)
    for process in alive:
        _signal(process, kill=True)
    _, alive = psutil.wait_procs(alive, timeout=KILL_S)
    if alive:
        raise ServeError(
            f"process {alive[0].pid} of an earlier start does not end; end it and start again"
        )
    return [str(item["name"]) for item, _ in running]


def _process(item: dict[str, Any]) -> psutil.Process | None:
    try:
        process = psutil.Process(int(item["pid"]))
        same = (
            abs(process.create_time() - float(item["created"])) < CLOCK_S
            and process.cmdline() == item["argv"]
            and process.status() != psutil.STATUS_ZOMBIE
        )
    except (psutil.Error, KeyError, TypeError, ValueError):
        return None
    return process if same else None


def _signal(process: psutil.Process, *, kill: bool) -> None:
    try:
        if kill:
            process.kill()
        else:
            process.terminate()
    except psutil.Error:
        pass  # gone in the meantime, or waited for below

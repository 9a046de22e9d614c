"""Logging: one event name per fact, its fields beside it; JSON lines in files, words on a terminal.

    log = logging.getLogger(__name__)
    event(log, "process_died", process="g1", reason="SIGKILL")

A child of `uproar serve` writes to stderr, which is `{data}/logs/NAME.log` there; `configure(NAME)`
in its entry point is all it needs.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

# What every LogRecord has: anything else on one came from `extra`.
_PLAIN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "fields"}


def event(
    logger: logging.Logger,
    name: str,
    *,
    level: int = logging.INFO,
    exc_info: bool = False,
    **fields: Any,
) -> None:
    """Log one fact. Fields may have any name, those of LogRecord's own attributes too."""
    if logger.isEnabledFor(level):
        # Percent signs in the name must stay: there are no arguments, so nothing is formatted.
        logger.log(level, name, exc_info=exc_info, extra={"fields": fields})


class JsonLines(logging.Formatter):
    """One JSON object a line: event, ts (unix s), level, proc, logger, then the fields in order."""

    def __init__(self, proc: str) -> None:
        super().__init__()
        self._proc = proc

    def format(self, record: logging.LogRecord) -> str:
        """Return the line. Fields that are no JSON are written as their repr."""
        line: dict[str, Any] = {
            "event": record.getMessage(),
            "ts": round(record.created, 3),
            "level": record.levelname.lower(),
            "proc": self._proc,
            "logger": record.name,
        }
        for key, value in _fields(record).items():
            line[key if key not in line else f"{key}_"] = value
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=repr)


class Words(logging.Formatter):
    """For people: `12:34:56 warning process died: process=g1 reason=SIGKILL`."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, with the traceback below it where there is one."""
        clock = time.strftime("%H:%M:%S", time.localtime(record.created))
        text = f"{clock} {record.levelname.lower()} {record.getMessage().replace('_', ' ')}"
        fields = _fields(record)
        if fields:
            text += ": " + " ".join(f"{key}={value}" for key, value in fields.items())
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        return text


def configure(
    proc: str,
    *,
    level: int = logging.INFO,
    file: Path | None = None,
    stderr_level: int | None = None,
) -> None:
    """Send this process's log to stderr, and to `file` as JSON lines where one is given.

    On a terminal, and wherever `file` takes the JSON, stderr gets words. `stderr_level` lets a
    person see less than the file holds.
    """
    stderr = logging.StreamHandler(sys.stderr)
    words = file is not None or sys.stderr.isatty()
    stderr.setFormatter(Words() if words else JsonLines(proc))
    stderr.setLevel(level if stderr_level is None else stderr_level)
    handlers: list[logging.Handler] = [stderr]
    if file is not None:
        to_file = logging.FileHandler(file, encoding="utf-8")
        to_file.setFormatter(JsonLines(proc))
        handlers.append(to_file)
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        root.addHandler(handler)
    root.setLevel(level)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = dict(getattr(record, "fields", None) or {})
    fields.update((key, value) for key, value in vars(record).items() if key not in _PLAIN)
    return fields


def rotate(file: Path, limit_bytes: int) -> None:
    """Move a log above the limit to `NAME.log.1`, over the one that was there.

    Called when its writer starts, so a name keeps at most two files.
    """
    try:
        if file.stat().st_size > limit_bytes:
            file.replace(file.with_name(file.name + ".1"))
    except FileNotFoundError:
        pass


def tail(file: Path, lines: int = 12, limit_bytes: int = 8192) -> str:
    """Return the last lines of a log, for the sentence about why its process did not start."""
    try:
        with file.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(max(0, size - limit_bytes))
            text = stream.read().decode("utf-8", "replace")
    except OSError:
        return ""
    return "\n".join(text.splitlines()[-lines:])

"""A running system, a real Chromium, and pages that must not complain on their console."""

from __future__ import annotations

import contextlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = "/usr/bin/chromium"
READY_S = 60.0
STOP_S = 20.0
STEP_MS = 15_000  # for anything a page is waited for
OPTIONS = ["--json", "--port", "0"]
FLAGS = ["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]


@dataclass
class System:
    """What `uproar serve --json` printed, and how to speak into it from outside a page."""

    http: str
    tokens: dict[str, str]
    pids: dict[str, list[int]]

    def request(self, method: str, path: str, body: Any = None, role: str = "service") -> Any:
        """Return the decoded answer of a REST call; raises HTTPError for a refusal."""
        request = urllib.request.Request(
            self.http + path,
            data=None if body is None else json.dumps(body).encode(),
            method=method,
            headers={
                "Authorization": f"Bearer {self.tokens[role]}",
                "Content-Type": "application/json",
                "Accept": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=15) as answer:
            return json.loads(answer.read() or b"null")

    def say(
        self, stream: str, texts: list[str], role: str = "service", key: str | None = None
    ) -> list[str]:
        """Post comments in order, 100 at a time; return their ids.

        A call repeated with the same `key` posts the same comments, which count once.
        """
        key = key or os.urandom(6).hex()
        ids: list[str] = []
        for start in range(0, len(texts), 100):
            batch = [
                {"text": text, "nonce": f"{key}-{start}-{index}"}
                for index, text in enumerate(texts[start : start + 100])
            ]
            answers = self.request("POST", f"/stream/{stream}/comments", batch, role)
            ids += [answer["id"] for answer in answers]
        return ids


@contextlib.contextmanager
def running(*options: str, **settings: Any) -> Iterator[System]:
    """A system of its own on free ports, in a directory of its own; stopped by SIGTERM.

    `settings` are those of uproar.toml, as `section__key=value`.
    """
    directory = Path(tempfile.mkdtemp(prefix="upr-"))  # short: Unix sockets lie below it
    errors = directory / "stderr"
    settings = {"server__admin_port": 0, **settings}
    environ = {f"UPROAR_{name.upper()}": str(value) for name, value in settings.items()}
    command = [sys.executable, "-m", "uproar", "serve", *OPTIONS, *options]
    with errors.open("wb") as stderr:
        process = subprocess.Popen(
            [*command, "--data", str(directory / "d")],
            cwd=ROOT,
            env={**os.environ, **environ},
            stdout=subprocess.PIPE,
            stderr=stderr,
        )
    assert process.stdout is not None
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            line = process.stdout.readline() if selector.select(READY_S) else b""
        if not line:
            said = errors.read_text()[-3000:]
            raise AssertionError(f"no system within {READY_S:.0f} s:\n{said}")
        ready = json.loads(line)
        yield System(ready["http"].rstrip("/"), ready["tokens"], ready["pids"])
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(STOP_S)
            raise
        finally:
            process.stdout.close()
            shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture(scope="session")
def system() -> Iterator[System]:
    """The system that the tests share; guests are let in as often as they come."""
    with running(auth__guests_per_minute=1000) as one:
        yield one


@pytest.fixture
def stream() -> str:
    """A stream that no other test uses."""
    return f"t-{uuid.uuid4().hex[:12]}"


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One browser for all tests; contexts keep them apart."""
    if not Path(CHROMIUM).exists():
        pytest.skip(f"needs {CHROMIUM} (apt-get install chromium)")
    playwright = pytest.importorskip("playwright.sync_api", reason="needs the package playwright")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield browser
        browser.close()


@dataclass
class Pages:
    """Opens pages, each in a browser profile of its own, and listens to their consoles."""

    chromium: Any
    system: System
    complaints: list[str] = field(default_factory=list)
    contexts: list[Any] = field(default_factory=list)
    may_lose_connections: bool = False
    may_be_refused: bool = False

    def open(self, path: str, **context: Any) -> Any:
        """Return a page at a path of the system's."""
        profile = self.chromium.new_context(**context)
        profile.set_default_timeout(STEP_MS)
        self.contexts.append(profile)
        page = profile.new_page()
        page.on("console", self._heard)
        page.on("pageerror", lambda error: self.complaints.append(f"uncaught: {error}"))
        page.goto(self.system.http + path)
        return page

    def _heard(self, message: Any) -> None:
        if message.type not in ("error", "warning"):
            return
        if self.may_lose_connections and message.text.startswith("WebSocket connection to"):
            return  # Chromium's own words for a refused connection
        if self.may_be_refused and message.text.startswith("Failed to load resource"):
            return  # Chromium's own words for a status of 400 and above
        self.complaints.append(message.text)


@pytest.fixture
def pages(chromium: Any, system: System) -> Iterator[Pages]:
    """Pages of one test; fails it if a console had an error or a warning."""
    opened = Pages(chromium, system)
    yield opened
    for context in opened.contexts:
        context.close()
    assert opened.complaints == []

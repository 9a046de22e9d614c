"""Debian's Prometheus and promtool, on PATH or unpacked in build/prometheus by make prometheus."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from tests.system import ROOT

UNPACKED = ROOT / "build" / "prometheus" / "usr" / "bin"
RULES = ROOT / "deploy" / "prometheus"
READY_S = 30.0


def tool(name: str) -> str:
    """Return the path of a tool; skips the test with a sentence where it can't be had."""
    found = shutil.which(name, path=f"{UNPACKED}{os.pathsep}{os.environ.get('PATH', '')}")
    if found is None:
        pytest.skip(
            f"{name} is not here: make test-metrics fetches Debian's package prometheus where "
            "apt-get can; elsewhere put prometheus and promtool on PATH"
        )
    return found


def promtool(*arguments: str, text: str | None = None) -> str:
    """Run promtool; return what it said, fail with that where it finds something wrong."""
    done = subprocess.run(
        [tool("promtool"), *arguments], input=text, capture_output=True, text=True, timeout=60
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


class Prometheus:
    """A server on a free port of the loopback address, that scrapes one admin port every 2 s.

    Its configuration is the example's, with another target and a faster clock.
    """

    def __init__(self, admin: str, directory: Path) -> None:
        with socket.create_server(("127.0.0.1", 0)) as taken:
            self.port = taken.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        config = (RULES / "prometheus.yml").read_text("utf-8")
        target = urllib.parse.urlsplit(admin).netloc
        for example, ours in (
            ("127.0.0.1:8081", target),
            ("scrape_interval: 5s", "scrape_interval: 2s"),
            ("evaluation_interval: 5s", "evaluation_interval: 1s"),
            ("- rules.yml", f"- {RULES / 'rules.yml'}"),
        ):
            assert example in config
            config = config.replace(example, ours)
        file = directory / "prometheus.yml"
        file.write_text(config, "utf-8")
        self.log = directory / "log"
        self._arguments = [
            tool("prometheus"), f"--config.file={file}",
            f"--storage.tsdb.path={directory / 'data'}",
            f"--web.listen-address=127.0.0.1:{self.port}",
        ]  # fmt: skip

    def __enter__(self) -> Prometheus:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(self._arguments, stdout=log, stderr=log)
        until = time.monotonic() + READY_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > until:
                self.__exit__()
                raise AssertionError(f"Prometheus does not start: {self.log.read_text()[-2000:]}")
            time.sleep(0.1)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/-/ready", timeout=5) as answer:
                return answer.status == 200
        except OSError:
            return False

    def api(self, path: str, **query: str) -> Any:
        """Return the data of an answer of /api/v1; fails with what Prometheus says is wrong."""
        url = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        try:
            with urllib.request.urlopen(url, timeout=15) as answer:
                return json.loads(answer.read())["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{query}: {error.read().decode()}") from None

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series of an expression now."""
        return self.api("query", query=expression)["result"]

    def firing(self) -> set[str]:
        """Return the names of the alerts that fire."""
        alerts = self.api("alerts")["alerts"]
        return {one["labels"]["alertname"] for one in alerts if one["state"] == "firing"}

"""A running system, scraped by a real Prometheus: names, documentation, dashboard, an alert."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from gateway.engine import engine_class
from tests.metrics.tools import Prometheus, promtool
from tests.sender import Sender
from tests.system import ROOT, System, wait_until
from uproar.metrics import CATALOGUE, table
from uproar.swarm import Swarm

BOARD = json.loads((ROOT / "deploy" / "grafana" / "uproar.json").read_text("utf-8"))
EXPRESSIONS = [target["expr"] for panel in BOARD["panels"] for target in panel.get("targets", ())]
ADDED = {"process", "role"}  # to every sample
ABSENT = {
    name
    for name, spec in CATALOGUE.items()
    if "(fast engine)" in spec.about and engine_class().__name__ != "FastEngine"
}
ALERT_S = 40.0  # probe age 3 s, `for` 10 s, and as long again for a busy machine
PLAY_S = 7.0  # some scrapes


class Backend(BaseHTTPRequestHandler):
    """Takes webhooks."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    """A system with webhooks, which run only where somebody wants them."""
    with HTTPServer(("127.0.0.1", 0), Backend) as backend:
        threading.Thread(target=backend.serve_forever, daemon=True).start()
        target = f"http://127.0.0.1:{backend.server_port}/"
        with System(webhooks__targets=json.dumps([target]), webhooks__allow_private="true") as one:
            yield one
        backend.shutdown()


def play(system: System, stream: str, seconds: float) -> None:
    """Comments into a stream of its own, before viewers of every kind."""
    with Swarm(seed=3) as swarm:
        viewers = [
            swarm.add(system.stream(stream), codec=codec, deflate=deflate, backlog=0)
            for codec in ("json", "msgpack")
            for deflate in (False, True)
        ]
        sender = Sender(swarm, system.stream(stream), system.tokens["service"], 50)
        everybody = [sender.member, *viewers]
        assert swarm.run(lambda: all(one.live for one in everybody), 20)
        end = time.monotonic() + seconds

        def over() -> bool:
            sender.pump()
            return time.monotonic() >= end

        assert swarm.run(over, seconds + 10)
        assert swarm.run(lambda: not sender.open, 20)
        # What is sent when nobody is left is not counted as sent.
        last = max(offset for _, offset in sender.acknowledged.values())
        assert swarm.run(
            lambda: all(one.offsets and one.offsets[-1] >= last for one in viewers), 20
        )


def scrape(system: System) -> str:
    url = system.info["admin"].rstrip("/") + "/metrics"
    with urllib.request.urlopen(url, timeout=15) as answer:
        return answer.read().decode()


def hops(text: str) -> dict[str, float]:
    """Comments by hop, the most that any process counted: a gateway may follow no stream."""
    counts: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "uproar_comment_seconds_count":
                hop = sample.labels["hop"]
                counts[hop] = max(counts.get(hop, 0), sample.value)
    return counts


@pytest.fixture(scope="module")
def scraped(system: System) -> str:
    """The metrics after some comments, when the last one has gone all the way."""
    play(system, "played", 1.0)

    def arrived() -> str:
        text = scrape(system)
        return text if len(set(hops(text).values())) == 1 else ""

    return wait_until(arrived, 10, "every hop has counted as many")


def test_every_metric_of_the_catalogue_is_served_and_no_other(scraped):
    served: dict[str, tuple[str, set[str], set[tuple[str, ...]]]] = {}
    for family in text_string_to_metric_families(scraped):
        name = family.name + ("_total" if family.type == "counter" else "")
        roles = {sample.labels["role"] for sample in family.samples}
        labels = {
            tuple(label for label in sample.labels if label not in {*ADDED, "le"})
            for sample in family.samples
        }
        served[name] = family.type, roles, labels
        assert all(sample.labels.keys() >= ADDED for sample in family.samples)
    expected = {
        name: (spec.kind, set(spec.roles), {spec.labels})
        for name, spec in CATALOGUE.items()
        if name not in ABSENT
    }
    assert served == expected


def test_comments_are_counted_at_every_hop(system, scraped):
    known = len(system.history("played"))
    assert known >= 40
    assert hops(scraped) == dict.fromkeys(("logged", "published", "sent", "all"), known)


def total(text: str, name: str, **labels: str) -> float:
    """The sum over all processes."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )


def test_cuts_leaves_and_resumes_are_told_apart(system):
    """One viewer is cut and resumes, one comes back with a foreign epoch, one leaves properly."""

    def counts() -> list[float]:
        text = scrape(system)
        ended, resumed = "uproar_gateway_closed_total", "uproar_gateway_resumes_total"
        return [
            *(total(text, ended, reason=reason) for reason in ("lost", "normal")),
            *(total(text, resumed, recovered=word) for word in ("true", "false")),
        ]

    with Swarm(seed=5) as swarm:
        cut = swarm.add(system.stream("ends"), backlog=0)
        leaves = swarm.add(system.stream("ends"), backlog=0, codec="msgpack")
        assert swarm.run(lambda: cut.live and leaves.live, 20)
        before = counts()
        session = cut.session
        cut.cut()
        swarm.add(system.stream("ends"), backlog=0, epoch="0a1b2c3d4e5f", offset=1)
        leaves.leave()
        assert swarm.run(lambda: cut.live and cut.session != session, 20)
        assert swarm.run(
            lambda: [a - b for a, b in zip(counts(), before, strict=True)] == [1, 1, 1, 1], 10
        ), (before, counts())


def test_no_label_grows_with_streams_or_users(system):
    def series() -> set[str]:
        lines = scrape(system).splitlines()
        return {line.rpartition(" ")[0] for line in lines if not line.startswith("#")}

    play(system, "again", 0.5)  # so that every kind of audience is there
    before = series()
    for number in range(20):
        body = {"text": "hi", "nonce": "n"}
        status, answer = system.call("POST", f"/stream/s{number}/comments", body, role="service")
        assert status == 201, answer
    with Swarm(seed=9) as swarm:
        viewers = [swarm.add(system.stream(f"s{number}")) for number in range(20)]
        assert swarm.run(lambda: all(viewer.live for viewer in viewers), 20)
        added = series() - before
    # Which gateway a viewer comes to is chance, so a kind may be new to one; a stream never shows.
    assert {line for line in added if "uproar_gateway_audience_" not in line} == set()
    assert len(added) <= 4


def test_names_are_as_prometheus_wants_them(scraped):
    promtool("check", "metrics", text=scraped)


def test_the_documented_table_is_the_catalogue():
    text = (ROOT / "docs" / "metrics.md").read_text("utf-8")
    documented = text[text.index("| metric |") :].split("\n\n")[0]
    assert documented.strip() == table().strip(), "write it anew: python -m uproar.metrics"


@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.stem)
def test_pages_name_no_metric_that_is_not_served(page):
    names = set(re.findall(r"`(uproar_[a-z_]+[a-z])\b(?!\*)", page.read_text("utf-8")))
    assert names - {"uproar_valkey"} <= set(CATALOGUE)


def test_the_dashboard_knows_no_metric_that_is_not_served():
    names = {name for expr in EXPRESSIONS for name in re.findall(r"\b\w+(?=\{)", expr)}
    assert {re.sub(r"_bucket$", "", name) for name in names} <= set(CATALOGUE)
    assert len({panel["id"] for panel in BOARD["panels"]}) == len(BOARD["panels"])


@pytest.fixture(scope="module")
def prometheus(system: System, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that has scraped the system for some seconds of comments."""
    directory: Path = tmp_path_factory.mktemp("prometheus")
    with Prometheus(system.info["admin"], directory) as running:
        wait_until(lambda: running.query('up{job="uproar"} == 1'), 30, "the first scrape")
        play(system, "watched", PLAY_S)
        yield running


def test_every_expression_of_the_dashboard_has_data(prometheus):
    for expr in EXPRESSIONS:
        expression = expr.replace("$__rate_interval", "30s").replace("$host", ".*")
        assert "$" not in expression
        if any(name in expression for name in ABSENT):
            continue
        assert prometheus.query(expression), f"no data: {expression}"
    rates = 'sum by (le) (rate(uproar_comment_seconds_bucket{hop="all"}[30s]))'
    [late] = prometheus.query(f"histogram_quantile(0.95, {rates})")
    assert 0 < float(late["value"][1]) < 5


def test_an_alert_fires_and_clears(system, prometheus):
    """The bus stops answering: no probe comes back. It goes on: all is well again."""
    wait_until(lambda: not prometheus.firing(), ALERT_S, "nothing fires")
    bus = system.pid_of("state")
    os.kill(bus, signal.SIGSTOP)
    try:
        wait_until(lambda: "UproarProbeFailed" in prometheus.firing(), ALERT_S, "the alert fires")
        [up] = prometheus.query('uproar_valkey_up{server="state"}')
        assert up["value"][1] == "0"
    finally:
        os.kill(bus, signal.SIGCONT)
    wait_until(lambda: "UproarProbeFailed" not in prometheus.firing(), ALERT_S, "the alert clears")

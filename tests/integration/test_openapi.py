"""The OpenAPI document: every route is in it, and the running system keeps to it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from gateway.http import openapi
from gateway.http.routes import pattern_of
from tests.system import System

CONFIG = Path(__file__).with_name("schemathesis.toml")
VERBS = ("get", "post", "put", "patch", "delete")
SEED = 1
EXAMPLES = 4  # an operation, beside what its schema suggests by itself: 50 s in all


def documented() -> set[tuple[str, str]]:
    return {
        (verb.upper(), path)
        for path, item in openapi.PATHS.items()
        for verb in VERBS
        if verb in item
    }


def served(system: System) -> set[tuple[str, str]]:
    """The routes of the application, as its table names them."""
    from gateway.http.app import Api

    config = SimpleNamespace(
        server=SimpleNamespace(origins=[]), auth=SimpleNamespace(guests_per_minute=1)
    )
    api = Api(config, b"", *[None] * 6)  # type: ignore[arg-type]
    return {(verb, path) for verb, path, _ in api.routes}


def test_every_route_is_documented_and_the_other_way_round(system: System) -> None:
    routes = served(system)
    # One action is documented by itself, because it alone has a length.
    timeout = ("POST", "/stream/{stream}/users/{user}/timeout")
    assert documented() - {timeout} == routes
    assert pattern_of("/stream/{stream}/users/{user}/{action}").fullmatch(
        "/stream/s/users/u/timeout"
    )


def test_the_document_is_served_and_its_references_lead_somewhere(system: System) -> None:
    status, document = system.call("GET", "/openapi.json")
    assert status == 200
    assert document["openapi"] == "3.1.0"
    ids = [item[verb]["operationId"] for item in document["paths"].values() for verb in item
           if verb in VERBS]  # fmt: skip
    assert len(ids) == len(set(ids)) == len(documented())

    def references(node: Any) -> set[str]:
        if isinstance(node, dict):
            here = {node["$ref"]} if "$ref" in node else set()
            return here.union(*(references(value) for value in node.values()))
        return (
            set().union(*(references(item) for item in node)) if isinstance(node, list) else set()
        )

    found = references(document)
    for reference in found:
        target = document
        for part in reference.removeprefix("#/").split("/"):
            target = target[part]
        assert target
    named = {f"#/components/schemas/{name}" for name in openapi.SCHEMAS}
    assert named <= found
    for path, item in document["paths"].items():
        assert re.findall(r"\{(\w+)\}", path) == [one["name"] for one in item.get("parameters", [])]


def find_schemathesis() -> str | None:
    return os.environ.get("SCHEMATHESIS") or shutil.which("schemathesis")


@pytest.mark.skipif(find_schemathesis() is None, reason="schemathesis is not installed")
def test_the_system_keeps_to_its_document(tmp_path: Path) -> None:
    """Schemathesis as a service: whatever it makes up is answered as the document says."""
    with System(auth__guests_per_minute=100_000) as system:
        run = subprocess.run(
            [
                str(find_schemathesis()), "--config-file", str(CONFIG),
                "run", system.info["http"] + "/openapi.json",
                "-H", f"Authorization: Bearer {system.tokens['service']}",
                "--exclude-path", "/stream/{stream}/events",  # it has no end
                "--phases", "examples,coverage,fuzzing",
                "--max-examples", str(EXAMPLES), "--seed", str(SEED),
                "--request-timeout", "20", "--generation-database", "none",
            ],
            cwd=tmp_path, capture_output=True, text=True, timeout=300,
        )  # fmt: skip
    assert run.returncode == 0, run.stdout[-8000:]

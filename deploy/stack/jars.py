"""The jars of a Java server, fetched once from the Maven repository at pinned versions."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
from pathlib import Path
from typing import Final, NamedTuple

from deploy.stack.server import StackError

PLUGIN: Final = "org.apache.maven.plugins:maven-dependency-plugin:3.6.1:copy-dependencies"
FETCH_S: Final = 600.0


class Artifact(NamedTuple):
    """One dependency by its Maven coordinates."""

    group: str
    name: str
    version: str


KAFKA: Final = (
    Artifact("org.apache.kafka", "kafka_2.13", "4.4.0"),
    # Kafka brings slf4j and log4j but nothing that binds them: it would run and log nothing.
    Artifact("org.apache.logging.log4j", "log4j-slf4j-impl", "2.25.4"),
)
CASSANDRA: Final = (Artifact("org.apache.cassandra", "cassandra-all", "5.0.9"),)


def fetched(cache: Path, name: str, artifacts: tuple[Artifact, ...]) -> Path:
    """Return the directory of the jars, fetching them when they are not there yet."""
    home = cache.resolve() / f"{name}-{artifacts[0].version}"
    libs, done = home / "libs", home / "complete"
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two that ask at once fetch once
        if done.exists():
            return libs
        for program in ("java", "mvn"):
            if shutil.which(program) is None:
                raise StackError(
                    f"{program} is missing: sudo apt-get install openjdk-17-jre-headless maven"
                )
        print(f"fetching {name} {artifacts[0].version} into {home}", flush=True)
        shutil.rmtree(libs, ignore_errors=True)
        (home / "pom.xml").write_text(_project(name, artifacts))
        ran = subprocess.run(
            ["mvn", "--batch-mode", "--quiet", "--strict-checksums", "--file", home / "pom.xml",
             PLUGIN, "-DincludeScope=runtime", f"-DoutputDirectory={libs}"],
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            timeout=FETCH_S, text=True, check=False,
        )  # fmt: skip
        if ran.returncode:
            raise StackError(
                f"{name} can't be fetched (is the Maven repository in ~/.m2/settings.xml within "
                f"reach?):\n{ran.stdout[-2000:]}"
            )
        done.touch()
    return libs


def _project(name: str, artifacts: tuple[Artifact, ...]) -> str:
    dependencies = "".join(
        f"<dependency><groupId>{group}</groupId><artifactId>{artifact}</artifactId>"
        f"<version>{version}</version></dependency>"
        for group, artifact, version in artifacts
    )
    return (
        "<project><modelVersion>4.0.0</modelVersion>"  # Maven reads it without its namespace
        f"<groupId>uproar.stack</groupId><artifactId>{name}</artifactId><version>1</version>"
        f"<packaging>pom</packaging><dependencies>{dependencies}</dependencies></project>\n"
    )

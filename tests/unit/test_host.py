"""The roles of one host of a cluster: what is refused, what runs, what its admin port needs."""

import re

import pytest
from click.testing import CliRunner

from tests.unit.test_admin import admin, ask, machine  # noqa: F401  (a fixture)
from uproar import host
from uproar.cli import main
from uproar.config import ConfigError, load
from uproar.errors import ServeError
from uproar.serve import make_specs

CLUSTER = {
    "state.engine": "cluster",
    "state.nodes": ["127.0.0.1:1"],
    "store.engine": "cassandra",
    "ingest.address": "tcp:127.0.0.1:2",
    "log.engine": "kafka",
    "log.brokers": "127.0.0.1:3",
}


def config_of(tmp_path, **more):
    (tmp_path / "signing.key").touch(mode=0o600)
    changed = {key.replace("__", "."): value for key, value in more.items()}
    return load(environ={}, flags={"data": str(tmp_path), **CLUSTER, **changed})


@pytest.mark.parametrize(
    ("roles", "changed", "sentence"),
    [
        (("gateway",), {"state__engine": "valkey"}, r"^state\.engine: .*one machine.*\"cluster\""),
        (("gateway",), {"store__engine": "sqlite"}, r"^store\.engine: .*store\.db is not there"),
        (("gateway",), {"ingest__address": ""}, r"^ingest\.address: empty.*tcp:HOST:PORT"),
        (("ingest",), {"ingest__address": ""}, r"^ingest\.address: empty"),
        (("gateway",), {"auth__key_file": "/nowhere/key"}, r"^auth\.key_file: /nowhere/key is not"),
        (("archive",), {"log__engine": "valkey"}, r"^log\.engine: .*\"kafka\".*log\.brokers"),
        (("webhooks",), {}, r"^webhooks\.targets: empty"),
    ],
)
def test_what_only_works_on_one_machine_is_refused(tmp_path, roles, changed, sentence):
    with pytest.raises(ServeError, match=sentence):
        host.check(config_of(tmp_path, **changed), roles)


def test_what_a_cluster_needs_is_enough(tmp_path):
    host.check(config_of(tmp_path), ("gateway",))
    host.check(config_of(tmp_path, log__engine="valkey"), ("gateway",))
    (tmp_path / "signing.key").unlink()
    roles = ("ingest", "coordinator", "archive", "moderation")
    host.check(config_of(tmp_path), roles)
    (tmp_path / "store.db").touch()
    host.check(config_of(tmp_path, store__engine="sqlite"), ("gateway",))


@pytest.mark.parametrize("arguments", [["gateway", "--processes", "3"], ["worker", "ingest"]])
def test_a_refusal_is_a_sentence_and_makes_nothing(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(main, [*arguments, "--data", "d"])
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith("uproar: state.engine: ")
    assert not (tmp_path / "d").exists()


def test_gateways_of_two_hosts_have_names_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "Chat_7.example.org")
    config = host.named(config_of(tmp_path))
    assert config.gateway_name("g1") == "Chat-7-example-org-g1"
    assert host.named(config_of(tmp_path, gateway__name="b")).gateway_name("g2") == "b-g2"
    assert load(environ={}, flags={}).gateway_name("g1") == "g1", "alone it needs none"
    monkeypatch.setattr("socket.gethostname", lambda: "x" * 64)
    assert re.fullmatch("x{32}-g1", host.named(config_of(tmp_path)).gateway_name("g1"))
    with pytest.raises(ConfigError, match=r"gateway\.name"):
        config_of(tmp_path, gateway__name="a b")


@pytest.mark.parametrize(
    ("roles", "names"),
    [
        ({"gateway", "admin"}, ["g1", "g2", "admin"]),
        ({"archive", "ingest", "admin"}, ["ingest", "archive", "admin"]),
    ],
)
def test_a_host_runs_its_roles_and_an_admin_port(tmp_path, roles, names):
    config = config_of(tmp_path)
    specs = make_specs(config, "", tmp_path / "f", [None] * 3, "", frozenset(roles))
    assert [spec.name for spec in specs] == names
    assert specs[-1].argv[-2:] == ("--roles", ",".join(sorted(roles)))


def test_its_admin_port_needs_what_runs_there_and_nothing_else(machine):  # noqa: F811
    config, says, closers = machine
    for gone in ("ingest", "coordinator"):
        closers[gone].close()
    with admin(config, "--roles", "admin,gateway") as (_, port):
        assert ask(port, "/readyz")[0] == 200
        says["g1"]["ready"] = False
        assert ask(port, "/readyz")[0] == 503
        text = ask(port, "/metrics")[2]
        assert b"g2" in text and b"archive" not in text and b"uproar_valkey_up{" not in text
    with admin(config, "--roles", "admin,archive,moderation") as (_, port):
        code, _, body = ask(port, "/readyz")
        assert code == 503 and b"moderation" in body and b"g1" not in body

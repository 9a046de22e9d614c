"""The supervisor with small real processes: starts, restarts, order, and what it leaves behind."""

import contextlib
import json
import os
import pty
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from uproar import leftovers
from uproar.errors import ServeError
from uproar.listeners import Port

DEADLINE_S = 20.0

# Runs the specs of a JSON plan; prints a line when all are ready, exits 2 with the sentence.
DRIVER = """
import json, logging, os, sys
from pathlib import Path
from uproar import logs
from uproar.child import Spec
from uproar.config import Supervisor as Settings
from uproar.errors import ServeError
from uproar.listeners import Listener, Port
from uproar.supervisor import Supervisor

plan = json.loads(sys.argv[1])
run = Path(plan["run"])
logs.configure("supervisor", file=run / "supervisor.log", stderr_level=logging.CRITICAL)
port = Port("127.0.0.1", 0, "server.port")

def spec(item):
    gate = None
    if item.get("gate"):
        gate = lambda: None if Path(item["gate"]).exists() else "no gate file"
    return Spec(
        item["name"], item.get("role", item["name"]), tuple(item["argv"]),
        run / (item["name"] + ".log"), item.get("start", 0), item.get("stop", 0),
        item.get("stop_s", 10.0), dict(os.environ), gate=gate,
        listener=Listener(port, shared=True) if item.get("listen") else None,
    )

supervisor = Supervisor([spec(item) for item in plan["specs"]], Settings(**plan["settings"]), run)
port.close()
try:
    supervisor.run(lambda: print(json.dumps([port.number, supervisor.pids()]), flush=True))
except ServeError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
"""

# Says ready, and waits for a signal. {note} is code that runs before it says so.
SERVES = """
import os, signal, sys
{note}
os.write(int(sys.argv[1]), b"ready\\n")
while True:
    signal.pause()
"""


def python(code, *more):
    # -S and -E: these children need nothing of the environment and start in a third of the time.
    return [sys.executable, "-S", "-E", "-c", code, *more]


def serves(note=""):
    return python(SERVES.format(note=note), "{ready-fd}")


class System:
    """A supervisor in a process of its own."""

    def __init__(self, run, specs, stdin=subprocess.DEVNULL, **settings):
        self.run = run
        settings = {"backoff_s": 0.05, "backoff_max_s": 0.2, "stable_s": 10.0, **settings}
        plan = {"run": str(run), "specs": specs, "settings": settings}
        self.process = subprocess.Popen(
            [sys.executable, "-c", DRIVER, json.dumps(plan)],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def ready(self):
        line = self.process.stdout.readline()
        assert line, self.process.stderr.read().decode()
        self.port, self.pids = json.loads(line)
        return self

    def entry(self, name):
        """The process's line in pids.json, None while it does not run."""
        entries = leftovers.read(self.run / "pids.json")
        return next((item for item in entries if item["name"] == name), None)

    def events(self, name, process=None):
        text = (self.run / "supervisor.log").read_text()
        # A line that is being written has no end yet.
        lines = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [
            line
            for line in lines
            if line["event"] == name and (process is None or line.get("process") == process)
        ]

    def kill(self, name):
        """Kill a child with -9, wait until its successor is ready and return that one's pid."""
        old = self.events("process_ready", name)[-1]["pid"]
        os.kill(old, signal.SIGKILL)
        until(lambda: self.events("process_ready", name)[-1]["pid"] != old)
        return self.events("process_ready", name)[-1]["pid"]

    def stop(self, signum=signal.SIGTERM):
        self.process.send_signal(signum)
        return self.process.wait(DEADLINE_S)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(DEADLINE_S)
        self.process.stdout.close()
        self.process.stderr.close()


def until(condition, deadline_s=DEADLINE_S):
    """Wait for a condition and return what it returned."""
    end = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.01)
    return found


def alive(pid):
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    return False


@pytest.fixture
def run(tmp_path):
    return tmp_path


def test_what_dies_is_started_again_with_the_reason_logged(run):
    specs = [{"name": "one", "argv": serves()}, {"name": "two", "argv": serves()}]
    with System(run, specs).ready() as system:
        [two] = system.pids["two"]
        new = system.kill("one")
        assert alive(new)
        [death] = system.events("process_died")
        assert (death["process"], death["reason"]) == ("one", "SIGKILL")
        assert system.entry("one")["restarts"] == 1
        assert system.entry("two")["pid"] == two
        assert system.stop() == 0
        assert not alive(new)
        assert not alive(two)


def test_restarts_back_off_and_exit_codes_are_told(run):
    flag = run / "die"
    dies = f"from os.path import exists\nif exists({str(flag)!r}): sys.exit(7)"
    with System(run, [{"name": "one", "argv": serves(dies)}]).ready() as system:
        flag.touch()
        os.kill(system.pids["one"][0], signal.SIGKILL)
        until(lambda: len(system.events("process_died")) >= 5)
        died = system.events("process_died")[:5]
        assert [line["restart_in_s"] for line in died] == [0.05, 0.1, 0.2, 0.2, 0.2]
        assert {line["reason"] for line in died[1:]} == {"exit code 7"}
        started = [line["ts"] for line in system.events("process_started")]
        for death, start in zip(died, started[1:], strict=False):
            assert start - death["ts"] >= death["restart_in_s"] - 0.01
        flag.unlink()
        ready = len(system.events("process_ready"))
        until(lambda: len(system.events("process_ready")) > ready)
        assert system.stop() == 0


def test_a_later_step_starts_when_the_earlier_one_is_ready(run):
    slow = "import time; time.sleep(0.3)"
    specs = [
        {"name": "late", "argv": serves(), "start": 2},
        {"name": "slow", "argv": serves(slow), "start": 1},
        {"name": "first", "argv": serves(slow), "start": 0},
    ]
    with System(run, specs).ready() as system:
        order = [
            (line["event"], line["process"])
            for line in system.events("process_started") + system.events("process_ready")
        ]
        assert [process for _, process in order] == ["first", "slow", "late"] * 2
        ready = {line["process"]: line["ts"] for line in system.events("process_ready")}
        started = {line["process"]: line["ts"] for line in system.events("process_started")}
        assert started["slow"] >= ready["first"]
        assert started["late"] >= ready["slow"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_goes_step_by_step_and_waits_for_each(run, signum):
    order = run / "order"
    note = (
        "import time\n"
        "def leave(*_):\n"
        "    time.sleep(0.1)\n"
        f"    open({str(order)!r}, 'a').write(sys.argv[2] + ' ')\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, leave)"
    )
    names = ["c", "a", "d", "b"]
    specs = [{"name": name, "argv": [*serves(note), name], "stop": ord(name)} for name in names]
    with System(run, specs).ready() as system:
        assert system.stop(signum) == 0
        assert order.read_text() == "a b c d "
        assert not (run / "pids.json").exists()


DEAF = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


def test_a_process_that_does_not_stop_is_killed(run):
    specs = [{"name": "deaf", "argv": serves(DEAF), "stop_s": 0.3}]
    with System(run, specs).ready() as system:
        began = time.monotonic()
        assert system.stop() == 0
        assert time.monotonic() - began >= 0.3
        assert len(system.events("process_killed", "deaf")) == 1
        assert not alive(system.pids["deaf"][0])


def test_a_second_sigint_hurries(run):
    specs = [
        {"name": name, "argv": serves(DEAF), "stop_s": 600.0, "stop": step}
        for step, name in enumerate(["deaf", "deafer"])
    ]
    with System(run, specs).ready() as system:
        system.process.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            system.process.wait(0.3)
        assert system.stop(signal.SIGINT) == 0
        assert not any(alive(pid) for pids in system.pids.values() for pid in pids)


def test_a_killed_supervisor_leaves_nothing(run):
    specs = [
        {"name": "one", "argv": serves()},
        {"name": "deaf", "argv": serves(DEAF), "stop_s": 0.2},
        {"name": "silent", "argv": python("import time; time.sleep(600)")},
    ]
    with System(run, specs).ready() as system:
        pids = [pid for pids in system.pids.values() for pid in pids]
        assert len(pids) == 3
        assert all(alive(pid) for pid in pids)
        assert system.stop(signal.SIGKILL) == -signal.SIGKILL
        until(lambda: not any(alive(pid) for pid in pids), 5.0)
    with System(run, specs).ready() as system:  # and the next start is not disturbed by the list
        assert system.stop() == 0


def test_what_a_process_forked_goes_with_it(run):
    forks = f"pid = os.fork()\nif pid == 0:\n    {DEAF}\n    signal.pause()\nprint(pid, flush=True)"
    with System(run, [{"name": "one", "argv": serves(forks)}]).ready() as system:
        first = int((run / "one.log").read_text())
        assert alive(first)
        system.kill("one")
        until(lambda: not alive(first), 5.0)
        assert system.stop() == 0
        assert not any(alive(int(pid)) for pid in (run / "one.log").read_text().split())


def failed_start(run, specs, **settings):
    with System(run, specs, **settings) as system:
        out, err = system.process.communicate(timeout=DEADLINE_S)
        assert (out, system.process.returncode) == (b"", 2)
        return err.decode(), system


def test_a_start_that_takes_too_long_names_the_process_and_its_log(run):
    silent = python("import time; print('thinking', flush=True); time.sleep(600)", "{ready-fd}")
    specs = [{"name": "quick", "argv": serves()}, {"name": "silent", "argv": silent}]
    sentence, system = failed_start(run, specs, ready_s=0.8)
    assert sentence.startswith("silent was not ready within 0.8 s; its log is ")
    assert str(run / "silent.log") in sentence
    assert "    thinking\n" in sentence
    assert len(system.events("process_stopped")) == 2


def test_a_process_that_dies_at_every_start_fails_the_start_at_once(run):
    specs = [{"name": "broken", "argv": python("raise SystemExit('no such luck')", "{ready-fd}")}]
    began = time.monotonic()
    sentence, _ = failed_start(run, specs, ready_s=60.0)
    assert time.monotonic() - began < 15
    assert sentence.startswith("broken died again and again; ")
    assert "    no such luck\n" in sentence


def test_a_program_that_is_missing_fails_the_start(run):
    sentence, system = failed_start(run, [{"name": "none", "argv": ["/nonexistent/program"]}])
    assert sentence.startswith("none died again and again")
    assert "No such file" in system.events("process_died")[0]["reason"]


def test_a_stop_during_the_start_is_obeyed(run):
    silent = python("import time; time.sleep(600)", "{ready-fd}")
    with System(run, [{"name": "silent", "argv": silent}], ready_s=60.0) as system:
        until(lambda: system.entry("silent"))
        assert system.stop() == 0
        assert system.process.stdout.read() == b""


def test_a_closed_gate_holds_a_process_back(run):
    gate = run / "gate"
    gate.touch()
    with System(run, [{"name": "one", "argv": serves(), "gate": str(gate)}]).ready() as system:
        gate.unlink()
        os.kill(system.pids["one"][0], signal.SIGKILL)
        [waits] = until(lambda: system.events("process_waits"))
        assert (waits["process"], waits["reason"]) == ("one", "no gate file")
        assert len(system.events("process_started")) == 1
        gate.touch()
        until(lambda: len(system.events("process_ready")) == 2)
        assert len(system.events("process_waits")) == 1
        assert system.stop() == 0


def test_a_gate_that_stays_closed_fails_the_start_with_its_reason(run):
    specs = [{"name": "one", "argv": serves(), "gate": str(run / "never")}]
    sentence, _ = failed_start(run, specs, ready_s=0.5)
    assert sentence.startswith("one no gate file")


# Answers each connection with its name; on SIGTERM, finishes the one at hand and leaves.
ANSWERS = """
import os, signal, socket, sys
leaving = []
signal.signal(signal.SIGTERM, lambda *_: leaving.append(True))
listener = socket.socket(fileno=int(sys.argv[2]))
listener.settimeout(0.02)
os.write(int(sys.argv[1]), b"ready\\n")
while not leaving:
    try:
        link, _ = listener.accept()
    except TimeoutError:
        continue
    link.sendall(sys.argv[3].encode())
    link.close()
"""


def gateway(name):
    argv = python(ANSWERS, "{ready-fd}", "{listen-fd}", name)
    return {"name": name, "role": "gateway", "argv": argv, "listen": True}


def answer(port):
    with socket.create_connection(("127.0.0.1", port), timeout=10) as link:
        return link.recv(64).decode()


def test_a_connection_to_a_gateway_that_died_once_waits_for_its_successor(run):
    with System(run, [gateway("g1")], backoff_s=0.4, backoff_max_s=0.4).ready() as system:
        assert answer(system.port) == "g1"
        os.kill(system.pids["gateway"][0], signal.SIGKILL)
        until(lambda: system.events("process_died"))
        assert answer(system.port) == "g1"
        assert system.stop() == 0
        with pytest.raises(ConnectionRefusedError):
            answer(system.port)


def test_clients_are_refused_while_the_rest_still_stops(run):
    deaf = {"name": "deaf", "argv": serves(DEAF), "stop": 1, "stop_s": 60.0}
    with System(run, [gateway("g1"), deaf]).ready() as system:
        assert answer(system.port) == "g1"
        system.process.send_signal(signal.SIGINT)
        until(lambda: system.events("process_stopped", "g1"))
        with pytest.raises(ConnectionRefusedError):
            answer(system.port)
        assert system.process.poll() is None
        assert system.stop(signal.SIGINT) == 0


def test_sighup_starts_the_gateways_anew_one_after_the_other(run):
    specs = [gateway("g1"), {"name": "other", "argv": serves()}, gateway("g2")]
    with System(run, specs).ready() as system:
        system.process.send_signal(signal.SIGHUP)
        while len(system.events("process_ready")) < 5:
            assert answer(system.port) in ("g1", "g2")
        [one, two] = system.events("process_reloads")
        assert [one["process"], two["process"]] == ["g1", "g2"]
        assert two["ts"] >= system.events("process_ready", "g1")[1]["ts"]
        assert system.entry("other")["pid"] == system.pids["other"][0]
        assert not {system.entry(name)["pid"] for name in ("g1", "g2")} & {*system.pids["gateway"]}
        assert not system.events("process_died")
        assert system.stop() == 0


def test_sighup_of_a_terminal_stops(run):
    terminal, child_side = pty.openpty()
    try:
        with System(run, [{"name": "one", "argv": serves()}], stdin=child_side).ready() as system:
            assert system.stop(signal.SIGHUP) == 0
    finally:
        os.close(terminal)
        os.close(child_side)


def test_a_gateway_that_dies_twice_leaves_the_port_until_it_stays_up(run):
    specs = [gateway("g1"), gateway("g2")]
    with System(run, specs, stable_s=2.0).ready() as system:
        until(lambda: {answer(system.port) for _ in range(20)} == {"g1", "g2"})
        system.kill("g1")
        assert not system.events("quarantined")
        system.kill("g1")
        assert system.events("quarantined", "g1")
        assert {answer(system.port) for _ in range(50)} == {"g2"}
        until(lambda: system.events("quarantine_ended", "g1"))
        until(lambda: {answer(system.port) for _ in range(20)} == {"g1", "g2"})
        assert len(system.events("process_died")) == 2  # the last restart was no death
        assert system.stop() == 0


def test_the_last_gateway_keeps_the_port(run):
    with System(run, [gateway("g1")]).ready() as system:
        for _ in range(3):
            system.kill("g1")
        assert answer(system.port) == "g1"
        assert not system.events("quarantined")
        assert system.stop() == 0


def test_a_leftover_is_ended_by_the_next_start_and_nobody_else(run):
    with contextlib.ExitStack() as stack:
        argv = python("import signal; signal.pause()")
        leftover, other = (stack.enter_context(subprocess.Popen(argv)) for _ in range(2))
        stack.callback(other.kill)
        stack.callback(leftover.kill)
        until(lambda: psutil.Process(leftover.pid).cmdline() == argv)
        until(lambda: psutil.Process(other.pid).cmdline() == argv)
        reused = leftovers.entry("other", "x", other.pid, argv, 0)
        reused["created"] -= 60.0  # the pid of somebody who came later
        renamed = leftovers.entry("other", "x", other.pid, [*argv, "more"], 0)
        ours = leftovers.entry("ours", "x", leftover.pid, argv, 0)
        leftovers.write(run / "pids.json", [reused, renamed, ours])
        # The leftover is this test's child here: reap it, as init would.
        with System(run, [{"name": "one", "argv": serves()}]) as system:
            assert leftover.wait(DEADLINE_S) == -signal.SIGTERM
            system.ready()
            assert [line["process"] for line in system.events("leftover_ended")] == ["ours"]
            assert other.poll() is None
            assert system.stop() == 0


@pytest.mark.parametrize("text", ["", "[]", '{"processes": 3}', '{"processes": [1, {"pid": "x"}]}'])
def test_a_damaged_list_ends_nothing(tmp_path, text):
    file = tmp_path / "pids.json"
    file.write_text(text)
    assert leftovers.end(file) == []
    assert leftovers.end(tmp_path / "missing") == []


def test_a_taken_port_is_a_sentence_even_where_its_owner_shares_it():
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as owner:
        number = owner.getsockname()[1]
        with pytest.raises(ServeError, match=rf"port {number} on 127.0.0.1 is taken.*server.port"):
            Port("127.0.0.1", number, "server.port")
    Port("127.0.0.1", number, "server.port").close()


def test_an_address_of_another_machine_is_a_sentence():
    with pytest.raises(ServeError, match=r"can't be bound: .*server\.host"):
        Port("192.0.2.1", 0, "server.port")
    with pytest.raises(ServeError, match=r"no address to listen on; set server\.admin_host"):
        Port("no such host", 0, "server.admin_port")


def test_the_log_of_a_process_is_moved_away_when_it_is_large(run):
    log = Path(run / "one.log")
    log.write_bytes(b"x" * ((16 << 20) + 1))
    with System(run, [{"name": "one", "argv": serves("print('fresh', flush=True)")}]).ready() as up:
        assert log.read_text() == "fresh\n"
        assert (run / "one.log.1").stat().st_size == (16 << 20) + 1
        assert up.stop() == 0

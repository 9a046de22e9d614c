"""The registry: every session of a user stands in STATE, whatever happens to STATE meanwhile."""

from __future__ import annotations

import random

import pytest

from gateway import registry
from gateway.registry import Ledger, Registry
from tests.unit.memory_state import MemoryState, live_stream, session
from uproar import codes
from uproar.state import Seat


class Gateway:
    """Sessions that come and go, as `Viewers` holds them."""

    def __init__(self):
        self.state = MemoryState()
        self.sessions = {}
        self.ended = []
        self.registry = Registry(
            self.state, "g1", "i1", self.sessions,
            lambda one, code, reason: self.ended.append((one.sid, code, reason)),
        )  # fmt: skip
        self.lives = {name: live_stream(name) for name in ("s", "t")}
        self._last = 0

    def open(self, user, stream="s"):
        self._last += 1
        one = self.sessions[self._last] = session(self._last, self.lives[stream], user)
        self.registry.joined(one)
        return one

    def close(self, one):
        del self.sessions[one.sid]
        self.registry.left(one)

    def flush(self):
        while len(self.registry.ledger) and self.registry.flush():
            pass

    @property
    def here(self):
        return {one.name for one in self.sessions.values() if one.claims is not None}


def test_a_session_is_registered_and_taken_out():
    gateway = Gateway()
    ann, again, anonymous = gateway.open("ann"), gateway.open("ann", "t"), gateway.open(None)
    assert gateway.state.calls == [], "nothing is written on the way in"
    assert gateway.registry.flush()
    assert gateway.state.seated == {
        ann.name: Seat("ann", ann.name, "g1", "i1", "s"),
        again.name: Seat("ann", again.name, "g1", "i1", "t"),
    }
    assert gateway.state.calls == ["seat"], "one batch"
    gateway.close(ann)
    gateway.close(anonymous)
    gateway.flush()
    assert list(gateway.state.seated) == [again.name]


def test_whatever_happens_the_end_is_what_is_true(monkeypatch):
    monkeypatch.setattr(registry, "BATCH", 3)
    for seed in range(60):
        chance = random.Random(seed)
        gateway = Gateway()
        for _ in range(300):
            act = chance.random()
            if act < 0.4:
                gateway.open(chance.choice(["ann", "bob", None]), chance.choice("st"))
            elif act < 0.7 and gateway.sessions:
                gateway.close(chance.choice(list(gateway.sessions.values())))
            elif act < 0.75:
                gateway.state.away = not gateway.state.away
            elif act < 0.78:
                gateway.state.forget()
                gateway.registry.again()  # the lease did not stand
            else:
                gateway.registry.flush()
        gateway.state.away = False
        gateway.flush()
        assert set(gateway.state.seated) == gateway.here


def test_a_long_absence_of_the_state_costs_bounded_memory(monkeypatch):
    monkeypatch.setattr(registry, "GONE_MAX", 100)
    gateway = Gateway()
    gateway.state.away = True
    for _ in range(1000):
        gateway.close(gateway.open("ann"))
        gateway.registry.flush()
        assert len(gateway.registry.ledger) <= 100
    stay = [gateway.open("bob") for _ in range(300)]
    gateway.state.away = False
    gateway.flush()
    assert set(gateway.state.seated) == {one.name for one in stay}


def test_a_batch_is_bounded_and_the_oldest_go_first():
    ledger = Ledger()
    seats = [Seat("ann", f"g1-{number}", "g1", "i1", "s") for number in range(2500)]
    for seat in seats:
        ledger.come(seat)
    assert ledger.take(1000) == (seats[:1000], [])
    ledger.gone(seats[1000])
    come, gone = ledger.take(5000)
    assert (come, gone) == (seats[1001:], [seats[1000]])
    ledger.gone(seats[0])
    ledger.put_back(seats[:2], [])
    assert ledger.take(9) == ([seats[1]], [seats[0]]), "what is newer stays"


@pytest.mark.parametrize(("stream", "closed"), [(None, [1, 2]), ("s", [1]), ("t", [2]), ("u", [])])
def test_a_kick_closes_the_user_s_sessions_and_no_others(stream, closed):
    gateway = Gateway()
    for user, where in (("ann", "s"), ("ann", "t"), ("bob", "s"), (None, "s")):
        gateway.open(user, where)
    assert gateway.registry.kick("ann", stream) == len(closed)
    assert [sid for sid, _, _ in gateway.ended] == closed
    assert all(code is codes.KICKED for _, code, _ in gateway.ended)
    assert gateway.registry.kick("nobody", None) == 0
    assert codes.KICKED == (4005, "kicked", "no")


def test_everything_is_said_again_daily(monkeypatch):
    gateway = Gateway()
    ann = gateway.open("ann")
    gateway.flush()
    gateway.state.forget()
    monkeypatch.setattr(registry.time, "monotonic", lambda: gateway.registry._again_at)
    monkeypatch.setattr(registry.gevent, "sleep", _Twice().sleep)
    with pytest.raises(_Done):
        gateway.registry.run()
    assert list(gateway.state.seated) == [ann.name]


class _Done(Exception):
    pass


class _Twice:
    """A sleep that ends a loop the second time."""

    def __init__(self):
        self.count = 0

    def sleep(self, seconds):
        self.count += 1
        if self.count == 2:
            raise _Done

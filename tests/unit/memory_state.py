"""The ephemeral part of a state in memory, which can be away, and sessions of a gateway."""

from __future__ import annotations

from gateway.engine import Request
from gateway.live import Live
from gateway.session import Session, wish_of
from uproar.auth import Claims
from uproar.state import Present, Seat, StateLost


class MemoryState:
    """What `uproar.state.State` promises of presence, reactions, registry and active streams."""

    def __init__(self) -> None:
        self.away = False
        self.forget()

    def forget(self) -> None:
        """Lose everything, as FLUSHALL does."""
        self.leases: dict[str, tuple[str, dict[str, int]]] = {}
        self.present: list[Present] = []
        self.totals: dict[str, dict[str, int]] = {}
        self.seated: dict[str, Seat] = {}
        self.marked: dict[str, float] = {}
        self.described: dict[str, tuple[str, int]] = {}
        self.counts: dict[str, int] = {}
        self.calls: list[str] = []

    def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.away:
            raise StateLost("the state server does not answer: it is away")

    def interests(self, streams, now):
        self._call("interests")
        return [[0] for _ in streams]

    def lease_gateway(self, name, incarnation, connections):
        self._call("lease_gateway")
        held, counts = self.leases.get(name, ("", {}))
        counts = {**(counts if held == incarnation else {}), **connections}
        self.leases[name] = (incarnation, {key: count for key, count in counts.items() if count})
        return held == incarnation

    def end_lease(self, name, incarnation):
        self._call("end_lease")
        self.leases.pop(name, None)

    def add_present(self, present):
        self._call("add_present")
        self.present += present

    def viewers(self, streams, now):
        self._call("viewers")
        return [self.counts.get(stream, 0) for stream in streams]

    def add_reactions(self, counts):
        self._call("add_reactions")
        for stream, kinds in counts.items():
            totals = self.totals.setdefault(stream, {})
            for kind, count in kinds.items():
                totals[kind] = totals.get(kind, 0) + count

    def reactions(self, streams):
        self._call("reactions")
        return [dict(self.totals.get(stream, {})) for stream in streams]

    def raise_reactions(self, totals):
        self._call("raise_reactions")
        for stream, kinds in totals.items():
            found = self.totals.setdefault(stream, {})
            for kind, total in kinds.items():
                found[kind] = max(total, found.get(kind, 0))

    def seat(self, added, removed):
        self._call("seat")
        for seat in added:
            self.seated[seat.session] = seat
        for seat in removed:
            self.seated.pop(seat.session, None)

    def mark_active(self, streams, now):
        self._call("mark_active")
        self.marked.update(dict.fromkeys(streams, now))

    def active(self, now):
        self._call("active")
        return sorted(self.marked)

    def describe_streams(self, described):
        self._call("describe_streams")
        for stream, about in described.items():
            if about is None:
                self.described.pop(stream, None)
            else:
                self.described[stream] = about


def live_stream(name: str = "s") -> Live:
    """Return a stream that is open and empty."""
    live = Live(name, keep_events=100, keep_ms=10**9)
    live.open("e", 0, [], [], [])
    return live


def session(sid: int, live: Live, user: str | None = None, role: str = "viewer") -> Session:
    """Return a session, anonymous without `user`."""
    wish = wish_of(Request(f"/stream/{live.stream}", "", {}, "127.0.0.1", None), 50, 100)
    claims = Claims(sub=user, name=user, role=role) if user is not None else None
    return Session(sid, "g1-i1-", wish, claims, live)

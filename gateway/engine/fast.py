"""The fast engine: the compiled reactor in a gevent hub. Linux only; what serves by default there.

One watcher of the hub looks at the reactor's epoll; each time one bounded pass is made, and what
has happened goes up as one batch. Requests that are no upgrade go to pywsgi, with what was read.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Collection, Sequence
from typing import Any

import gevent
from gevent import pywsgi
from gevent.socket import socket as GeventSocket

from _fastpath.reactor import PASS_SOCKETS, Message, Reactor
from gateway.engine import Closed, EngineEvent, EngineLimits, Form, Request, WsgiApp, handshake
from gateway.engine.forwarded import Proxies
from gateway.engine.upgrade import HTTP_SOCKETS, Handler
from uproar import deflate
from uproar.logs import event

logger = logging.getLogger(__name__)

READABLE, WRITABLE = 1, 2  # libev's names for them
ADVANCE_S = 0.25  # between two looks at timers
# A turn of the hub costs more than a ping, and viewers who come together are let in together. So
# after a pass the next one waits a moment and takes what came meanwhile; while pass after pass
# finds only pings, of few among many, which are answered in C, the moment grows. What comes into a
# quiet room is looked at at once, and so is what a full pass has left.
REST_S = 0.005
LONGEST_REST_S = 0.080
WORTH = 32  # pings of a pass that are worth the turn
FEW = 0.01  # of all who are connected: a client that waits for each PONG must not wait for others


class FastEngine:
    """`gateway.engine.Engine` on the compiled reactor."""

    def __init__(
        self,
        limits: EngineLimits,
        subprotocols: tuple[str, ...],
        up: Callable[[list[EngineEvent]], None],
    ) -> None:
        self.limits = limits
        self.subprotocols = subprotocols
        self._up = up
        self._farewells: dict[int, Callable[[int, str], bytes]] = {}
        self._http: Any = None
        self._loop: Any = None
        self._watcher: Any = None
        self._anchor: Any = None
        self._rest: Any = None
        self._rest_s = REST_S
        self._timer: Any = None
        self.http_sockets = 0
        self.behind = False
        self.proxies = Proxies()
        reactor = self._reactor = Reactor(
            limits,
            subprotocols,
            deflate.negotiate,
            handshake.SLOW_HEAD.response(),
            handshake.FULL.response(),
            HTTP_SOCKETS,
        )
        self.audience_of = reactor.audience_of
        self.members = reactor.members
        self.sent_to = reactor.sent_to
        self.sids = reactor.sids
        self.forget = reactor.forget
        self.join = reactor.join
        self.leave = reactor.leave
        self.stands = reactor.stands
        self.send = reactor.send
        self.charge = reactor.charge
        self.exempt = reactor.exempt
        self.reacts = reactor.reacts
        self.reactions = reactor.reactions
        self.hold_off = reactor.hold_off
        self.counters = reactor.counters
        self.refuses = reactor.refuses
        self.count_reactions = reactor.count_reactions
        self.check_origin = reactor.check_origin

    # -- the interface ----------------------------------------------------------------------------

    def start(self, listener: socket.socket, app: WsgiApp) -> None:
        if listener.family != socket.AF_UNIX:
            listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # inherited by accept
        self._http = pywsgi.WSGIServer(
            listener, app, handler_class=Handler, log=None, error_log=logger
        )
        self._http.engine = self
        self._http.logger = logger
        self._http.update_environ()
        loop = self._loop = gevent.get_hub().loop
        self._watcher = loop.io(self._reactor.fd, READABLE)
        self._watcher.start(self._pass)
        # An epoll is never writable, so this one never calls. With it, resting changes what the hub
        # waits for; without it, libev would take our epoll out and add it again, and the kernel
        # looks through all that is in an added epoll for loops: 0.4 ms with 8,000 viewers.
        self._anchor = loop.io(self._reactor.fd, WRITABLE)
        self._anchor.start(lambda: None)
        self._timer = loop.timer(ADVANCE_S, ADVANCE_S)
        self._timer.start(self._advance)
        self._reactor.listen(listener.fileno())

    def audience(self, form: Form) -> int:
        return self._reactor.audience(form.framing, form.compression)

    def broadcast(self, audience: int, payload: bytes, skip: Collection[int] = ()) -> list[int]:
        return self._reactor.broadcast(audience, payload, skip)

    def prepare(self, audience: int, payload: bytes) -> Message:
        return self._reactor.prepare(audience, payload)

    def admit(
        self,
        sids: Sequence[int],
        audience: int,
        greeting: bytes,
        sid_at: int = -1,
        backlog: Message | None = None,
    ) -> list[int]:
        return self._reactor.admit(sids, audience, greeting, sid_at, backlog)

    def close(self, sid: int, code: int, reason: str) -> None:
        farewell = self._farewells.get(sid)
        if farewell is None:
            self._reactor.close(sid, code, reason)
        else:
            self._reactor.farewell(sid, farewell(code, reason))

    def trust_proxies(self, networks: Sequence[str]) -> None:
        self.proxies = Proxies(networks)
        self._reactor.trust(self.proxies.packed)

    def stop_accepting(self) -> None:
        self._reactor.unlisten()

    def stop(self) -> None:
        self._reactor.unlisten()
        self._reactor.hang_up()
        self._http.close()

    # -- counters ---------------------------------------------------------------------------------

    @property
    def connections(self) -> int:
        """How many sessions are open."""
        return int(self.counters()["open"])

    @property
    def sockets(self) -> int:
        """How many connections of any kind are open."""
        return int(self.counters()["sockets"]) + self.http_sockets

    @property
    def frames_sent(self) -> int:
        """How many frames were sent or queued since the start."""
        return int(self.counters()["frames_sent"])

    @property
    def bytes_sent(self) -> int:
        """How many bytes the sockets have taken since the start."""
        return int(self.counters()["bytes_sent"])

    # -- HTTP -------------------------------------------------------------------------------------

    def crowded(self) -> bool:
        """Whether there are more sockets than this process means to hold."""
        return self.sockets > self.limits.connections + HTTP_SOCKETS

    def serve(
        self,
        sock: Any,
        request: Request,
        first: bytes = b"",
        farewell: Callable[[int, str], bytes] | None = None,
    ) -> None:
        """Take over a connection that pywsgi has answered; its greenlet ends with this."""
        framing = "raw"
        if farewell is None:
            binary = request.subprotocol is not None and request.subprotocol != self.subprotocols[0]
            framing = "binary" if binary else "text"
        fd = sock.detach()
        try:
            sid = self._reactor.adopt(
                fd, framing, request.compression != "none", request.address, request, first
            )
        except OSError:
            socket.close(fd)
            raise
        if farewell is not None:
            self._farewells[sid] = farewell
        self._hand_up(self._reactor.take())

    def _request(self, fd: int, data: bytes, address: str) -> None:
        """Serve one connection with pywsgi, beginning with what the reactor has read of it."""
        sock = _Begun(data, fileno=fd)
        try:
            self._http.handle(sock, (address, 0))
        except Exception:
            event(logger, "request_failed", level=logging.ERROR, exc_info=True)
        finally:
            sock.close()

    def count_http(self, by: int) -> None:
        """Count connections that pywsgi has."""
        self.http_sockets += by
        self._reactor.handed(by)

    # -- the loop ---------------------------------------------------------------------------------

    def _pass(self) -> None:
        """Make a pass because something came."""
        rest_s = self._look()
        if rest_s:
            self._watcher.stop()
            self._sleep(rest_s)

    def _rested(self) -> None:
        """Make a pass after a rest."""
        rest_s = self._look()
        if rest_s:
            self._sleep(rest_s)
        else:
            self._watcher.start(self._pass)

    def _sleep(self, seconds: float) -> None:
        self._rest = self._loop.timer(seconds)
        self._rest.start(self._rested)

    def _look(self) -> float:
        """Make one pass; return how long to rest, 0 to look when something comes."""
        told = True
        ready = 0
        try:
            events, ready, drained = self._reactor.poll()
            self._hand_up(events)
            requests = self._reactor.requests()
            for fd, data, address in requests:
                gevent.spawn(self._request, fd, data, address)
            told = bool(events or requests or drained)
        except Exception:
            # gevent takes a watcher out for good whose call fails: nobody would be heard any more.
            event(logger, "pass_failed", level=logging.ERROR, exc_info=True)
        self.behind = ready == PASS_SOCKETS
        if told or not ready or ready > FEW * self.connections:
            self._rest_s = REST_S
        elif ready < WORTH:
            self._rest_s = min(2 * self._rest_s, LONGEST_REST_S)
        return 0.0 if not ready or self.behind else self._rest_s

    def _advance(self) -> None:
        self._hand_up(self._reactor.advance())

    def _hand_up(self, events: list[EngineEvent]) -> None:
        if events:
            try:
                self._up(events)
            except Exception:
                # A fault of ours must cost one batch, not the process (promise 6).
                event(logger, "batch_failed", level=logging.ERROR, exc_info=True)
            if self._farewells:
                for what in events:
                    if isinstance(what, Closed):
                        self._farewells.pop(what.sid, None)
        self._reactor.flush()


class _Begun(GeventSocket):  # type: ignore[misc]
    """A socket of which the beginning has been read already."""

    def __init__(self, begun: bytes, fileno: int) -> None:
        super().__init__(fileno=fileno)
        self._begun = begun

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        if not self._begun:
            return int(super().recv_into(buffer, nbytes, flags))
        size = min(len(self._begun), nbytes or len(buffer))
        buffer[:size] = self._begun[:size]
        self._begun = self._begun[size:]
        return size

    def recv(self, bufsize: int, flags: int = 0) -> bytes:
        if not self._begun:
            received: bytes = super().recv(bufsize, flags)
            return received
        taken, self._begun = self._begun[:bufsize], self._begun[bufsize:]
        return taken

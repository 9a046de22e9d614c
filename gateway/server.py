"""One gateway process: its parts, put together, started, drained and stopped."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
import time
from collections.abc import Callable
from typing import Any

import gevent
from gevent.event import Event as Flag
from gevent.threadpool import ThreadPool

from gateway.dialects import native
from gateway.engine import Engine, EngineLimits, engine_class
from gateway.ephemeral import Ephemeral
from gateway.feed import Feed
from gateway.figures import metrics_of
from gateway.http.app import Api
from gateway.presence import Presence
from gateway.reactions import Reactions
from gateway.registry import Registry
from gateway.session import Session
from gateway.tick import Ticker
from gateway.viewers import Viewers
from uproar import codes, collector, status
from uproar.auth import Verifier, load_key
from uproar.bus import open_bus
from uproar.config import Config
from uproar.ipc import IngestLink
from uproar.logs import event
from uproar.state import open_state
from uproar.store import StoreUnavailable, open_store

logger = logging.getLogger(__name__)

STORE_THREADS = 4
EXPIRE_S = 1.0  # between two looks at tokens that have expired
POOL_S = 8.0  # for a thread and its answer: the store gives up a read after 5 s
LINK_PENDING = 10_000
AGAIN_S = 0.25  # before a loop that failed runs again


class Gateway:
    """The parts of one gateway process and their wiring."""

    def __init__(self, config: Config, name: str) -> None:
        self.config = config
        self.name = name
        self.incarnation = secrets.token_hex(3)
        self.pool = gevent.get_hub().threadpool
        self.pool.maxsize = STORE_THREADS
        self.rest_pool = ThreadPool(STORE_THREADS)
        limits = config.limits
        self.viewers: Viewers
        self.engine: Engine = engine_class()(
            EngineLimits(
                handshake_s=limits.handshake_s,
                handshake_bytes=limits.handshake_bytes,
                message_bytes=limits.command_bytes,
                fragments=limits.fragments,
                connections=limits.connections,
                connections_per_address=limits.connections_per_address,
                queue_bytes=config.gateway.queue_bytes,
                queue_s=config.gateway.queue_s,
                idle_s=config.gateway.idle_s,
                commands_per_second=limits.commands_per_second,
                accepts_per_second=limits.accepts_per_second,
            ),
            native.SUBPROTOCOLS,
            lambda batch: self.viewers.on_engine(batch),
        )
        self.engine.check_origin(bool(config.server.origins))
        self.engine.trust_proxies(config.server.trusted_proxies)
        self.ticker = Ticker(self.engine, config.gateway.tick_ms / 1000)
        self.link = IngestLink(
            config.ingest.address or f"unix:{config.socket('ingest')}",
            deadline_s=config.ingest.ack_deadline_s,
            pending=LINK_PENDING,
        )
        state = open_state(config)
        self.feed = Feed(
            config,
            name,
            open_bus(config),
            state,
            open_store(config),
            self.in_pool,
            on_ready=self.ticker.wake,
            on_events=self.ticker.wake,
        )
        key = load_key(config.key_path)
        verifier = Verifier.from_config(config)
        self.ephemeral = Ephemeral(state, self.engine, self.ticker.audiences, self.feed.live)
        self.feed.ephemeral = self.ephemeral
        self.reactions = Reactions(config, state, self.engine)
        self.viewers = Viewers(
            config, name, verifier, self.feed, self.ticker, self.link, self.ephemeral,
            self.reactions.react,
        )  # fmt: skip
        self.registry = Registry(
            state, name, self.incarnation, self.viewers.sessions, self.viewers.end
        )
        self.feed.kick = self.registry.kick
        self.feed.restood = self.viewers.restood
        self.presence = Presence(
            state, name, self.incarnation, self.viewers.sessions, self.viewers.plain_names,
            self.viewers.watching,
            on_forgotten=self._forgotten,
            refresh=self.ephemeral.refresh,
        )  # fmt: skip
        self.viewers.joined = self._joined
        self.viewers.crowd_joined = self.presence.plain_joined
        self.viewers.counter = self.reactions.counter
        self.viewers.emptied = self.reactions.emptied
        self.viewers.left = self.registry.left
        self.ticker.arrivals = self.viewers.arrivals
        self.ticker.sessions_of = self.viewers.sessions_of
        self.ticker.sanctioned = self.viewers.sanctioned
        self.ticker.broken = self.viewers.broken
        self.feed.figures = self.ticker.figures
        self.metrics = metrics_of(self)
        self.api = Api(
            config, key, verifier, self.feed, self.link, self.ephemeral.viewers, self.in_rest_pool,
            self.in_thread,
        )  # fmt: skip
        self.stopping = Flag()

    def in_pool(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a store call, on a thread where it blocks; raises StoreUnavailable."""
        return _apply(self.pool if self.feed.store.blocks else None, function, arguments)

    def in_rest_pool(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """The same for REST, on threads of its own: a slow page keeps no hole from being filled."""
        return _apply(self.rest_pool if self.feed.store.blocks else None, function, arguments)

    def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run what computes for long on one of REST's threads."""
        return _apply(self.rest_pool, function, arguments)

    def _forgotten(self) -> None:
        """STATE may have lost what we told it: all of it again."""
        self.feed.forgotten()
        self.registry.again()

    def _joined(self, session: Session) -> None:
        self.presence.joined(session)
        self.registry.joined(session)

    def start(self, listener: socket.socket) -> None:
        """Begin to serve."""
        self.link.start()
        self.feed.start()
        for loop in (
            self.ticker.run, self.presence.run, self.registry.run, self.reactions.run, self._expire,
        ):  # fmt: skip
            gevent.spawn(keep, loop)
        self.engine.start(listener, self.api)

    def _expire(self) -> None:
        while True:
            gevent.sleep(EXPIRE_S)
            self.viewers.expire(time.time())

    def run_until_stopped(self) -> None:
        """Wait for SIGTERM, then drain: no new viewers, everybody is sent elsewhere."""
        for number in (signal.SIGTERM, signal.SIGINT):
            gevent.signal_handler(number, self.stopping.set)
        self.stopping.wait()
        self.engine.stop_accepting()
        drain_s = self.config.gateway.drain_s if self.viewers.count else 0.0
        event(logger, "draining", sessions=self.viewers.count, seconds=drain_s)
        self.viewers.drain(drain_s)
        until = time.monotonic() + drain_s
        while self.viewers.count and time.monotonic() < until:
            gevent.sleep(0.02)
        self.viewers.end_all(codes.GOING_AWAY, "this gateway stops; connect again")
        gevent.sleep(0.05)
        self.reactions.flush()
        self.registry.close()
        self.presence.close()
        self.engine.stop()

    def status(self) -> dict[str, Any]:
        """Return what the admin port shows of this process."""
        reason = ""
        if not self.feed.delivers:
            reason = "no probe has come through the bus for 3 s"
        elif not self.link.connected:
            reason = "ingest can't be reached"
        return {
            "name": self.name,
            "pid": os.getpid(),
            "ready": self.feed.delivers,
            "reason": reason,
            "metrics": self.metrics.text(),
        }


def keep(loop: Callable[[], None]) -> None:
    """Run a loop until it returns: a fault of ours costs one round, not what the loop does."""
    while True:
        try:
            return loop()
        except Exception:
            event(logger, "loop_failed", level=logging.ERROR, loop=loop.__qualname__, exc_info=True)
            gevent.sleep(AGAIN_S)


def _apply(pool: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    """Run it on a thread of `pool`, or here and now where that is None."""
    with gevent.Timeout(POOL_S, StoreUnavailable("every thread is busy")):
        return function(*arguments) if pool is None else pool.apply(function, arguments)


def serve(config: Config, name: str, listener: socket.socket, ready_fd: int | None) -> None:
    """Run one gateway process, `g1`, `g2` … of this host, until it is told to stop."""
    gateway = Gateway(config, config.gateway_name(name))
    closer = status.serve(config.socket(f"status-{name}"), gateway.status)
    gateway.start(listener)
    until = time.monotonic() + config.supervisor.ready_s
    while not gateway.feed.delivers and time.monotonic() < until:
        gevent.sleep(0.01)
    collector.settle()
    event(logger, "ready", role="gateway", gateway=gateway.name)
    if ready_fd is not None:
        os.write(ready_fd, b"ready\n")
        os.close(ready_fd)
    gateway.run_until_stopped()
    gateway.link.close()
    closer.close()

"""The bus on a Redis or Valkey Cluster: sharded publish and subscribe over all masters.

A channel lives where its slot does. A subscriber holds one connection to every master; on the first
sign that one of them is gone, silent, or no longer owns what it did, all of it is lost: the caller
opens another one and fills the hole. redis-py's sharded object goes on with dead connections after
a failover, so it is not used.
"""

from __future__ import annotations

import select
import socket
import threading
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Final, NoReturn

import hiredis
import redis

from uproar.bus import BusLost
from uproar.config import Config, State
from uproar.valkey_client import AWAY, LATER, Command, sentence
from uproar.valkey_cluster import Address, Cluster, Topology, connection_to, slot_of

PING_S: Final = 1.0  # of silence on a connection, before it is asked whether it is alive
READ_BYTES: Final = 65_536  # of one connection, before the others have their turn
CHANNELS_AT_ONCE: Final = 500  # that are sent before the next connection has its turn


class ClusterBus:
    """`uproar.bus.Bus` on the cluster of `[state] nodes`."""

    def __init__(self, config: Config) -> None:
        self._state = config.state
        self._cluster = Cluster(config.state)

    def publish(self, messages: list[tuple[str, bytes]]) -> None:
        commands: list[Command] = [("SPUBLISH", *message) for message in messages]
        for answer in self._cluster.run(commands):
            if isinstance(answer, Exception):
                raise BusLost(sentence(answer, "the bus")) from answer

    def subscriber(self) -> ClusterSubscriber:
        try:
            # Looked up anew: who needs a new subscriber has often lost one to a failover.
            return ClusterSubscriber(self._state, self._cluster, self._cluster.refresh())
        except (redis.RedisError, *AWAY) as error:
            raise BusLost(sentence(error, "the bus")) from error

    def close(self) -> None:
        self._cluster.close()


class ClusterSubscriber:
    """A connection to each master. Any of them lost means BusLost, from then on."""

    def __init__(self, state: State, cluster: Cluster, topology: Topology) -> None:
        """Connect; raises redis-py's errors."""
        self._cluster = cluster
        self._seen = topology  # the last one that was compared
        self._owners = list(topology.owners)
        self._timeout_s = state.timeout_s
        self._messages: deque[tuple[str, bytes | None]] = deque()
        self._slots: dict[str, int] = {}  # of the channels that are wanted
        self._leaving: dict[str, int] = {}  # given up: confirmations that are to come
        self._lost = ""
        self._links: dict[Address, _Link] = {}
        self._by_file: dict[int, _Link] = {}
        self._poll = select.poll()  # not select: a gateway's files are above its 1,024
        try:
            for master in topology.masters:
                link = self._links[master] = _Link(state, master)
                self._by_file[link.fileno()] = link
                self._poll.register(link.fileno(), select.POLLIN)
        except BaseException:
            self.close()
            raise

    def subscribe(self, channels: list[str]) -> None:
        self._alive()
        for channel in channels:
            self._slots[channel] = slot_of(channel)
        self._send("SSUBSCRIBE", channels)

    def unsubscribe(self, channels: list[str]) -> None:
        self._alive()
        wanted = [channel for channel in channels if channel in self._slots]
        for channel in wanted:
            self._leaving[channel] = self._leaving.get(channel, 0) + 1
        self._send("SUNSUBSCRIBE", wanted)
        for channel in wanted:
            self._slots.pop(channel, None)

    def get(self, wait_s: float) -> tuple[str, bytes | None] | None:
        until = time.monotonic() + wait_s
        looked = False
        while not self._messages:
            self._alive()
            now = time.monotonic()
            if looked and now >= until:
                return None
            due = min(until, *(self._due(link) for link in self._links.values()))
            found = self._poll.poll(1000 * max(0.0, due - now))
            looked = True
            for file, _ in found:
                self._read(self._by_file[file])
            # Only now: a reader that was held up finds the sign of life in the socket.
            for link in self._links.values():
                self._beat(link)
        return self._messages.popleft()

    def close(self) -> None:
        self._lost = self._lost or "the bus does not answer: the subscriber is closed"
        for link in self._links.values():
            link.close()

    # -- what may go wrong ------------------------------------------------------------------------

    def _lose(self, why: str) -> NoReturn:
        self._lost = self._lost or why
        self._messages.clear()
        for link in self._links.values():
            link.hang_up()  # the reader wakes, whoever has found this out
        raise BusLost(self._lost)

    def _alive(self) -> None:
        """Raise BusLost when something is lost, or when a wanted channel lives elsewhere now."""
        if self._lost:
            raise BusLost(self._lost)
        seen = self._cluster.seen
        if seen is not None and seen is not self._seen:
            self._seen = seen
            for channel, slot in self._slots.items():
                if seen.owners[slot] != self._owners[slot]:
                    self._lose(f"the bus does not answer: {channel} has moved to another master")
            self._owners = list(seen.owners)

    def _due(self, link: _Link) -> float:
        """Return when a silent master is to be asked, or given up (monotonic)."""
        return link.asked_at + self._timeout_s if link.asked_at else link.heard_at + PING_S

    def _beat(self, link: _Link) -> None:
        """Ask a silent master whether it is alive; lose it when it has not answered."""
        now = time.monotonic()
        if now < self._due(link):
            return
        if link.asked_at:
            self._lose(f"the bus does not answer: {link.name} is silent")
        link.asked_at = now
        self._write(link, _packed("PING"))

    # -- talking to the masters -------------------------------------------------------------------

    def _send(self, verb: str, channels: list[str]) -> None:
        """Send one command a slot, many at once to each master."""
        for at in range(0, len(channels), CHANNELS_AT_ONCE):
            by_slot: dict[int, list[str]] = {}
            for channel in channels[at : at + CHANNELS_AT_ONCE]:
                by_slot.setdefault(self._slots[channel], []).append(channel)
            packed: dict[_Link, list[bytes]] = {}
            for slot, its in by_slot.items():
                owner = self._owners[slot]
                link = self._links.get(owner) if owner is not None else None
                if link is None:
                    self._lose(f"the bus does not answer: {its[0]} is on a new master")
                packed.setdefault(link, []).append(_packed(verb, *its))
            for link, commands in packed.items():
                self._write(link, b"".join(commands))

    def _write(self, link: _Link, data: bytes) -> None:
        try:
            link.write(data, time.monotonic() + self._timeout_s)
        except OSError as error:
            self._lose(f"the bus does not answer: {link.name}: {error}")

    def _read(self, link: _Link) -> None:
        try:
            for reply in link.read():
                self._take(link, reply)
        except OSError as error:
            self._lose(f"the bus does not answer: {link.name}: {error}")

    def _take(self, link: _Link, reply: Any) -> None:
        if isinstance(reply, hiredis.ReplyError):
            self._lose(f"the bus refused: {link.name}: {reply}")
        if not isinstance(reply, list) or reply[0] == b"pong":
            return
        kind, where, body = reply
        channel = where.decode()
        if kind == b"smessage":
            self._messages.append((channel, body))
        elif kind == b"ssubscribe":
            self._messages.append((channel, None))
        elif kind == b"sunsubscribe":
            left = self._leaving.pop(channel, 0)
            if left == 0:  # not asked for: the slot has gone to another master
                self._lose(f"the bus does not answer: {channel} has moved to another master")
            elif left > 1:
                self._leaving[channel] = left - 1


def _packed(*words: str) -> bytes:
    command: Any = words  # its stub knows of tuples of one only
    packed: bytes = hiredis.pack_command(command)
    return packed


class _Link:
    """The connection to one master: redis-py opens it, the socket is ours from then on."""

    def __init__(self, state: State, place: Address) -> None:
        self.name = f"{place[0]}:{place[1]}"
        self.heard_at = time.monotonic()
        self.asked_at = 0.0  # when it was asked for a sign of life that has not come
        self._connection = connection_to(state, place, state.timeout_s)
        self._connection.connect()
        self._socket = self._connection._sock
        self._socket.settimeout(0.0)
        self._reader = hiredis.Reader()
        self._writing = threading.Lock()

    def fileno(self) -> int:
        """Return the socket's file descriptor."""
        file: int = self._socket.fileno()
        return file

    def write(self, data: bytes, until: float) -> None:
        """Send all of it, or raise OSError at `until` (monotonic)."""
        left = memoryview(data)
        with self._writing:
            while left:
                try:
                    left = left[self._socket.send(left) :]
                    continue
                except LATER:
                    pass
                wait_s = until - time.monotonic()
                poll = select.poll()
                poll.register(self.fileno(), select.POLLOUT)
                if wait_s <= 0 or not poll.poll(1000 * wait_s):
                    raise TimeoutError("it takes nothing more")

    def read(self) -> Iterator[Any]:
        """Return the replies that are here now; raises OSError when the connection is closed."""
        try:
            while True:
                data = self._socket.recv(READ_BYTES)
                if not data:
                    raise ConnectionResetError("closed by the server")
                self._reader.feed(data)
                # What TLS has decrypted already shows in no poll.
                if not getattr(self._socket, "pending", int)():
                    break
        except LATER:
            pass
        self.heard_at, self.asked_at = time.monotonic(), 0.0
        while (reply := self._reader.gets()) is not False:
            yield reply

    def hang_up(self) -> None:
        """End both directions; `close` gives the file back."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it has ended already

    def close(self) -> None:
        """Close it."""
        self._connection.disconnect()

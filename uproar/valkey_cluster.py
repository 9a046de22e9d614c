"""A Redis or Valkey Cluster: who owns which slot, and pipelines that respect it.

Comes in: commands on one key each. Goes out: one pipeline to each master concerned, all of them
under way at the same time, and the answers in the order of the commands.

redis-py's own cluster pipeline is not used: when a node stops answering it tries every one of a
pipeline's commands again by itself, each with its deadline, and adds to counters twice. Here a call
has one deadline, follows redirections, and leaves it to the caller to say something again.
"""

from __future__ import annotations

import random
import ssl
import threading
import time
from collections.abc import Iterable, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeAlias

import redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import (
    AskError,
    ClusterDownError,
    MovedError,
    TryAgainError,
)

from uproar.config import State
from uproar.valkey_client import AWAY, Busy, Command, Flight, Pool, no_retry

Address: TypeAlias = tuple[str, int]

LOOK_S: Final = 5.0  # between two looks at who owns what, made along with other commands
REDIRECTIONS: Final = 4  # of a command in one call: a slot that moves twice meanwhile needs two
TRY_AGAIN_S: Final = 0.02  # a slot is on its way between two masters
LEAST_S: Final = 0.05  # given to each node that is asked who owns what, however many are silent

_SLOTS: Final[Command] = ("CLUSTER", "SLOTS")


class Unsent(redis.ConnectionError):
    """No connection could be made: the command was not run, whoever waits for it."""


class Topology(NamedTuple):
    """Who owns what: `owners[slot]`, None where nobody does.

    `nodes` are masters and replicas, `alone` the masters without a replica.
    """

    owners: tuple[Address | None, ...]
    nodes: tuple[Address, ...]
    alone: tuple[Address, ...]

    @property
    def masters(self) -> list[Address]:
        """The masters that own slots."""
        return sorted({owner for owner in self.owners if owner is not None})

    def owner(self, slot: int) -> Address:
        """Return the master of a slot; raises ClusterDownError."""
        owner = self.owners[slot]
        if owner is None:
            raise ClusterDownError(
                f"no master owns slot {slot}; look at `redis-cli --cluster check`"
            )
        return owner


def slot_of(key: str | bytes) -> int:
    """Return the slot of a key or a channel."""
    return key_slot(key.encode() if isinstance(key, str) else key)


def address_of(node: str) -> Address:
    """Return (host, port) of HOST:PORT, as the configuration has checked it."""
    host, _, port = node.rpartition(":")
    return host.strip("[]"), int(port)


def parse_slots(answer: list[Any], asked: Address) -> Topology:
    """Return what CLUSTER SLOTS says; a node without a host is where it was `asked`."""
    owners: list[Address | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
    nodes: dict[Address, None] = {}
    alone: dict[Address, None] = {}
    for first, last, *its_nodes in answer:
        found = [_address(host, port, asked[0]) for host, port, *_ in its_nodes]
        nodes |= dict.fromkeys(found)
        owners[first : last + 1] = [found[0]] * (last - first + 1)
        if len(found) == 1:
            alone[found[0]] = None
    return Topology(tuple(owners), tuple(nodes), tuple(alone))


def _address(host: bytes | str | None, port: int, asked_host: str) -> Address:
    text = host.decode() if isinstance(host, bytes) else host or ""
    return (text if text and text != "?" else asked_host), port


class Cluster:
    """`uproar.valkey_client.Server` on a cluster. Connects at the first call."""

    def __init__(self, state: State) -> None:
        self.generation = 0  # rises with every loss after which writes may be gone
        self._state = state
        self._timeout_s = state.timeout_s
        self._seeds = [address_of(node) for node in state.nodes]
        self._topology: Topology | None = None
        self._stale = False  # look before the next commands
        self._look_at = 0.0  # monotonic; when to look again, along with other commands
        self._silent: dict[Address, float] = {}  # who did not answer, and when: asked last
        self._pools: dict[Address, Pool] = {}
        self._looking = threading.Lock()

    # -- running commands -------------------------------------------------------------------------

    def run(self, *parts: Sequence[Command]) -> list[Any]:
        until = time.monotonic() + self._timeout_s
        answers: list[Any] = []
        for part in parts:
            if part:
                answers += self._part(part, until)
        return answers

    def on_masters(self, command: Command) -> dict[Address, Any]:
        """Return each master's answer to a command without a key, or its failure."""
        until = time.monotonic() + self._timeout_s
        masters = self.topology(until).masters
        answers = self._exchange({master: [command] for master in masters}, until)
        return {master: answers[master][0] for master in masters}

    def ask(self, node: Address, commands: list[Command]) -> list[Any]:
        """Return one node's own answers, whatever is where; failures in their places."""
        return self._exchange({node: commands}, time.monotonic() + self._timeout_s)[node]

    def _part(self, commands: Sequence[Command], until: float) -> list[Any]:
        answers: list[Any] = [None] * len(commands)
        slots = [slot_of(_key(command)) for command in commands]
        waiting = list(range(len(commands)))
        asking: dict[int, Address] = {}  # commands that one node sent on to another, this once
        for _ in range(1 + REDIRECTIONS):
            try:
                topology = self.topology(until)
                places = {index: topology.owner(slots[index]) for index in waiting} | asking
            except (redis.RedisError, *AWAY) as error:
                self._stale = True
                for index in waiting:
                    answers[index] = error
                break
            for index, answer in self._to_nodes(commands, places, asking, until):
                answers[index] = answer
            asking = {}
            moved: dict[int, Address] = {}
            later = False
            for index in waiting:
                answer = answers[index]
                if isinstance(answer, MovedError):
                    moved[slots[index]] = _address(answer.host, answer.port, places[index][0])
                elif isinstance(answer, AskError):
                    asking[index] = _address(answer.host, answer.port, places[index][0])
                elif isinstance(answer, TryAgainError):
                    later = True
            if moved:
                self._moved(moved)
            # MOVED is a kind of ASK to redis-py.
            sent_on = [i for i in waiting if isinstance(answers[i], AskError | TryAgainError)]
            unsent = [index for index in waiting if isinstance(answers[index], Unsent)]
            owners = self._owners(until) if unsent else None
            if owners is not None:  # who can't be reached may have been replaced long ago
                sent_on += [index for index in unsent if owners[slots[index]] != places[index]]
            waiting = sorted(sent_on)
            if not waiting or time.monotonic() >= until:
                break
            if later:
                time.sleep(TRY_AGAIN_S)
        return answers

    def _to_nodes(
        self,
        commands: Sequence[Command],
        places: dict[int, Address],
        asking: dict[int, Address],
        until: float,
    ) -> Iterable[tuple[int, Any]]:
        """Send each command where `places` says; return (index, answer)."""
        sent: dict[Address, list[Command]] = {}
        indexes: dict[Address, list[int | None]] = {}
        for index, place in places.items():
            if index in asking:
                sent.setdefault(place, []).append(("ASKING",))
                indexes.setdefault(place, []).append(None)
            sent.setdefault(place, []).append(commands[index])
            indexes.setdefault(place, []).append(index)
        asked: Address | None = None
        now = time.monotonic()
        if now >= self._look_at:
            # One that answers anyway, another one each time: one that is cut off does not know.
            asked = random.choice(list(sent))
            sent[asked] = [*sent[asked], _SLOTS]
            indexes[asked].append(None)
            self._look_at = now + LOOK_S
        answers = self._exchange(sent, until)
        if asked is not None and isinstance(found := answers[asked][-1], list):
            self._adopt(parse_slots(found, asked))
        for place, its in indexes.items():
            for number, answer in zip(its, answers[place], strict=True):
                if number is not None:
                    yield number, answer

    def _exchange(
        self, sent: dict[Address, list[Command]], until: float
    ) -> dict[Address, list[Any]]:
        """Send to all nodes, then read from all: an answer or a failure for every command."""
        answers: dict[Address, list[Any]] = {}
        flights: dict[Address, Flight] = {}
        try:
            # In one order, so that two callers never wait for each other's connections.
            for place in sorted(sent):
                try:
                    flights[place] = self._send(place, sent[place], until)
                except Busy as error:
                    answers[place] = [error] * len(sent[place])
                except (redis.RedisError, *AWAY) as error:
                    answers[place] = self._failed(place, error, len(sent[place]))
            for place, flight in flights.items():
                try:
                    answers[place] = flight.answers(until)
                    self._silent.pop(place, None)
                except (redis.RedisError, *AWAY) as error:
                    answers[place] = self._failed(place, error, len(sent[place]))
        finally:
            for flight in flights.values():
                flight.drop()
        self._stale = self._stale or any(
            isinstance(answer, ClusterDownError) for its in answers.values() for answer in its
        )
        return answers

    def _send(self, place: Address, commands: list[Command], until: float) -> Flight:
        pool = self._pools.get(place)
        if pool is None:
            new = partial(connection_to, self._state, place, self._timeout_s)
            pool = self._pools.setdefault(place, Pool(new))
        try:
            connection = pool.take(until)
        except (Busy, redis.AuthenticationError):
            raise
        except AWAY as error:
            raise Unsent(str(error)) from error
        return Flight(pool, connection, commands)

    def _failed(self, place: Address, error: Exception, count: int) -> list[Any]:
        self.generation += 1
        self._silent[place] = time.monotonic()
        self._stale = True  # somebody else may be master by now
        return [_named(error, place)] * count

    def _owners(self, until: float) -> tuple[Address | None, ...] | None:
        try:
            return self.topology(until).owners
        except (redis.RedisError, *AWAY):
            return None

    # -- who owns what ----------------------------------------------------------------------------

    @property
    def seen(self) -> Topology | None:
        """Who owned what at the last look; another object only when that has changed."""
        return self._topology

    def topology(self, until: float | None = None) -> Topology:
        """Return who owns what, looking if that is in doubt; raises redis-py's errors."""
        if self._topology is not None and not self._stale:
            return self._topology
        until = time.monotonic() + self._timeout_s if until is None else until
        # One looks for all: after a failover a thousand greenlets want to know at the same time.
        if not self._looking.acquire(timeout=max(0.0, until - time.monotonic())):
            raise Busy("nobody has said yet who owns what")
        try:
            if self._topology is not None and not self._stale:
                return self._topology
            return self.refresh(until)
        finally:
            self._looking.release()

    def refresh(self, until: float | None = None) -> Topology:
        """Look who owns what, whatever is known; raises redis-py's errors."""
        return self._adopt(self.look(until))

    def look(self, until: float | None = None) -> Topology:
        """Ask the nodes one after the other, those who answered lately first; raises the last's.

        Over connections of its own: the pools' may all be waiting for a node that is silent.
        """
        until = time.monotonic() + self._timeout_s if until is None else until
        known = list(self._topology.nodes) if self._topology is not None else list(self._pools)
        random.shuffle(known)
        nodes = sorted(
            dict.fromkeys([*known, *self._seeds]), key=lambda node: self._silent.get(node, 0.0)
        )
        failure: Exception = redis.ConnectionError("no node is known")
        for number, node in enumerate(nodes):
            share = (until - time.monotonic()) / (len(nodes) - number)
            connection: Any = None
            try:
                connection = connection_to(self._state, node, max(LEAST_S, share))
                connection.connect()
                connection.send_command(*_SLOTS)
                found: Any = connection.read_response()
                if found:
                    return parse_slots(found, node)
                failure = redis.ConnectionError(f"{_at(node)} knows of no slots")
            except (redis.RedisError, *AWAY) as error:
                failure = _named(error, node)
                self._silent[node] = time.monotonic()
                if isinstance(error, redis.AuthenticationError):
                    break  # the others have the same users
            finally:
                if connection is not None:
                    connection.disconnect()
        raise failure

    def _adopt(self, found: Topology) -> Topology:
        self._stale = False
        self._look_at = time.monotonic() + LOOK_S
        if self._topology is not None and self._topology.owners == found.owners:
            return self._topology
        self._topology = found
        self.generation += 1
        for place in [place for place in self._pools if place not in found.nodes]:
            self._pools.pop(place).close()
        return found

    def _moved(self, slots: dict[int, Address]) -> None:
        """Take note of some slots now, and look at all of them along with the next commands."""
        if self._topology is not None:
            owners = list(self._topology.owners)
            for slot, owner in slots.items():
                owners[slot] = owner
            self._topology = self._topology._replace(owners=tuple(owners))
        self.generation += 1
        self._look_at = 0.0

    def close(self) -> None:
        """Close all connections; the next call opens them anew."""
        for place in list(self._pools):
            self._pools.pop(place).close()


# -- connections -----------------------------------------------------------------------------------


def connection_to(state: State, place: Address, timeout_s: float) -> Any:
    """Return a connection of redis-py's to a node, not opened yet."""
    options: dict[str, Any] = {
        "host": place[0],
        "port": place[1],
        "username": state.user or None,
        "password": _password(state),
        "socket_timeout": timeout_s,
        "socket_connect_timeout": timeout_s,
        "socket_keepalive": True,
        "retry": no_retry(),
        "protocol": 2,
        "driver_info": None,  # two round trips of every new connection
    }
    if state.ca_file:
        return _TlsConnection(context=_context(state), **options)
    return redis.Connection(**options)  # type: ignore[no-untyped-call]


class _TlsConnection(redis.SSLConnection):
    """redis-py's, with our context.

    Its own would load this machine's authorities for every connection (28 ms) and trust them too.
    """

    def __init__(self, *, context: ssl.SSLContext, **options: Any) -> None:
        super().__init__(**options)
        self._context = context

    def _wrap_socket_with_ssl(self, sock: Any) -> ssl.SSLSocket:
        return self._context.wrap_socket(sock, server_hostname=self.host)


def _context(state: State) -> ssl.SSLContext:
    ca_file, *own = (_file(name) for name in (state.ca_file, state.cert_file, state.key_file))
    try:
        # Read again when they have changed: certificates are renewed under a running system.
        changed = tuple(Path(file).stat().st_mtime for file in (ca_file, *own) if file)
        return _load_context(ca_file, own[0], own[1], changed)
    except (OSError, ValueError) as error:
        raise redis.ConnectionError(
            f"the certificates of {state.ca_file} can't be used: {error}"
        ) from error


@lru_cache(maxsize=4)
def _load_context(
    ca_file: str, cert_file: str, key_file: str, changed: tuple[float, ...]
) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=ca_file)
    if cert_file:
        context.load_cert_chain(cert_file, key_file)
    return context


def _password(state: State) -> str | None:
    if not state.password_file:
        return None
    path = Path(state.password_file).expanduser()
    try:
        return path.read_text("utf-8").partition("\n")[0].strip()
    except (OSError, UnicodeDecodeError) as error:
        raise redis.AuthenticationError(f"{path} can't be read: {error}") from error


def _file(path: str) -> str:
    return str(Path(path).expanduser()) if path else ""


def _key(command: Command) -> str | bytes:
    key = command[3] if command[0] == "EVAL" else command[1]
    assert isinstance(key, str | bytes)
    return key


def _at(place: Address) -> str:
    return f"{place[0]}:{place[1]}"


def _named(error: Exception, place: Address) -> Exception:
    """Return the error with its node in it: of six nodes it matters which."""
    if _at(place) in str(error):
        return error
    named = redis.ConnectionError if isinstance(error, OSError) else type(error)
    again = named(f"{_at(place)}: {error}")
    again.__cause__ = error
    return again

"""The reactor for Python: calls down, batches of events up.

The loop's contract stands in `reactor.h`: one thread, which holds the GIL in every call. `poll` and
`advance` return what has happened as events of `gateway.engine`; nothing calls back into the
caller. A plain viewer costs no call and no object of its own: those of one pass that ask for the
same come up as one `Arrived`. The reference is `gateway.engine.reference`.
"""

from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.mem cimport PyMem_Free, PyMem_Realloc
from cpython.unicode cimport PyUnicode_DecodeUTF8
from libc.errno cimport errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

import os

from gateway.engine import (
    SID_DIGITS,
    Arrived,
    Closed,
    Drained,
    Flooded,
    Opened,
    Received,
    Request,
)

assert SID_DIGITS == UP_SID_DIGITS

PASS_SOCKETS = UP_PASS_SOCKETS
VIEWER_BYTES = up_reactor_viewer_bytes()
UNMASKS_BY = up_unmask_build().decode()

cdef tuple FRAMINGS = ("text", "binary", "raw")
cdef tuple COMPRESSIONS = ("none", "each", "window", "unused")  # as UP_COMPRESS
cdef Py_ssize_t OFFERS_MAX = 1000  # different offers of permessage-deflate that are remembered


cdef str _text(up_text text):
    return text.at[:text.n].decode("latin-1") if text.at != NULL else ""


cdef class Message:
    """A message that many connections share: what `prepare` returns and `admit` takes."""

    cdef up_buffer *_buffer

    def __cinit__(self) -> None:
        self._buffer = NULL

    def __dealloc__(self) -> None:
        up_release(self._buffer)

    def __len__(self) -> int:
        return up_buffer_size(self._buffer)


cdef class Reactor:
    """The connections of one process (see `reactor.h`)."""

    cdef up_reactor *_r
    cdef list _events
    cdef list _requests
    cdef dict _groups
    cdef dict _offers
    cdef object _negotiate
    cdef tuple _protocols
    cdef list _protocol_bytes
    cdef tuple _kinds
    cdef uint64_t *_full
    cdef uint32_t _full_room

    def __cinit__(
        self, limits, tuple protocols, negotiate, bytes slow, bytes full, int http_sockets
    ) -> None:
        """`negotiate` is that of `uproar.deflate`; `slow` and `full` are whole responses."""
        cdef up_limits c_limits
        cdef up_hooks hooks
        cdef up_text[8] names
        if len(protocols) > 8:
            raise ValueError(f"{len(protocols)} subprotocols; there is room for 8")
        c_limits.handshake_s = limits.handshake_s
        c_limits.handshake_bytes = limits.handshake_bytes
        c_limits.message_bytes = limits.message_bytes
        c_limits.fragments = limits.fragments
        c_limits.connections = limits.connections
        c_limits.connections_per_address = limits.connections_per_address
        c_limits.http_sockets = http_sockets
        c_limits.queue_bytes = limits.queue_bytes
        c_limits.queue_s = limits.queue_s
        c_limits.idle_s = limits.idle_s
        c_limits.commands_per_second = limits.commands_per_second
        c_limits.accepts_per_second = limits.accepts_per_second
        hooks.context = <void *>self
        hooks.negotiate = _negotiated
        hooks.opened = _opened
        hooks.received = _received
        hooks.flooded = _flooded
        hooks.drained = _drained
        hooks.closed = _closed
        hooks.http = _http
        self._r = up_reactor_new(&c_limits, &hooks)
        if self._r == NULL:
            raise OSError(errno, f"the reactor can't be made: {os.strerror(errno)}")
        self._events = []
        self._requests = []
        self._groups = {}
        self._offers = {}
        self._negotiate = negotiate
        self._protocols = protocols
        self._protocol_bytes = [name.encode() for name in protocols]
        for at, name in enumerate(self._protocol_bytes):
            names[at].at = <const char *>name
            names[at].n = len(name)
        up_reactor_protocols(self._r, names, len(protocols))
        if up_reactor_refusals(self._r, slow, len(slow), full, len(full)):
            raise MemoryError
        self._kinds = ()
        self._full = NULL
        self._full_room = 0

    def __dealloc__(self) -> None:
        if self._r != NULL:
            up_reactor_free(self._r)
        PyMem_Free(self._full)

    # -- the loop ---------------------------------------------------------------------------------

    @property
    def fd(self) -> int:
        """A descriptor that is readable when `poll` has something to do."""
        return up_reactor_fd(self._r)

    def listen(self, int fd) -> None:
        """Accept from a listening socket."""
        if up_reactor_listen(self._r, fd):
            raise OSError(errno, os.strerror(errno))

    def unlisten(self) -> None:
        """Take no new connections."""
        up_reactor_unlisten(self._r)

    def hang_up(self) -> None:
        """Hang up on everybody; the passes that follow tell of it."""
        up_reactor_hang_up(self._r)

    def hold_off(self, double seconds) -> None:
        """Take no new connections for a while."""
        up_reactor_hold_off(self._r, seconds)

    def poll(self) -> tuple[list, int, int]:
        """Make one pass; return (what has happened, how many sockets were ready, and drained).

        Those that drained took what had been waiting for them.
        """
        cdef int drained, count = up_reactor_poll(self._r, &drained)
        if count < 0:
            raise OSError(errno, os.strerror(errno))
        return self._take(), count, drained

    def advance(self) -> list:
        """See to timers; return what has happened."""
        up_reactor_advance(self._r)
        return self._take()

    def flush(self) -> None:
        """Send the handshakes that were told of, with what was added to them."""
        up_reactor_flush(self._r)

    def requests(self) -> list[tuple[int, bytes, str]]:
        """Return the (descriptor, bytes read, address) of what is for the HTTP server."""
        taken, self._requests = self._requests, []
        return taken

    cdef list _take(self):
        taken, self._events = self._events, []
        if self._groups:
            self._groups = {}
        return taken

    # -- settings and counters --------------------------------------------------------------------

    def count_reactions(self, tuple kinds, uint32_t most) -> None:
        """Count REACTs of these kinds, with a count of at most so many, without asking."""
        cdef up_text[32] names
        if len(kinds) > UP_KINDS_MAX:
            raise ValueError(f"{len(kinds)} kinds of reaction; at most {UP_KINDS_MAX} are counted")
        encoded = [kind.encode() for kind in kinds]
        for at, kind in enumerate(encoded):
            names[at].at = <const char *>kind
            names[at].n = len(kind)
        if up_reactor_kinds(self._r, names, len(encoded), most):
            raise MemoryError
        self._kinds = kinds

    def check_origin(self, bint check) -> None:
        """Whether a viewer from a page of any origin is no plain one."""
        up_reactor_check_origin(self._r, check)

    def trust(self, bytes networks) -> None:
        """Believe X-Forwarded-For from these networks (`gateway.engine.forwarded.Proxies.packed`)."""
        if up_reactor_trust(self._r, <const uint8_t *><const char *>networks, len(networks) // 17):
            raise MemoryError

    def handed(self, int by) -> None:
        """Say how many more sockets the HTTP server has."""
        up_reactor_handed(self._r, by)

    def refuses(self, str address) -> bool:
        """Whether there is room for no more sessions, in all or of this address."""
        return up_reactor_refuses(self._r, address.encode()) != 0

    def counters(self) -> dict[str, int]:
        """Return what was counted since the start, and what is open now."""
        return up_reactor_counters(self._r)[0]

    # -- connections handed back ------------------------------------------------------------------

    def adopt(
        self, int fd, str framing, bint deflate, str address, request, bytes first
    ) -> int:
        """Own a connection that has been answered; `request` is told of as `Opened`."""
        cdef uint64_t sid = up_reactor_adopt(
            self._r, fd, FRAMINGS.index(framing), deflate, address.encode())
        if not sid:
            raise OSError(errno, os.strerror(errno))
        self._events.append(Opened(sid, request))
        if first:
            up_reactor_feed(self._r, sid, first, len(first))
        return sid

    def take(self) -> list:
        """Return what has happened outside of `poll`."""
        return self._take()

    # -- audiences --------------------------------------------------------------------------------

    def audience(self, str framing, str compression) -> int:
        """Return the number of a new audience."""
        number = up_audience_new(
            self._r, FRAMINGS.index(framing), COMPRESSIONS.index(compression))
        if not number:
            raise MemoryError
        return number

    def forget(self, uint64_t audience) -> None:
        """Drop an audience."""
        up_audience_free(self._r, audience)

    def members(self, uint64_t audience) -> int:
        """Return how many sessions an audience has."""
        return up_audience_members(self._r, audience)

    def sent_to(self, uint64_t audience) -> int:
        """Return how many bytes its members took from `broadcast`."""
        return up_audience_sent(self._r, audience)

    def on_window(self, uint64_t audience) -> int:
        """Return how many of them read its shared window."""
        return up_audience_on_window(self._r, audience)

    def sids(self, uint64_t audience) -> list[int]:
        """Return the members of an audience."""
        cdef uint32_t count = up_audience_members(self._r, audience)
        self._room(count)
        count = up_audience_sids(self._r, audience, self._full, count)
        return [self._full[at] for at in range(count)]

    def audience_of(self, uint64_t sid) -> int:
        """Return an audience that a session is in, 0 for none."""
        return up_session_audience(self._r, sid)

    def join(self, uint64_t sid, uint64_t audience) -> None:
        """Add a session to an audience."""
        if up_session_join(self._r, sid, audience):
            raise MemoryError

    def leave(self, uint64_t sid, uint64_t audience) -> None:
        """Take a session out of an audience."""
        up_session_leave(self._r, sid, audience)

    def stands(self, uint64_t audience, int64_t position) -> None:
        """Say what PONG is to tell the members."""
        up_audience_stands(self._r, audience, position)

    cdef int _room(self, uint32_t count) except -1:
        if count > self._full_room:
            grown = <uint64_t *>PyMem_Realloc(self._full, count * sizeof(uint64_t))
            if grown == NULL:
                raise MemoryError
            self._full = grown
            self._full_room = count
        return 0

    # -- sending ----------------------------------------------------------------------------------

    def broadcast(self, uint64_t audience, bytes payload, skip=()) -> list[int]:
        """Queue one message for all members but `skip`; return those whose queue is full."""
        cdef uint32_t count = up_audience_members(self._r, audience), skipped = 0
        cdef int full
        if not count:
            return []
        # Those to skip lie behind the room for all members.
        self._room(count + len(skip))
        for sid in skip:
            self._full[count + skipped] = sid
            skipped += 1
        full = up_audience_broadcast(
            self._r, audience, payload, len(payload), self._full + count, skipped, self._full)
        if full < 0:
            raise MemoryError
        return [self._full[at] for at in range(full)] if full else []

    def send(self, uint64_t sid, bytes payload) -> bool:
        """Queue a message for one session; False when its queue is full."""
        taken = up_session_send(self._r, sid, payload, len(payload))
        if taken < 0:
            raise MemoryError
        return taken == 1

    def prepare(self, uint64_t audience, bytes payload) -> Message:
        """Return a message in the form of an audience that refers to no other."""
        message = Message()
        message._buffer = up_audience_pack(self._r, audience, payload, len(payload))
        if message._buffer == NULL:
            raise MemoryError
        return message

    def admit(
        self, sids, uint64_t audience, bytes greeting, int64_t sid_at=-1, Message backlog=None
    ) -> list[int]:
        """Greet sessions and let them join; return those whose queue is full."""
        cdef up_buffer *behind = backlog._buffer if backlog is not None else NULL
        cdef int taken
        full = []
        for sid in sids:
            taken = up_session_admit(
                self._r, sid, audience, greeting, len(greeting), sid_at, behind)
            if taken < 0:
                raise MemoryError
            if not taken:
                full.append(sid)
        return full

    # -- sessions ---------------------------------------------------------------------------------

    def charge(self, uint64_t sid) -> bool:
        """Count one command; False when there were too many in this second."""
        return up_session_charge(self._r, sid) != 0

    def exempt(self, uint64_t sid) -> None:
        """Let a session send as many commands as it likes."""
        up_session_exempt(self._r, sid)

    def reacts(self, uint64_t sid, uint32_t counter) -> None:
        """Count a session's REACTs at a counter."""
        up_session_reacts(self._r, sid, counter)

    def reactions(self) -> dict[int, dict[str, int]]:
        """Return {counter: {kind: sum}} since the last call."""
        cdef uint64_t[32] sums
        cdef uint32_t counter
        found = {}
        while True:
            counter = up_reactions_next(self._r, sums)
            if not counter:
                return found
            found[counter] = {
                kind: sums[at] for at, kind in enumerate(self._kinds) if sums[at]
            }

    def close(self, uint64_t sid, int code, str reason) -> None:
        """Send a close frame behind what is queued."""
        cdef bytes text = reason.encode("utf-8", "replace")
        up_session_close(self._r, sid, code, text, len(text))

    def farewell(self, uint64_t sid, bytes last) -> None:
        """Send the last bytes of a connection without frames."""
        up_session_farewell(self._r, sid, last, len(last))


# -- hooks: nothing in them calls the reactor, and none lets an exception through -----------------


cdef int _negotiated(
    void *context, const char *offers, size_t n, const char **answer, size_t *answer_n
) noexcept:
    reactor = <Reactor>context
    cdef bytes header = PyBytes_FromStringAndSize(offers, n)
    cdef bytes said
    try:
        found = reactor._offers.get(header)
        if found is None:
            if len(reactor._offers) >= OFFERS_MAX:
                reactor._offers.clear()
            try:
                answered, compression = reactor._negotiate(header.decode("latin-1"))
                found = ((answered or "").encode("latin-1"), COMPRESSIONS.index(compression))
            except ValueError:
                found = (b"", -1)
            reactor._offers[header] = found
        said = found[0]
        answer[0] = said  # kept by the dictionary until the caller has copied it
        answer_n[0] = len(said)
        return found[1]
    except Exception:
        return -1


cdef void _opened(
    void *context, uint64_t sid, int plain, const up_head *head, int protocol, int compression,
    const char *address,
) noexcept:
    reactor = <Reactor>context
    cdef bytes key = b""
    if plain:
        key = b"%d %d %b?%b" % (
            protocol, compression, head.path.at[:head.path.n], head.query.at[:head.query.n])
        group = reactor._groups.get(key)
        if group is not None:
            group.append(sid)
            return
    headers = {}
    if head.authorization.at != NULL:
        headers["authorization"] = _text(head.authorization)
    if head.protocols.at != NULL:
        headers["sec-websocket-protocol"] = _text(head.protocols)
    if head.origin.at != NULL:
        headers["origin"] = _text(head.origin)
    if head.forwarded.at != NULL:
        headers["x-forwarded-for"] = _text(head.forwarded)
    request = Request(
        _text(head.path), _text(head.query), headers, address.decode(),
        reactor._protocols[protocol] if protocol >= 0 else None,
        COMPRESSIONS[compression],
    )
    if plain:
        reactor._groups[key] = [sid]
        reactor._events.append(Arrived(reactor._groups[key], request))
    else:
        reactor._events.append(Opened(sid, request))


cdef void _received(
    void *context, uint64_t sid, int text, const uint8_t *data, size_t n
) noexcept:
    if text:
        said = PyUnicode_DecodeUTF8(<const char *>data, n, NULL)
    else:
        said = PyBytes_FromStringAndSize(<const char *>data, n)
    (<Reactor>context)._events.append(Received(sid, said))


cdef void _flooded(void *context, uint64_t sid) noexcept:
    (<Reactor>context)._events.append(Flooded(sid))


cdef void _drained(void *context, uint64_t sid) noexcept:
    (<Reactor>context)._events.append(Drained(sid))


cdef void _closed(void *context, uint64_t sid, int code, uint64_t audience) noexcept:
    (<Reactor>context)._events.append(Closed(sid, code, audience))


cdef void _http(
    void *context, int fd, const uint8_t *data, size_t n, const char *address
) noexcept:
    (<Reactor>context)._requests.append(
        (fd, PyBytes_FromStringAndSize(<const char *>data, n), address.decode()))

# cython: language_level=3
"""The compiled swarm: `swarm.c` for Python. Python starts it, asks it and stops it.

`run` gives the GIL up; only the digest of a message that nobody got before takes it again. A Swarm
belongs to one thread.
"""

from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset


cdef extern from "swarm.h":
    enum: UP_BUCKETS
    ctypedef struct up_swarm
    ctypedef struct up_counts:
        int64_t connects, shaken, welcomed, refused, failed, ended, cut, left
        int64_t deflated, frames, messages, bytes
        int64_t comments, historical, repeats, gaps, totals, totals_sum, acks, rejected
        int64_t malformed, uninflatable, decoded
        int64_t sent, blocked, pings, pongs, late_ns
        int64_t last_status, last_close, last_errno
    ctypedef struct up_plan:
        uint32_t address
        uint16_t port
        uint32_t count
        int raw, binary
        uint32_t decode_every, read_bytes_s
        int never_reads, receive_buffer
        uint32_t at_once
        double rate
        uint64_t churn
        uint32_t stream
        char accept[29]
    ctypedef int (*up_digest)(void *self, const uint8_t *payload, size_t n, int binary) noexcept
    up_swarm *up_swarm_new(up_digest digest, void *self)
    void up_swarm_free(up_swarm *swarm)
    int up_swarm_add(up_swarm *swarm, const up_plan *plan, const uint8_t *heads,
                     const uint64_t *ends, size_t head_count)
    int up_swarm_send(up_swarm *swarm, int group, int opcode, const uint8_t *payload, size_t n,
                      int stamp_at, int nonce_at, double rate, uint64_t total)
    uint64_t up_swarm_stop(up_swarm *swarm, int group, int job)
    void up_swarm_fact(up_swarm *swarm, int kind, int64_t offset, int64_t to, uint64_t stamp_ns)
    int up_swarm_run(up_swarm *swarm, int milliseconds) nogil
    void up_swarm_close(up_swarm *swarm, int group, uint32_t keep, int mode)
    const up_counts *up_swarm_counts(up_swarm *swarm, int group)
    const uint64_t *up_swarm_latencies(up_swarm *swarm, int group)
    uint64_t up_swarm_bucket_ns(int bucket)
    int64_t up_swarm_missing(up_swarm *swarm, int group)
    void up_swarm_positions(up_swarm *swarm, int group, int64_t *least, int64_t *most)
    void up_swarm_spread(up_swarm *swarm, int group, int64_t *least, int64_t *most)
    uint32_t up_swarm_standing(up_swarm *swarm, int group, int welcomed)
    int64_t up_swarm_lag_ns(up_swarm *swarm)
    int64_t up_swarm_offsets(up_swarm *swarm, uint32_t stream)
    void up_swarm_reset(up_swarm *swarm)


cdef int _digest(void *self, const uint8_t *payload, size_t n, int binary) noexcept with gil:
    cdef Swarm swarm = <Swarm>self
    try:
        facts = swarm._look((<const char *>payload)[:n], bool(binary))
        if facts is None:
            return -1
        for kind, offset, to, stamp_ns in facts:
            up_swarm_fact(swarm._swarm, kind, offset, to, stamp_ns)
        return 0
    except BaseException as error:
        swarm._error = error
        return -1


cdef class Swarm:
    """Groups of members over one loop.

    `look(payload, binary)` returns the facts of a message, (kind, offset, to, stamp_ns) each, or
    None for one that is malformed; what it raises comes out of `run`.
    """

    cdef up_swarm *_swarm
    cdef object _look, _error
    cdef int _groups

    def __cinit__(self, look):
        self._look = look
        self._swarm = up_swarm_new(_digest, <void *>self)
        if self._swarm == NULL:
            raise MemoryError("no memory, or no more files, for a swarm")

    def __dealloc__(self):
        up_swarm_free(self._swarm)

    cdef int _known(self, int group) except -1:
        if self._swarm == NULL or not 0 <= group < self._groups:
            raise ValueError(f"there is no group {group}")
        return 0

    def add(
        self, uint32_t address, uint16_t port, uint32_t count, list heads, bytes accept, *,
        bint raw=False, bint binary=False, uint32_t decode_every=0, uint32_t read_bytes_s=0,
        bint never_reads=False, int receive_buffer=0, uint32_t at_once=64, double rate=0.0,
        uint64_t churn=0, uint32_t stream=0,
    ):
        """Add members that connect as the loop runs; return their group's number."""
        if self._swarm == NULL:
            raise ValueError("the swarm is closed")
        if not raw and (not heads or len(accept) != 28):
            raise ValueError("a handshake needs a request and the 28 characters of its accept key")
        if stream > 1000 or at_once < 1:
            raise ValueError("stream is at most 1,000, at_once at least 1")
        cdef up_plan plan
        memset(&plan, 0, sizeof(plan))
        plan.address, plan.port, plan.count = address, port, count
        plan.raw, plan.binary, plan.decode_every = raw, binary, decode_every
        plan.read_bytes_s, plan.never_reads = read_bytes_s, never_reads
        plan.receive_buffer, plan.at_once, plan.rate = receive_buffer, at_once, rate
        plan.churn, plan.stream = churn, stream
        memcpy(plan.accept, <const char *>accept, len(accept))
        cdef bytes blob = b"".join(heads)
        cdef size_t n = len(heads), i
        cdef uint64_t end = 0
        cdef uint64_t *ends = <uint64_t *>malloc((n + 1) * sizeof(uint64_t))
        if ends == NULL:
            raise MemoryError
        for i in range(n):
            end += <uint64_t>len(heads[i])
            ends[i] = end
        cdef int group = up_swarm_add(self._swarm, &plan, blob, ends, n)
        free(ends)
        if group < 0:
            raise MemoryError(f"no memory for {count} members")
        self._groups += 1
        return group

    def send(
        self, int group, int opcode, bytes payload, double rate, *,
        uint64_t total=0, int stamp_at=-1, int nonce_at=-1,
    ):
        """Have a group's members send in turn, `rate` a second in all; return the job's number."""
        self._known(group)
        if rate <= 0:
            raise ValueError("a rate is above 0")
        for place in (stamp_at, nonce_at):
            if place >= 0 and place + 16 > len(payload):
                raise ValueError("16 characters do not fit there")
        job = up_swarm_send(self._swarm, group, opcode, payload, len(payload), stamp_at, nonce_at,
                            rate, total)
        if job < 0:
            raise ValueError("4 jobs at once and 4,000 bytes are the most")
        return job

    def stop(self, int group, int job):
        """End a job; return how many messages it sent."""
        self._known(group)
        if not 0 <= job < 4:
            raise ValueError(f"there is no job {job}")
        return up_swarm_stop(self._swarm, group, job)

    def run(self, int milliseconds):
        """Run for so long; return the passes made. Raises what `look` raised, and OSError."""
        if self._swarm == NULL:
            raise ValueError("the swarm is closed")
        cdef int passes
        with nogil:
            passes = up_swarm_run(self._swarm, milliseconds)
        if self._error is not None:
            error, self._error = self._error, None
            raise error
        if passes < 0:
            raise OSError("epoll failed")
        return passes

    def close_members(self, int group, uint32_t keep=0, int mode=0):
        """Close a group's members but the first `keep`: 0 by a close frame, 1 FIN, 2 RST."""
        self._known(group)
        up_swarm_close(self._swarm, group, keep, mode)

    def counts(self, int group):
        """Return a group's counters since the reset, and how its members stand."""
        self._known(group)
        cdef int64_t least, most, first, last
        up_swarm_spread(self._swarm, group, &least, &most)
        up_swarm_positions(self._swarm, group, &first, &last)
        cdef dict found = dict(up_swarm_counts(self._swarm, group)[0])
        found.update(
            open=up_swarm_standing(self._swarm, group, 0),
            live=up_swarm_standing(self._swarm, group, 1),
            missing=up_swarm_missing(self._swarm, group),
            messages_least=least, messages_most=most,
            position_least=first, position_most=last,
        )
        return found

    def latencies(self, int group):
        """Return [upper bound in ns, count] of the histogram's buckets that are not empty."""
        self._known(group)
        cdef const uint64_t *counts = up_swarm_latencies(self._swarm, group)
        cdef int i
        return [[up_swarm_bucket_ns(i), counts[i]] for i in range(UP_BUCKETS) if counts[i]]

    def offsets(self, uint32_t stream=0):
        """Return how many different live offsets of a stream its decoding members saw."""
        return up_swarm_offsets(self._swarm, stream) if self._swarm != NULL else 0

    @property
    def lag_ns(self):
        """The longest pass since the reset: so late a member may have been read."""
        return up_swarm_lag_ns(self._swarm) if self._swarm != NULL else 0

    def reset(self):
        """Start all counters and histograms anew; what members know of their stream stays."""
        if self._swarm != NULL:
            up_swarm_reset(self._swarm)

    def close(self):
        """Close all sockets."""
        up_swarm_free(self._swarm)
        self._swarm = NULL
        self._groups = 0

# cython: language_level=3
"""The bare sender: what `send` alone costs, for ratios. The GIL is given up while it runs."""

from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc


cdef extern from "bare.h":
    ctypedef struct up_bare:
        int64_t sends, blocked, partial, cpu_ns, wall_ns, late_ns
    void up_bare_run(const int *sockets, size_t count, const uint8_t *data, size_t n, double rate,
                     int64_t rounds, up_bare *found) nogil


def run(sockets, bytes data, double rate, int64_t rounds):
    """Send the bytes to every socket (file numbers) `rounds` times; return what it cost."""
    cdef size_t count = len(sockets), n = len(data), i
    cdef const uint8_t *begin = data
    cdef up_bare found
    cdef int *numbers = <int *>malloc((count + 1) * sizeof(int))
    if numbers == NULL:
        raise MemoryError
    try:
        for i in range(count):
            numbers[i] = sockets[i]
        with nogil:
            up_bare_run(numbers, count, begin, n, rate, rounds, &found)
    finally:
        free(numbers)
    return {
        "sends": found.sends, "blocked": found.blocked, "partial": found.partial,
        "cpu_ns": found.cpu_ns, "wall_ns": found.wall_ns, "late_ns": found.late_ns,
    }

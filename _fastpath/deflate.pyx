"""permessage-deflate in C (`deflate.c`), for tests and for what has no C of its own.

`uproar.deflate` is the reference. The GIL is held throughout; each call owns its buffers, and a
message costs one allocation of its output.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc

from uproar.deflate import LEVEL_MANY, DeflateError, TooBig

cdef extern from "deflate.h":
    ctypedef struct up_window:
        pass
    up_window *up_window_new()
    void up_window_free(up_window *window)
    size_t up_window_message(
        up_window *window, int level, int keyframe,
        const uint8_t *data, size_t n, uint8_t *out, size_t room)
    size_t up_each_message(int level, const uint8_t *data, size_t n, uint8_t *out, size_t room)
    int up_inflate(const uint8_t *data, size_t n, uint8_t *out, size_t room, size_t *out_n)
    const char *up_deflate_build()
    size_t UP_DEFLATE_ROOM(size_t n)
    int UP_INFLATED, UP_INFLATE_TOO_BIG


cdef extern from *:
    """
    #ifndef __VERSION__
    #define __VERSION__ "unknown"
    #endif
    #ifdef __clang__
    #define UP_COMPILER __VERSION__
    #else
    #define UP_COMPILER "gcc " __VERSION__
    #endif
    """
    const char *UP_COMPILER
    const char *UPROAR_SWITCHES

LIBRARIES = up_deflate_build().decode()
COMPILER = UP_COMPILER.decode()
SWITCHES = UPROAR_SWITCHES.decode()


cdef class Window:
    """The shared window: one deflate stream whose messages refer to earlier ones."""

    cdef up_window *_window

    def __cinit__(self) -> None:
        self._window = up_window_new()
        if self._window == NULL:
            raise MemoryError("no memory for a shared window")

    def __dealloc__(self) -> None:
        up_window_free(self._window)

    def message(self, bytes payload, int level, *, bint keyframe=False) -> bytes:
        """Return the next message's payload; a keyframe refers to nothing before it.

        The level counts from now on, but levels up to 1 and those above change places at a
        keyframe only.
        """
        cdef size_t n = len(payload), made
        cdef size_t room = UP_DEFLATE_ROOM(n)
        cdef uint8_t *out = <uint8_t *>malloc(room)
        if out == NULL:
            raise MemoryError(f"no memory for a message of {n} bytes")
        try:
            made = up_window_message(
                self._window, level, keyframe, <const uint8_t *>PyBytes_AS_STRING(payload), n,
                out, room)
            return _made(out, made)
        finally:
            free(out)


def compress(bytes payload, int level=LEVEL_MANY) -> bytes:
    """Return a message's payload compressed by itself, for a frame with RSV1."""
    cdef size_t n = len(payload), made
    cdef size_t room = UP_DEFLATE_ROOM(n)
    cdef uint8_t *out = <uint8_t *>malloc(room)
    if out == NULL:
        raise MemoryError(f"no memory for a message of {n} bytes")
    try:
        made = up_each_message(
            level, <const uint8_t *>PyBytes_AS_STRING(payload), n, out, room)
        return _made(out, made)
    finally:
        free(out)


def inflate(bytes data, size_t limit) -> bytes:
    """Return the payload of a compressed message, of at most `limit` bytes.

    Raises TooBig, and DeflateError for what is no whole deflate stream or has bytes behind its end.
    """
    cdef size_t made = 0
    cdef uint8_t *out = <uint8_t *>malloc(limit + 1)  # malloc(0) may be NULL
    if out == NULL:
        raise MemoryError(f"no memory for a message of {limit} bytes")
    try:
        code = up_inflate(
            <const uint8_t *>PyBytes_AS_STRING(data), len(data), out, limit, &made)
        if code == UP_INFLATED:
            return PyBytes_FromStringAndSize(<char *>out, <Py_ssize_t>made)
        if code == UP_INFLATE_TOO_BIG:
            raise TooBig(f"a message that inflates to more than {limit} bytes")
        raise DeflateError("a compressed message that is no whole deflate stream")
    finally:
        free(out)


cdef bytes _made(const uint8_t *out, size_t size):
    if size == 0:
        raise DeflateError("a message that could not be compressed")
    return PyBytes_FromStringAndSize(<const char *>out, <Py_ssize_t>size)

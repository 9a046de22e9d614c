"""The C of the reactor (`reactor.h`), as Cython sees it."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "head.h":
    ctypedef struct up_text:
        const char *at
        size_t n
    ctypedef struct up_head:
        up_text path, query, protocols, authorization, origin, forwarded

cdef extern from "frames.h":
    const char *up_unmask_build()

cdef extern from "reactor.h":
    ctypedef struct up_limits:
        double handshake_s
        size_t handshake_bytes
        size_t message_bytes
        uint32_t fragments
        uint32_t connections
        uint32_t connections_per_address
        uint32_t http_sockets
        size_t queue_bytes
        double queue_s
        double idle_s
        uint32_t commands_per_second
        uint32_t accepts_per_second

    ctypedef struct up_hooks:
        void *context
        int (*negotiate)(void *, const char *, size_t, const char **, size_t *) noexcept
        void (*opened)(
            void *, uint64_t, int, const up_head *, int, int, const char *) noexcept
        void (*received)(void *, uint64_t, int, const uint8_t *, size_t) noexcept
        void (*flooded)(void *, uint64_t) noexcept
        void (*drained)(void *, uint64_t) noexcept
        void (*closed)(void *, uint64_t, int, uint64_t) noexcept
        void (*http)(void *, int, const uint8_t *, size_t, const char *) noexcept

    ctypedef struct up_counters:
        uint64_t frames_sent, bytes_sent, bytes_received, accepted, refused, handshakes, commands
        uint64_t keyframes, compressed_in, compressed_out
        uint32_t open
        uint32_t sockets

    ctypedef struct up_reactor:
        pass
    ctypedef struct up_buffer:
        pass

    int UP_PASS_SOCKETS, UP_SID_DIGITS, UP_KINDS_MAX
    up_reactor *up_reactor_new(const up_limits *, const up_hooks *)
    void up_reactor_free(up_reactor *)
    void up_reactor_hang_up(up_reactor *)
    void up_reactor_protocols(up_reactor *, const up_text *, int)
    int up_reactor_refusals(up_reactor *, const char *, size_t, const char *, size_t)
    int up_reactor_kinds(up_reactor *, const up_text *, int, uint32_t)
    void up_reactor_check_origin(up_reactor *, int)
    int up_reactor_trust(up_reactor *, const uint8_t *, uint32_t)
    int up_reactor_fd(const up_reactor *)
    int up_reactor_listen(up_reactor *, int)
    void up_reactor_unlisten(up_reactor *)
    void up_reactor_hold_off(up_reactor *, double)
    void up_reactor_handed(up_reactor *, int)
    const up_counters *up_reactor_counters(const up_reactor *)
    int up_reactor_poll(up_reactor *, int *drained)
    void up_reactor_flush(up_reactor *)
    void up_reactor_advance(up_reactor *)
    int up_reactor_refuses(up_reactor *, const char *)
    uint64_t up_reactor_adopt(up_reactor *, int, int, int, const char *)
    void up_reactor_feed(up_reactor *, uint64_t, const uint8_t *, size_t)
    uint64_t up_audience_new(up_reactor *, int, int)
    void up_audience_free(up_reactor *, uint64_t)
    uint32_t up_audience_members(const up_reactor *, uint64_t)
    uint64_t up_audience_sent(const up_reactor *, uint64_t)
    uint32_t up_audience_on_window(const up_reactor *, uint64_t)
    uint32_t up_audience_sids(const up_reactor *, uint64_t, uint64_t *, uint32_t)
    void up_audience_stands(up_reactor *, uint64_t, int64_t)
    int up_audience_broadcast(
        up_reactor *, uint64_t, const uint8_t *, size_t, const uint64_t *, uint32_t, uint64_t *)
    up_buffer *up_audience_pack(up_reactor *, uint64_t, const uint8_t *, size_t)
    void up_release(up_buffer *)
    size_t up_buffer_size(const up_buffer *)
    int up_session_join(up_reactor *, uint64_t, uint64_t)
    void up_session_leave(up_reactor *, uint64_t, uint64_t)
    uint64_t up_session_audience(const up_reactor *, uint64_t)
    int up_session_send(up_reactor *, uint64_t, const uint8_t *, size_t)
    int up_session_admit(
        up_reactor *, uint64_t, uint64_t, const uint8_t *, size_t, int64_t, up_buffer *)
    int up_session_charge(up_reactor *, uint64_t)
    void up_session_exempt(up_reactor *, uint64_t)
    void up_session_reacts(up_reactor *, uint64_t, uint32_t)
    void up_session_close(up_reactor *, uint64_t, int, const char *, size_t)
    void up_session_farewell(up_reactor *, uint64_t, const uint8_t *, size_t)
    uint32_t up_reactions_next(up_reactor *, uint64_t *)
    size_t up_reactor_viewer_bytes()

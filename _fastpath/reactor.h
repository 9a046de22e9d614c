/* The reactor: the connections of one process over one epoll, and the audiences they are in.
 *
 * The loop's contract. One thread; the caller holds the GIL in every call. A pass (`up_reactor_poll`) takes at most
 * UP_PASS_SOCKETS ready sockets, one read of at most 16 KB each and ACCEPTS_PER_PASS connections, and takes none up
 * after PASS_MS, then returns: what is left is ready still. What happens is told by the hooks, which must not call the reactor. Sending is
 * done where it is asked for; what a socket does not take is kept as a reference to the shared buffer and sent by a
 * later pass.
 *
 * Who owns what. A connection is a slot of a slab; its sid is slot and generation, so an old sid finds nothing. A
 * buffer belongs to everybody who counts a reference. An audience owns its deflate stream. Read buffers live while a
 * head, frame or message is incomplete. An idle viewer costs one `conn`, 8 bytes in its audience, 12 for being in it.
 *
 * Times are monotonic. */
#ifndef UPROAR_REACTOR_H
#define UPROAR_REACTOR_H
#include <stddef.h>
#include <stdint.h>

#include "head.h"

typedef struct {
    double handshake_s;
    size_t handshake_bytes;
    size_t message_bytes;
    uint32_t fragments;
    uint32_t connections;
    uint32_t connections_per_address;
    uint32_t http_sockets; /* besides the WebSockets: requests, and handshakes under way */
    size_t queue_bytes;
    double queue_s;
    double idle_s;
    uint32_t commands_per_second;
    uint32_t accepts_per_second;
} up_limits;

enum { UP_FRAMING_TEXT = 0, UP_FRAMING_BINARY = 1, UP_FRAMING_RAW = 2 };
enum { UP_COMPRESS_NONE = 0, UP_COMPRESS_EACH = 1, UP_COMPRESS_WINDOW = 2, UP_COMPRESS_UNUSED = 3 /* by us */ };

#define UP_PASS_SOCKETS 256 /* that one pass looks at, at most */
#define UP_SID_DIGITS 12
#define UP_KINDS_MAX 32
#define UP_ADDRESS_MAX 46

/* What is told upwards. `context` is the caller's. Bytes are good until the hook returns. */
typedef struct {
    void *context;
    /* Answer the offers of permessage-deflate: a UP_COMPRESS value with the header's value in *answer (kept by the
     * hook for as long as it may be asked again), or -1 for a malformed header. */
    int (*negotiate)(void *context, const char *offers, size_t n, const char **answer, size_t *answer_n);
    /* A handshake is complete; `protocol` is the index of the subprotocol, -1 for none. */
    void (*opened)(void *context, uint64_t sid, int plain, const up_head *head, int protocol, int compression,
                   const char *address);
    void (*received)(void *context, uint64_t sid, int text, const uint8_t *data, size_t n);
    void (*flooded)(void *context, uint64_t sid);
    void (*drained)(void *context, uint64_t sid);
    void (*closed)(void *context, uint64_t sid, int code, uint64_t audience);
    /* A request that is for the HTTP server: the descriptor is the hook's, with what has been read of it. */
    void (*http)(void *context, int fd, const uint8_t *data, size_t n, const char *address);
} up_hooks;

/* Counters, read by whoever likes. */
typedef struct {
    uint64_t frames_sent, bytes_sent, bytes_received, accepted, refused, handshakes, commands, keyframes;
    uint64_t compressed_in, compressed_out; /* bytes of payloads, before and after */
    uint32_t open;    /* sessions */
    uint32_t sockets; /* of any state, listeners not among them */
} up_counters;

typedef struct up_reactor up_reactor;

/* A message that many connections share; made by up_pack, let go by up_release. */
typedef struct up_buffer up_buffer;

up_reactor *up_reactor_new(const up_limits *limits, const up_hooks *hooks); /* NULL: errno says why */
void up_reactor_free(up_reactor *r); /* closes everything that is open */

void up_reactor_hang_up(up_reactor *r); /* on everybody; the passes that follow tell of it */

/* Subprotocols in the order of preference; the first is text, the others binary. Names are the caller's to keep. */
void up_reactor_protocols(up_reactor *r, const up_text *names, int count);
/* Whole HTTP responses for what is refused without asking the HTTP server. Copied. -1: no memory. */
int up_reactor_refusals(up_reactor *r, const char *slow, size_t slow_n, const char *full, size_t full_n);
/* The kinds of REACT that are counted, and the largest count of one. Copied. */
int up_reactor_kinds(up_reactor *r, const up_text *kinds, int count, uint32_t most);
/* Whether a request with an Origin is plain: no where some origins are let in and others not. */
void up_reactor_check_origin(up_reactor *r, int check);

/* Networks whose X-Forwarded-For counts, 17 bytes each: an address (IPv4 as ::ffff:a.b.c.d) and how many of its bits.
 * Copied. -1: no memory. */
int up_reactor_trust(up_reactor *r, const uint8_t *networks, uint32_t count);

int up_reactor_fd(const up_reactor *r); /* readable when a pass has something to do */
int up_reactor_listen(up_reactor *r, int fd); /* accept from a listening socket; 0, or -1 with errno */
void up_reactor_unlisten(up_reactor *r);
void up_reactor_hold_off(up_reactor *r, double seconds); /* accept nobody for a while */
void up_reactor_handed(up_reactor *r, int by); /* how many more sockets the HTTP server has */
const up_counters *up_reactor_counters(const up_reactor *r);

/* One pass over what is ready now; never waits. Returns how many sockets were looked at, as many as one pass may
 * take where more is waiting, -1 with errno; in *drained how many of them took what had been waiting for them. */
int up_reactor_poll(up_reactor *r, int *drained);
/* Send the handshakes that were told of, each with what its session was greeted with since. */
void up_reactor_flush(up_reactor *r);
/* See to timers that are due; call it ten times a second. */
void up_reactor_advance(up_reactor *r);
/* Whether a new session would be one too many, in all or of an address. */
int up_reactor_refuses(up_reactor *r, const char *address);

/* Take over a connection that has been answered. `framing` is UP_FRAMING_RAW for one without frames, else what the
 * session speaks. Returns its sid, 0 with errno. `first` are bytes that came with the request. */
uint64_t up_reactor_adopt(up_reactor *r, int fd, int framing, int deflate, const char *address);
void up_reactor_feed(up_reactor *r, uint64_t sid, const uint8_t *first, size_t n);

uint64_t up_audience_new(up_reactor *r, int framing, int compression); /* 0: no memory */
void up_audience_free(up_reactor *r, uint64_t audience);
uint32_t up_audience_members(const up_reactor *r, uint64_t audience);
uint64_t up_audience_sent(const up_reactor *r, uint64_t audience); /* bytes that members took of broadcasts */
uint32_t up_audience_on_window(const up_reactor *r, uint64_t audience);
uint32_t up_audience_sids(const up_reactor *r, uint64_t audience, uint64_t *out, uint32_t room);
void up_audience_stands(up_reactor *r, uint64_t audience, int64_t position);
/* Queue one message for all members but those to be skipped; returns how many sids stand in `full` (room for all
 * members), -1 for no memory. */
int up_audience_broadcast(up_reactor *r, uint64_t audience, const uint8_t *payload, size_t n, const uint64_t *skip,
                          uint32_t skip_n, uint64_t *full);
/* A message in the form of an audience that refers to no other; NULL: no memory. */
up_buffer *up_audience_pack(up_reactor *r, uint64_t audience, const uint8_t *payload, size_t n);
void up_release(up_buffer *buffer);
size_t up_buffer_size(const up_buffer *buffer);

int up_session_join(up_reactor *r, uint64_t sid, uint64_t audience); /* -1: no memory */
void up_session_leave(up_reactor *r, uint64_t sid, uint64_t audience);
uint64_t up_session_audience(const up_reactor *r, uint64_t sid);
/* 1 when queued (or the session is gone), 0 when its queue is full, -1 for no memory. */
int up_session_send(up_reactor *r, uint64_t sid, const uint8_t *payload, size_t n);
/* The same for a greeting with the sid written at `sid_at` (negative: nowhere) and a backlog behind it; joins. */
int up_session_admit(up_reactor *r, uint64_t sid, uint64_t audience, const uint8_t *greeting, size_t n, int64_t sid_at,
                     up_buffer *backlog);
int up_session_charge(up_reactor *r, uint64_t sid);
void up_session_exempt(up_reactor *r, uint64_t sid);
void up_session_reacts(up_reactor *r, uint64_t sid, uint32_t counter);
void up_session_close(up_reactor *r, uint64_t sid, int code, const char *reason, size_t n);
void up_session_farewell(up_reactor *r, uint64_t sid, const uint8_t *last, size_t n); /* of one without frames */

/* Give the sums of the next counter that changed, by kind, and set them to 0; its number, 0 for none left. */
uint32_t up_reactions_next(up_reactor *r, uint64_t *sums);

/* Bytes of one connection and its place in one audience. */
size_t up_reactor_viewer_bytes(void);
#endif

/* What the parts of the reactor share: connections, queues, audiences. Nobody else includes it. */
#ifndef UPROAR_INSIDE_H
#define UPROAR_INSIDE_H
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>

#include "deflate.h"
#include "frames.h"
#include "reactor.h"

#define TICK_MS 20 /* of the timing wheel */
#define WHEEL 4096 /* slots: 82 s; what lies further is looked at on the way */
#define SLOT_BITS 20
#define CHUNK_BITS 10
#define NONE UINT32_MAX

/* A shared message. The bytes lie at `at`, with room for a frame's head before them. */
struct up_buffer {
    uint32_t refs, at, n;
    uint8_t compressed;
    uint8_t bytes[];
};

/* One piece of what a socket did not take: from `at` on. */
typedef struct queued {
    struct queued *next;
    up_buffer *buffer;
    uint32_t at;
} queued;

enum { FREE = 0, HEAD, OPEN, RAW, LINGER };

enum {
    TEXT = 1,      /* speaks JSON */
    DEFLATE = 2,   /* agreed on permessage-deflate */
    FULL = 4,      /* its queue has overflowed: nothing more until it drains */
    CLOSING = 8,   /* our last words are queued */
    EXEMPT = 16,   /* from the limit of commands */
    FLOODED = 32,  /* told of */
    ASKED = 64,    /* it was silent and has been sent a ping */
    HELD = 128,    /* its 101, and what the session is greeted with, wait for the end of the pass */
    WRITING = 256, /* epoll says when it takes bytes again */
    SKIP = 512,    /* by the broadcast under way */
    DROPPED = 1024 /* off the window by the broadcast under way */
};

typedef struct {
    int fd;
    uint32_t gen;
    uint8_t state;
    uint16_t flags;
    uint32_t commands;    /* in the second `second` */
    uint32_t second;
    uint32_t counter;     /* of reactions, 0 for none */
    uint32_t place;       /* first of its places in audiences; while FREE, the next free slot */
    uint32_t address;
    uint32_t seen;        /* tick of the last input */
    uint32_t deadline;    /* tick, of HEAD, CLOSING and LINGER */
    uint32_t wheel_prev, wheel_next, wheel_at;
    uint32_t since;       /* ms, when the oldest queued byte was queued */
    uint32_t said;        /* bytes read while RAW or LINGER */
    uint64_t last_audience; /* of one that we close */
    size_t queued_bytes;
    queued *first, *last;
    union {
        up_frames frames; /* OPEN */
        struct {
            uint8_t *data;
            uint32_t n, room;
        } head;           /* HEAD */
    };
} conn;

/* A session's place in an audience: where it stands there, and its next place elsewhere. */
typedef struct {
    uint32_t audience, at, next;
} place;

typedef struct {
    uint32_t slot, place;
} member;

typedef struct {
    uint32_t gen;
    uint8_t used, framing, compression;
    uint32_t n, room;
    uint32_t on;       /* the first so many members are on the window */
    member *members;
    up_window *window; /* made with the first message, while there are fewer than WINDOWS_MAX */
    uint64_t key_ms;   /* of the last keyframe */
    int64_t position;  /* -1: not said */
    uint64_t sent;     /* bytes of broadcasts that members took */
} audience;

typedef struct {
    uint8_t ip[16];
    uint32_t count, sessions, next; /* sockets, and how many of them are sessions */
} address;

#define ADDRESS_BUCKETS 8192

typedef struct {
    uint64_t sums[UP_KINDS_MAX];
    uint8_t changed;
} counter;

struct up_reactor {
    up_limits limits;
    up_frame_limits frame_limits;
    up_hooks hooks;
    up_counters counters;
    int epoll, spare; /* spare: a descriptor to give up when there are no more */
    int listener;
    uint8_t listening, check_origin;
    uint8_t more; /* a socket of this pass has more than was read */
    uint64_t listen_at;    /* ms: not before */
    double accept_tokens;
    uint64_t accept_ms;
    uint32_t handed;
    uint64_t start_ms, now_ms;
    uint32_t tick;         /* that the wheel has come to */

    conn **chunks;
    uint32_t chunk_count, free_slot;
    uint32_t wheel[WHEEL];
    conn *reading;

    place *places;
    uint32_t place_room, free_place;
    audience *audiences;
    uint32_t audience_room, audience_count, windows;
    address *addresses;
    uint32_t address_room, free_address;
    uint32_t buckets[ADDRESS_BUCKETS];
    uint8_t *proxies; /* as up_reactor_trust got them */
    uint32_t proxy_count;

    uint32_t *held; /* slots of this pass whose 101 waits */
    uint32_t held_n, held_room;

    up_text protocols[8];
    int protocol_count;
    up_buffer *slow, *full;
    char *kind_bytes;
    up_text kinds[UP_KINDS_MAX];
    int kind_count;
    uint32_t kind_most;
    counter *sums;
    uint32_t sums_room, sums_at;

    struct epoll_event events[UP_PASS_SOCKETS];
    int event_at, event_n; /* those of the pass before that it had no time for */

    uint8_t *scratch; /* what is read lies here first */
};

/* ---- connections (session.c) ---- */

static inline conn *conn_at(const up_reactor *r, uint32_t slot) {
    return &r->chunks[slot >> CHUNK_BITS][slot & ((1u << CHUNK_BITS) - 1)];
}

static inline uint64_t sid_of(const conn *c, uint32_t slot) { return (uint64_t)c->gen << SLOT_BITS | slot; }

conn *conn_of(const up_reactor *r, uint64_t sid, uint32_t *slot); /* NULL: gone */
conn *conn_new(up_reactor *r, int fd, uint8_t state, const uint8_t ip[16], uint32_t *slot);
int conn_move(up_reactor *r, conn *c, const uint8_t ip[16]); /* before it is a session; -1: no memory */
void conn_destroy(up_reactor *r, conn *c, uint32_t slot); /* closes the descriptor unless it is -1 */
void conn_gone(up_reactor *r, conn *c, uint32_t slot, int code); /* tells, and destroys */
void conn_tell(up_reactor *r, conn *c, uint32_t slot, int code); /* that it is closed */
void conn_linger(up_reactor *r, conn *c, uint32_t slot);  /* the last words are queued: read on for a moment */
void conn_flush(up_reactor *r, conn *c, uint32_t slot);
void conn_schedule(up_reactor *r, conn *c, uint32_t slot, uint32_t at);
void conn_unschedule(up_reactor *r, conn *c, uint32_t slot);
int conn_charge(up_reactor *r, conn *c);

/* Queue buffers for a connection as one: 1 taken, 0 its queue is full, -1 no memory. `always` passes the bounds. */
int conn_write(up_reactor *r, conn *c, uint32_t slot, up_buffer **buffers, int count, int always);
/* The same for a frame of our own. */
int conn_frame(up_reactor *r, conn *c, uint32_t slot, int opcode, const uint8_t *payload, size_t n, int always);
void conn_close(up_reactor *r, conn *c, uint32_t slot, int code, const char *reason, size_t n);

up_buffer *buffer_new(size_t n);                          /* n bytes of room behind that of a head */
up_buffer *buffer_of(int opcode, const uint8_t *payload, size_t n); /* a frame; opcode -1: as it is */
void buffer_framed(up_buffer *buffer, int opcode, int compressed, size_t n);

/* ---- audiences (audience.c) ---- */

audience *audience_of(const up_reactor *r, uint64_t number);
uint64_t audience_number(const up_reactor *r, uint32_t index);
void places_leave(up_reactor *r, conn *c); /* all of them */
void places_off_windows(up_reactor *r, const conn *c);

/* ---- the loop (reactor.c) ---- */

uint64_t clock_ms(void);
static inline uint32_t ticks_of(double seconds) { return (uint32_t)(seconds * 1000 / TICK_MS) + 1; }

#endif

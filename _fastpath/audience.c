/* Audiences: who gets the same bytes, and the one pass that encodes and sends them.
 *
 * The members of a window stand first (`on`): they have all got the same compressed messages. Behind them stand
 * those who wait for a keyframe and get each message by itself. */
#include "inside.h"

#include <time.h>

/* Below so many bytes a message by itself goes as it is: docs/protocol.md, "Compression". */
#define EACH_MIN 200
#define WINDOW_MIN 32       /* below, every message goes beside the window */
#define KEYFRAME_MS 5000    /* those who wait hop on at the latest, */
#define KEYFRAME_MIN_MS 1000 /* and when they are many not more often than this */
#define MANY_WAIT 8
#define WINDOWS_MAX 128     /* of 268 KB each; further audiences get each message by itself */
#define MANY 16             /* members from which on sending takes longer than compressing well */
#define LEVEL_FEW 1
#define LEVEL_MANY 6
#define INDEX_BITS 24

uint64_t clock_ms(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* ---- numbers ----------------------------------------------------------------------------------- */

audience *audience_of(const up_reactor *r, uint64_t number) {
    uint32_t index = (uint32_t)number & ((1u << INDEX_BITS) - 1);
    if (index >= r->audience_count) return NULL;
    audience *found = &r->audiences[index];
    return found->used && found->gen == number >> INDEX_BITS ? found : NULL;
}

uint64_t audience_number(const up_reactor *r, uint32_t index) {
    return (uint64_t)r->audiences[index].gen << INDEX_BITS | index;
}

uint64_t up_audience_new(up_reactor *r, int framing, int compression) {
    uint32_t index = 0;
    while (index < r->audience_count && r->audiences[index].used) index++;
    if (index == r->audience_count) {
        if (index == r->audience_room) {
            uint32_t room = r->audience_room ? 2 * r->audience_room : 16;
            if (room >> INDEX_BITS) return 0;
            audience *audiences = realloc(r->audiences, room * sizeof *audiences);
            if (!audiences) return 0;
            memset(audiences + r->audience_room, 0, (room - r->audience_room) * sizeof *audiences);
            r->audiences = audiences;
            r->audience_room = room;
        }
        r->audience_count++;
    }
    audience *made = &r->audiences[index];
    uint32_t gen = (made->gen + 1) & 0xFFFFFF;
    *made = (audience){.gen = gen ? gen : 1, .used = 1, .framing = (uint8_t)framing,
                       .compression = (uint8_t)compression, .position = -1};
    return audience_number(r, index);
}

static void window_end(up_reactor *r, audience *a) {
    if (a->window) {
        up_window_free(a->window);
        a->window = NULL;
        r->windows--;
    }
    a->on = 0;
}

void up_audience_free(up_reactor *r, uint64_t number) {
    audience *a = audience_of(r, number);
    if (!a) return;
    while (a->n) {
        member *last = &a->members[a->n - 1];
        up_session_leave(r, sid_of(conn_at(r, last->slot), last->slot), number);
    }
    window_end(r, a);
    free(a->members);
    a->members = NULL;
    a->room = 0;
    a->used = 0;
}

uint32_t up_audience_members(const up_reactor *r, uint64_t number) {
    const audience *a = audience_of(r, number);
    return a ? a->n : 0;
}

uint64_t up_audience_sent(const up_reactor *r, uint64_t number) {
    const audience *a = audience_of(r, number);
    return a ? a->sent : 0;
}

uint32_t up_audience_on_window(const up_reactor *r, uint64_t number) {
    const audience *a = audience_of(r, number);
    return a ? a->on : 0;
}

uint32_t up_audience_sids(const up_reactor *r, uint64_t number, uint64_t *out, uint32_t room) {
    const audience *a = audience_of(r, number);
    uint32_t count = a ? a->n < room ? a->n : room : 0;
    for (uint32_t at = 0; at < count; at++) out[at] = sid_of(conn_at(r, a->members[at].slot), a->members[at].slot);
    return count;
}

void up_audience_stands(up_reactor *r, uint64_t number, int64_t position) {
    audience *a = audience_of(r, number);
    if (a) a->position = position;
}

/* ---- places ------------------------------------------------------------------------------------ */

static void put(up_reactor *r, audience *a, uint32_t at, member who) {
    a->members[at] = who;
    r->places[who.place].at = at;
}

/* Move a member behind those on the window. */
static void drop_off(up_reactor *r, audience *a, uint32_t at) {
    if (at >= a->on) return;
    member who = a->members[at];
    put(r, a, at, a->members[--a->on]);
    put(r, a, a->on, who);
}

static void take_out(up_reactor *r, uint32_t index) {
    audience *a = &r->audiences[r->places[index].audience];
    drop_off(r, a, r->places[index].at);
    uint32_t hole = r->places[index].at;
    if (hole != --a->n) put(r, a, hole, a->members[a->n]);
    if (!a->n) window_end(r, a);
    r->places[index].next = r->free_place;
    r->free_place = index;
}

int up_session_join(up_reactor *r, uint64_t sid, uint64_t number) {
    uint32_t slot;
    conn *c = conn_of(r, sid, &slot);
    audience *a = audience_of(r, number);
    if (!c || !a || c->flags & CLOSING) return 0;
    uint32_t index = (uint32_t)(a - r->audiences);
    for (uint32_t at = c->place; at != NONE; at = r->places[at].next)
        if (r->places[at].audience == index) return 0;
    if (r->free_place == NONE) {
        uint32_t room = r->place_room ? r->place_room + r->place_room / 2 : 64;
        place *places = realloc(r->places, room * sizeof *places);
        if (!places) return -1;
        for (uint32_t at = room; at-- > r->place_room;) {
            places[at].next = r->free_place;
            r->free_place = at;
        }
        r->places = places;
        r->place_room = room;
    }
    if (a->n == a->room) {
        uint32_t room = a->room ? a->room + a->room / 2 : 8;
        member *members = realloc(a->members, room * sizeof *members);
        if (!members) return -1;
        a->members = members;
        a->room = room;
    }
    uint32_t at = r->free_place;
    r->free_place = r->places[at].next;
    r->places[at] = (place){.audience = index, .at = a->n, .next = c->place};
    c->place = at;
    a->members[a->n++] = (member){.slot = slot, .place = at};
    return 0;
}

void up_session_leave(up_reactor *r, uint64_t sid, uint64_t number) {
    uint32_t slot;
    conn *c = conn_of(r, sid, &slot);
    audience *a = audience_of(r, number);
    if (!c || !a) return;
    uint32_t index = (uint32_t)(a - r->audiences);
    for (uint32_t *link = &c->place; *link != NONE; link = &r->places[*link].next)
        if (r->places[*link].audience == index) {
            uint32_t found = *link;
            *link = r->places[found].next;
            take_out(r, found);
            return;
        }
}

void places_leave(up_reactor *r, conn *c) {
    while (c->place != NONE) {
        uint32_t first = c->place;
        c->place = r->places[first].next;
        take_out(r, first);
    }
}

/* Before it gets a compressed message that is not of their windows: an inflater remembers one sender. */
static void off_others(up_reactor *r, const conn *c, uint32_t index) {
    for (uint32_t at = c->place; at != NONE; at = r->places[at].next)
        if (r->places[at].audience != index) drop_off(r, &r->audiences[r->places[at].audience], r->places[at].at);
}

void places_off_windows(up_reactor *r, const conn *c) { off_others(r, c, NONE); }

uint64_t up_session_audience(const up_reactor *r, uint64_t sid) {
    uint32_t slot;
    conn *c = conn_of(r, sid, &slot);
    if (!c) return 0;
    return c->place != NONE ? audience_number(r, r->places[c->place].audience) : 0;
}

/* ---- encoding ---------------------------------------------------------------------------------- */

static int opcode_of(const audience *a) {
    return a->framing == UP_FRAMING_RAW ? -1 : a->framing == UP_FRAMING_TEXT ? UP_TEXT : UP_BINARY;
}

static int level_of(const audience *a) { return a->n >= MANY ? LEVEL_MANY : LEVEL_FEW; }

/* A message that refers to no other. */
static up_buffer *pack(up_reactor *r, const audience *a, const uint8_t *payload, size_t n) {
    if (a->compression == UP_COMPRESS_NONE || a->framing == UP_FRAMING_RAW || n < EACH_MIN)
        return buffer_of(opcode_of(a), payload, n);
    up_buffer *buffer = buffer_new(UP_DEFLATE_ROOM(n));
    if (!buffer) return NULL;
    size_t size = up_each_message(level_of(a), payload, n, buffer->bytes + UP_HEAD_MAX, UP_DEFLATE_ROOM(n));
    if (!size || size >= n) {
        up_release(buffer);
        return buffer_of(opcode_of(a), payload, n);
    }
    r->counters.compressed_in += n;
    r->counters.compressed_out += size;
    buffer_framed(buffer, opcode_of(a), 1, size);
    up_buffer *fitting = realloc(buffer, sizeof *buffer + UP_HEAD_MAX + size);
    return fitting ? fitting : buffer;
}

up_buffer *up_audience_pack(up_reactor *r, uint64_t number, const uint8_t *payload, size_t n) {
    const audience *a = audience_of(r, number);
    return a ? pack(r, a, payload, n) : NULL;
}

/* The next message of an audience's window, NULL where there is none: then everybody waits. `key` says that it
 * refers to nothing. */
static up_buffer *on_window(up_reactor *r, audience *a, const uint8_t *payload, size_t n, int *key) {
    if (a->compression != UP_COMPRESS_WINDOW || a->framing == UP_FRAMING_RAW || n < WINDOW_MIN) return NULL;
    if (!a->window) {
        if (r->windows == WINDOWS_MAX || !(a->window = up_window_new())) return NULL;
        r->windows++;
    }
    uint32_t waiting = a->n - a->on;
    uint64_t age = r->now_ms - a->key_ms;
    uint32_t many = a->n / 4 > MANY_WAIT ? a->n / 4 : MANY_WAIT;
    *key = !a->on || (waiting && (age >= KEYFRAME_MS || (waiting >= many && age >= KEYFRAME_MIN_MS)));
    up_buffer *buffer = buffer_new(UP_DEFLATE_ROOM(n));
    size_t size = buffer ? up_window_message(a->window, level_of(a), *key, payload, n, buffer->bytes + UP_HEAD_MAX,
                                             UP_DEFLATE_ROOM(n))
                         : 0;
    if (!size) { /* the stream is lost: all wait for the first keyframe of a new one */
        up_release(buffer);
        window_end(r, a);
        return NULL;
    }
    if (*key) {
        a->key_ms = r->now_ms;
        r->counters.keyframes++;
    }
    r->counters.compressed_in += n;
    r->counters.compressed_out += size;
    buffer_framed(buffer, opcode_of(a), 1, size);
    up_buffer *fitting = realloc(buffer, sizeof *buffer + UP_HEAD_MAX + size);
    return fitting ? fitting : buffer;
}

/* ---- sending ----------------------------------------------------------------------------------- */

static void set_skipped(up_reactor *r, const uint64_t *skip, uint32_t skip_n, int set) {
    for (uint32_t at = 0; at < skip_n; at++) {
        uint32_t slot;
        conn *c = conn_of(r, skip[at], &slot);
        if (c) c->flags = (uint16_t)(set ? c->flags | SKIP : c->flags & ~SKIP);
    }
}

int up_audience_broadcast(up_reactor *r, uint64_t number, const uint8_t *payload, size_t n, const uint64_t *skip,
                          uint32_t skip_n, uint64_t *full) {
    audience *a = audience_of(r, number);
    if (!a || !a->n) return 0;
    r->now_ms = clock_ms();
    int key = 0, full_n = 0;
    up_buffer *windowed = on_window(r, a, payload, n, &key);
    uint32_t windowed_n = !windowed ? 0 : key ? a->n : a->on;
    up_buffer *other = NULL;
    if (windowed_n < a->n && !(other = pack(r, a, payload, n))) {
        /* Who is on the window would go on, the others not: nobody gets it, all start anew. */
        up_release(windowed);
        window_end(r, a);
        return -1;
    }
    if (windowed && key) a->on = a->n;
    if (skip_n) set_skipped(r, skip, skip_n, 1);
    uint32_t dropped = 0;
    for (uint32_t at = 0; at < a->n; at++) {
        conn *c = conn_at(r, a->members[at].slot);
        if (at + 1 < a->n) __builtin_prefetch(conn_at(r, a->members[at + 1].slot));
        up_buffer *buffer = at < windowed_n ? windowed : other;
        if (c->place != NONE && r->places[c->place].next != NONE && buffer->compressed)
            off_others(r, c, (uint32_t)(a - r->audiences));
        int taken = c->flags & SKIP ? -2 : conn_write(r, c, a->members[at].slot, &buffer, 1, 0);
        if (taken == 1) {
            a->sent += buffer->n;
            continue;
        }
        if (taken == 0) full[full_n++] = sid_of(c, a->members[at].slot);
        if (at < windowed_n) {
            c->flags |= DROPPED;
            dropped++;
        }
    }
    for (uint32_t at = windowed_n; dropped && at--;) {
        conn *c = conn_at(r, a->members[at].slot);
        if (!(c->flags & DROPPED)) continue;
        c->flags &= (uint16_t)~DROPPED;
        drop_off(r, a, at);
        dropped--;
    }
    if (skip_n) set_skipped(r, skip, skip_n, 0);
    up_release(windowed);
    up_release(other);
    return full_n;
}

size_t up_reactor_viewer_bytes(void) { return sizeof(conn) + sizeof(place) + sizeof(member); }

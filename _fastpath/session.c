/* One connection: its slot, its queue, its timers, its last words. */
#include "inside.h"

#include <errno.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#define LINGER_S 2.0          /* from our last words to hanging up */
#define PIECES 16             /* of a queue sent by one call */
#define SLOTS_MAX (1u << SLOT_BITS)

/* ---- slots ------------------------------------------------------------------------------------ */

conn *conn_of(const up_reactor *r, uint64_t sid, uint32_t *slot) {
    uint32_t at = (uint32_t)sid & (SLOTS_MAX - 1);
    if (at >> CHUNK_BITS >= r->chunk_count) return NULL;
    conn *c = conn_at(r, at);
    if (c->gen != sid >> SLOT_BITS || (c->state != OPEN && c->state != RAW)) return NULL;
    *slot = at;
    return c;
}

static int grow(up_reactor *r) {
    if (r->chunk_count << CHUNK_BITS >= SLOTS_MAX) return -1;
    conn **chunks = realloc(r->chunks, (r->chunk_count + 1) * sizeof *chunks);
    if (!chunks) return -1;
    r->chunks = chunks;
    conn *chunk = calloc(1u << CHUNK_BITS, sizeof *chunk);
    if (!chunk) return -1;
    chunks[r->chunk_count] = chunk;
    uint32_t first = r->chunk_count++ << CHUNK_BITS;
    for (uint32_t at = 1u << CHUNK_BITS; at--;) {
        chunk[at].place = r->free_slot;
        r->free_slot = first + at;
    }
    return 0;
}

static uint32_t bucket_of(const uint8_t ip[16]) {
    uint32_t hash = 2166136261u;
    for (int at = 0; at < 16; at++) hash = (hash ^ ip[at]) * 16777619u;
    return hash % ADDRESS_BUCKETS;
}

static uint32_t address_take(up_reactor *r, const uint8_t ip[16]) {
    uint32_t bucket = bucket_of(ip);
    for (uint32_t at = r->buckets[bucket]; at != NONE; at = r->addresses[at].next)
        if (!memcmp(r->addresses[at].ip, ip, 16)) return at;
    if (r->free_address == NONE) {
        uint32_t room = r->address_room ? 2 * r->address_room : 16;
        address *addresses = realloc(r->addresses, room * sizeof *addresses);
        if (!addresses) return NONE;
        for (uint32_t at = room; at-- > r->address_room;) {
            addresses[at].next = r->free_address;
            r->free_address = at;
        }
        r->addresses = addresses;
        r->address_room = room;
    }
    uint32_t at = r->free_address;
    r->free_address = r->addresses[at].next;
    memcpy(r->addresses[at].ip, ip, 16);
    r->addresses[at].count = r->addresses[at].sessions = 0;
    r->addresses[at].next = r->buckets[bucket];
    r->buckets[bucket] = at;
    return at;
}

static void address_drop(up_reactor *r, uint32_t index) {
    address *gone = &r->addresses[index];
    if (gone->count) return;
    uint32_t *link = &r->buckets[bucket_of(gone->ip)];
    while (*link != index) link = &r->addresses[*link].next;
    *link = gone->next;
    gone->next = r->free_address;
    r->free_address = index;
}

conn *conn_new(up_reactor *r, int fd, uint8_t state, const uint8_t ip[16], uint32_t *slot) {
    if (r->free_slot == NONE && grow(r)) return NULL;
    uint32_t from = address_take(r, ip);
    if (from == NONE) return NULL;
    *slot = r->free_slot;
    conn *c = conn_at(r, *slot);
    uint32_t gen = c->gen + 1;
    if (gen >> 28) gen = 1; /* sids have 48 bits */
    r->free_slot = c->place;
    memset(c, 0, sizeof *c);
    c->fd = fd;
    c->gen = gen;
    c->state = state;
    c->place = c->wheel_at = c->wheel_prev = c->wheel_next = NONE;
    c->address = from;
    c->seen = r->tick;
    r->addresses[from].count++;
    r->counters.sockets++;
    return c;
}

int conn_move(up_reactor *r, conn *c, const uint8_t ip[16]) {
    uint32_t to = address_take(r, ip);
    if (to == NONE) return -1;
    uint32_t from = c->address;
    r->addresses[to].count++;
    c->address = to;
    r->addresses[from].count--;
    address_drop(r, from);
    return 0;
}

static void queue_drop(conn *c) {
    for (queued *piece = c->first; piece;) {
        queued *next = piece->next;
        up_release(piece->buffer);
        free(piece);
        piece = next;
    }
    c->first = c->last = NULL;
    c->queued_bytes = 0;
}

static void session_end(up_reactor *r, const conn *c) {
    if (c->state != OPEN && c->state != RAW) return;
    r->counters.open--;
    r->addresses[c->address].sessions--;
}

void conn_destroy(up_reactor *r, conn *c, uint32_t slot) {
    if (c->state == HEAD) free(c->head.data);
    else up_frames_drop(&c->frames);
    session_end(r, c);
    places_leave(r, c);
    conn_unschedule(r, c, slot);
    queue_drop(c);
    r->addresses[c->address].count--;
    address_drop(r, c->address);
    if (c->fd >= 0) close(c->fd);
    c->state = FREE;
    c->place = r->free_slot;
    r->free_slot = slot;
    r->counters.sockets--;
}

void conn_gone(up_reactor *r, conn *c, uint32_t slot, int code) {
    conn_tell(r, c, slot, code);
    conn_destroy(r, c, slot);
}

void conn_tell(up_reactor *r, conn *c, uint32_t slot, int code) {
    uint64_t last = c->place == NONE ? c->last_audience : audience_number(r, r->places[c->place].audience);
    r->hooks.closed(r->hooks.context, sid_of(c, slot), code, last);
}

void conn_linger(up_reactor *r, conn *c, uint32_t slot) {
    session_end(r, c);
    if (c->state == HEAD) free(c->head.data);
    else up_frames_drop(&c->frames);
    memset(&c->frames, 0, sizeof c->frames);
    places_leave(r, c);
    c->state = LINGER;
    c->flags |= CLOSING;
    c->said = 0;
    c->deadline = r->tick + ticks_of(LINGER_S);
    conn_schedule(r, c, slot, c->deadline);
    if (!c->first) shutdown(c->fd, SHUT_WR);
}

/* ---- timers ------------------------------------------------------------------------------------ */

void conn_unschedule(up_reactor *r, conn *c, uint32_t slot) {
    (void)slot;
    if (c->wheel_at == NONE) return;
    if (c->wheel_prev == NONE) r->wheel[c->wheel_at] = c->wheel_next;
    else conn_at(r, c->wheel_prev)->wheel_next = c->wheel_next;
    if (c->wheel_next != NONE) conn_at(r, c->wheel_next)->wheel_prev = c->wheel_prev;
    c->wheel_at = NONE;
}

void conn_schedule(up_reactor *r, conn *c, uint32_t slot, uint32_t at) {
    conn_unschedule(r, c, slot);
    uint32_t ahead = at - r->tick;
    if ((int32_t)ahead < 1) ahead = 1;
    if (ahead >= WHEEL) ahead = WHEEL - 1;
    c->wheel_at = (r->tick + ahead) % WHEEL;
    c->wheel_prev = NONE;
    c->wheel_next = r->wheel[c->wheel_at];
    if (c->wheel_next != NONE) conn_at(r, c->wheel_next)->wheel_prev = slot;
    r->wheel[c->wheel_at] = slot;
}

/* ---- buffers ----------------------------------------------------------------------------------- */

up_buffer *buffer_new(size_t n) {
    if (n > UINT32_MAX - UP_HEAD_MAX) return NULL;
    up_buffer *buffer = malloc(sizeof *buffer + UP_HEAD_MAX + n);
    if (!buffer) return NULL;
    buffer->refs = 1;
    buffer->at = UP_HEAD_MAX;
    buffer->n = 0;
    buffer->compressed = 0;
    return buffer;
}

void buffer_framed(up_buffer *buffer, int opcode, int compressed, size_t n) {
    size_t head = up_frame_head(buffer->bytes + UP_HEAD_MAX, opcode, compressed, n);
    buffer->at = (uint32_t)(UP_HEAD_MAX - head);
    buffer->n = (uint32_t)(head + n);
    buffer->compressed = (uint8_t)compressed;
}

up_buffer *buffer_of(int opcode, const uint8_t *payload, size_t n) {
    up_buffer *buffer = buffer_new(n);
    if (!buffer) return NULL;
    if (n) memcpy(buffer->bytes + UP_HEAD_MAX, payload, n);
    if (opcode < 0) buffer->n = (uint32_t)n;
    else buffer_framed(buffer, opcode, 0, n);
    return buffer;
}

void up_release(up_buffer *buffer) {
    if (buffer && !--buffer->refs) free(buffer);
}

size_t up_buffer_size(const up_buffer *buffer) { return buffer->n; }

/* ---- writing ----------------------------------------------------------------------------------- */

static void watch(up_reactor *r, conn *c, uint32_t slot, int writing) {
    if (!(c->flags & WRITING) == !writing) return;
    struct epoll_event wanted = {.events = EPOLLIN | (writing ? EPOLLOUT : 0),
                                 .data.u64 = (uint64_t)c->gen << 32 | slot};
    epoll_ctl(r->epoll, EPOLL_CTL_MOD, c->fd, &wanted);
    c->flags = (uint16_t)(writing ? c->flags | WRITING : c->flags & ~WRITING);
}

static int enqueue(conn *c, up_buffer *buffer, size_t skip) {
    queued *piece = malloc(sizeof *piece);
    if (!piece) return -1;
    piece->next = NULL;
    piece->buffer = buffer;
    piece->at = (uint32_t)skip;
    buffer->refs++;
    if (c->last) c->last->next = piece;
    else c->first = piece;
    c->last = piece;
    c->queued_bytes += buffer->n - skip;
    return 0;
}

/* It can't go on, for part of a message may be missing: whoever reads finds the end, and tells. */
static void broken(conn *c) {
    queue_drop(c);
    shutdown(c->fd, SHUT_RDWR);
}

/* Send what is queued as far as the socket takes it. */
void conn_flush(up_reactor *r, conn *c, uint32_t slot) {
    c->flags &= (uint16_t)~HELD;
    while (c->first) {
        struct iovec parts[PIECES];
        size_t count = 0, offered = 0;
        for (queued *piece = c->first; piece && count < PIECES; piece = piece->next) {
            parts[count].iov_base = piece->buffer->bytes + piece->buffer->at + piece->at;
            parts[count].iov_len = piece->buffer->n - piece->at;
            offered += parts[count++].iov_len;
        }
        struct msghdr message = {.msg_iov = parts, .msg_iovlen = count};
        ssize_t sent = sendmsg(c->fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EINTR) continue;
            if (errno == EAGAIN || errno == EWOULDBLOCK || errno == ENOBUFS) break;
            broken(c);
            break;
        }
        r->counters.bytes_sent += (uint64_t)sent;
        c->queued_bytes -= (size_t)sent;
        c->since = (uint32_t)r->now_ms;
        size_t left = (size_t)sent;
        while (c->first && left >= c->first->buffer->n - c->first->at) {
            queued *done = c->first;
            left -= done->buffer->n - done->at;
            c->first = done->next;
            up_release(done->buffer);
            free(done);
        }
        if (!c->first) c->last = NULL;
        else c->first->at += (uint32_t)left;
        if ((size_t)sent < offered) break;
    }
    watch(r, c, slot, c->first != NULL);
    if (c->first) return;
    if (c->state == LINGER || (c->state == RAW && c->flags & CLOSING)) shutdown(c->fd, SHUT_WR);
    if (c->flags & FULL) {
        c->flags &= (uint16_t)~FULL;
        if (c->state != LINGER) r->hooks.drained(r->hooks.context, sid_of(c, slot));
    }
}

int conn_write(up_reactor *r, conn *c, uint32_t slot, up_buffer **buffers, int count, int always) {
    if (!always) {
        if (c->flags & CLOSING) return 1; /* nothing may follow our last words */
        if (c->flags & FULL) return 0;
    }
    size_t sent = 0;
    int empty = !c->first;
    if (empty && count == 1 && !(c->flags & HELD)) {
        up_buffer *buffer = buffers[0];
        ssize_t taken;
        do taken = send(c->fd, buffer->bytes + buffer->at, buffer->n, MSG_DONTWAIT | MSG_NOSIGNAL);
        while (taken < 0 && errno == EINTR);
        r->counters.frames_sent++;
        if (taken == (ssize_t)buffer->n) {
            r->counters.bytes_sent += buffer->n;
            return 1;
        }
        if (taken < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != ENOBUFS) {
            broken(c);
            return 1;
        }
        if (taken > 0) sent = (size_t)taken;
        r->counters.bytes_sent += sent;
        c->since = (uint32_t)r->now_ms;
    } else {
        size_t total = 0;
        for (int at = 0; at < count; at++) total += buffers[at]->n;
        if (empty) {
            c->since = (uint32_t)r->now_ms;
        } else if (!always && !(c->flags & HELD) &&
                   (c->queued_bytes + total > r->limits.queue_bytes ||
                    (uint32_t)r->now_ms - c->since > r->limits.queue_s * 1000)) {
            c->flags |= FULL;
            return 0;
        }
        r->counters.frames_sent += (uint64_t)count;
    }
    for (int at = 0; at < count; at++)
        if (enqueue(c, buffers[at], at ? 0 : sent)) {
            broken(c);
            return -1;
        }
    if (c->flags & HELD) return 1; /* until all who came in this pass are seen to */
    if (empty && count > 1) conn_flush(r, c, slot);
    else watch(r, c, slot, 1);
    return 1;
}

int conn_frame(up_reactor *r, conn *c, uint32_t slot, int opcode, const uint8_t *payload, size_t n, int always) {
    up_buffer *buffer = buffer_of(opcode, payload, n);
    if (!buffer) return -1;
    int taken = conn_write(r, c, slot, &buffer, 1, always);
    up_release(buffer);
    return taken;
}

void conn_close(up_reactor *r, conn *c, uint32_t slot, int code, const char *reason, size_t n) {
    if (c->flags & CLOSING) return;
    c->flags |= CLOSING;
    uint8_t payload[125];
    size_t size = 0;
    if (code != UP_NO_STATUS) {
        payload[0] = (uint8_t)(code >> 8);
        payload[1] = (uint8_t)code;
        size = up_utf8_cut((const uint8_t *)reason, n < 123 ? n : 123);
        memcpy(payload + 2, reason, size);
        size += 2;
    }
    conn_frame(r, c, slot, UP_CLOSE, payload, size, 1);
}

int conn_charge(up_reactor *r, conn *c) {
    if (c->flags & EXEMPT) return 1;
    uint32_t second = (uint32_t)(r->now_ms / 1000);
    if (second != c->second) {
        c->second = second;
        c->commands = 0;
    }
    if (c->commands >= r->limits.commands_per_second) return 0;
    c->commands++;
    return 1;
}

/* ---- what is asked of sessions from above -------------------------------------------------------- */

int up_session_send(up_reactor *r, uint64_t sid, const uint8_t *payload, size_t n) {
    uint32_t slot;
    conn *c = conn_of(r, sid, &slot);
    if (!c) return 1;
    r->now_ms = clock_ms();
    return conn_frame(r, c, slot, c->state == RAW ? -1 : c->flags & TEXT ? UP_TEXT : UP_BINARY, payload, n, 0);
}

int up_session_admit(up_reactor *r, uint64_t sid, uint64_t number, const uint8_t *greeting, size_t n, int64_t sid_at,
                     up_buffer *backlog) {
    uint32_t slot;
    conn *c = conn_of(r, sid, &slot);
    if (!c) return 1;
    up_buffer *buffers[2] = {buffer_of(c->state == RAW ? -1 : c->flags & TEXT ? UP_TEXT : UP_BINARY, greeting, n),
                             backlog};
    if (!buffers[0]) return -1;
    if (sid_at >= 0 && (size_t)sid_at + UP_SID_DIGITS <= n) {
        uint8_t *digits = buffers[0]->bytes + UP_HEAD_MAX + sid_at;
        for (int at = 0; at < UP_SID_DIGITS; at++)
            digits[at] = (uint8_t)"0123456789abcdef"[sid >> (4 * (UP_SID_DIGITS - 1 - at)) & 15];
    }
    r->now_ms = clock_ms();
    if (backlog && backlog->compressed) places_off_windows(r, c);
    int taken = conn_write(r, c, slot, buffers, backlog ? 2 : 1, 0);
    up_release(buffers[0]);
    if (taken == 1 && !(c->flags & CLOSING)) return up_session_join(r, sid, number) ? -1 : 1;
    return taken;
}

int up_session_charge(up_reactor *r, uint64_t sid) {
    uint32_t slot;
    conn *c = conn_of(r, sid, &slot);
    r->now_ms = clock_ms();
    return !c || conn_charge(r, c);
}

void up_session_exempt(up_reactor *r, uint64_t sid) {
    uint32_t slot;
    conn *c = conn_of(r, sid, &slot);
    if (c) c->flags |= EXEMPT;
}

void up_session_reacts(up_reactor *r, uint64_t sid, uint32_t number) {
    uint32_t slot;
    conn *c = conn_of(r, sid, &slot);
    if (!c) return;
    if (number >= r->sums_room) {
        uint32_t room = r->sums_room ? r->sums_room : 16;
        while (room <= number) room *= 2;
        counter *sums = realloc(r->sums, room * sizeof *sums);
        if (!sums) return; /* not counted here: it all goes up */
        memset(sums + r->sums_room, 0, (room - r->sums_room) * sizeof *sums);
        r->sums = sums;
        r->sums_room = room;
    }
    c->counter = number;
}

void up_session_close(up_reactor *r, uint64_t sid, int code, const char *reason, size_t n) {
    uint32_t slot;
    conn *c = conn_of(r, sid, &slot);
    if (!c || c->flags & CLOSING || c->state != OPEN) return;
    c->last_audience = up_session_audience(r, sid);
    places_leave(r, c);
    r->now_ms = clock_ms();
    conn_close(r, c, slot, code, reason, n);
    c->deadline = r->tick + ticks_of(LINGER_S);
    conn_schedule(r, c, slot, c->deadline);
}

void up_session_farewell(up_reactor *r, uint64_t sid, const uint8_t *last, size_t n) {
    uint32_t slot;
    conn *c = conn_of(r, sid, &slot);
    if (!c || c->flags & CLOSING || c->state != RAW) return;
    c->last_audience = up_session_audience(r, sid);
    places_leave(r, c);
    r->now_ms = clock_ms();
    up_buffer *buffer = buffer_of(-1, last, n);
    if (buffer) conn_write(r, c, slot, &buffer, 1, 1);
    up_release(buffer);
    c->flags |= CLOSING;
    if (!c->first) shutdown(c->fd, SHUT_WR);
    c->deadline = r->tick + ticks_of(LINGER_S);
    conn_schedule(r, c, slot, c->deadline);
}

uint32_t up_reactions_next(up_reactor *r, uint64_t *sums) {
    for (uint32_t at = 1; at < r->sums_room; at++) {
        counter *found = &r->sums[at];
        if (!found->changed) continue;
        memcpy(sums, found->sums, sizeof found->sums);
        memset(found, 0, sizeof *found);
        return at;
    }
    return 0;
}

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "swarm.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>

enum {
    READ_BYTES = 256 << 10,
    HEAD_BYTES = 16 << 10,
    MESSAGE_BYTES = 16 << 20, /* whole or inflated; a backlog of 1,000 long comments has 2 MB */
    DIGESTS = 1024,
    GAPS = 64,                /* a member that is told of more says so by `missing` */
    SENDS = 2000,             /* of one job in one pass */
    PAYLOAD = 4000,
    SOURCES = 200,            /* members connect from 127.0.1.1 … 127.0.1.200 in turn */
};
static const int64_t SECOND = 1000000000;
static const int64_t SLOW_NS = 100000000; /* between two reads of a slow member */
static const int64_t SHAKE_NS = 20 * 1000000000ll;

enum { FREE, WAITING, CONNECTING, SHAKING, OPEN, CLOSING };
enum { COMPRESSED = 1, WELCOMED = 2, IN_FRAME = 4, BINARY = 8, FINAL = 16, IN_MESSAGE = 32 };

typedef struct {
    int64_t from, to;
} range;

typedef struct {
    z_stream inflater;
    uint8_t *message;
    size_t n, room;
    int64_t start, floor, position; /* -1 before WELCOME */
    int64_t outside;                /* live comments got outside all gaps */
    range gaps[GAPS];
    int gap_count;
    int inflating;
} decoder;

typedef struct {
    int fd;
    uint32_t group;
    uint8_t state, flags, opcode, header_n;
    uint8_t header[14];
    uint64_t left; /* of the frame's payload */
    uint32_t messages;
    int64_t since_ns;
    decoder *decoder;
    uint8_t *kept; /* a response head or a control frame's payload, until it is whole */
    uint32_t kept_n;
    uint32_t out_n;
    uint8_t *out; /* what the socket did not take */
} member;

typedef struct {
    int active, opcode, stamp_at, nonce_at;
    uint8_t payload[PAYLOAD];
    size_t n;
    double rate;
    uint64_t done, total;
    int64_t began_ns;
    uint32_t cursor;
} job;

typedef struct {
    up_plan plan;
    uint32_t first;
    uint8_t *heads;
    uint64_t *ends;
    size_t head_count;
    uint32_t *waiting; /* a ring of the members that want to connect */
    uint32_t waiting_at, waiting_n;
    uint32_t under_way, standing, welcomed;
    uint64_t started; /* connections so far */
    int64_t began_ns, slow_next_ns;
    job *jobs[UP_JOBS];
    up_counts counts;
    uint64_t latencies[UP_BUCKETS];
} group;

typedef struct {
    int kind;
    int64_t offset, to;
    uint64_t stamp_ns;
} fact;

typedef struct {
    uint64_t hash;
    uint8_t *payload;
    size_t n;
    int binary, malformed;
    uint32_t noted; /* the stream whose offsets have these, + 1 */
    fact *facts;
    size_t fact_n, fact_room;
} digest;

typedef struct {
    int64_t *offsets; /* of live comments, rising */
    size_t n, room;
} order;

struct up_swarm {
    int epoll;
    up_digest look;
    void *self;
    member *members;
    uint32_t member_n;
    group **groups;
    int group_n;
    order *orders;
    uint32_t order_n;
    digest *digests;
    digest *filled; /* the one the callback is filling */
    uint8_t *buffer, *plain;
    size_t plain_room;
    int64_t lag_ns, look_ns;
    uint64_t nonce;
    uint32_t random, source;
    struct epoll_event ready[UP_READY];
};

static int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND + t.tv_nsec;
}

static void end(up_swarm *s, member *m);

/* -- statistics ------------------------------------------------------------------------------ */

static int bucket_of(uint64_t ns) {
    if (ns < 32) return (int)ns;
    int high = 63 - __builtin_clzll(ns);
    return (high - 4) * 32 + (int)((ns >> (high - 5)) & 31);
}

uint64_t up_swarm_bucket_ns(int bucket) {
    if (bucket < 32) return (uint64_t)bucket;
    int high = bucket / 32 + 4;
    return ((uint64_t)(32 + bucket % 32 + 1) << (high - 5)) - 1;
}

/* How many offsets of an order are at or below `upto`. */
static size_t rank_of(const order *o, int64_t upto) {
    size_t low = 0, high = o->n;
    while (low < high) {
        size_t middle = (low + high) / 2;
        if (o->offsets[middle] <= upto) low = middle + 1;
        else high = middle;
    }
    return low;
}

static void note(order *o, int64_t offset) {
    size_t at = o->n;
    if (at && o->offsets[at - 1] >= offset) {
        at = rank_of(o, offset);
        if (at && o->offsets[at - 1] == offset) return;
    }
    if (o->n == o->room) {
        size_t room = o->room ? 2 * o->room : 4096;
        int64_t *grown = realloc(o->offsets, room * sizeof *grown);
        if (!grown) return;
        o->offsets = grown;
        o->room = room;
    }
    memmove(o->offsets + at + 1, o->offsets + at, (o->n - at) * sizeof *o->offsets);
    o->offsets[at] = offset;
    o->n++;
}

/* -- what messages say ----------------------------------------------------------------------- */

void up_swarm_fact(up_swarm *s, int kind, int64_t offset, int64_t to, uint64_t stamp_ns) {
    digest *d = s->filled;
    if (d->fact_n == d->fact_room) {
        size_t room = d->fact_room ? 2 * d->fact_room : 16;
        fact *grown = realloc(d->facts, room * sizeof *grown);
        if (!grown) return;
        d->facts = grown;
        d->fact_room = room;
    }
    d->facts[d->fact_n++] = (fact){kind, offset, to, stamp_ns};
}

static uint64_t hash_of(const uint8_t *p, size_t n) {
    uint64_t h = 0x9E3779B97F4A7C15ull ^ n, word;
    for (; n >= 8; p += 8, n -= 8) {
        memcpy(&word, p, 8);
        h = (h ^ word) * 0xD6E8FEB86659FD93ull;
        h ^= h >> 32;
    }
    for (word = 0; n; n--) word = word << 8 | *p++;
    h = (h ^ word) * 0xD6E8FEB86659FD93ull;
    return h ^ h >> 32;
}

static digest *digest_of(up_swarm *s, const uint8_t *payload, size_t n, int binary) {
    uint64_t hash = hash_of(payload, n);
    digest *d = &s->digests[hash % DIGESTS];
    if (d->payload && d->hash == hash && d->n == n && d->binary == binary &&
        !memcmp(d->payload, payload, n))
        return d;
    uint8_t *copy = realloc(d->payload, n ? n : 1);
    if (!copy) return NULL;
    memcpy(copy, payload, n);
    d->payload = copy;
    d->hash = hash;
    d->n = n;
    d->binary = binary;
    d->noted = 0;
    d->fact_n = 0;
    s->filled = d;
    d->malformed = s->look(s->self, payload, n, binary) < 0;
    return d;
}

static int in_gap(const decoder *d, int64_t offset) {
    for (int i = 0; i < d->gap_count; i++)
        if (offset > d->gaps[i].from && offset <= d->gaps[i].to) return 1;
    return 0;
}

static void follow(up_swarm *s, group *g, decoder *d, digest *seen) {
    up_counts *c = &g->counts;
    int64_t now = now_ns();
    order *o = &s->orders[g->plan.stream];
    int known = seen->noted == g->plan.stream + 1;
    for (size_t i = 0; i < seen->fact_n; i++) {
        const fact *f = &seen->facts[i];
        switch (f->kind) {
        case UP_COMMENT:
        case UP_PLACED:
            if (f->offset <= d->floor) {
                c->repeats++;
                break;
            }
            d->floor = f->offset;
            if (f->offset > d->position) d->position = f->offset;
            if (f->kind == UP_PLACED) break;
            c->comments++;
            if (!known) note(o, f->offset);
            if (!d->gap_count || !in_gap(d, f->offset)) d->outside++;
            if (f->stamp_ns)
                g->latencies[bucket_of(now > (int64_t)f->stamp_ns ? now - f->stamp_ns : 0)]++;
            break;
        case UP_HISTORICAL: c->historical++; break;
        case UP_GAP:
            c->gaps++;
            if (d->gap_count < GAPS) d->gaps[d->gap_count++] = (range){f->offset, f->to};
            if (f->to > d->position) d->position = f->to;
            break;
        case UP_POSITION:
            if (f->offset > d->position) d->position = f->offset;
            break;
        case UP_WELCOME:
            d->start = d->floor = d->position = f->offset;
            d->outside = 0;
            d->gap_count = 0;
            break;
        case UP_TOTALS:
            c->totals++;
            c->totals_sum = f->offset;
            break;
        case UP_ACK: c->acks++; break;
        case UP_REJECTED: c->rejected++; break;
        default: break;
        }
    }
    seen->noted = g->plan.stream + 1;
}

/* Return the inflated message, in `s->plain`; -1 for one that can't be had. */
static int64_t inflated(up_swarm *s, decoder *d) {
    static const uint8_t TAIL[4] = {0, 0, 0xff, 0xff};
    z_stream *z = &d->inflater;
    if (!d->inflating) {
        memset(z, 0, sizeof *z);
        if (inflateInit2(z, -15) != Z_OK) return -1;
        d->inflating = 1;
    }
    size_t made = 0;
    for (int part = 0; part < 2; part++) {
        z->next_in = part ? (uint8_t *)TAIL : d->message;
        z->avail_in = part ? sizeof TAIL : (uInt)d->n;
        for (;;) {
            if (made == s->plain_room) {
                if (s->plain_room >= MESSAGE_BYTES) return -1;
                uint8_t *grown = realloc(s->plain, 2 * s->plain_room);
                if (!grown) return -1;
                s->plain = grown;
                s->plain_room *= 2;
            }
            z->next_out = s->plain + made;
            z->avail_out = (uInt)(s->plain_room - made);
            int result = inflate(z, Z_SYNC_FLUSH);
            made = s->plain_room - z->avail_out;
            if (result == Z_STREAM_END) { /* a final block: the next message starts over */
                if (inflateReset(z) != Z_OK) return -1;
                z->avail_in = 0;
                if (part) break;
                return (int64_t)made;
            }
            if (result != Z_OK && result != Z_BUF_ERROR) return -1;
            if (z->avail_out) break; /* all of it, or nothing more to be had */
        }
        if (z->avail_in) return -1;
    }
    return (int64_t)made;
}

static void decode(up_swarm *s, member *m) {
    group *g = s->groups[m->group];
    decoder *d = m->decoder;
    const uint8_t *payload = d->message;
    int64_t n = (int64_t)d->n;
    if (m->flags & COMPRESSED) {
        n = inflated(s, d);
        payload = s->plain;
        if (n < 0) {
            g->counts.uninflatable++;
            end(s, m);
            return;
        }
    }
    d->n = 0;
    int binary = (m->flags & BINARY) != 0;
    digest *seen = binary == (g->plan.binary != 0) ? digest_of(s, payload, (size_t)n, binary) : NULL;
    if (!seen || seen->malformed) {
        g->counts.malformed++;
        end(s, m);
        return;
    }
    g->counts.decoded++;
    follow(s, g, d, seen);
}

/* -- sockets --------------------------------------------------------------------------------- */

static void watch(up_swarm *s, member *m, int how) {
    group *g = s->groups[m->group];
    struct epoll_event e = {0};
    int reads = m->state != OPEN || !(g->plan.never_reads || g->plan.read_bytes_s);
    e.events = m->state == CONNECTING ? EPOLLOUT : (reads ? EPOLLIN : 0) | (m->out_n ? EPOLLOUT : 0);
    e.data.u64 = (uint64_t)(uint32_t)m->fd << 32 | (uint32_t)(m - s->members);
    epoll_ctl(s->epoll, how, m->fd, &e);
}

static void settled(group *g, member *m) {
    if (m->state == CONNECTING || m->state == SHAKING ||
        (m->state == OPEN && !g->plan.raw && !(m->flags & WELCOMED)))
        g->under_way--;
}

static void queue(up_swarm *s, member *m) {
    group *g = s->groups[m->group];
    g->waiting[(g->waiting_at + g->waiting_n++) % g->plan.count] = (uint32_t)(m - s->members) - g->first;
    m->state = WAITING;
}

/* Give the socket up; one of a group that churns comes back. */
static void end(up_swarm *s, member *m) {
    group *g = s->groups[m->group];
    if (m->fd < 0) return;
    settled(g, m);
    if (m->state == OPEN) {
        g->standing--;
        if (m->flags & WELCOMED) g->welcomed--;
    }
    close(m->fd);
    m->fd = -1;
    free(m->kept);
    free(m->out);
    m->kept = m->out = NULL;
    m->kept_n = m->out_n = 0;
    m->state = FREE;
    if (m->decoder) {
        m->decoder->n = 0;
        if (m->decoder->inflating) inflateEnd(&m->decoder->inflater);
        m->decoder->inflating = 0;
    }
    if (g->plan.churn && g->started + g->waiting_n < g->plan.churn) queue(s, m);
}

static void write_out(up_swarm *s, member *m, const uint8_t *data, size_t n) {
    if (m->out_n) { /* behind what waits already, which is bounded by who calls */
        uint8_t *grown = realloc(m->out, m->out_n + n);
        if (!grown) return;
        memcpy(grown + m->out_n, data, n);
        m->out = grown;
        m->out_n += (uint32_t)n;
        return;
    }
    ssize_t sent = send(m->fd, data, n, MSG_NOSIGNAL);
    if (sent < 0) {
        if (errno != EAGAIN) return; /* its end is read soon */
        sent = 0;
    }
    if ((size_t)sent < n) {
        m->out = malloc(n - (size_t)sent);
        if (!m->out) return;
        memcpy(m->out, data + sent, n - (size_t)sent);
        m->out_n = (uint32_t)(n - (size_t)sent);
        watch(s, m, EPOLL_CTL_MOD);
    }
}

static void flush_out(up_swarm *s, member *m) {
    ssize_t sent = send(m->fd, m->out, m->out_n, MSG_NOSIGNAL);
    if (sent <= 0) return;
    memmove(m->out, m->out + sent, m->out_n - (size_t)sent);
    m->out_n -= (uint32_t)sent;
    if (!m->out_n) {
        free(m->out);
        m->out = NULL;
        watch(s, m, EPOLL_CTL_MOD);
    }
}

/* Send one masked frame; false when the socket has not taken the last ones. */
static int send_frame(up_swarm *s, member *m, int opcode, const uint8_t *payload, size_t n) {
    uint8_t frame[PAYLOAD + 14], key[4];
    size_t at = 2;
    if (m->out_n) return 0;
    s->random = s->random * 1664525u + 1013904223u;
    memcpy(key, &s->random, 4);
    frame[0] = (uint8_t)(0x80 | opcode);
    if (n < 126) {
        frame[1] = (uint8_t)(0x80 | n);
    } else {
        frame[1] = 0x80 | 126;
        frame[2] = (uint8_t)(n >> 8);
        frame[3] = (uint8_t)n;
        at = 4;
    }
    memcpy(frame + at, key, 4);
    at += 4;
    for (size_t i = 0; i < n; i++) frame[at + i] = payload[i] ^ key[i & 3];
    write_out(s, m, frame, at + n);
    return 1;
}

static void leave(up_swarm *s, member *m, int mode) {
    group *g = s->groups[m->group];
    static const uint8_t NORMAL[2] = {0x03, 0xe8};
    g->counts.left++;
    if (mode == 0 && m->state == OPEN && !g->plan.raw) {
        if (send_frame(s, m, 8, NORMAL, 2)) {
            settled(g, m);
            g->standing--;
            if (m->flags & WELCOMED) g->welcomed--;
            m->state = CLOSING; /* until the server hangs up */
            m->since_ns = now_ns();
            watch(s, m, EPOLL_CTL_MOD);
            return;
        }
    }
    if (mode == 2) {
        struct linger cut = {1, 0};
        setsockopt(m->fd, SOL_SOCKET, SO_LINGER, &cut, sizeof cut);
    }
    end(s, m);
}

/* -- frames ---------------------------------------------------------------------------------- */

static void control(up_swarm *s, member *m) {
    group *g = s->groups[m->group];
    if (m->opcode == 9) {
        g->counts.pings++;
        send_frame(s, m, 10, m->kept, m->kept_n);
    } else if (m->opcode == 10) {
        g->counts.pongs++;
    } else {
        int code = m->kept_n >= 2 ? m->kept[0] << 8 | m->kept[1] : 1005;
        if (m->state == CLOSING) return; /* the answer to ours; the server hangs up */
        g->counts.ended++;
        g->counts.last_close = code;
        send_frame(s, m, 8, m->kept, m->kept_n >= 2 ? 2 : 0);
        end(s, m);
        return;
    }
    m->kept_n = 0;
}

static void message(up_swarm *s, member *m) {
    group *g = s->groups[m->group];
    g->counts.messages++;
    m->messages++;
    if (m->state == OPEN && !(m->flags & WELCOMED)) {
        m->flags |= WELCOMED;
        g->under_way--;
        g->welcomed++;
        g->counts.welcomed++;
    }
    if (m->decoder && m->state == OPEN) decode(s, m);
    if (g->plan.churn && m->state == OPEN) leave(s, m, (int)(g->counts.welcomed % 3));
}

/* The length of a frame's header as far as it is known: 2 bytes tell it. */
static int header_of(const member *m) {
    if (m->header_n < 2) return 2;
    int size = m->header[1] & 127;
    return size < 126 ? 2 : size == 126 ? 4 : 10;
}

static void begin_frame(up_swarm *s, member *m) {
    const uint8_t *h = m->header;
    uint64_t n = h[1] & 127;
    if (n == 126) n = (uint64_t)h[2] << 8 | h[3];
    else if (n == 127)
        for (n = 0, h += 2; h < m->header + 10; h++) n = n << 8 | *h;
    h = m->header;
    int opcode = h[0] & 15, known = opcode <= 2 || (opcode >= 8 && opcode <= 10);
    int continues = (m->flags & IN_MESSAGE) != 0;
    m->header_n = 0;
    if (h[1] & 0x80 || h[0] & 0x30 || !known || n > MESSAGE_BYTES ||
        (opcode >= 8 && (n > 125 || !(h[0] & 0x80) || h[0] & 0x40)) ||
        (opcode == 0 && (!continues || h[0] & 0x40)) || ((opcode == 1 || opcode == 2) && continues)) {
        s->groups[m->group]->counts.malformed++;
        end(s, m);
        return;
    }
    m->opcode = (uint8_t)opcode;
    m->left = n;
    m->flags |= IN_FRAME;
    if (opcode < 8) {
        if (opcode) {
            m->flags &= (uint8_t)~(COMPRESSED | BINARY);
            if (h[0] & 0x40) m->flags |= COMPRESSED;
            if (opcode == 2) m->flags |= BINARY;
            m->flags |= IN_MESSAGE;
        }
        m->flags = (uint8_t)((m->flags & ~FINAL) | (h[0] & 0x80 ? FINAL : 0));
        s->groups[m->group]->counts.frames++;
    } else {
        if (!m->kept) m->kept = malloc(125);
        m->kept_n = 0;
    }
}

static int keep(decoder *d, const uint8_t *data, size_t n) {
    if (d->n + n > d->room) {
        size_t room = d->room ? d->room : 1024;
        while (room < d->n + n) room *= 2;
        uint8_t *grown = room <= MESSAGE_BYTES ? realloc(d->message, room) : NULL;
        if (!grown) return 0;
        d->message = grown;
        d->room = room;
    }
    memcpy(d->message + d->n, data, n);
    d->n += n;
    return 1;
}

static void take(up_swarm *s, member *m, const uint8_t *data, size_t n) {
    s->groups[m->group]->counts.bytes += (int64_t)n;
    while (m->fd >= 0) {
        if (!(m->flags & IN_FRAME)) {
            while (n && m->header_n < header_of(m)) {
                m->header[m->header_n++] = *data++;
                n--;
            }
            if (m->header_n < header_of(m)) return;
            begin_frame(s, m);
            continue;
        }
        size_t part = n < m->left ? n : (size_t)m->left;
        if (m->opcode >= 8) {
            if (m->kept) memcpy(m->kept + m->kept_n, data, part);
            m->kept_n += (uint32_t)part;
        } else if (m->decoder && !keep(m->decoder, data, part)) {
            s->groups[m->group]->counts.malformed++;
            end(s, m);
            return;
        }
        data += part;
        n -= part;
        m->left -= part;
        if (m->left) return;
        m->flags &= (uint8_t)~IN_FRAME;
        if (m->opcode >= 8) {
            control(s, m);
        } else if (m->flags & FINAL) {
            m->flags &= (uint8_t)~IN_MESSAGE;
            message(s, m);
        }
    }
}

/* -- connecting ------------------------------------------------------------------------------ */

static void start(up_swarm *s, member *m) {
    group *g = s->groups[m->group];
    struct sockaddr_in from = {0}, to = {0};
    int yes = 1;
    m->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    g->started++;
    if (m->fd < 0) {
        g->counts.failed++;
        g->counts.last_errno = errno;
        m->state = FREE;
        return;
    }
    g->counts.connects++;
    m->flags = m->header_n = 0;
    m->messages = 0;
    m->since_ns = now_ns();
    if (m->decoder) m->decoder->start = m->decoder->floor = m->decoder->position = -1;
    setsockopt(m->fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    if (g->plan.receive_buffer)
        setsockopt(m->fd, SOL_SOCKET, SO_RCVBUF, &g->plan.receive_buffer, sizeof(int));
    to.sin_family = from.sin_family = AF_INET;
    to.sin_addr.s_addr = htonl(g->plan.address);
    to.sin_port = htons(g->plan.port);
    if (g->plan.address >> 24 == 127) { /* 28,000 ports an address: from many there are enough */
        setsockopt(m->fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, &yes, sizeof yes);
        from.sin_addr.s_addr = htonl(0x7f000101u + s->source++ % SOURCES);
        bind(m->fd, (struct sockaddr *)&from, sizeof from);
    }
    m->state = CONNECTING;
    g->under_way++;
    watch(s, m, EPOLL_CTL_ADD);
    if (connect(m->fd, (struct sockaddr *)&to, sizeof to) < 0 && errno != EINPROGRESS) {
        g->counts.failed++;
        g->counts.last_errno = errno;
        end(s, m);
    }
}

static void start_due(up_swarm *s, group *g, int64_t now) {
    while (g->waiting_n && g->under_way < g->plan.at_once) {
        if (g->plan.rate > 0 && (double)g->started >= g->plan.rate * (double)(now - g->began_ns) / 1e9)
            return;
        uint32_t index = g->waiting[g->waiting_at];
        g->waiting_at = (g->waiting_at + 1) % g->plan.count;
        g->waiting_n--;
        start(s, &s->members[g->first + index]);
    }
}

static void connected(up_swarm *s, member *m) {
    group *g = s->groups[m->group];
    int error = 0;
    socklen_t size = sizeof error;
    getsockopt(m->fd, SOL_SOCKET, SO_ERROR, &error, &size);
    if (error) {
        g->counts.failed++;
        g->counts.last_errno = error;
        end(s, m);
        return;
    }
    if (g->plan.raw) {
        settled(g, m);
        m->state = OPEN;
        g->standing++;
        g->counts.shaken++;
        watch(s, m, EPOLL_CTL_MOD);
        return;
    }
    m->state = SHAKING;
    watch(s, m, EPOLL_CTL_MOD);
    size_t which = ((size_t)(m - s->members) - g->first) % g->head_count;
    uint64_t from = which ? g->ends[which - 1] : 0;
    write_out(s, m, g->heads + from, (size_t)(g->ends[which] - from));
}

/* Return where a header's value begins in a head that ends with a NUL, NULL without it. */
static const char *value_of(const char *head, const char *name) {
    size_t n = strlen(name);
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line, "\r\n")) {
        line += 2;
        if (!strncasecmp(line, name, n) && line[n] == ':') {
            for (line += n + 1; *line == ' '; line++) {}
            return line;
        }
    }
    return NULL;
}

static void shake(up_swarm *s, member *m, const uint8_t *data, size_t n) {
    group *g = s->groups[m->group];
    uint8_t *grown = realloc(m->kept, m->kept_n + n + 1);
    if (!grown) {
        end(s, m);
        return;
    }
    m->kept = grown;
    memcpy(grown + m->kept_n, data, n);
    m->kept_n += (uint32_t)n;
    grown[m->kept_n] = 0;
    uint8_t *stop = memmem(grown, m->kept_n, "\r\n\r\n", 4);
    if (!stop && m->kept_n < HEAD_BYTES) return;
    const char *accept = NULL;
    int status = 0;
    if (stop) {
        stop[2] = 0;
        sscanf((char *)grown, "HTTP/1.1 %d", &status);
        accept = value_of((char *)grown, "Sec-WebSocket-Accept");
    }
    if (status != 101 || !accept || strncmp(accept, g->plan.accept, 28)) {
        g->counts.refused++;
        g->counts.last_status = status;
        end(s, m);
        return;
    }
    const char *extension = value_of((char *)grown, "Sec-WebSocket-Extensions");
    if (extension && !strncasecmp(extension, "permessage-deflate", 18)) g->counts.deflated++;
    g->counts.shaken++;
    g->standing++;
    m->state = OPEN;
    uint8_t *head = m->kept;
    size_t rest = m->kept_n - (size_t)(stop + 4 - head);
    m->kept = NULL;
    m->kept_n = 0;
    if (g->plan.never_reads || g->plan.read_bytes_s) { /* its WELCOME may never be read */
        settled(g, m);
        m->flags |= WELCOMED;
        g->welcomed++;
        watch(s, m, EPOLL_CTL_MOD);
    }
    take(s, m, stop + 4, rest);
    free(head);
}

static void readable(up_swarm *s, member *m, size_t most) {
    group *g = s->groups[m->group];
    ssize_t n = recv(m->fd, s->buffer, most, 0);
    if (n < 0) {
        if (errno == EAGAIN || errno == EINTR) return;
        g->counts.last_errno = errno;
        n = 0;
    }
    if (n == 0) {
        if (m->state == OPEN) g->counts.cut++;
        else if (m->state != CLOSING) g->counts.failed++;
        end(s, m);
        return;
    }
    if (m->state == SHAKING) shake(s, m, s->buffer, (size_t)n);
    else if (g->plan.raw) g->counts.bytes += n;
    else take(s, m, s->buffer, (size_t)n);
}

/* -- the loop -------------------------------------------------------------------------------- */

static int step_job(up_swarm *s, group *g, job *j, int64_t now) {
    static const char HEX[] = "0123456789abcdef";
    if (!g->standing) return -1;
    uint64_t due = (uint64_t)((double)(now - j->began_ns) * j->rate / 1e9) + 1;
    if (j->total && due > j->total) due = j->total;
    int64_t late = now - j->began_ns - (int64_t)((double)j->done / j->rate * 1e9);
    if (j->done < due && late > g->counts.late_ns) g->counts.late_ns = late;
    for (int sends = 0; j->done < due && sends < SENDS; sends++) {
        member *m = NULL;
        for (uint32_t tries = 0; tries < g->plan.count; tries++) {
            m = &s->members[g->first + j->cursor];
            j->cursor = (j->cursor + 1) % g->plan.count;
            if (m->state == OPEN) break;
            m = NULL;
        }
        if (!m) return -1;
        if (j->stamp_at >= 0) {
            uint64_t stamp = (uint64_t)now_ns();
            for (int i = 15; i >= 0; i--, stamp >>= 4) j->payload[j->stamp_at + i] = HEX[stamp & 15];
        }
        if (j->nonce_at >= 0) {
            uint64_t nonce = s->nonce++;
            for (int i = 15; i >= 0; i--, nonce >>= 4) j->payload[j->nonce_at + i] = HEX[nonce & 15];
        }
        j->done++;
        if (send_frame(s, m, j->opcode, j->payload, j->n)) g->counts.sent++;
        else g->counts.blocked++;
    }
    if (j->total && j->done == j->total) {
        j->active = 0;
        return -1;
    }
    return j->rate > 20 ? 1 : 20; /* milliseconds to the next look */
}

static void look_after(up_swarm *s, int64_t now) {
    for (uint32_t i = 0; i < s->member_n; i++) {
        member *m = &s->members[i];
        if (m->fd < 0 || now - m->since_ns < SHAKE_NS) continue;
        if (m->state == CONNECTING || m->state == SHAKING || m->state == CLOSING) {
            s->groups[m->group]->counts.failed++;
            s->groups[m->group]->counts.last_errno = ETIMEDOUT;
            end(s, m);
        }
    }
}

static int step(up_swarm *s, int wait_ms) {
    int64_t now = now_ns();
    for (int i = 0; i < s->group_n; i++) {
        group *g = s->groups[i];
        start_due(s, g, now);
        if (g->waiting_n && g->under_way < g->plan.at_once && wait_ms > 1) wait_ms = 1;
        for (int k = 0; k < UP_JOBS; k++)
            if (g->jobs[k] && g->jobs[k]->active) {
                int next = step_job(s, g, g->jobs[k], now);
                if (next >= 0 && next < wait_ms) wait_ms = next;
            }
        if (g->plan.read_bytes_s) {
            if (now >= g->slow_next_ns) {
                uint32_t most = g->plan.read_bytes_s / 10 ? g->plan.read_bytes_s / 10 : 1;
                g->slow_next_ns = now + SLOW_NS;
                for (uint32_t k = 0; k < g->plan.count; k++) {
                    member *m = &s->members[g->first + k];
                    if (m->state == OPEN) readable(s, m, most < READ_BYTES ? most : READ_BYTES);
                }
            }
            if (wait_ms > 20) wait_ms = 20;
        }
    }
    if (now >= s->look_ns) {
        s->look_ns = now + SECOND;
        look_after(s, now);
    }
    int n = epoll_wait(s->epoll, s->ready, UP_READY, wait_ms);
    if (n < 0) return errno == EINTR ? 0 : -1;
    int64_t woke = now_ns();
    for (int i = 0; i < n; i++) {
        uint64_t data = s->ready[i].data.u64;
        member *m = &s->members[(uint32_t)data];
        uint32_t events = s->ready[i].events;
        if (m->fd != (int)(data >> 32)) continue; /* ended in this pass */
        if (m->state == CONNECTING) {
            connected(s, m);
            continue;
        }
        if (events & EPOLLOUT && m->out_n) flush_out(s, m);
        if (events & (EPOLLIN | EPOLLHUP | EPOLLERR)) readable(s, m, READ_BYTES);
    }
    int64_t took = now_ns() - woke;
    if (took > s->lag_ns) s->lag_ns = took;
    return 0;
}

int up_swarm_run(up_swarm *s, int milliseconds) {
    int64_t until = now_ns() + milliseconds * 1000000ll;
    int passes = 0;
    for (;;) {
        int64_t left = until - now_ns();
        if (left <= 0 && passes) return passes;
        if (step(s, left > 0 ? (int)((left + 999999) / 1000000) : 0) < 0) return -1;
        passes++;
    }
}

up_swarm *up_swarm_new(up_digest look, void *self) {
    up_swarm *s = calloc(1, sizeof *s);
    if (!s) return NULL;
    s->look = look;
    s->self = self;
    s->random = (uint32_t)now_ns();
    s->plain_room = 64 << 10;
    s->epoll = epoll_create1(EPOLL_CLOEXEC);
    s->buffer = malloc(READ_BYTES);
    s->plain = malloc(s->plain_room);
    s->digests = calloc(DIGESTS, sizeof *s->digests);
    if (s->epoll < 0 || !s->buffer || !s->plain || !s->digests) {
        up_swarm_free(s);
        return NULL;
    }
    return s;
}

void up_swarm_free(up_swarm *s) {
    if (!s) return;
    for (int i = 0; i < s->group_n; i++) s->groups[i]->plan.churn = 0;
    for (uint32_t i = 0; i < s->member_n; i++) {
        member *m = &s->members[i];
        end(s, m);
        if (m->decoder) free(m->decoder->message);
        free(m->decoder);
    }
    for (int i = 0; i < s->group_n; i++) {
        group *g = s->groups[i];
        for (int k = 0; k < UP_JOBS; k++) free(g->jobs[k]);
        free(g->heads);
        free(g->ends);
        free(g->waiting);
        free(g);
    }
    for (uint32_t i = 0; i < s->order_n; i++) free(s->orders[i].offsets);
    for (int i = 0; s->digests && i < DIGESTS; i++) {
        free(s->digests[i].payload);
        free(s->digests[i].facts);
    }
    if (s->epoll >= 0) close(s->epoll);
    free(s->members);
    free(s->groups);
    free(s->orders);
    free(s->digests);
    free(s->buffer);
    free(s->plain);
    free(s);
}

int up_swarm_add(up_swarm *s, const up_plan *plan, const uint8_t *heads, const uint64_t *ends,
                 size_t head_count) {
    size_t head_bytes = head_count ? (size_t)ends[head_count - 1] : 0;
    uint32_t orders = plan->stream + 1 > s->order_n ? plan->stream + 1 : s->order_n;
    group *g = calloc(1, sizeof *g);
    group **groups = realloc(s->groups, (size_t)(s->group_n + 1) * sizeof *groups);
    if (groups) s->groups = groups;
    member *members = realloc(s->members, ((size_t)s->member_n + plan->count) * sizeof *members);
    if (members) s->members = members;
    order *all = realloc(s->orders, orders * sizeof *all);
    if (all) {
        memset(all + s->order_n, 0, (orders - s->order_n) * sizeof *all);
        s->orders = all;
        s->order_n = orders;
    }
    if (!g || !groups || !members || !all) {
        free(g);
        return -1;
    }
    g->plan = *plan;
    g->first = s->member_n;
    g->head_count = head_count;
    g->began_ns = now_ns();
    g->waiting = malloc((plan->count ? plan->count : 1) * sizeof *g->waiting);
    g->heads = malloc(head_bytes ? head_bytes : 1);
    g->ends = malloc((head_count ? head_count : 1) * sizeof *ends);
    if (!g->waiting || !g->heads || !g->ends) {
        free(g->waiting);
        free(g->heads);
        free(g->ends);
        free(g);
        return -1;
    }
    memcpy(g->heads, heads, head_bytes);
    memcpy(g->ends, ends, head_count * sizeof *ends);
    s->groups[s->group_n] = g;
    for (uint32_t i = 0; i < plan->count; i++) {
        member *m = &s->members[s->member_n++];
        memset(m, 0, sizeof *m);
        m->fd = -1;
        m->group = (uint32_t)s->group_n;
        if (plan->decode_every && i % plan->decode_every == 0) {
            m->decoder = calloc(1, sizeof *m->decoder);
            if (m->decoder) m->decoder->start = m->decoder->floor = m->decoder->position = -1;
        }
    }
    s->group_n++;
    for (uint32_t i = 0; i < plan->count; i++)
        if (!plan->churn || i < plan->churn) queue(s, &s->members[g->first + i]);
    return s->group_n - 1;
}

int up_swarm_send(up_swarm *s, int number, int opcode, const uint8_t *payload, size_t n,
                  int stamp_at, int nonce_at, double rate, uint64_t total) {
    group *g = s->groups[number];
    if (n > PAYLOAD) return -1;
    for (int k = 0; k < UP_JOBS; k++) {
        if (g->jobs[k] && g->jobs[k]->active) continue;
        job *j = g->jobs[k] ? g->jobs[k] : calloc(1, sizeof *j);
        if (!j) return -1;
        g->jobs[k] = j;
        memcpy(j->payload, payload, n);
        j->active = 1;
        j->opcode = opcode;
        j->n = n;
        j->stamp_at = stamp_at;
        j->nonce_at = nonce_at;
        j->rate = rate;
        j->total = total;
        j->done = 0;
        j->cursor = 0;
        j->began_ns = now_ns();
        return k;
    }
    return -1;
}

uint64_t up_swarm_stop(up_swarm *s, int number, int which) {
    job *j = s->groups[number]->jobs[which];
    if (!j) return 0;
    j->active = 0;
    return j->done;
}

void up_swarm_close(up_swarm *s, int number, uint32_t keep_n, int mode) {
    group *g = s->groups[number];
    g->plan.churn = 0;
    for (uint32_t i = keep_n; i < g->plan.count; i++) {
        member *m = &s->members[g->first + i];
        if (m->fd >= 0 && m->state != CLOSING) leave(s, m, mode);
    }
    g->waiting_n = 0;
}

const up_counts *up_swarm_counts(up_swarm *s, int number) { return &s->groups[number]->counts; }

const uint64_t *up_swarm_latencies(up_swarm *s, int number) { return s->groups[number]->latencies; }

int64_t up_swarm_missing(up_swarm *s, int number) {
    group *g = s->groups[number];
    const order *o = &s->orders[g->plan.stream];
    int64_t missing = 0;
    for (uint32_t i = 0; i < g->plan.count; i++) {
        const decoder *d = s->members[g->first + i].decoder;
        if (!d || d->start < 0) continue;
        int64_t due = (int64_t)rank_of(o, d->position) - (int64_t)rank_of(o, d->start);
        for (int k = 0; k < d->gap_count; k++) {
            int64_t from = d->gaps[k].from > d->start ? d->gaps[k].from : d->start;
            due -= (int64_t)rank_of(o, d->gaps[k].to) - (int64_t)rank_of(o, from);
        }
        if (due > d->outside) missing += due - d->outside;
    }
    return missing;
}

void up_swarm_positions(up_swarm *s, int number, int64_t *least, int64_t *most) {
    group *g = s->groups[number];
    *least = *most = -1;
    for (uint32_t i = 0; i < g->plan.count; i++) {
        const member *m = &s->members[g->first + i];
        if (!m->decoder || m->state != OPEN) continue;
        int64_t at = m->decoder->position;
        if (*most < 0 || at < *least) *least = at;
        if (at > *most) *most = at;
    }
}

void up_swarm_spread(up_swarm *s, int number, int64_t *least, int64_t *most) {
    group *g = s->groups[number];
    *least = *most = -1;
    for (uint32_t i = 0; i < g->plan.count; i++) {
        const member *m = &s->members[g->first + i];
        if (m->state != OPEN) continue;
        if (*least < 0 || m->messages < *least) *least = m->messages;
        if (m->messages > *most) *most = m->messages;
    }
}

uint32_t up_swarm_standing(up_swarm *s, int number, int welcomed) {
    return welcomed ? s->groups[number]->welcomed : s->groups[number]->standing;
}

int64_t up_swarm_lag_ns(up_swarm *s) { return s->lag_ns; }

int64_t up_swarm_offsets(up_swarm *s, uint32_t stream) {
    return stream < s->order_n ? (int64_t)s->orders[stream].n : 0;
}

void up_swarm_reset(up_swarm *s) {
    s->lag_ns = 0;
    for (int i = 0; i < s->group_n; i++) {
        memset(&s->groups[i]->counts, 0, sizeof(up_counts));
        memset(s->groups[i]->latencies, 0, sizeof s->groups[i]->latencies);
    }
    for (uint32_t i = 0; i < s->member_n; i++) s->members[i].messages = 0;
}

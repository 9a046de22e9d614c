/* The loop: accept, handshake, frames, commands, timers. */
#include "inside.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "commands.h"

#define ACCEPTS_PER_PASS 64
#define PASS_MS 20 /* then the rest waits: 4 KB of bombs take up to 8 ms, of each who sends them */
#define READ_BYTES 16384
#define DEFLATED_BYTES 4096 /* at once where they may inflate a thousandfold: 4 MiB, 8 ms */
#define LINGER_BYTES (16u << 20)
#define REFUSED_READS 16 /* of one that is refused without a descriptor */
#define NO_FILES_MS 100  /* between two tries when there is none to give up either */
#define RESPONSE_ROOM 1024
#define LISTENER UINT64_MAX

static const uint8_t NOBODY[16];

/* ---- making and ending -------------------------------------------------------------------------- */

up_reactor *up_reactor_new(const up_limits *limits, const up_hooks *hooks) {
    up_reactor *r = calloc(1, sizeof *r);
    if (!r) return NULL;
    r->limits = *limits;
    r->hooks = *hooks;
    r->listener = r->epoll = r->spare = -1;
    r->free_slot = r->free_place = r->free_address = NONE;
    memset(r->wheel, 0xFF, sizeof r->wheel);
    memset(r->buckets, 0xFF, sizeof r->buckets);
    r->frame_limits = (up_frame_limits){limits->message_bytes, limits->fragments, malloc(limits->message_bytes + 1)};
    r->scratch = malloc(READ_BYTES);
    r->epoll = epoll_create1(EPOLL_CLOEXEC);
    r->spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
    r->start_ms = r->now_ms = r->accept_ms = clock_ms();
    r->accept_tokens = limits->accepts_per_second;
    if (!r->frame_limits.inflated || !r->scratch || r->epoll < 0) {
        up_reactor_free(r);
        return NULL;
    }
    return r;
}

void up_reactor_free(up_reactor *r) {
    for (uint32_t slot = 0; slot < r->chunk_count << CHUNK_BITS; slot++)
        if (conn_at(r, slot)->state != FREE) conn_destroy(r, conn_at(r, slot), slot);
    for (uint32_t index = 0; index < r->audience_count; index++)
        if (r->audiences[index].used) up_audience_free(r, audience_number(r, index));
    for (uint32_t chunk = 0; chunk < r->chunk_count; chunk++) free(r->chunks[chunk]);
    if (r->epoll >= 0) close(r->epoll);
    if (r->spare >= 0) close(r->spare);
    up_release(r->slow);
    up_release(r->full);
    free(r->chunks);
    free(r->places);
    free(r->audiences);
    free(r->addresses);
    free(r->proxies);
    free(r->held);
    free(r->kind_bytes);
    free(r->sums);
    free(r->frame_limits.inflated);
    free(r->scratch);
    free(r);
}

void up_reactor_hang_up(up_reactor *r) {
    for (uint32_t slot = 0; slot < r->chunk_count << CHUNK_BITS; slot++)
        if (conn_at(r, slot)->state != FREE) shutdown(conn_at(r, slot)->fd, SHUT_RDWR);
}

void up_reactor_protocols(up_reactor *r, const up_text *names, int count) {
    r->protocol_count = count < 8 ? count : 8;
    memcpy(r->protocols, names, (size_t)r->protocol_count * sizeof *names);
}

int up_reactor_refusals(up_reactor *r, const char *slow, size_t slow_n, const char *full, size_t full_n) {
    r->slow = buffer_of(-1, (const uint8_t *)slow, slow_n);
    r->full = buffer_of(-1, (const uint8_t *)full, full_n);
    return r->slow && r->full ? 0 : -1;
}

int up_reactor_kinds(up_reactor *r, const up_text *kinds, int count, uint32_t most) {
    size_t total = 1;
    for (int at = 0; at < count; at++) total += kinds[at].n;
    char *bytes = malloc(total), *to = bytes;
    if (!bytes) return -1;
    r->kind_count = count < UP_KINDS_MAX ? count : UP_KINDS_MAX;
    for (int at = 0; at < r->kind_count; at++) {
        memcpy(to, kinds[at].at, kinds[at].n);
        r->kinds[at] = (up_text){to, kinds[at].n};
        to += kinds[at].n;
    }
    free(r->kind_bytes);
    r->kind_bytes = bytes;
    r->kind_most = most;
    return 0;
}

void up_reactor_check_origin(up_reactor *r, int check) { r->check_origin = (uint8_t)check; }
int up_reactor_fd(const up_reactor *r) { return r->epoll; }
const up_counters *up_reactor_counters(const up_reactor *r) { return &r->counters; }
void up_reactor_handed(up_reactor *r, int by) { r->handed = (uint32_t)((int)r->handed + by); }

static int watch_new(up_reactor *r, int fd, uint64_t data) {
    struct epoll_event wanted = {.events = EPOLLIN, .data.u64 = data};
    return epoll_ctl(r->epoll, EPOLL_CTL_ADD, fd, &wanted);
}

/* ---- accepting ---------------------------------------------------------------------------------- */

int up_reactor_listen(up_reactor *r, int fd) {
    r->listener = fd;
    r->listening = 1;
    return watch_new(r, fd, LISTENER);
}

static void pause_listening(up_reactor *r, uint64_t until_ms) {
    if (until_ms > r->listen_at) r->listen_at = until_ms;
    if (!r->listening) return;
    r->listening = 0;
    epoll_ctl(r->epoll, EPOLL_CTL_DEL, r->listener, NULL);
}

void up_reactor_unlisten(up_reactor *r) {
    if (r->listener >= 0) pause_listening(r, 0);
    r->listener = -1;
}

void up_reactor_hold_off(up_reactor *r, double seconds) {
    if (r->listener >= 0) pause_listening(r, clock_ms() + (uint64_t)(seconds * 1000));
}

static void ip_of(const struct sockaddr_storage *peer, uint8_t ip[16]) {
    memset(ip, 0, 16);
    if (peer->ss_family == AF_INET) {
        ip[10] = ip[11] = 0xFF;
        memcpy(ip + 12, &((const struct sockaddr_in *)peer)->sin_addr, 4);
    } else if (peer->ss_family == AF_INET6) {
        memcpy(ip, &((const struct sockaddr_in6 *)peer)->sin6_addr, 16);
    }
}

static void ip_text(const uint8_t ip[16], char text[UP_ADDRESS_MAX]) {
    static const uint8_t mapped[12] = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF, 0xFF};
    if (!memcmp(ip, NOBODY, 16)) strcpy(text, "local");
    else if (!memcmp(ip, mapped, 12)) inet_ntop(AF_INET, ip + 12, text, UP_ADDRESS_MAX);
    else inet_ntop(AF_INET6, ip, text, UP_ADDRESS_MAX);
}

static int ip_read(const char *text, uint8_t ip[16]) {
    memset(ip, 0, 16);
    if (inet_pton(AF_INET, text, ip + 12) != 1) return inet_pton(AF_INET6, text, ip) == 1;
    ip[10] = ip[11] = 0xFF;
    return 1;
}

/* ---- behind a proxy (the same in Python: gateway/engine/forwarded.py) ---------------------------- */

int up_reactor_trust(up_reactor *r, const uint8_t *networks, uint32_t count) {
    uint8_t *copy = malloc((size_t)count * 17 + 1);
    if (!copy) return -1;
    memcpy(copy, networks, (size_t)count * 17);
    free(r->proxies);
    r->proxies = copy;
    r->proxy_count = count;
    return 0;
}

static int is_trusted(const up_reactor *r, const uint8_t ip[16]) {
    for (uint32_t at = 0; at < r->proxy_count; at++) {
        const uint8_t *network = r->proxies + (size_t)at * 17;
        unsigned whole = network[16] / 8, rest = network[16] % 8;
        if (!memcmp(ip, network, whole) && (!rest || !((ip[whole] ^ network[whole]) >> (8 - rest)))) return 1;
    }
    return 0;
}

/* An entry of X-Forwarded-For: 1.2.3.4, 1.2.3.4:80, ::1, [::1] or [::1]:80. */
static int entry_read(const char *from, const char *to, uint8_t ip[16]) {
    while (from < to && (*from == ' ' || *from == '\t')) from++;
    while (to > from && (to[-1] == ' ' || to[-1] == '\t')) to--;
    const char *stop;
    if (from < to && *from == '[') {
        from++;
        if ((stop = memchr(from, ']', (size_t)(to - from)))) to = stop;
    } else if ((stop = memchr(from, ':', (size_t)(to - from))) && !memchr(stop + 1, ':', (size_t)(to - stop - 1))) {
        to = stop;
    }
    char text[UP_ADDRESS_MAX];
    size_t n = (size_t)(to - from);
    if (n >= sizeof text) return 0;
    memcpy(text, from, n);
    text[n] = 0;
    return ip_read(text, ip);
}

/* Count a connection with the viewer behind our proxies: the right-most address that is none of them. An entry that
 * is no address ends the list: who wrote it is the nearest that is known. */
static void behind(up_reactor *r, conn *c, up_text forwarded) {
    uint8_t ip[16], said[16];
    memcpy(ip, r->addresses[c->address].ip, 16);
    if (!is_trusted(r, ip)) return;
    while (forwarded.n) {
        const char *comma = memrchr(forwarded.at, ',', forwarded.n);
        if (!entry_read(comma ? comma + 1 : forwarded.at, forwarded.at + forwarded.n, said)) break;
        memcpy(ip, said, 16);
        forwarded.n = comma ? (size_t)(comma - forwarded.at) : 0;
        if (!is_trusted(r, ip)) break;
    }
    conn_move(r, c, ip); /* without memory it stays the proxy's */
}

/* Answer with a whole response, then read on for a moment so that it arrives. */
static void refuse(up_reactor *r, conn *c, uint32_t slot, up_buffer *response) {
    r->counters.refused++;
    if (response) conn_write(r, c, slot, &response, 1, 1);
    conn_linger(r, c, slot);
}

/* There is no descriptor left: give the spare one up for as long as it takes to say so. 0: nobody could be told. */
static int refuse_without_files(up_reactor *r) {
    if (r->spare >= 0) close(r->spare);
    int fd = accept4(r->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd >= 0) {
        r->counters.refused++;
        /* Unread bytes make close a reset. */
        for (int left = REFUSED_READS; left && recv(fd, r->scratch, READ_BYTES, MSG_DONTWAIT) > 0;) left--;
        if (r->full) (void)!send(fd, r->full->bytes + r->full->at, r->full->n, MSG_DONTWAIT | MSG_NOSIGNAL);
        shutdown(fd, SHUT_WR);
        close(fd);
    }
    r->spare = open("/dev/null", O_RDONLY | O_CLOEXEC);
    return fd >= 0;
}

/* Whether one more may be accepted now. */
static int accept_allowed(up_reactor *r) {
    double rate = r->limits.accepts_per_second;
    r->accept_tokens += (double)(r->now_ms - r->accept_ms) * rate / 1000;
    if (r->accept_tokens > rate) r->accept_tokens = rate;
    r->accept_ms = r->now_ms;
    if (r->accept_tokens >= 1) return 1;
    pause_listening(r, r->now_ms + 1 + (uint64_t)(1000 / rate));
    return 0;
}

static void accept_some(up_reactor *r) {
    int left = ACCEPTS_PER_PASS;
    for (; left && accept_allowed(r); left--) {
        struct sockaddr_storage peer;
        socklen_t size = sizeof peer;
        int fd = accept4(r->listener, (struct sockaddr *)&peer, &size, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0) {
            if (errno == EAGAIN || errno == EWOULDBLOCK) return;
            int short_of = errno == EMFILE || errno == ENFILE ? !refuse_without_files(r)
                                                              : errno == ENOBUFS || errno == ENOMEM;
            if (short_of) { /* the listener stays ready: looking again at once would never end */
                pause_listening(r, r->now_ms + NO_FILES_MS);
                return;
            }
            continue;
        }
        r->accept_tokens -= 1;
        r->counters.accepted++;
        uint8_t ip[16];
        uint32_t slot;
        ip_of(&peer, ip);
        int crowded = r->counters.sockets + r->handed >= r->limits.connections + r->limits.http_sockets;
        conn *c = conn_new(r, fd, HEAD, ip, &slot);
        if (!c || watch_new(r, fd, (uint64_t)c->gen << 32 | slot)) {
            if (c) conn_destroy(r, c, slot);
            else close(fd);
            continue;
        }
        if (crowded) {
            refuse(r, c, slot, r->full);
            continue;
        }
        /* `tick` is as old as the last look at timers: by that some would be refused before their time. */
        uint32_t now = (uint32_t)((r->now_ms - r->start_ms) / TICK_MS);
        c->deadline = now + ticks_of(r->limits.handshake_s);
        conn_schedule(r, c, slot, c->deadline);
    }
    if (!left) r->more = 1;
}

/* ---- handshakes --------------------------------------------------------------------------------- */

static void hand_over(up_reactor *r, conn *c, uint32_t slot, const uint8_t *data, size_t n) {
    char text[UP_ADDRESS_MAX];
    int fd = c->fd;
    ip_text(r->addresses[c->address].ip, text);
    epoll_ctl(r->epoll, EPOLL_CTL_DEL, fd, NULL);
    c->fd = -1;
    uint8_t *kept = c->head.data; /* `data` may lie in it */
    c->head.data = NULL;
    conn_destroy(r, c, slot);
    r->hooks.http(r->hooks.context, fd, data, n, text);
    free(kept);
}

int up_reactor_refuses(up_reactor *r, const char *text) {
    uint8_t ip[16];
    ip_read(text, ip);
    uint32_t sessions = 0, hash = 2166136261u;
    for (int at = 0; at < 16; at++) hash = (hash ^ ip[at]) * 16777619u;
    for (uint32_t at = r->buckets[hash % ADDRESS_BUCKETS]; at != NONE; at = r->addresses[at].next)
        if (!memcmp(r->addresses[at].ip, ip, 16)) sessions = r->addresses[at].sessions;
    return r->counters.open >= r->limits.connections || sessions >= r->limits.connections_per_address;
}

static void hold(up_reactor *r, conn *c, uint32_t slot) {
    if (r->held_n == r->held_room) {
        uint32_t room = r->held_room ? 2 * r->held_room : 64;
        uint32_t *held = realloc(r->held, room * sizeof *held);
        if (!held) { /* then it goes out by itself */
            conn_flush(r, c, slot);
            return;
        }
        r->held = held;
        r->held_room = room;
    }
    r->held[r->held_n++] = slot;
    c->flags |= HELD;
}

static void read_frames(up_reactor *r, conn *c, uint32_t slot, uint8_t *data, size_t n);

static void become_open(up_reactor *r, conn *c, uint32_t slot, int raw) {
    c->state = raw ? RAW : OPEN;
    memset(&c->frames, 0, sizeof c->frames);
    c->frames.deflate = (c->flags & DEFLATE) != 0;
    c->seen = r->tick;
    r->counters.open++;
    r->addresses[c->address].sessions++;
    conn_schedule(r, c, slot, r->tick + ticks_of(r->limits.idle_s / 2));
}

/* Answer an upgrade; the 101 waits for the end of the pass (up_reactor_flush). 0: it is for the HTTP server. */
static int answer(up_reactor *r, conn *c, uint32_t slot, const char *data, size_t head_n) {
    up_head head;
    if (!up_head_read(data, head_n, &head)) return 0;
    const char *extensions = NULL;
    size_t extensions_n = 0;
    int compression = 0;
    if (head.extensions.at) {
        compression = r->hooks.negotiate(r->hooks.context, head.extensions.at, head.extensions.n, &extensions,
                                         &extensions_n);
        if (compression < 0) return 0;
    }
    if (head.forwarded.at) behind(r, c, head.forwarded);
    if (r->counters.open >= r->limits.connections ||
        r->addresses[c->address].sessions >= r->limits.connections_per_address) {
        refuse(r, c, slot, r->full);
        return 1;
    }
    int protocol = up_head_choose(head.protocols, r->protocols, r->protocol_count);
    up_buffer *response = buffer_new(RESPONSE_ROOM + extensions_n);
    if (!response) return 0;
    char key[28];
    up_head_accept(head.key.at, key);
    int n = snprintf((char *)response->bytes + UP_HEAD_MAX, RESPONSE_ROOM + extensions_n,
                     "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     "Sec-WebSocket-Accept: %.28s\r\n%s%.*s%s%s%.*s%s\r\n",
                     key, protocol < 0 ? "" : "Sec-WebSocket-Protocol: ",
                     protocol < 0 ? 0 : (int)r->protocols[protocol].n, protocol < 0 ? "" : r->protocols[protocol].at,
                     protocol < 0 ? "" : "\r\n", compression ? "Sec-WebSocket-Extensions: " : "", (int)extensions_n,
                     compression ? extensions : "", compression ? "\r\n" : "");
    response->n = (uint32_t)n;
    uint8_t *kept = c->head.data; /* `head` may lie in it */
    c->head.data = NULL;
    c->flags = (uint16_t)((protocol <= 0 ? TEXT : 0) | (compression ? DEFLATE : 0));
    become_open(r, c, slot, 0);
    r->counters.handshakes++;
    hold(r, c, slot);
    conn_write(r, c, slot, &response, 1, 1);
    up_release(response);
    char text[UP_ADDRESS_MAX];
    ip_text(r->addresses[c->address].ip, text);
    int plain = up_head_plain(&head) && !(r->check_origin && head.origin.at);
    uint64_t sid = sid_of(c, slot);
    r->hooks.opened(r->hooks.context, sid, plain, &head, protocol, compression, text);
    free(kept);
    return 1;
}

static void read_head(up_reactor *r, conn *c, uint32_t slot, uint8_t *data, size_t n) {
    uint32_t before = c->head.n;
    if (before) {
        if (before + n > c->head.room) {
            uint8_t *grown = realloc(c->head.data, before + n);
            if (!grown) {
                conn_destroy(r, c, slot);
                return;
            }
            c->head.data = grown;
            c->head.room = (uint32_t)(before + n);
        }
        memcpy(c->head.data + before, data, n);
        data = c->head.data;
        n += before;
        c->head.n = (uint32_t)n;
    }
    size_t head_n = up_head_end((const char *)data, n, before);
    if (!head_n && n <= r->limits.handshake_bytes && !up_head_strange((const char *)data, n)) {
        if (!before) {
            c->head.data = malloc(n);
            if (!c->head.data) {
                conn_destroy(r, c, slot);
                return;
            }
            memcpy(c->head.data, data, n);
            c->head.n = c->head.room = (uint32_t)n;
        }
        return;
    }
    uint8_t rest[READ_BYTES];
    size_t rest_n = head_n ? n - head_n : 0;
    if (rest_n > sizeof rest) rest_n = 0, head_n = 0;
    if (rest_n) memcpy(rest, data + head_n, rest_n); /* `answer` lets go of the head */
    uint32_t gen = c->gen;
    if (!head_n || head_n > r->limits.handshake_bytes || !answer(r, c, slot, (const char *)data, head_n)) {
        hand_over(r, c, slot, data, n);
        return;
    }
    if (rest_n && c->gen == gen && c->state == OPEN) read_frames(r, c, slot, rest, rest_n);
}

void up_reactor_flush(up_reactor *r) {
    for (uint32_t at = 0; at < r->held_n; at++) {
        conn *c = conn_at(r, r->held[at]);
        if (c->state != FREE && c->flags & HELD) conn_flush(r, c, r->held[at]);
    }
    r->held_n = 0;
}

uint64_t up_reactor_adopt(up_reactor *r, int fd, int framing, int deflate, const char *from) {
    uint8_t ip[16];
    uint32_t slot;
    ip_read(from, ip);
    conn *c = conn_new(r, fd, HEAD, ip, &slot);
    if (!c) {
        errno = ENOMEM;
        return 0;
    }
    if (watch_new(r, fd, (uint64_t)c->gen << 32 | slot)) {
        int error = errno;
        c->fd = -1;
        conn_destroy(r, c, slot);
        errno = error;
        return 0;
    }
    c->flags = (uint16_t)((framing == UP_FRAMING_TEXT ? TEXT : 0) | (deflate ? DEFLATE : 0));
    become_open(r, c, slot, framing == UP_FRAMING_RAW);
#ifdef TCP_USER_TIMEOUT
    if (framing == UP_FRAMING_RAW) { /* a peer that is gone without a word: the kernel's patience is 15 minutes */
        unsigned int idle_ms = (unsigned int)(r->limits.idle_s * 1000);
        setsockopt(fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &idle_ms, sizeof idle_ms);
    }
#endif
    return sid_of(c, slot);
}

void up_reactor_feed(up_reactor *r, uint64_t sid, const uint8_t *first, size_t n) {
    uint32_t slot;
    conn *c = conn_of(r, sid, &slot);
    if (!c || c->state != OPEN || !n) return;
    uint8_t *copy = malloc(n);
    if (!copy) {
        shutdown(c->fd, SHUT_RDWR);
        return;
    }
    memcpy(copy, first, n);
    r->now_ms = clock_ms();
    read_frames(r, c, slot, copy, n);
    free(copy);
}

/* ---- messages ----------------------------------------------------------------------------------- */

static int kind_of(const up_reactor *r, const up_command *command) {
    for (int at = 0; at < r->kind_count; at++)
        if (r->kinds[at].n == command->kind_n && !memcmp(r->kinds[at].at, command->kind, command->kind_n)) return at;
    return -1;
}

static void pong(up_reactor *r, conn *c, uint32_t slot, int64_t position) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    uint64_t ms = (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
    uint8_t text[96];
    size_t n;
    if (c->flags & TEXT) {
        n = (size_t)snprintf((char *)text, sizeof text, "[{\"type\":\"PONG\",\"position\":%lld,\"server_time\":%llu}]",
                             (long long)position, (unsigned long long)ms);
        conn_frame(r, c, slot, UP_TEXT, text, n, 0);
        return;
    }
    /* [base_ts, base_offset, nil, [[10, 0, 0]]] */
    static const uint8_t tail[] = {0xC0, 0x91, 0x93, 0x0A, 0x00, 0x00};
    text[0] = 0x94;
    n = 1;
    uint64_t values[2] = {ms, (uint64_t)position};
    for (int which = 0; which < 2; which++) {
        uint64_t value = values[which];
        int bytes = value < 0x80 ? 0 : value < 0x100 ? 1 : value < 0x10000 ? 2 : value < 0x100000000 ? 4 : 8;
        text[n++] = (uint8_t)(bytes == 0 ? value : bytes == 1 ? 0xCC : bytes == 2 ? 0xCD : bytes == 4 ? 0xCE : 0xCF);
        while (bytes--) text[n++] = (uint8_t)(value >> 8 * bytes);
    }
    memcpy(text + n, tail, sizeof tail);
    conn_frame(r, c, slot, UP_BINARY, text, n + sizeof tail, 0);
}

static void flooded(up_reactor *r, conn *c, uint32_t slot) {
    if (c->flags & FLOODED) return;
    c->flags |= FLOODED;
    r->hooks.flooded(r->hooks.context, sid_of(c, slot));
}

/* Answer and count a message of PINGs and REACTs; 0: it is for above. */
static int command(up_reactor *r, conn *c, uint32_t slot, int text, const uint8_t *data, size_t n) {
    static up_command commands[UP_COMMANDS_MAX]; /* one thread */
    if (text != ((c->flags & TEXT) != 0) || c->place == NONE || c->flags & FULL) return 0;
    const audience *a = &r->audiences[r->places[c->place].audience];
    if (a->position < 0) return 0;
    int count = up_commands_read(data, n, text, commands);
    for (int at = 0; at < count; at++)
        if (commands[at].react && (!c->counter || kind_of(r, &commands[at]) < 0 || !commands[at].count ||
                                   commands[at].count > r->kind_most))
            return 0;
    for (int at = 0; at < count; at++) {
        if (!conn_charge(r, c)) {
            flooded(r, c, slot);
            return 1;
        }
        r->counters.commands++;
        if (commands[at].react) {
            counter *sums = &r->sums[c->counter];
            sums->sums[kind_of(r, &commands[at])] += commands[at].count;
            sums->changed = 1;
        } else {
            pong(r, c, slot, a->position);
        }
    }
    return count;
}

typedef struct {
    up_reactor *r;
    conn *c;
    uint32_t slot;
} reading;

static int take(void *context, int kind, uint8_t *data, size_t n, int code) {
    reading *what = context;
    up_reactor *r = what->r;
    conn *c = what->c;
    if (kind == UP_CLOSE) {
        conn_close(r, c, what->slot, code == UP_NO_STATUS ? 1000 : code, "", 0);
        conn_tell(r, c, what->slot, code);
        return 1;
    }
    if (c->flags & CLOSING) return 0;
    if (kind == UP_TEXT || kind == UP_BINARY) {
        if (!command(r, c, what->slot, kind == UP_TEXT, data, n))
            r->hooks.received(r->hooks.context, sid_of(c, what->slot), kind == UP_TEXT, data, n);
        return 0;
    }
    if (!conn_charge(r, c)) flooded(r, c, what->slot);
    else if (kind == UP_PING) conn_frame(r, c, what->slot, UP_PONG, data, n, 0);
    return 0;
}

static void read_frames(up_reactor *r, conn *c, uint32_t slot, uint8_t *data, size_t n) {
    char reason[UP_REASON_MAX];
    reading what = {r, c, slot};
    int error = up_frames_feed(&c->frames, &r->frame_limits, data, n, take, &what, reason);
    if (error) {
        conn_close(r, c, slot, error, reason, strlen(reason));
        conn_tell(r, c, slot, error);
    }
    if (c->frames.closed) conn_linger(r, c, slot);
}

/* ---- a pass ------------------------------------------------------------------------------------- */

/* It has said all that it will; what is queued for it may still leave. */
static void hear_no_more(up_reactor *r, const conn *c, uint32_t slot) {
    struct epoll_event wanted = {.events = EPOLLOUT, .data.u64 = (uint64_t)c->gen << 32 | slot};
    epoll_ctl(r->epoll, EPOLL_CTL_MOD, c->fd, &wanted);
}

static void readable(up_reactor *r, conn *c, uint32_t slot) {
    size_t most = c->flags & DEFLATE ? DEFLATED_BYTES : READ_BYTES;
    ssize_t n = recv(c->fd, r->scratch, most, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return;
    if (n <= 0) {
        if (c->state == OPEN || c->state == RAW) conn_gone(r, c, slot, 1006);
        else if (c->state == HEAD && c->head.n && !n) hand_over(r, c, slot, c->head.data, c->head.n); /* half a head */
        else if (c->state == LINGER && c->first && !n) hear_no_more(r, c, slot);
        else conn_destroy(r, c, slot);
        return;
    }
    r->counters.bytes_received += (uint64_t)n;
    if ((size_t)n == most) r->more = 1;
    c->seen = r->tick;
    c->flags &= (uint16_t)~ASKED;
    switch (c->state) {
    case HEAD:
        read_head(r, c, slot, r->scratch, (size_t)n);
        break;
    case OPEN:
        read_frames(r, c, slot, r->scratch, (size_t)n);
        break;
    case RAW:
        c->said += (uint32_t)n;
        if (c->said > r->limits.handshake_bytes) conn_gone(r, c, slot, 1006);
        break;
    default:
        c->said += (uint32_t)n;
        if (c->said > LINGER_BYTES) conn_destroy(r, c, slot);
    }
}

int up_reactor_poll(up_reactor *r, int *drained) {
    *drained = 0;
    /* Whoever is late is served before anybody is served twice. */
    if (r->event_at == r->event_n) {
        int count = epoll_wait(r->epoll, r->events, UP_PASS_SOCKETS, 0);
        if (count < 0) return errno == EINTR ? 0 : -1;
        r->event_at = 0;
        r->event_n = count;
    }
    r->now_ms = clock_ms();
    r->more = 0;
    int first = r->event_at;
    while (r->event_at < r->event_n) {
        const struct epoll_event *event = &r->events[r->event_at++];
        if (event->data.u64 == LISTENER) {
            if (r->listening) accept_some(r);
            continue;
        }
        uint32_t slot = (uint32_t)event->data.u64, gen = (uint32_t)(event->data.u64 >> 32);
        conn *c = conn_at(r, slot);
        if (c->gen != gen || c->state == FREE) continue; /* ended since */
        if (event->events & EPOLLOUT) {
            ++*drained;
            conn_flush(r, c, slot);
        }
        if (event->events & (EPOLLIN | EPOLLHUP | EPOLLERR) && c->gen == gen && c->state != FREE)
            readable(r, c, slot);
        if (clock_ms() - r->now_ms >= PASS_MS) break;
    }
    if (r->event_at < r->event_n) r->more = 1;
    return r->more ? UP_PASS_SOCKETS : r->event_at - first;
}

/* ---- timers ------------------------------------------------------------------------------------- */

static void due(up_reactor *r, conn *c, uint32_t slot) {
    uint32_t half = ticks_of(r->limits.idle_s / 2);
    if (c->state == HEAD || c->state == LINGER || c->flags & CLOSING) {
        if ((int32_t)(c->deadline - r->tick) > 0) conn_schedule(r, c, slot, c->deadline);
        else if (c->state == HEAD) refuse(r, c, slot, r->slow);
        else if (c->state == LINGER) conn_destroy(r, c, slot);
        else conn_gone(r, c, slot, 1006);
        return;
    }
    if (c->state == RAW) {
        if (c->first && (uint32_t)r->now_ms - c->since > r->limits.idle_s * 1000) conn_gone(r, c, slot, 1006);
        else conn_schedule(r, c, slot, r->tick + half);
        return;
    }
    if ((int32_t)(c->seen + half - r->tick) > 0) {
        conn_schedule(r, c, slot, c->seen + half);
    } else if (c->flags & ASKED) {
        conn_gone(r, c, slot, 1006);
    } else {
        c->flags |= ASKED;
        conn_frame(r, c, slot, UP_PING, NULL, 0, 0);
        c->seen = r->tick;
        conn_schedule(r, c, slot, r->tick + half);
    }
}

void up_reactor_advance(up_reactor *r) {
    r->now_ms = clock_ms();
    uint32_t now = (uint32_t)((r->now_ms - r->start_ms) / TICK_MS);
    /* After a long stop one round sees everybody. */
    uint32_t steps = now - r->tick < WHEEL ? now - r->tick : WHEEL;
    r->tick = now - steps;
    while (steps--) {
        r->tick++;
        uint32_t slot = r->wheel[r->tick % WHEEL];
        r->wheel[r->tick % WHEEL] = NONE;
        while (slot != NONE) {
            conn *c = conn_at(r, slot);
            uint32_t next = c->wheel_next;
            c->wheel_at = NONE;
            /* What follows in this list is not moved by what is done with this one: it is linked anew only. */
            if (next != NONE) conn_at(r, next)->wheel_prev = NONE;
            due(r, c, slot);
            slot = next;
        }
    }
    if (r->listener >= 0 && !r->listening && r->now_ms >= r->listen_at) {
        r->listening = !watch_new(r, r->listener, LISTENER); /* else tried again */
    }
}

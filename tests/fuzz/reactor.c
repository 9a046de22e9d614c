/* The reactor between clients of every kind and a caller who asks for anything at any time.
 *
 * Input: five bytes of limits, then a script of steps (`step`). Every message is numbered and tells its length, so
 * that each client can prove that it gets what it is to get, once, in order and inflated as it would. Every session
 * opened is told of once and closed once, and in the end no descriptor and no byte is left. Memory, sends and accepts
 * fail where the script says so; what may then be missing is known. */
#include "fuzz.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#include <zlib.h>

#include "inside.h"

#define CLIENTS 8
#define SESSIONS 64
#define AUDIENCES 6
#define EXPECTED 400
#define FILES 256
#define MARK 'M'
#define HEAD_BYTES 9 /* of a message: mark, number, length */
#define STEPS_MAX 600
#define TEXT_OF "to be or not to be, that is "

typedef struct {
    uint32_t number;
    uint8_t optional; /* asked for while something failed */
} expectation;

typedef struct {
    uint64_t sid;
    int client; /* -1: gone */
    uint8_t open, text, raw, broken;
    uint64_t member[AUDIENCES]; /* numbers of audiences, 0 for none */
} session;

typedef struct {
    int fd, session;
    uint8_t answered, frames, deflate, raw, trusted, ended;
    size_t n, room;
    uint8_t *data; /* received and not looked at yet */
    uint32_t expected_n, expected_at;
    expectation expected[EXPECTED];
    z_stream inflater;
} client;

static up_reactor *r;
static int drained;
static client clients[CLIENTS];
static session sessions[SESSIONS];
static int session_count;
static uint64_t audiences[AUDIENCES];
static uint8_t framings[AUDIENCES], compressions[AUDIENCES];
static int owner[FILES]; /* client of a descriptor of the reactor's, by its number */
static int waiting[64], waiting_n; /* clients in the listen queue */
static int listener;
static struct {
    int fd, owner;
} handed[64];
static int handed_n;
static uint32_t number;
static uint64_t clock_ns;
static long allocations_left; /* -1: all succeed */
static uint8_t send_fault, accept_fault, faults; /* `faults`: some were asked for */

/* ---- what the reactor asks of the system ---------------------------------------------------------- */

static int refused(void) {
    if (allocations_left < 0) return 0;
    if (allocations_left) return allocations_left--, 0;
    return 1;
}

void *fuzz_malloc(size_t n) { return refused() ? NULL : malloc(n); }
void *fuzz_calloc(size_t count, size_t n) { return refused() ? NULL : calloc(count, n); }
void *fuzz_realloc(void *at, size_t n) { return refused() ? NULL : realloc(at, n); }

int fuzz_clock_gettime(clockid_t which, struct timespec *now) {
    uint64_t at = clock_ns + (which == CLOCK_REALTIME ? 1700000000000000000ull : 0);
    now->tv_sec = (time_t)(at / 1000000000);
    now->tv_nsec = (long)(at % 1000000000);
    return 0;
}

/* 0: as the system does it; 1 to 200: so many bytes; above: an error, once. */
static int send_error(void) {
    static const int errors[] = {EAGAIN, EINTR, ENOBUFS, EPIPE, ECONNRESET, ENOMEM, EPERM};
    if (send_fault <= 200) return 0;
    errno = errors[send_fault % 7];
    send_fault = 0;
    return 1;
}

ssize_t fuzz_send(int fd, const void *data, size_t n, int flags) {
    if (send_error()) return -1;
    return send(fd, data, send_fault && n > send_fault ? send_fault : n, flags);
}

ssize_t fuzz_sendmsg(int fd, const struct msghdr *message, int flags) {
    if (send_error()) return -1;
    if (!send_fault) return sendmsg(fd, message, flags);
    struct iovec first = message->msg_iov[0];
    if (first.iov_len > send_fault) first.iov_len = send_fault;
    struct msghdr less = {.msg_iov = &first, .msg_iovlen = 1};
    return sendmsg(fd, &less, flags);
}

int fuzz_accept4(int fd, struct sockaddr *peer, socklen_t *size, int flags) {
    static const int errors[] = {EMFILE, ENFILE, ECONNABORTED, ENOBUFS, EINTR};
    if (accept_fault) {
        errno = errors[accept_fault % 5];
        accept_fault = 0;
        return -1;
    }
    int got = accept4(fd, peer, size, flags);
    if (got < 0) return got;
    CHECK(got < FILES && waiting_n);
    owner[got] = waiting[0];
    memmove(waiting, waiting + 1, (size_t)--waiting_n * sizeof *waiting);
    int small = 4096;
    setsockopt(got, SOL_SOCKET, SO_SNDBUF, &small, sizeof small);
    return got;
}

/* ---- sessions ------------------------------------------------------------------------------------- */

static session *session_of(uint64_t sid) {
    for (int at = 0; at < session_count; at++)
        if (sessions[at].sid == sid) return &sessions[at];
    return NULL;
}

static void begin_session(uint64_t sid, int who, int text, int raw) {
    CHECK(sid && sid >> 48 == 0 && !session_of(sid));
    CHECK(session_count < SESSIONS);
    session *made = &sessions[session_count];
    *made = (session){.sid = sid, .client = who, .open = 1, .text = (uint8_t)text, .raw = (uint8_t)raw};
    if (who >= 0) clients[who].session = session_count;
    session_count++;
}

static int on_negotiate(void *context, const char *offers, size_t n, const char **answer, size_t *answer_n) {
    (void)context;
    if (n && offers[0] == '!') return -1;
    if (n < 4 || memcmp(offers, "perm", 4)) return 0;
    *answer = "permessage-deflate; client_no_context_takeover";
    *answer_n = strlen(*answer);
    return n & 1 ? UP_COMPRESS_WINDOW : UP_COMPRESS_EACH;
}

static void on_opened(void *context, uint64_t sid, int plain, const up_head *head, int protocol, int compression,
                      const char *address) {
    (void)context, (void)plain, (void)head, (void)compression;
    CHECK(!strcmp(address, "local"));
    uint32_t slot;
    conn *c = conn_of(r, sid, &slot);
    CHECK(c && c->fd >= 0 && c->fd < FILES);
    begin_session(sid, owner[c->fd], protocol <= 0, 0);
}

static void on_received(void *context, uint64_t sid, int text, const uint8_t *data, size_t n) {
    (void)context, (void)text;
    session *who = session_of(sid);
    CHECK(who && who->open && !who->raw && n <= r->limits.message_bytes);
    free(copy_of(data, n));
}

static void on_flooded(void *context, uint64_t sid) {
    (void)context;
    session *who = session_of(sid);
    CHECK(who && who->open);
}

static void on_closed(void *context, uint64_t sid, int code, uint64_t audience) {
    (void)context;
    session *who = session_of(sid);
    CHECK(who && who->open);
    CHECK(code >= 1000 && code <= 4999);
    if (audience) CHECK(audience_number(r, (uint32_t)audience & 0xFFFFFF));
    who->open = 0;
    memset(who->member, 0, sizeof who->member);
}

static void on_http(void *context, int fd, const uint8_t *data, size_t n, const char *address) {
    (void)context, (void)address;
    free(copy_of(data, n));
    if (handed_n == 64) {
        close(fd);
        return;
    }
    handed[handed_n].fd = fd;
    handed[handed_n++].owner = owner[fd];
}

/* ---- messages -------------------------------------------------------------------------------------- */

static size_t make_message(uint8_t *to, uint8_t how) {
    static const uint16_t sizes[] = {9, 21, 30, 40, 120, 199, 220, 300, 700, 1000, 3000, 9000};
    size_t n = sizes[how % 12];
    uint32_t noise = ++number;
    to[0] = MARK;
    memcpy(to + 1, &number, 4);
    uint32_t size = (uint32_t)n;
    memcpy(to + 5, &size, 4);
    for (size_t at = HEAD_BYTES; at < n; at++)
        to[at] = how & 0x80 ? (uint8_t)random_of(&noise) : (uint8_t)TEXT_OF[(at + number) % 28];
    return n;
}

static void expect(session *who, uint32_t what, int optional) {
    if (who->client < 0) return;
    client *c = &clients[who->client];
    CHECK(c->expected_n < EXPECTED);
    c->expected[c->expected_n++] = (expectation){what, (uint8_t)(optional || faults)};
}

static int room_to_expect(void) {
    for (int at = 0; at < CLIENTS; at++)
        if (clients[at].expected_n + 4 > EXPECTED) return 0;
    return 1;
}

/* ---- clients --------------------------------------------------------------------------------------- */

static void end_client(int which) {
    client *c = &clients[which];
    if (c->fd < 0) return;
    close(c->fd);
    if (c->session >= 0) sessions[c->session].client = -1;
    if (c->deflate) inflateEnd(&c->inflater);
    free(c->data);
    for (int at = 0; at < FILES; at++)
        if (owner[at] == which) owner[at] = -1;
    for (int at = 0; at < waiting_n; at++)
        if (waiting[at] == which) waiting[at] = -1;
    for (int at = 0; at < handed_n; at++)
        if (handed[at].owner == which) handed[at].owner = -1;
    memset(c, 0, sizeof *c);
    c->fd = c->session = -1;
}

static void connect_client(int which) {
    client *c = &clients[which];
    struct sockaddr_un name = {0};
    socklen_t size = sizeof name;
    end_client(which);
    if (waiting_n == 64 || session_count > SESSIONS - CLIENTS || listener < 0) return;
    CHECK(!getsockname(listener, (struct sockaddr *)&name, &size));
    c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    CHECK(c->fd >= 0);
    if (connect(c->fd, (struct sockaddr *)&name, size)) {
        end_client(which);
        return;
    }
    c->trusted = 1;
    waiting[waiting_n++] = which;
}

static void say(client *c, const void *data, size_t n) {
    if (c->fd >= 0) (void)!send(c->fd, data, n, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static void say_head(client *c, uint8_t how) {
    static const char *const offers[] = {"", "permessage-deflate!", "permessage-deflate", "!", "x-else",
                                         "permessage-deflate!"};
    static const char *const protocols[] = {"", "a.v1", "a.v2", "b, a.v2 ,a.v1"};
    char head[400];
    const char *offer = offers[how % 6], *protocol = protocols[how / 6 % 4];
    int n = snprintf(head, sizeof head,
                     "GET /stream/room%s HTTP/1.1\r\nHost: a\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                     "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n%s%s%s%s%s%s\r\n",
                     how & 0x80 ? "?backlog=5" : "", offer[0] ? "Sec-WebSocket-Extensions: " : "", offer,
                     offer[0] ? "\r\n" : "", protocol[0] ? "Sec-WebSocket-Protocol: " : "", protocol,
                     protocol[0] ? "\r\n" : "");
    say(c, head, (size_t)n);
}

static void say_frame(client *c, uint8_t opcode, const uint8_t *payload, size_t n) {
    uint8_t frame[8 + 256] = {opcode, (uint8_t)(0x80 | (n < 126 ? n : 126))};
    size_t at = 2;
    if (n >= 126) {
        frame[at++] = (uint8_t)(n >> 8);
        frame[at++] = (uint8_t)n;
    }
    uint8_t *mask = frame + at;
    memcpy(mask, "\x01\x22\x43\xF4", 4);
    at += 4;
    for (size_t each = 0; each < n; each++) frame[at + each] = payload[each] ^ mask[each & 3];
    say(c, frame, at + n);
}

/* One whole message for a client: numbered ones are the next of those expected. */
static void got(client *c, const uint8_t *payload, size_t n) {
    if (n < HEAD_BYTES || payload[0] != MARK) {
        /* The answer to a PING that the reactor gave by itself. */
        CHECK(n > 10 && (payload[0] == '[' || payload[0] == 0x94));
        return;
    }
    uint32_t what, size;
    memcpy(&what, payload + 1, 4);
    memcpy(&size, payload + 5, 4);
    CHECK(n == size);
    while (c->expected_at < c->expected_n && c->expected[c->expected_at].number != what)
        CHECK(c->expected[c->expected_at++].optional);
    CHECK(c->expected_at++ < c->expected_n);
    uint32_t noise = what;
    int wrong_text = 0, wrong_noise = 0;
    for (size_t at = HEAD_BYTES; at < n; at++) {
        wrong_noise += payload[at] != (uint8_t)random_of(&noise);
        wrong_text += payload[at] != (uint8_t)TEXT_OF[(at + what) % 28];
    }
    CHECK(n < HEAD_BYTES + 12 || wrong_text <= UP_SID_DIGITS || wrong_noise <= UP_SID_DIGITS);
}

static void inflate_and_get(client *c, const uint8_t *data, size_t n) {
    static uint8_t out[16384];
    uint8_t *whole = malloc(n + 4);
    CHECK(whole);
    memcpy(whole, data, n);
    memcpy(whole + n, "\0\0\xff\xff", 4);
    c->inflater.next_in = whole;
    c->inflater.avail_in = (uInt)(n + 4);
    c->inflater.next_out = out;
    c->inflater.avail_out = sizeof out;
    CHECK(inflate(&c->inflater, Z_SYNC_FLUSH) == Z_OK && !c->inflater.avail_in && c->inflater.avail_out);
    got(c, out, sizeof out - c->inflater.avail_out);
    free(whole);
}

/* Look at whole frames (or messages without frames); return how many bytes they have. */
static size_t look(client *c, const uint8_t *data, size_t n) {
    if (!c->answered && !c->raw) {
        const uint8_t *end = memmem(data, n, "\r\n\r\n", 4);
        if (!end) return 0;
        size_t size = (size_t)(end - data) + 4;
        c->answered = 1;
        c->frames = !memcmp(data, "HTTP/1.1 101 ", 13);
        c->deflate = c->frames && memmem(data, size, "permessage-deflate", 18) != NULL;
        if (c->deflate) CHECK(inflateInit2(&c->inflater, -15) == Z_OK);
        CHECK(c->frames || !memcmp(data, "HTTP/1.1 4", 10) || !memcmp(data, "HTTP/1.1 5", 10));
        return size;
    }
    if (c->raw) {
        uint32_t size;
        if (n < HEAD_BYTES) return 0;
        CHECK(data[0] == MARK);
        memcpy(&size, data + 5, 4);
        if (n < size) return 0;
        got(c, data, size);
        return size;
    }
    if (!c->frames) return n;
    if (n < 2) return 0;
    CHECK(!c->ended && data[0] & 0x80 && !(data[0] & 0x30) && !(data[1] & 0x80));
    size_t size = data[1], head = size < 126 ? 2 : 4;
    CHECK(size < 127);
    if (n < head) return 0;
    if (head == 4) size = (size_t)data[2] << 8 | data[3];
    if (n < head + size) return 0;
    const uint8_t *payload = data + head;
    int opcode = data[0] & 0x0F, compressed = data[0] & UP_RSV1;
    CHECK(!compressed || (c->deflate && opcode < 8));
    if (opcode == UP_TEXT || opcode == UP_BINARY) {
        if (compressed) inflate_and_get(c, payload, size);
        else got(c, payload, size);
    } else {
        CHECK(opcode >= UP_CLOSE && opcode <= UP_PONG && size <= 125);
        c->ended = opcode == UP_CLOSE;
        if (c->ended && size) CHECK(size >= 2 && up_may_travel(payload[0] << 8 | payload[1]));
    }
    return head + size;
}

/* Read what is there, at most so many bytes; 0 at the end. */
static int hear(client *c, size_t most) {
    if (c->fd < 0) return 0;
    while (most) {
        uint8_t piece[4096];
        ssize_t n = recv(c->fd, piece, most < sizeof piece ? most : sizeof piece, MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN) return 1;
        if (n <= 0) return 0;
        most -= (size_t)n;
        if (!c->trusted) continue;
        if (c->n + (size_t)n > c->room) {
            c->room = 2 * (c->n + (size_t)n);
            c->data = realloc(c->data, c->room);
            CHECK(c->data);
        }
        memcpy(c->data + c->n, piece, (size_t)n);
        c->n += (size_t)n;
        size_t used = 0, more;
        while ((more = look(c, c->data + used, c->n - used))) used += more;
        c->n -= used;
        memmove(c->data, c->data + used, c->n);
    }
    return 1;
}

/* ---- what must hold at any time --------------------------------------------------------------------- */

static void sound(void) {
    uint32_t sockets = 0, open = 0, told = 0, looked = 0, members = 0, places = 0;
    for (uint32_t slot = 0; slot < r->chunk_count << CHUNK_BITS && looked < 4 * SESSIONS; slot++, looked++) {
        conn *c = conn_at(r, slot);
        if (c->state == FREE) continue;
        sockets++;
        open += c->state == OPEN || c->state == RAW;
        CHECK(c->fd >= 0);
        CHECK(c->wheel_at != NONE); /* nobody is forgotten by the timers */
        if (c->wheel_prev == NONE) CHECK(r->wheel[c->wheel_at] == slot);
        else CHECK(conn_at(r, c->wheel_prev)->wheel_next == slot);
        if (c->wheel_next != NONE) CHECK(conn_at(r, c->wheel_next)->wheel_prev == slot);
        size_t bytes = 0;
        queued *last = NULL;
        for (queued *piece = c->first; piece; last = piece, piece = piece->next) {
            CHECK(piece->at < piece->buffer->n && piece->buffer->refs);
            bytes += piece->buffer->n - piece->at;
        }
        CHECK(bytes == c->queued_bytes && last == c->last);
        int is_held = 0;
        for (uint32_t at = 0; at < r->held_n; at++) is_held |= r->held[at] == slot;
        if (c->first && !(c->flags & WRITING)) CHECK(c->flags & HELD && is_held);
        if (c->flags & FULL) CHECK(c->first || faults);
        CHECK(!(c->flags & (SKIP | DROPPED)));
        CHECK(c->state == OPEN || c->state == RAW || c->place == NONE);
        for (uint32_t at = c->place; at != NONE; at = r->places[at].next) {
            places++;
            const audience *a = &r->audiences[r->places[at].audience];
            CHECK(a->used && r->places[at].at < a->n);
            CHECK(a->members[r->places[at].at].slot == slot && a->members[r->places[at].at].place == at);
        }
    }
    uint32_t windows = 0;
    for (uint32_t at = 0; at < r->audience_count; at++) {
        const audience *a = &r->audiences[at];
        if (!a->used) continue;
        members += a->n;
        windows += a->window != NULL;
        CHECK(a->on <= a->n && (!a->on || a->window));
    }
    CHECK(windows == r->windows);
    for (uint32_t slot = 0; slot < r->chunk_count << CHUNK_BITS && slot < looked; slot++) {
        const conn *c = conn_at(r, slot);
        if (c->state == FREE) continue;
        const address *from = &r->addresses[c->address];
        CHECK(from->count == sockets && from->sessions == open); /* all are of one address */
    }
    CHECK(members == places);
    for (int at = 0; at < session_count; at++) told += sessions[at].open;
    CHECK(sockets == r->counters.sockets && open == r->counters.open && told == open);
    for (int which = 0; which < AUDIENCES; which++) {
        uint32_t count = 0;
        if (!audiences[which]) continue;
        for (int at = 0; at < session_count; at++) count += sessions[at].member[which] == audiences[which];
        CHECK(up_audience_members(r, audiences[which]) == count);
    }
}

/* ---- the script ------------------------------------------------------------------------------------- */

/* Those that were closed by what they sent leave all audiences before the caller is told. */
static int alive(const session *who) {
    uint32_t slot;
    return who->open && conn_of(r, who->sid, &slot) != NULL;
}

static int closing(const session *who) {
    uint32_t slot;
    conn *c = conn_of(r, who->sid, &slot);
    return c && c->flags & CLOSING;
}

static void joined(session *who, int which) {
    if (alive(who) && audiences[which] && !closing(who)) who->member[which] = audiences[which];
}

static void broadcast(script *s, int which) {
    static uint8_t payload[9000];
    uint64_t skip[SESSIONS], full[SESSIONS];
    uint32_t skip_n = 0;
    uint8_t how = next_byte(s), mask = next_byte(s);
    size_t n = make_message(payload, how);
    if (how & 0x40)
        for (int at = 0; at < session_count; at++)
            if (mask >> at % 8 & 1) skip[skip_n++] = sessions[at].sid;
    int count = up_audience_broadcast(r, audiences[which], payload, n, skip, skip_n, full);
    CHECK(count >= 0 || faults);
    for (int at = 0; at < session_count; at++) {
        session *who = &sessions[at];
        if (!audiences[which] || who->member[which] != audiences[which]) continue;
        int missed = 0;
        for (uint32_t each = 0; each < skip_n; each++) missed |= skip[each] == who->sid;
        for (int each = 0; each < count; each++) missed |= full[each] == who->sid;
        if (!missed && count >= 0) expect(who, number, 0);
    }
}

static void admit(script *s, session *who, int which) {
    uint8_t greeting[9000], behind[9000], how = next_byte(s);
    uint32_t first, second = 0;
    size_t n = make_message(greeting, (uint8_t)(how % 4 + 1));
    first = number;
    up_buffer *backlog = NULL;
    if (how & 0x40) {
        size_t behind_n = make_message(behind, (uint8_t)(how >> 2));
        backlog = up_audience_pack(r, audiences[which], behind, behind_n);
        second = number;
    }
    int64_t sid_at = how & 0x80 ? HEAD_BYTES : (int8_t)how;
    if (sid_at >= 0) sid_at = HEAD_BYTES;
    /* A backlog is packed for an audience whose members speak as this one does. */
    int was_closing = closing(who);
    int taken = up_session_admit(r, who->sid, audiences[which], greeting, n, sid_at, backlog);
    CHECK(taken >= 0 || faults);
    if (taken && alive(who) && !was_closing) {
        expect(who, first, taken < 0);
        if (backlog) expect(who, second, taken < 0);
        if (taken > 0) joined(who, which);
    }
    up_release(backlog);
}

/* Whether an audience's messages are such as a session can read. */
static int suits(const session *who, int which) {
    uint32_t slot;
    conn *c = conn_of(r, who->sid, &slot);
    if (!c) return 1;
    return (framings[which] == UP_FRAMING_RAW) == (c->state == RAW) &&
           (compressions[which] == UP_COMPRESS_NONE || c->flags & DEFLATE);
}

static void adopt(script *s) {
    if (!handed_n) return;
    int fd = handed[--handed_n].fd, who = handed[handed_n].owner;
    uint8_t how = next_byte(s);
    const uint8_t *first;
    size_t first_n = next_bytes(s, how >> 4, &first);
    if (how & 1 || session_count > SESSIONS - 2) {
        close(fd);
        if (who >= 0) clients[who].trusted = 0;
        return;
    }
    int framing = how >> 1 & 3, deflate = how & 8 && framing != 3;
    if (framing == 3) framing = UP_FRAMING_RAW;
    if (framing == UP_FRAMING_RAW) deflate = 0;
    uint64_t sid = up_reactor_adopt(r, fd, framing, deflate, "local");
    if (!sid) {
        CHECK(faults);
        close(fd);
        return;
    }
    owner[fd] = who;
    begin_session(sid, who, framing == UP_FRAMING_TEXT, framing == UP_FRAMING_RAW);
    if (who >= 0) {
        clients[who].answered = 1;
        clients[who].raw = framing == UP_FRAMING_RAW;
        clients[who].frames = !clients[who].raw;
        clients[who].deflate = (uint8_t)deflate;
        if (deflate) CHECK(inflateInit2(&clients[who].inflater, -15) == Z_OK);
    }
    up_reactor_feed(r, sid, first, first_n);
}

static void session_step(script *s, uint8_t what, session *who, int which) {
    static uint8_t payload[9000];
    uint64_t sids[SESSIONS];
    size_t n;
    int taken;
    switch (what % 11) {
    case 0:
        if (!suits(who, which)) break;
        taken = up_session_join(r, who->sid, audiences[which]);
        CHECK(!taken || faults);
        if (!taken) joined(who, which);
        break;
    case 1:
        up_session_leave(r, who->sid, audiences[which]);
        who->member[which] = 0;
        break;
    case 2:
        if (suits(who, which)) admit(s, who, which);
        break;
    case 3:
        n = make_message(payload, next_byte(s));
        taken = up_session_send(r, who->sid, payload, n);
        CHECK(taken >= 0 || faults);
        if (taken && alive(who) && !closing(who)) expect(who, number, taken < 0);
        break;
    case 4:
        up_session_close(r, who->sid, 4000 + next_byte(s), "the reason is a good one: \xC3\xA9\xC3\xA9\xC3\xA9\xC3", 33);
        if (closing(who)) memset(who->member, 0, sizeof who->member);
        break;
    case 5:
        if (!alive(who) || !who->raw || closing(who)) break;
        n = make_message(payload, next_byte(s));
        up_session_farewell(r, who->sid, payload, n);
        expect(who, number, 0);
        memset(who->member, 0, sizeof who->member);
        break;
    case 6:
        up_session_charge(r, who->sid);
        break;
    case 7:
        up_session_exempt(r, who->sid);
        break;
    case 8:
        up_session_reacts(r, who->sid, next_byte(s));
        break;
    case 9:
        up_session_audience(r, who->sid);
        up_audience_sids(r, audiences[which], sids, next_byte(s) % SESSIONS);
        break;
    default:
        if (audiences[which]) up_audience_stands(r, audiences[which], (int8_t)next_byte(s) * 1000003);
    }
}

static void client_step(script *s, uint8_t what, int which) {
    static const char *const said[] = {
        "{\"type\":\"PING\"}", "[{\"type\":\"REACT\",\"kind\":\"fire\",\"count\":3},{\"type\":\"PING\"}]",
        "{\"type\":\"REACT\",\"kind\":\"none\"}", "\x81\xa4type\xa4PING", "\x82\xa4type\xa5REACT\xa4kind\xa5heart",
        "\x03\xe8gone", "hello", "",
    };
    client *c = &clients[which];
    uint8_t how;
    const uint8_t *bytes;
    size_t n;
    switch (what % 9) {
    case 0:
        connect_client(which);
        break;
    case 1:
        say_head(c, next_byte(s));
        break;
    case 2:
        n = next_bytes(s, next_byte(s), &bytes);
        say(c, bytes, n);
        break;
    case 3:
        how = next_byte(s);
        say_frame(c, next_byte(s), (const uint8_t *)said[how % 8], strlen(said[how % 8]));
        break;
    case 4:
        how = next_byte(s);
        n = next_bytes(s, next_byte(s), &bytes);
        say_frame(c, how, bytes, n);
        break;
    case 5:
        if (c->fd >= 0) shutdown(c->fd, SHUT_WR);
        break;
    case 6:
        end_client(which);
        break;
    case 7:
        hear(c, 1u + next_byte(s) * 16u);
        break;
    default:
        hear(c, SIZE_MAX);
    }
}

static void whole_step(script *s, uint8_t what, int which) {
    uint64_t sums[UP_KINDS_MAX];
    uint8_t how;
    switch (what % 13) {
    case 0:
    case 1:
        CHECK(up_reactor_poll(r, &drained) >= 0);
        break;
    case 2:
        up_reactor_flush(r);
        break;
    case 3:
        clock_ns += next_byte(s) * 10000000ull;
        up_reactor_advance(r);
        break;
    case 4:
        clock_ns += next_byte(s) * 3000000000ull;
        up_reactor_advance(r);
        break;
    case 5:
        how = next_byte(s);
        if (audiences[which]) break;
        framings[which] = how % 3;
        compressions[which] = framings[which] == UP_FRAMING_RAW ? UP_COMPRESS_NONE : how / 3 % 3;
        audiences[which] = up_audience_new(r, framings[which], compressions[which]);
        CHECK(audiences[which] || faults);
        break;
    case 6:
        up_audience_free(r, audiences[which]);
        audiences[which] = 0;
        for (int at = 0; at < session_count; at++) sessions[at].member[which] = 0;
        break;
    case 7:
        how = next_byte(s);
        if (how < 4) up_reactor_unlisten(r);
        else if (how < 8) up_reactor_hang_up(r);
        else if (how < 16) up_reactor_hold_off(r, how / 10.0);
        else if (how < 24) CHECK(up_reactor_refuses(r, how & 1 ? "10.0.0.1" : "local") >= 0);
        else if (how < 32) up_reactor_check_origin(r, how & 1);
        break;
    case 8:
        adopt(s);
        break;
    case 9:
        while (up_reactions_next(r, sums)) continue;
        break;
    case 10:
        faults = 1;
        allocations_left = next_byte(s) % 16;
        break;
    case 11:
        send_fault = next_byte(s);
        if (send_fault > 200 && send_fault % 7 > 2) faults = 1; /* above EAGAIN, EINTR, ENOBUFS */
        break;
    default:
        accept_fault = next_byte(s) % 6;
    }
}

/* Three quarters of all steps are followed by a look at the sockets, as a loop would. */
static void step(script *s) {
    uint8_t what = next_byte(s), where = next_byte(s);
    int which = (where >> 3) % AUDIENCES;
    switch (what & 3) {
    case 0:
        client_step(s, what >> 2, where % CLIENTS);
        break;
    case 1:
        if (session_count) session_step(s, what >> 2, &sessions[session_count - 1 - where % session_count % 16], which);
        break;
    case 2:
        if (audiences[which]) broadcast(s, which);
        break;
    default:
        whole_step(s, what >> 2, which);
        return;
    }
    if (what & 0x80 && what & 0x40) return;
    CHECK(up_reactor_poll(r, &drained) >= 0);
    if (what & 0x40) up_reactor_flush(r);
}

static void begin(script *s) {
    up_limits limits = {
        .handshake_s = 3, .handshake_bytes = 600, .message_bytes = 100u << (next_byte(s) & 7), .fragments = 4,
        .connections = 1 + next_byte(s) % 8, .connections_per_address = 1 + next_byte(s) % 8, .http_sockets = 3,
        .queue_bytes = 1000u << (next_byte(s) & 7), .queue_s = 2, .idle_s = 20,
        .commands_per_second = next_byte(s) % 32, .accepts_per_second = 1000,
    };
    up_hooks hooks = {NULL, on_negotiate, on_opened, on_received, on_flooded, on_flooded, on_closed, on_http};
    allocations_left = -1;
    send_fault = accept_fault = faults = 0;
    number = 0;
    clock_ns = 5000000000ull;
    session_count = waiting_n = handed_n = 0;
    memset(audiences, 0, sizeof audiences);
    for (int at = 0; at < FILES; at++) owner[at] = -1;
    for (int at = 0; at < CLIENTS; at++) clients[at].fd = clients[at].session = -1;
    r = up_reactor_new(&limits, &hooks);
    CHECK(r);
    static const up_text names[] = {{"a.v1", 4}, {"a.v2", 4}}, kinds[] = {{"fire", 4}, {"heart", 5}};
    static const char slow[] = "HTTP/1.1 408 Slow\r\n\r\n", full[] = "HTTP/1.1 503 Full\r\n\r\n";
    up_reactor_protocols(r, names, 2);
    CHECK(!up_reactor_refusals(r, slow, strlen(slow), full, strlen(full)));
    CHECK(!up_reactor_kinds(r, kinds, 2, 100));
    listener = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0);
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    CHECK(listener >= 0 && !bind(listener, (struct sockaddr *)&name, sizeof name.sun_family));
    CHECK(!listen(listener, 64) && !up_reactor_listen(r, listener));
}

/* Everything works again: what is on its way arrives, and who is still open has missed nothing. */
static void settle(void) {
    allocations_left = -1;
    send_fault = accept_fault = 0;
    for (int round = 0; round < 200; round++) {
        int busy = up_reactor_poll(r, &drained);
        up_reactor_flush(r);
        for (int at = 0; at < CLIENTS; at++) hear(&clients[at], SIZE_MAX);
        if (!busy && round) break;
    }
    sound();
    for (int at = 0; at < session_count; at++) {
        session *who = &sessions[at];
        if (!who->open || who->client < 0) continue;
        client *c = &clients[who->client];
        uint32_t slot;
        conn *inside = conn_of(r, who->sid, &slot);
        CHECK(inside && !inside->first);
        if (!c->trusted) continue;
        while (c->expected_at < c->expected_n) CHECK(c->expected[c->expected_at++].optional);
        CHECK(!c->n);
    }
}

static int lowest_free(void) {
    int fd = open("/dev/null", O_RDONLY);
    close(fd);
    return fd;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    script s = {data, data + n};
    int free_before = lowest_free();
    begin(&s);
    for (int steps = 0; s.at < s.end && steps < STEPS_MAX && room_to_expect(); steps++) {
        step(&s);
        if (steps % 8 == 0) sound();
    }
    settle();
    if (data && n && data[n - 1] & 1) { /* everybody goes, and is told of */
        up_reactor_unlisten(r);
        up_reactor_hang_up(r);
        for (int round = 0; round < 3; round++) {
            up_reactor_poll(r, &drained);
            clock_ns += 3000000000ull;
            up_reactor_advance(r);
        }
        for (int at = 0; at < session_count; at++) CHECK(!sessions[at].open);
        sound();
        CHECK(!r->counters.open);
    }
    up_reactor_free(r);
    for (int at = 0; at < CLIENTS; at++) end_client(at);
    while (handed_n) close(handed[--handed_n].fd);
    close(listener);
    CHECK(lowest_free() == free_before);
    return 0;
}

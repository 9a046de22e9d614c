/* Frames: the same bytes in pieces of any size are the same messages and the same error.
 *
 * Input: one byte of settings, four that say where to cut, then what a client sends. */
#include "fuzz.h"

#include "frames.h"

#define TAKEN_MAX 64

typedef struct {
    uint32_t hash, count, stop_at;
    const up_frame_limits *limits;
} seen;

static int is_utf8(const uint8_t *at, size_t n) { /* another way than that of frames.c */
    if (!n) return 1;
    for (const uint8_t *end = at + n; at < end;) {
        uint32_t size = *at < 0x80 ? 1 : *at >= 0xF0 ? 4 : *at >= 0xE0 ? 3 : 2, value;
        if ((*at & 0xC0) == 0x80 || *at > 0xF7 || (size_t)(end - at) < size) return 0;
        value = size == 1 ? *at : *at & (0x7F >> size);
        for (uint32_t more = 1; more < size; more++) {
            if ((at[more] & 0xC0) != 0x80) return 0;
            value = value << 6 | (at[more] & 0x3F);
        }
        static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
        if (value < least[size] || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) return 0;
        at += size;
    }
    return 1;
}

static int take(void *context, int kind, uint8_t *data, size_t n, int code) {
    seen *all = context;
    CHECK(kind == UP_TEXT || kind == UP_BINARY || kind == UP_CLOSE || kind == UP_PING || kind == UP_PONG);
    CHECK(n <= (kind > UP_BINARY ? 125 : all->limits->message_bytes));
    CHECK((kind != UP_TEXT && kind != UP_CLOSE) || is_utf8(data, n));
    CHECK(kind != UP_CLOSE || code == UP_NO_STATUS || up_may_travel(code));
    int what[2] = {kind, code};
    all->hash = hash_of(hash_of(all->hash, what, sizeof what), data, n);
    if (n) memset(data, 0xEE, n); /* it is the callback's until it returns */
    return ++all->count == all->stop_at;
}

/* Feed in pieces; `cuts` 0: all at once. */
static int run(const up_frame_limits *limits, int deflate, uint32_t cuts, const uint8_t *data, size_t n, seen *all,
               char *reason) {
    up_frames frames = {.deflate = (uint8_t)deflate};
    int error = 0;
    reason[0] = 0;
    for (size_t at = 0; at < n && !error;) {
        size_t size = n - at;
        if (cuts) {
            size_t most = random_of(&cuts) % 4 ? 1 + random_of(&cuts) % 9 : 1 + random_of(&cuts) % 600;
            if (size > most) size = most;
        }
        uint8_t *piece = copy_of(data + at, size);
        error = up_frames_feed(&frames, limits, piece, size, take, all, reason);
        free(piece);
        at += size;
        CHECK(!frames.closed || !frames.partial);
    }
    CHECK(!error || (frames.closed && reason[0] && strlen(reason) < UP_REASON_MAX));
    up_frames_drop(&frames);
    CHECK(!frames.partial);
    return error;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    if (n < 5) return 0;
    static const size_t message_bytes[] = {0, 10, 126, 1000, 65535, 65536, 100000, 300};
    up_frame_limits limits = {message_bytes[data[0] & 7], 1 + (data[0] >> 3 & 7), NULL};
    int deflate = data[0] >> 6 & 1;
    uint32_t cuts;
    memcpy(&cuts, data + 1, 4);
    limits.inflated = malloc(limits.message_bytes + 1);
    CHECK(limits.inflated);
    uint32_t stop_at = data[0] >> 7 ? 1 + cuts % 3 : 0;
    seen whole = {2166136261u, 0, stop_at, &limits}, pieces = whole;
    char first[UP_REASON_MAX], second[UP_REASON_MAX];
    int error = run(&limits, deflate, 0, data + 5, n - 5, &whole, first);
    CHECK(run(&limits, deflate, cuts | 1, data + 5, n - 5, &pieces, second) == error);
    CHECK(whole.count == pieces.count && whole.hash == pieces.hash);
    CHECK(!strcmp(first, second));
    free(limits.inflated);

    /* Both ways to unmask, and heads. */
    uint8_t *one = copy_of(data, n), mask[4];
    memcpy(mask, data + 1, 4);
    up_unmask(one, n, mask);
    for (size_t at = 0; at < n; at++) CHECK((one[at] ^ mask[at & 3]) == data[at]);
    free(one);
    uint8_t room[UP_HEAD_MAX], *payload = room + UP_HEAD_MAX;
    uint64_t size = (uint64_t)cuts << (data[0] & 31);
    size_t head = up_frame_head(payload, UP_BINARY, deflate, size);
    uint64_t said = payload[1 - (long)head];
    CHECK((said < 126) == (head == 2) && (said == 126) == (head == 4) && (said == 127) == (head == 10));
    if (head > 2) {
        said = 0;
        for (size_t at = head - 2; at; at--) said = said << 8 | payload[-(long)at];
    }
    CHECK(said == size);
    return 0;
}

#include "frames.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "deflate.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

/* What is held of an incomplete frame or message. */
struct up_partial {
    uint8_t *raw; /* the bytes of an incomplete frame */
    size_t raw_n, raw_room, need;
    uint8_t *parts; /* the payloads of a fragmented message so far */
    size_t parts_n, parts_room;
    uint32_t fragments;
    uint32_t utf8; /* state of the validation of a fragmented text */
    uint8_t opcode; /* of the fragmented message under way, 0 for none */
    uint8_t compressed;
};

/* ---- unmasking ------------------------------------------------------------------------------ */

static void unmask_plain(uint8_t *data, size_t n, uint32_t key) {
    uint64_t wide = (uint64_t)key << 32 | key;
    size_t at = 0;
    for (; at + 8 <= n; at += 8) {
        uint64_t word;
        memcpy(&word, data + at, 8);
        word ^= wide;
        memcpy(data + at, &word, 8);
    }
    uint8_t mask[4];
    memcpy(mask, &key, 4);
    for (; at < n; at++) data[at] ^= mask[at & 3];
}

#if defined(__x86_64__)
static void unmask_sse2(uint8_t *data, size_t n, uint32_t key) {
    __m128i wide = _mm_set1_epi32((int)key);
    size_t at = 0;
    for (; at + 16 <= n; at += 16) {
        __m128i word = _mm_loadu_si128((const __m128i *)(data + at));
        _mm_storeu_si128((__m128i *)(data + at), _mm_xor_si128(word, wide));
    }
    unmask_plain(data + at, n - at, key);
}

__attribute__((target("avx2"))) static void unmask_avx2(uint8_t *data, size_t n, uint32_t key) {
    __m256i wide = _mm256_set1_epi32((int)key);
    size_t at = 0;
    for (; at + 32 <= n; at += 32) {
        __m256i word = _mm256_loadu_si256((const __m256i *)(data + at));
        _mm256_storeu_si256((__m256i *)(data + at), _mm256_xor_si256(word, wide));
    }
    unmask_plain(data + at, n - at, key);
}
#endif

static void (*unmask_best)(uint8_t *, size_t, uint32_t);
static const char *unmask_name;

static void unmask_pick(void) {
    unmask_best = unmask_plain;
    unmask_name = "plain";
#if defined(__x86_64__)
    __builtin_cpu_init();
    unmask_best = unmask_sse2; /* every x86-64 has it */
    unmask_name = "sse2";
    if (__builtin_cpu_supports("avx2")) {
        unmask_best = unmask_avx2;
        unmask_name = "avx2";
    }
#endif
}

void up_unmask(uint8_t *data, size_t n, const uint8_t mask[4]) {
    uint32_t key;
    memcpy(&key, mask, 4);
    if (n < 32) { /* most of what viewers send */
        unmask_plain(data, n, key);
        return;
    }
    if (!unmask_best) unmask_pick();
    unmask_best(data, n, key);
}

const char *up_unmask_build(void) {
    if (!unmask_best) unmask_pick();
    return unmask_name;
}

/* ---- UTF-8 (RFC 3629) ------------------------------------------------------------------------ */

/* The state is 0 between characters; else it holds how many bytes are missing (bits 0 to 2) and the range that
 * the next one must be in (bits 8 to 15 and 16 to 23). */
#define NEXT(left, low, high) ((uint32_t)(left) | (uint32_t)(low) << 8 | (uint32_t)(high) << 16)
#define UTF8_BAD 0xFFFFFFFFu

static uint32_t utf8_run(uint32_t state, const uint8_t *data, size_t n) {
    size_t at = 0;
    while (at < n) {
        if (!state) {
            uint64_t word;
            while (at + 8 <= n) {
                memcpy(&word, data + at, 8);
                if (word & 0x8080808080808080u) break;
                at += 8;
            }
            if (at == n) break;
            uint8_t byte = data[at++];
            if (byte < 0x80) continue;
            if (byte < 0xC2) return UTF8_BAD;
            if (byte < 0xE0) state = NEXT(1, 0x80, 0xBF);
            else if (byte == 0xE0) state = NEXT(2, 0xA0, 0xBF);
            else if (byte == 0xED) state = NEXT(2, 0x80, 0x9F);
            else if (byte < 0xF0) state = NEXT(2, 0x80, 0xBF);
            else if (byte == 0xF0) state = NEXT(3, 0x90, 0xBF);
            else if (byte < 0xF4) state = NEXT(3, 0x80, 0xBF);
            else if (byte == 0xF4) state = NEXT(3, 0x80, 0x8F);
            else return UTF8_BAD;
            continue;
        }
        uint8_t byte = data[at++];
        if (byte < (state >> 8 & 0xFF) || byte > (state >> 16 & 0xFF)) return UTF8_BAD;
        uint32_t left = (state & 7) - 1;
        state = left ? NEXT(left, 0x80, 0xBF) : 0;
    }
    return state;
}

int up_utf8(const uint8_t *data, size_t n) { return utf8_run(0, data, n) == 0; }

size_t up_utf8_cut(const uint8_t *data, size_t n) {
    size_t cut = n;
    while (cut && n - cut < 4 && !up_utf8(data, cut)) cut--;
    return cut;
}

/* ---- close codes ------------------------------------------------------------------------------ */

int up_may_travel(int code) {
    return (code >= 1000 && code <= 1003) || (code >= 1007 && code <= 1014) || (code >= 3000 && code <= 4999);
}

/* ---- heads ------------------------------------------------------------------------------------ */

size_t up_frame_head(uint8_t *payload, int opcode, int compressed, uint64_t n) {
    uint8_t first = (uint8_t)(0x80 | opcode | (compressed ? UP_RSV1 : 0));
    if (n < 126) {
        payload[-2] = first;
        payload[-1] = (uint8_t)n;
        return 2;
    }
    if (n < 65536) {
        payload[-4] = first;
        payload[-3] = 126;
        payload[-2] = (uint8_t)(n >> 8);
        payload[-1] = (uint8_t)n;
        return 4;
    }
    payload[-10] = first;
    payload[-9] = 127;
    for (int byte = 0; byte < 8; byte++) payload[-8 + byte] = (uint8_t)(n >> (56 - 8 * byte));
    return 10;
}

/* ---- the parser ------------------------------------------------------------------------------- */

static int refuse(char *reason, int code, const char *sentence, ...) {
    va_list values;
    va_start(values, sentence);
    vsnprintf(reason, UP_REASON_MAX, sentence, values);
    va_end(values);
    return code;
}

void up_frames_drop(up_frames *frames) {
    if (!frames->partial) return;
    free(frames->partial->raw);
    free(frames->partial->parts);
    free(frames->partial);
    frames->partial = NULL;
}

static up_partial *hold(up_frames *frames) {
    if (!frames->partial) frames->partial = calloc(1, sizeof(up_partial));
    return frames->partial;
}

static int append(uint8_t **data, size_t *n, size_t *room, const uint8_t *more, size_t count) {
    if (*n + count > *room) {
        size_t wanted = *room ? *room : 64;
        while (wanted < *n + count) wanted *= 2;
        uint8_t *grown = realloc(*data, wanted);
        if (!grown) return -1;
        *data = grown;
        *room = wanted;
    }
    if (count) memcpy(*data + *n, more, count);
    *n += count;
    return 0;
}

/* Free what belongs to a fragmented message; the bytes of an incomplete frame stay. */
static void end_message(up_frames *frames) {
    up_partial *held = frames->partial;
    if (!held) return;
    free(held->parts);
    held->parts = NULL;
    held->parts_n = held->parts_room = 0;
    held->fragments = held->utf8 = 0;
    held->opcode = held->compressed = 0;
}

static int check_reserved(const up_frames *frames, uint8_t first, char *reason) {
    if (!frames->deflate)
        return refuse(reason, 1002, "a reserved bit is set, but no extension was agreed on");
    if (first & 0x30) return refuse(reason, 1002, "RSV2 or RSV3 is set; permessage-deflate has only RSV1");
    if (first & 0x08 || !(first & 0x0F))
        return refuse(reason, 1002, "RSV1 is for the first frame of a message, text or binary");
    return 0;
}

/* Refuse a data frame that its head alone condemns. */
static int check_data(const up_frames *frames, const up_frame_limits *limits, int opcode, uint64_t size,
                      char *reason) {
    const up_partial *held = frames->partial;
    int under_way = held ? held->opcode : 0;
    size_t total = held ? held->parts_n : 0;
    if (opcode > UP_BINARY) return refuse(reason, 1002, "opcode 0x%x is unknown", opcode);
    if (opcode && under_way)
        return refuse(reason, 1002, "a new message begins before the fragmented one has ended");
    if (!opcode && !under_way)
        return refuse(reason, 1002, "a continuation frame without a message to continue");
    if (size >> 63) return refuse(reason, 1002, "a length with its top bit set");
    if (size > limits->message_bytes - total)
        return refuse(reason, 1009, "a message of at least %llu bytes; at most %zu are taken",
                      (unsigned long long)(total + size), limits->message_bytes);
    return 0;
}

static int inflate_message(const up_frame_limits *limits, const uint8_t *data, size_t n, size_t *out_n,
                           char *reason) {
    switch (up_inflate(data, n, limits->inflated, limits->message_bytes, out_n)) {
    case UP_INFLATED:
        return 0;
    case UP_INFLATE_TOO_BIG:
        return refuse(reason, 1009, "a message that inflates to more than %zu bytes", limits->message_bytes);
    default:
        return refuse(reason, 1007, "a compressed message that can't be inflated");
    }
}

/* Hand up a whole message. */
static int whole(const up_frame_limits *limits, int opcode, int compressed, uint8_t *data, size_t n, up_take take,
                 void *context, int *stopped, char *reason) {
    if (compressed) {
        int error = inflate_message(limits, data, n, &n, reason);
        if (error) return error;
        data = limits->inflated;
    }
    if (opcode == UP_TEXT && !up_utf8(data, n)) return refuse(reason, 1007, "a text message that is not UTF-8");
    *stopped = take(context, opcode, data, n, 0);
    return 0;
}

static int fragment(up_frames *frames, const up_frame_limits *limits, uint8_t first, uint8_t *data, size_t n,
                    up_take take, void *context, int *stopped, char *reason) {
    up_partial *held = hold(frames);
    if (!held) return refuse(reason, 1011, "no memory");
    int opcode = first & 0x0F, fin = first & 0x80;
    if (opcode) {
        held->opcode = (uint8_t)opcode;
        held->compressed = (first & UP_RSV1) != 0;
    }
    if (++held->fragments > limits->fragments)
        return refuse(reason, 1009, "a message in more than %u fragments", limits->fragments);
    if (held->opcode == UP_TEXT && !held->compressed) {
        held->utf8 = utf8_run(held->utf8, data, n);
        if (held->utf8 == UTF8_BAD || (fin && held->utf8))
            return refuse(reason, 1007, "a text message that is not UTF-8");
    }
    if (append(&held->parts, &held->parts_n, &held->parts_room, data, n))
        return refuse(reason, 1011, "no memory");
    if (!fin) return 0;
    uint8_t *message = held->parts;
    size_t size = held->parts_n;
    int error = 0;
    if (held->compressed) {
        error = inflate_message(limits, message, size, &size, reason);
        message = limits->inflated;
        if (!error && held->opcode == UP_TEXT && !up_utf8(message, size))
            error = refuse(reason, 1007, "a text message that is not UTF-8");
    }
    if (!error) *stopped = take(context, held->opcode, message, size, 0);
    end_message(frames);
    return error;
}

static int control(int opcode, uint8_t *data, size_t n, up_take take, void *context, int *stopped, char *reason) {
    int code = UP_NO_STATUS;
    if (opcode == UP_CLOSE && n) {
        if (n == 1) return refuse(reason, 1002, "a close frame with one byte; a code has two");
        code = data[0] << 8 | data[1];
        if (!up_may_travel(code)) return refuse(reason, 1002, "%d is no close code that may be sent", code);
        if (!up_utf8(data + 2, n - 2)) return refuse(reason, 1007, "a close reason that is not UTF-8");
        data += 2;
        n -= 2;
    }
    *stopped = take(context, opcode, data, n, code) || opcode == UP_CLOSE;
    return 0;
}

/* Parse the frames in n bytes; `used` is how many of them were taken, `need` how many must be there before it is
 * worth looking at the rest. */
static int parse(up_frames *frames, const up_frame_limits *limits, uint8_t *data, size_t n, up_take take,
                 void *context, size_t *used, size_t *need, int *stopped, char *reason) {
    size_t at = 0;
    int error = 0;
    while (!*stopped) {
        *used = at;
        *need = 2;
        if (n - at < 2) return 0;
        uint8_t first = data[at], second = data[at + 1];
        int opcode = first & 0x0F;
        if (first & 0x70 && (error = check_reserved(frames, first, reason))) return error;
        if (!(second & 0x80)) return refuse(reason, 1002, "a client's frame must be masked");
        uint64_t size = second & 0x7F;
        size_t head = 2;
        if (opcode & 0x08) {
            if (opcode > UP_PONG) return refuse(reason, 1002, "opcode 0x%x is unknown", opcode);
            if (!(first & 0x80)) return refuse(reason, 1002, "a control frame must not be fragmented");
            if (size > 125) return refuse(reason, 1002, "a control frame has at most 125 bytes");
        } else {
            size_t more = size == 126 ? 2 : size == 127 ? 8 : 0;
            if (more) {
                *need = head + more;
                if (n - at < *need) return 0;
                size = 0;
                for (size_t byte = 0; byte < more; byte++) size = size << 8 | data[at + head + byte];
                head += more;
            }
            if ((error = check_data(frames, limits, opcode, size, reason))) return error;
        }
        head += 4;
        *need = head + size;
        if (n - at < *need) return 0;
        uint8_t *payload = data + at + head;
        up_unmask(payload, size, payload - 4);
        at += head + size;
        if (opcode & 0x08)
            error = control(opcode, payload, size, take, context, stopped, reason);
        else if (first & 0x80 && opcode)
            error = whole(limits, opcode, first & UP_RSV1, payload, size, take, context, stopped, reason);
        else
            error = fragment(frames, limits, first, payload, size, take, context, stopped, reason);
        if (error) return error;
    }
    *used = at;
    return 0;
}

int up_frames_feed(up_frames *frames, const up_frame_limits *limits, uint8_t *data, size_t n, up_take take,
                   void *context, char *reason) {
    if (frames->closed) return 0;
    size_t used = 0, need = 2;
    int stopped = 0, error;
    up_partial *held = frames->partial;
    if (held && held->raw_n) {
        if (append(&held->raw, &held->raw_n, &held->raw_room, data, n)) {
            error = refuse(reason, 1011, "no memory");
        } else if (held->raw_n < held->need) {
            return 0;
        } else {
            /* `held` outlives this: only drop frees it. */
            error = parse(frames, limits, held->raw, held->raw_n, take, context, &used, &need, &stopped, reason);
            held->need = need;
            if (used) {
                held->raw_n -= used;
                memmove(held->raw, held->raw + used, held->raw_n);
            }
        }
    } else {
        error = parse(frames, limits, data, n, take, context, &used, &need, &stopped, reason);
        if (!error && !stopped && used < n) {
            held = hold(frames);
            if (!held || append(&held->raw, &held->raw_n, &held->raw_room, data + used, n - used))
                error = refuse(reason, 1011, "no memory");
            else
                held->need = need;
        }
    }
    if (error || stopped) {
        frames->closed = 1;
        up_frames_drop(frames);
    } else if (frames->partial && !frames->partial->raw_n && !frames->partial->opcode) {
        up_frames_drop(frames);
    }
    return error;
}

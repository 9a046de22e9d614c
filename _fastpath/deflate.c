#include "deflate.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#ifdef UPROAR_ISAL
#include <isa-l.h>
#endif

/* Who compresses. On real chat, 60 comments a tick as msgpack: zlib level 6 makes 17.3 bytes a
 * comment in 116 us, level 1 20.2 in 53 us, ISA-L 20.3 in 24 us. So ISA-L stands in for level 1,
 * where few viewers share the bytes, and zlib serves the many. docs/decisions.md has the table. */
enum { WINDOW_BITS = 15, MEMORY = 8, FAST = 1, TAIL_SIZE = 4 };

/* What a sync flush ends with and no message carries (RFC 7692 section 7.2.1). */
static const uint8_t TAIL[TAIL_SIZE] = {0x00, 0x00, 0xff, 0xff};

/* Without its tail an empty stored block: the message of no bytes (section 7.2.3.6). */
static const uint8_t EMPTY = 0x00;

/* One stream of one of the two libraries; the memory of each is taken when it is first needed. */
typedef struct {
    z_stream zlib; /* 268 KB, of which 190 are ever touched */
    int zlib_ready;
    int zlib_level;
#ifdef UPROAR_ISAL
    struct isal_zstream *isal; /* 80 KB, and 90 or 140 KB of tables */
    uint8_t *isal_tables;
#endif
    int by_isal; /* which of them has the history since the last keyframe */
} stream;

struct up_window {
    stream stream;
    int begun;
};

static void stream_close(stream *s) {
    if (s->zlib_ready) deflateEnd(&s->zlib);
    s->zlib_ready = 0;
#ifdef UPROAR_ISAL
    free(s->isal);
    free(s->isal_tables);
    s->isal = NULL;
    s->isal_tables = NULL;
#endif
}

/* What was written without the tail; 0 where it does not end in one, which is a failure. */
static size_t without_tail(const uint8_t *out, size_t size) {
    if (size <= TAIL_SIZE || memcmp(out + size - TAIL_SIZE, TAIL, TAIL_SIZE) != 0) return 0;
    return size - TAIL_SIZE;
}

static size_t by_zlib(stream *s, int level, int restart, const uint8_t *in, size_t n, uint8_t *out,
                      size_t room) {
    z_stream *z = &s->zlib;
    if (!s->zlib_ready) {
        if (deflateInit2(z, level, Z_DEFLATED, -WINDOW_BITS, MEMORY, Z_DEFAULT_STRATEGY) != Z_OK)
            return 0;
        s->zlib_ready = 1;
        s->zlib_level = level;
    } else if (restart && deflateReset(z) != Z_OK) {
        return 0;
    }
    z->next_in = (Bytef *)in;
    z->avail_in = 0;
    z->next_out = out;
    z->avail_out = (uInt)room;
    if (level != s->zlib_level) {
        /* Everything before was flushed, so this writes nothing and Z_BUF_ERROR is no error. */
        if (deflateParams(z, level, Z_DEFAULT_STRATEGY) == Z_STREAM_ERROR) return 0;
        s->zlib_level = level;
    }
    z->avail_in = (uInt)n;
    if (deflate(z, Z_SYNC_FLUSH) != Z_OK || z->avail_in != 0 || z->avail_out == 0) return 0;
    return without_tail(out, room - z->avail_out);
}

#ifdef UPROAR_ISAL
/* In a window level 2 makes 3 % less in the same time; for one message alone its larger table
 * would have to be cleared each time. */
static size_t by_isal(stream *s, int level, int restart, const uint8_t *in, size_t n, uint8_t *out,
                      size_t room) {
    size_t tables = level == 1 ? ISAL_DEF_LVL1_SMALL : ISAL_DEF_LVL2_SMALL;
    if (s->isal == NULL) {
        s->isal = malloc(sizeof *s->isal);
        s->isal_tables = malloc(tables);
        if (s->isal == NULL || s->isal_tables == NULL) {
            stream_close(s);
            return 0;
        }
        isal_deflate_init(s->isal);
        s->isal->level = (uint32_t)level;
        s->isal->level_buf = s->isal_tables;
        s->isal->level_buf_size = (uint32_t)tables;
    } else if (restart) {
        isal_deflate_reset(s->isal);
    }
    s->isal->flush = SYNC_FLUSH;
    s->isal->end_of_stream = 0;
    s->isal->next_in = (uint8_t *)in;
    s->isal->avail_in = (uint32_t)n;
    s->isal->next_out = out;
    s->isal->avail_out = (uint32_t)room;
    if (isal_deflate(s->isal) != COMP_OK || s->isal->avail_in != 0 || s->isal->avail_out == 0)
        return 0;
    return without_tail(out, room - s->isal->avail_out);
}
#endif

static int fits(size_t n, const uint8_t *out, size_t room) {
    return out != NULL && n <= INT_MAX && room <= INT_MAX && room > 0;
}

up_window *up_window_new(void) { return calloc(1, sizeof(up_window)); }

void up_window_free(up_window *window) {
    if (window == NULL) return;
    stream_close(&window->stream);
    free(window);
}

size_t up_window_message(up_window *window, int level, int keyframe, const uint8_t *in, size_t n,
                         uint8_t *out, size_t room) {
    if (!fits(n, out, room)) return 0;
    stream *s = &window->stream;
    int restart = keyframe || !window->begun;
    if (restart) {
        /* Only here may the library change: the other one knows nothing of what was sent. */
#ifdef UPROAR_ISAL
        int isal = level <= FAST;
        if (isal != s->by_isal) stream_close(s);
        s->by_isal = isal;
#endif
    }
    if (n == 0) {
        /* Nothing to remember either: the next message finds the history as it is, and behind an
         * empty keyframe none. */
        if (restart) window->begun = 0;
        out[0] = EMPTY;
        return 1;
    }
    window->begun = 1;
#ifdef UPROAR_ISAL
    if (s->by_isal) return by_isal(s, 2, restart, in, n, out, room);
#endif
    return by_zlib(s, level, restart, in, n, out, room);
}

size_t up_each_message(int level, const uint8_t *in, size_t n, uint8_t *out, size_t room) {
    static stream reused; /* its memory stays for the next message */
    if (!fits(n, out, room)) return 0;
    if (n == 0) {
        out[0] = EMPTY;
        return 1;
    }
#ifdef UPROAR_ISAL
    if (level <= FAST) return by_isal(&reused, 1, 1, in, n, out, room);
#endif
    return by_zlib(&reused, level, 1, in, n, out, room);
}

int up_inflate(const uint8_t *in, size_t n, uint8_t *out, size_t room, size_t *out_n) {
    /* zlib does not say whether it stands between two blocks. It stands there if it takes an empty
     * final one, which is behind the tail here, for its end: so a message cut off is found out. */
    static const uint8_t end[] = {0x00, 0x00, 0xff, 0xff, 0x01, 0x00, 0x00, 0xff, 0xff};
    static z_stream z;
    static int ready = 0;
    *out_n = 0;
    if (n > INT_MAX || room > INT_MAX) return UP_INFLATE_BAD;
    if ((ready ? inflateReset(&z) : inflateInit2(&z, -WINDOW_BITS)) != Z_OK) return UP_INFLATE_BAD;
    ready = 1;

    const uint8_t *parts[] = {in, end};
    const size_t sizes[] = {n, sizeof end};
    uint8_t beyond; /* a byte that comes here is one too many */
    int spilled = 0, code = Z_OK;
    z.next_out = room > 0 ? out : &beyond;
    z.avail_out = room > 0 ? (uInt)room : 1;
    if (room == 0) spilled = 1;
    size_t left = 0;
    for (int part = 0; part < 2 && code != Z_STREAM_END; part++) {
        z.next_in = (Bytef *)parts[part];
        z.avail_in = (uInt)sizes[part];
        for (;;) {
            code = inflate(&z, Z_SYNC_FLUSH);
            if (code != Z_OK && code != Z_BUF_ERROR && code != Z_STREAM_END) return UP_INFLATE_BAD;
            if (code == Z_STREAM_END || z.avail_out > 0) break; /* the end, or all of it taken */
            if (spilled) {
                /* What is wrong behind the last byte that may come is still found: zlib looks on
                 * until it has to write, and it must not matter where a part ends. */
                if (part == 0 && z.avail_in == 0) break;
                return UP_INFLATE_TOO_BIG;
            }
            z.next_out = &beyond;
            z.avail_out = 1;
            spilled = 1;
        }
        left = z.avail_in + (part == 0 ? sizeof end : 0);
    }
    if (spilled && z.avail_out == 0) return UP_INFLATE_TOO_BIG;
    /* A sender may end its stream with a final block of its own, and must then add one empty octet,
     * whose rest is the tail (section 7.2.3.4). */
    if (code != Z_STREAM_END) return UP_INFLATE_BAD;
    if (left != 0 && !(left == sizeof end + 1 && in[n - 1] == EMPTY)) return UP_INFLATE_BAD;
    *out_n = spilled ? room : room - z.avail_out;
    return UP_INFLATED;
}

#ifdef UPROAR_ISAL
#define STRING_(x) #x
#define STRING(x) STRING_(x)
#define BESIDE ", ISA-L " STRING(ISAL_MAJOR_VERSION) "." STRING(ISAL_MINOR_VERSION)
#else
#define BESIDE ""
#endif

const char *up_deflate_build(void) {
    static char build[64];
    snprintf(build, sizeof build, "zlib %s" BESIDE, zlibVersion());
    return build;
}

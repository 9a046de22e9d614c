/* Compression: whatever is sent can be read again, and no input writes more than it may.
 *
 * Input: two bytes of settings. Then bytes to be inflated, or a script of messages: a byte for how, one or two for
 * the length, the bytes. */
#include "fuzz.h"

#include <zlib.h>

#include "deflate.h"

static void inflate_anything(size_t room, const uint8_t *data, size_t n) {
    uint8_t *copy = copy_of(data, n), *out = malloc(room ? room : 1);
    CHECK(out);
    size_t made = 0;
    int code = up_inflate(copy, n, out, room, &made);
    CHECK(code == UP_INFLATED || code == UP_INFLATE_BAD || code == UP_INFLATE_TOO_BIG);
    CHECK(code == UP_INFLATED ? made <= room : made == 0);
    if (code == UP_INFLATED) {
        /* What was read can be said again, and one byte less of room is too little. */
        size_t wide = UP_DEFLATE_ROOM(made), again = 0;
        uint8_t *small = malloc(wide), *back = malloc(made ? made : 1);
        CHECK(small && back);
        size_t size = up_each_message(n & 1 ? 1 : 6, out, made, small, wide);
        CHECK(size && up_inflate(small, size, back, made, &again) == UP_INFLATED);
        CHECK(again == made && !memcmp(back, out, made));
        if (made) CHECK(up_inflate(small, size, back, made - 1, &again) == UP_INFLATE_TOO_BIG);
        free(small);
        free(back);
    }
    free(out);
    free(copy);
}

/* Inflate with what came before in mind, as a viewer does. */
static void read_on(z_stream *viewer, const uint8_t *message, size_t size, const uint8_t *expected, size_t n) {
    static const uint8_t tail[] = {0x00, 0x00, 0xff, 0xff};
    uint8_t *bytes = malloc(size + sizeof tail), *out = malloc(n + 1);
    CHECK(bytes && out);
    memcpy(bytes, message, size);
    memcpy(bytes + size, tail, sizeof tail);
    viewer->next_in = bytes;
    viewer->avail_in = (uInt)(size + sizeof tail);
    viewer->next_out = out;
    viewer->avail_out = (uInt)(n + 1);
    int code = inflate(viewer, Z_SYNC_FLUSH);
    CHECK(code == Z_OK && viewer->avail_in == 0 && viewer->avail_out == 1);
    CHECK(!memcmp(out, expected, n));
    free(bytes);
    free(out);
}

static void share_a_window(script *s) {
    up_window *window = up_window_new();
    z_stream viewer = {0}, joiner = {0};
    CHECK(window && inflateInit2(&viewer, -15) == Z_OK);
    int joined = 0;
    while (s->at < s->end) {
        uint8_t how = next_byte(s);
        const uint8_t *given;
        size_t times = how & 8 ? next_byte(s) + 1u : 1, n = next_bytes(s, next_byte(s), &given);
        uint8_t *payload = malloc(n * times + 1);
        CHECK(payload);
        uint32_t noise = (uint32_t)how << 8 | 1;
        for (size_t time = 0; time < times; time++)
            for (size_t at = 0; at < n; at++)
                payload[time * n + at] = (uint8_t)(how & 16 ? random_of(&noise) : given[at]);
        n *= times;
        int keyframe = (how & 7) == 7, level = how & 64 ? 1 : how & 32 ? 9 : 6;
        size_t room = UP_DEFLATE_ROOM(n), short_room = how & 128 ? room / 8 : room;
        uint8_t *out = malloc(short_room ? short_room : 1);
        CHECK(out);
        size_t size = up_window_message(window, level, keyframe, payload, n, out, short_room);
        if (!size) {
            CHECK(short_room < room); /* the stream is lost: all begin anew */
            up_window_free(window);
            window = up_window_new();
            CHECK(window && inflateReset(&viewer) == Z_OK);
            if (joined) inflateEnd(&joiner);
            joined = 0;
        } else {
            if (keyframe && n) { /* whoever comes here needs nothing before it */
                if (joined) inflateEnd(&joiner);
                memset(&joiner, 0, sizeof joiner);
                CHECK(inflateInit2(&joiner, -15) == Z_OK);
                joined = 1;
            }
            read_on(&viewer, out, size, payload, n);
            if (joined) read_on(&joiner, out, size, payload, n);
        }
        free(out);
        free(payload);
    }
    if (joined) inflateEnd(&joiner);
    inflateEnd(&viewer);
    up_window_free(window);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    if (n < 2) return 0;
    static const size_t rooms[] = {0, 1, 100, 4096, 32768, 65536, 65537, 1000};
    if (data[0] & 1) inflate_anything(rooms[data[1] & 7], data + 2, n - 2);
    else share_a_window(&(script){data + 2, data + n});
    return 0;
}

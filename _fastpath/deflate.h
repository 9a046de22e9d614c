/* permessage-deflate for messages that many connections share (RFC 7692).
 *
 * One thread; the caller owns all buffers. A message is what stands between two sync flushes, without
 * the 00 00 ff ff that ends it. ISA-L where it was found at build, zlib else. */
#ifndef UPROAR_DEFLATE_H
#define UPROAR_DEFLATE_H
#include <stddef.h>
#include <stdint.h>

/* Room that is enough for any message of n bytes. */
#define UP_DEFLATE_ROOM(n) ((n) + ((n) >> 3) + 256)

typedef struct up_window up_window;  /* one deflate stream: the shared window of an audience */

up_window *up_window_new(void);  /* NULL: no memory */
void up_window_free(up_window *window);

/* Compress one message of the stream; returns its length, 0 for a failure (then the window is to be freed).
 * A keyframe refers to nothing before it. `level` may change from message to message. */
size_t up_window_message(up_window *window, int level, int keyframe,
                         const uint8_t *in, size_t n, uint8_t *out, size_t room);

/* Compress one message by itself; returns its length, 0 for a failure. */
size_t up_each_message(int level, const uint8_t *in, size_t n, uint8_t *out, size_t room);

enum { UP_INFLATED = 0, UP_INFLATE_BAD = -1, UP_INFLATE_TOO_BIG = -2 };

/* Inflate one message without context, into at most `room` bytes; never writes more. Refuses what is cut off or
 * goes on behind its end, exactly as uproar.deflate.inflate does. */
int up_inflate(const uint8_t *in, size_t n, uint8_t *out, size_t room, size_t *out_n);

/* Which library compresses, for `uproar doctor`: "ISA-L 2.30" or "zlib 1.2.13". */
const char *up_deflate_build(void);
#endif

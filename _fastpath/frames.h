/* WebSocket frames of clients (RFC 6455 sections 5 to 7), without sockets.
 *
 * Comes in: bytes as they arrive, in pieces of any size. Goes out: whole messages by a callback, or the one error
 * that ends the connection. The twin of uproar.frames.FrameParser in the role of a server: same checks, same
 * order, same sentences.
 *
 * Bytes are unmasked where they lie: the caller's buffer is changed. What a callback is given is its until it
 * returns. Memory is held only while a frame or message is incomplete. */
#ifndef UPROAR_FRAMES_H
#define UPROAR_FRAMES_H
#include <stddef.h>
#include <stdint.h>

enum { UP_CONTINUATION = 0, UP_TEXT = 1, UP_BINARY = 2, UP_CLOSE = 8, UP_PING = 9, UP_PONG = 10 };

#define UP_RSV1 0x40
#define UP_NO_STATUS 1005
#define UP_HEAD_MAX 10 /* of a server's frame */
#define UP_REASON_MAX 124

/* What a message may cost; the same for all connections of a reactor. */
typedef struct {
    size_t message_bytes; /* whole, in pieces, and inflated */
    uint32_t fragments;
    uint8_t *inflated; /* message_bytes of room for inflating, shared */
} up_frame_limits;

typedef struct up_partial up_partial;

typedef struct {
    up_partial *partial; /* NULL while nothing is incomplete */
    uint8_t deflate;     /* permessage-deflate was agreed on */
    uint8_t closed;      /* a close or an error has come: nothing after it is looked at */
} up_frames;

/* Take one message: `kind` is an opcode; text is valid UTF-8. For UP_CLOSE `code` is its code or UP_NO_STATUS.
 * Anything but 0 ends the feed: the rest is not looked at. */
typedef int (*up_take)(void *context, int kind, uint8_t *data, size_t n, int code);

/* Feed bytes; returns 0, or the close code of an error with its sentence in `reason` (UP_REASON_MAX bytes). */
int up_frames_feed(up_frames *frames, const up_frame_limits *limits, uint8_t *data, size_t n, up_take take,
                   void *context, char *reason);

/* Free what is held. */
void up_frames_drop(up_frames *frames);

/* Write the head of a server's frame that ends right before `payload`; returns its length. */
size_t up_frame_head(uint8_t *payload, int opcode, int compressed, uint64_t n);

/* XOR n bytes with the mask over and over, by the widest vectors that the processor has. */
void up_unmask(uint8_t *data, size_t n, const uint8_t mask[4]);

/* Whether bytes are UTF-8. */
int up_utf8(const uint8_t *data, size_t n);

/* How many of the first n bytes are whole characters (for cutting a reason). */
size_t up_utf8_cut(const uint8_t *data, size_t n);

/* Whether a close frame may carry a code. */
int up_may_travel(int code);

/* What up_unmask uses here: "avx2", "sse2" or "plain". */
const char *up_unmask_build(void);
#endif

/* A swarm: many WebSocket viewers in one epoll loop, for tests and benchmarks.
 *
 * One thread; `up_swarm_run` may be called without the GIL, the digest callback takes it for itself.
 * A pass takes at most UP_READY sockets and one read of each. The swarm owns sockets and buffers;
 * what is passed in is copied. What a message says is found out once for all who got the same
 * bytes: the callback hands up facts, members check them. */
#ifndef UPROAR_SWARM_H
#define UPROAR_SWARM_H
#include <stddef.h>
#include <stdint.h>

enum { UP_READY = 1024, UP_BUCKETS = 61 * 32, UP_JOBS = 4 };

/* What one event of a message is to a member. */
enum {
    UP_COMMENT = 1,  /* live; offset, stamp */
    UP_HISTORICAL,   /* of a backlog */
    UP_PLACED,       /* any other event with a place in the order; offset */
    UP_POSITION,     /* VIEWERS and PONG; offset is the position */
    UP_GAP,          /* (offset, to] was not sent */
    UP_WELCOME,      /* offset is where what follows begins */
    UP_TOTALS,       /* REACTIONS; offset is the sum of the totals named */
    UP_ACK,
    UP_REJECTED,
    UP_OTHER
};

typedef struct up_swarm up_swarm;

/* Counters of a group since `up_swarm_reset`. */
typedef struct {
    int64_t connects, shaken, welcomed, refused, failed, ended, cut, left;
    int64_t deflated, frames, messages, bytes;
    int64_t comments, historical, repeats, gaps, totals, totals_sum, acks, rejected;
    int64_t malformed, uninflatable, decoded;
    int64_t sent, blocked, pings, pongs, late_ns;
    int64_t last_status, last_close, last_errno;
} up_counts;

/* How a group of members connects and behaves. */
typedef struct {
    uint32_t address;      /* of the server, host byte order */
    uint16_t port;
    uint32_t count;
    int raw;               /* no handshake: bytes are counted and thrown away */
    int binary;            /* messages are binary, not text */
    uint32_t decode_every; /* one in so many decodes everything; 0: none */
    uint32_t read_bytes_s; /* a slow reader's pace; 0: as fast as it comes */
    int never_reads;       /* after its handshake */
    int receive_buffer;    /* SO_RCVBUF; 0: the system's */
    uint32_t at_once;      /* handshakes under way */
    double rate;           /* connects a second; 0: as fast as they are answered */
    uint64_t churn;        /* so many connections are opened and closed in all; 0: they stay */
    uint32_t stream;       /* members of one number share one order of offsets */
    char accept[29];       /* the Sec-WebSocket-Accept that is right */
} up_plan;

/* Look at a message; call up_swarm_fact for each event; return 0, -1 for one that is malformed. */
typedef int (*up_digest)(void *self, const uint8_t *payload, size_t n, int binary);

up_swarm *up_swarm_new(up_digest digest, void *self);  /* NULL: no memory, or no epoll */
void up_swarm_free(up_swarm *swarm);

/* Add members; `heads` are the requests, one for all or one each, one behind the other. Returns the
 * group's number, -1 without memory. */
int up_swarm_add(up_swarm *swarm, const up_plan *plan, const uint8_t *heads,
                 const uint64_t *ends, size_t head_count);

/* Have the members of a group send, one after the other, `rate` messages a second in all, `total`
 * in all (0: until stopped). At `stamp_at` and `nonce_at` (-1: nowhere) of the payload stand 16
 * characters each that become the time in hex and a running number. Returns the job, -1: none is
 * free, or the payload is above 4,000 bytes. */
int up_swarm_send(up_swarm *swarm, int group, int opcode, const uint8_t *payload, size_t n,
                  int stamp_at, int nonce_at, double rate, uint64_t total);
uint64_t up_swarm_stop(up_swarm *swarm, int group, int job);  /* returns how many were sent */

void up_swarm_fact(up_swarm *swarm, int kind, int64_t offset, int64_t to, uint64_t stamp_ns);

/* Run for so long; returns the passes made, -1 when epoll fails. */
int up_swarm_run(up_swarm *swarm, int milliseconds);

/* Close members from the end of a group until `keep` are left: mode 0 close frame, 1 FIN, 2 RST. */
void up_swarm_close(up_swarm *swarm, int group, uint32_t keep, int mode);

const up_counts *up_swarm_counts(up_swarm *swarm, int group);
const uint64_t *up_swarm_latencies(up_swarm *swarm, int group);  /* UP_BUCKETS counts */
uint64_t up_swarm_bucket_ns(int bucket);  /* the largest value that falls into it */

/* What decoding members of a group lack: comments that another one of their stream got, at or below
 * their own position, outside the gaps they were told of. */
int64_t up_swarm_missing(up_swarm *swarm, int group);
/* The smallest and largest position of a group's decoding members; -1 where there is none. */
void up_swarm_positions(up_swarm *swarm, int group, int64_t *least, int64_t *most);
/* The fewest and most messages a standing member of a group got since the reset. */
void up_swarm_spread(up_swarm *swarm, int group, int64_t *least, int64_t *most);
uint32_t up_swarm_standing(up_swarm *swarm, int group, int welcomed);
int64_t up_swarm_lag_ns(up_swarm *swarm);  /* the longest pass since the reset */
int64_t up_swarm_offsets(up_swarm *swarm, uint32_t stream);  /* different live offsets seen */
void up_swarm_reset(up_swarm *swarm);
#endif

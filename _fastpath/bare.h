/* The least that sending costs: `send` of given bytes to given sockets, and nothing else. */
#ifndef UPROAR_BARE_H
#define UPROAR_BARE_H
#include <stddef.h>
#include <stdint.h>

typedef struct {
    int64_t sends, blocked, partial; /* of `sends`: not taken, and not taken whole */
    int64_t cpu_ns;                  /* CLOCK_PROCESS_CPUTIME_ID over the whole run */
    int64_t wall_ns, late_ns;        /* how late a round began at most */
} up_bare;

/* Send n bytes to every socket, `rounds` times, `rate` times a second (0: without pause). */
void up_bare_run(const int *sockets, size_t count, const uint8_t *data, size_t n, double rate,
                 int64_t rounds, up_bare *found);
#endif

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include "bare.h"

#include <sys/socket.h>
#include <time.h>

static int64_t at(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000ll + t.tv_nsec;
}

void up_bare_run(const int *sockets, size_t count, const uint8_t *data, size_t n, double rate,
                 int64_t rounds, up_bare *found) {
    int64_t began = at(CLOCK_MONOTONIC), cpu = at(CLOCK_PROCESS_CPUTIME_ID);
    *found = (up_bare){0};
    for (int64_t round = 0; round < rounds; round++) {
        if (rate > 0) {
            int64_t due = began + (int64_t)((double)round / rate * 1e9), late;
            struct timespec t = {due / 1000000000, due % 1000000000};
            clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &t, NULL);
            late = at(CLOCK_MONOTONIC) - due;
            if (late > found->late_ns) found->late_ns = late;
        }
        for (size_t i = 0; i < count; i++) {
            ssize_t sent = send(sockets[i], data, n, MSG_DONTWAIT | MSG_NOSIGNAL);
            found->sends++;
            if (sent < 0) found->blocked++;
            else if ((size_t)sent < n) found->partial++;
        }
    }
    found->cpu_ns = at(CLOCK_PROCESS_CPUTIME_ID) - cpu;
    found->wall_ns = at(CLOCK_MONOTONIC) - began;
}

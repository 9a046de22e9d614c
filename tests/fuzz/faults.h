/* Put before each file of the reactor where it is fuzzed: what it asks of the system goes through reactor.c here,
 * which can refuse it. */
#include <stdlib.h>
#include <sys/socket.h>
#include <time.h>

void *fuzz_malloc(size_t n);
void *fuzz_calloc(size_t count, size_t n);
void *fuzz_realloc(void *at, size_t n);
ssize_t fuzz_send(int fd, const void *data, size_t n, int flags);
ssize_t fuzz_sendmsg(int fd, const struct msghdr *message, int flags);
int fuzz_accept4(int fd, struct sockaddr *peer, socklen_t *size, int flags);
int fuzz_clock_gettime(clockid_t which, struct timespec *now);

#define malloc fuzz_malloc
#define calloc fuzz_calloc
#define realloc fuzz_realloc
#define send fuzz_send
#define sendmsg fuzz_sendmsg
#define accept4 fuzz_accept4
#define clock_gettime fuzz_clock_gettime

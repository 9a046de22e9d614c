/* Feeds a target where there is no libFuzzer: seeds changed at random, without looking at coverage.
 *
 *     frames -runs=20000 -seed=1 DIRECTORY…          as libFuzzer's own options
 *
 * What fails lies in crash-<seed>-<run> of the working directory. */
#include "fuzz.h"

#include <dirent.h>
#include <signal.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#define INPUT_MAX 8192
#define SEEDS_MAX 1024
#define LOOK_EVERY 1024 /* inputs between two looks at clock and memory */

static struct {
    uint8_t *data;
    size_t n;
} seeds[SEEDS_MAX];
static size_t seed_count;
static uint8_t input[INPUT_MAX];
static size_t input_n;
static char crash[64];

extern void __sanitizer_set_death_callback(void (*callback)(void));

static void keep_input(void) {
    FILE *file = fopen(crash, "wb");
    if (!file) return;
    fwrite(input, 1, input_n, file);
    fclose(file);
    fprintf(stderr, "the input lies in %s (%zu bytes)\n", crash, input_n);
}

static void aborted(int signal_number) {
    keep_input();
    _exit(128 + signal_number);
}

static void read_seeds(const char *directory) {
    DIR *listing = opendir(directory);
    CHECK(listing);
    for (struct dirent *entry; (entry = readdir(listing)) && seed_count < SEEDS_MAX;) {
        char path[4096];
        if (entry->d_name[0] == '.') continue;
        snprintf(path, sizeof path, "%s/%s", directory, entry->d_name);
        FILE *file = fopen(path, "rb");
        CHECK(file);
        size_t n = fread(input, 1, INPUT_MAX, file);
        fclose(file);
        seeds[seed_count].data = copy_of(input, n);
        seeds[seed_count++].n = n;
    }
    closedir(listing);
}

static void mutate(uint32_t *chance) {
    static const uint8_t odd[] = {0, 1, 2, 0x7F, 0x80, 0xFF, 126, 127, '\r', '\n', '"', ','};
    size_t at = input_n ? random_of(chance) % input_n : 0, left = input_n - at;
    size_t size = 1 + random_of(chance) % 16;
    switch (random_of(chance) % 8) {
    case 0:
        if (left) input[at] ^= (uint8_t)(1 << random_of(chance) % 8);
        break;
    case 1:
        if (left) input[at] = (uint8_t)random_of(chance);
        break;
    case 2:
        if (left) input[at] = odd[random_of(chance) % sizeof odd];
        break;
    case 3: /* take out */
        if (size > left) size = left;
        memmove(input + at, input + at + size, left - size);
        input_n -= size;
        break;
    case 4: /* put in */
        if (input_n + size > INPUT_MAX) break;
        memmove(input + at + size, input + at, left);
        for (size_t each = 0; each < size; each++) input[at + each] = (uint8_t)random_of(chance);
        input_n += size;
        break;
    case 5: /* say again */
        if (size > left || input_n + size > INPUT_MAX) break;
        memmove(input + at + size, input + at, left);
        input_n += size;
        break;
    case 6: /* a part of another */
        if (seed_count) {
            size_t which = random_of(chance) % seed_count, from, n = seeds[which].n;
            if (!n) break;
            from = random_of(chance) % n;
            n = 1 + random_of(chance) % (n - from);
            if (at + n > INPUT_MAX) n = INPUT_MAX - at;
            memcpy(input + at, seeds[which].data + from, n);
            if (at + n > input_n) input_n = at + n;
        }
        break;
    default:
        if (!(random_of(chance) % 4)) input_n = at;
    }
}

int main(int count, char **arguments) {
    unsigned long runs = 0, seconds = 0, memory_mb = 1024;
    uint32_t seed = 1;
    for (int at = 1; at < count; at++) {
        if (sscanf(arguments[at], "-runs=%lu", &runs) == 1) continue;
        if (sscanf(arguments[at], "-max_total_time=%lu", &seconds) == 1) continue;
        if (sscanf(arguments[at], "-rss_limit_mb=%lu", &memory_mb) == 1) continue;
        if (sscanf(arguments[at], "-seed=%u", &seed) == 1) continue;
        if (arguments[at][0] != '-') read_seeds(arguments[at]);
    }
    snprintf(crash, sizeof crash, "crash-%u-seeds", seed);
    __sanitizer_set_death_callback(keep_input);
    signal(SIGABRT, aborted);
    for (size_t at = 0; at < seed_count; at++) {
        input_n = seeds[at].n;
        memcpy(input, seeds[at].data, input_n);
        LLVMFuzzerTestOneInput(input, input_n);
    }
    uint32_t chance = seed * 2654435761u | 1;
    time_t began = time(NULL);
    unsigned long run = 0;
    while (!runs || run < runs) {
        if (run % LOOK_EVERY == 0) {
            struct rusage used;
            getrusage(RUSAGE_SELF, &used);
            CHECK((unsigned long)used.ru_maxrss / 1024 < memory_mb);
            if (seconds && (unsigned long)(time(NULL) - began) >= seconds) break;
        }
        snprintf(crash, sizeof crash, "crash-%u-%lu", seed, ++run);
        input_n = 0;
        if (seed_count) {
            size_t which = random_of(&chance) % seed_count;
            input_n = seeds[which].n;
            memcpy(input, seeds[which].data, input_n);
        }
        for (uint32_t times = 1 + random_of(&chance) % 8; times; times--) mutate(&chance);
        LLVMFuzzerTestOneInput(input, input_n);
    }
    fprintf(stderr, "Done %lu runs in %ld second(s)\n", run, (long)(time(NULL) - began));
    for (size_t at = 0; at < seed_count; at++) free(seeds[at].data);
    return 0;
}

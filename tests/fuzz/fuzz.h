/* What all targets share. Each takes any bytes, and ends the process where something is not as it must be. */
#ifndef UPROAR_FUZZ_H
#define UPROAR_FUZZ_H
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#define CHECK(what)                                                             \
    do {                                                                        \
        if (!(what)) {                                                          \
            fprintf(stderr, "%s:%d: not so: %s\n", __FILE__, __LINE__, #what);  \
            abort();                                                            \
        }                                                                       \
    } while (0)

/* The input, read from its beginning; 0 behind its end. */
typedef struct {
    const uint8_t *at, *end;
} script;

static inline uint8_t next_byte(script *s) { return s->at < s->end ? *s->at++ : 0; }

static inline size_t next_bytes(script *s, size_t most, const uint8_t **bytes) {
    size_t left = (size_t)(s->end - s->at), n = most < left ? most : left;
    *bytes = s->at;
    s->at += n;
    return n;
}

/* A copy that ends where its memory does, so that a byte read too far is found. */
static inline uint8_t *copy_of(const uint8_t *data, size_t n) {
    uint8_t *copy = malloc(n ? n : 1);
    CHECK(copy);
    if (n) memcpy(copy, data, n);
    return copy;
}

static inline uint32_t hash_of(uint32_t hash, const void *data, size_t n) {
    for (const uint8_t *at = data; n--; at++) hash = (hash ^ *at) * 16777619u;
    return hash;
}

static inline uint32_t random_of(uint32_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}
#endif

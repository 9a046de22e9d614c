/* Request heads: what is read lies within them, and where they end does not depend on how they come.
 *
 * Input: what a client sends first. */
#include "fuzz.h"

#include "head.h"

static const char *begin, *end;

static void within(up_text text) {
    if (text.at) CHECK(text.at >= begin && text.n <= (size_t)(end - text.at));
    else CHECK(!text.n);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    if (!n) return 0;
    uint8_t *copy = copy_of(data, n);
    size_t whole = up_head_end((const char *)copy, n, 0);
    CHECK(whole <= n && (!whole || (whole >= 4 && !memcmp(copy + whole - 4, "\r\n\r\n", 4))));
    size_t found = 0, looked_at = 0;
    uint32_t cuts = hash_of(2166136261u, data, n) | 1;
    int strange = 0;
    while (looked_at < n && !found) {
        size_t more = looked_at + 1 + random_of(&cuts) % 50;
        if (more > n) more = n;
        uint8_t *piece = copy_of(data, more);
        found = up_head_end((const char *)piece, more, looked_at);
        int now = up_head_strange((const char *)piece, more);
        CHECK(now || !strange); /* what was strange stays so */
        strange = now;
        free(piece);
        looked_at = more;
    }
    CHECK(found == whole);
    free(copy);
    if (!whole) return 0;

    copy = copy_of(data, whole);
    begin = (const char *)copy;
    end = begin + whole;
    up_head head;
    if (up_head_read(begin, whole, &head)) {
        CHECK(!strange || found != whole || memcmp(begin, "GET /", 5) == 0);
        const up_text texts[] = {head.path, head.query, head.key, head.protocols, head.extensions,
                                 head.authorization, head.origin, head.forwarded};
        for (size_t at = 0; at < sizeof texts / sizeof *texts; at++) within(texts[at]);
        CHECK(head.path.n && head.path.at[0] == '/' && head.key.n == 24);
        char accept[28];
        up_head_accept(head.key.at, accept);
        CHECK(accept[26] != '=' && accept[27] == '=');
        if (up_head_plain(&head)) CHECK(!head.authorization.at && head.path.n > 8 && head.path.n <= 72);
        static const up_text known[] = {{"uproar.v1.json", 14}, {"uproar.v1.msgpack", 17}};
        int chosen = up_head_choose(head.protocols, known, 2);
        CHECK(chosen >= -1 && chosen < 2);
        if (chosen >= 0) CHECK(up_head_offers(head.protocols, known[chosen].at));
    }
    free(copy);
    return 0;
}

/* Commands: what is read lies within the message and within the bounds.
 *
 * Input: one byte for the codec, then a message. */
#include "fuzz.h"

#include "commands.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
    if (!n) return 0;
    int text = data[0] & 1;
    uint8_t *copy = copy_of(data + 1, --n);
    up_command *out = malloc(UP_COMMANDS_MAX * sizeof *out);
    CHECK(out);
    int count = up_commands_read(copy, n, text, out);
    CHECK(count >= 0 && count <= UP_COMMANDS_MAX);
    for (int at = 0; at < count; at++) {
        CHECK(out[at].count <= 1000000);
        if (!out[at].react) continue;
        const uint8_t *kind = (const uint8_t *)out[at].kind;
        CHECK(kind >= copy && out[at].kind_n <= (size_t)(copy + n - kind));
    }
    free(out);
    free(copy);
    return 0;
}

/* The two commands that are answered or counted without Python: PING and REACT, in JSON and msgpack.
 *
 * Whatever is not beyond doubt one of them is left to gateway.commands, a whole message at a time. */
#ifndef UPROAR_COMMANDS_H
#define UPROAR_COMMANDS_H
#include <stddef.h>
#include <stdint.h>

#define UP_COMMANDS_MAX 100 /* in one message, as gateway.commands has it */

typedef struct {
    int react;        /* else a PING */
    const char *kind; /* of a REACT */
    size_t kind_n;
    uint32_t count;
} up_command;

/* Read a message; returns how many commands it has, 0 where it is for Python. */
int up_commands_read(const uint8_t *data, size_t n, int text, up_command *out);
#endif

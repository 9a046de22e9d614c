#include "commands.h"

#include <string.h>

#define COUNT_MAX 1000000

/* What lies between `at` and `end`. A reader leaves `at` where it stopped and returns 0 for what it does not know. */
typedef struct {
    const char *at, *end;
} cursor;

static void skip_space(cursor *c) {
    while (c->at < c->end && (*c->at == ' ' || *c->at == '\t' || *c->at == '\r' || *c->at == '\n')) c->at++;
}

static int takes(cursor *c, char sign) {
    skip_space(c);
    if (c->at == c->end || *c->at != sign) return 0;
    c->at++;
    skip_space(c);
    return 1;
}

/* A string without escapes. */
static int json_string(cursor *c, const char **text, size_t *n) {
    if (c->at == c->end || *c->at != '"') return 0;
    *text = ++c->at;
    while (c->at < c->end && *c->at != '"') {
        if (*c->at == '\\' || (unsigned char)*c->at < ' ') return 0;
        c->at++;
    }
    if (c->at == c->end) return 0;
    *n = (size_t)(c->at++ - *text);
    return 1;
}

/* A whole number without sign, fraction or exponent, not above COUNT_MAX. */
static int json_number(cursor *c, uint32_t *number) {
    const char *from = c->at;
    uint32_t value = 0;
    while (c->at < c->end && *c->at >= '0' && *c->at <= '9') {
        value = value * 10 + (uint32_t)(*c->at++ - '0');
        if (value > COUNT_MAX) return 0;
    }
    if (c->at == from || (*from == '0' && c->at - from > 1)) return 0;
    if (c->at < c->end && (*c->at == '.' || *c->at == 'e' || *c->at == 'E')) return 0;
    *number = value;
    return 1;
}

enum { HAS_TYPE = 1, HAS_KIND = 2, HAS_COUNT = 4 };

static int is(const char *text, size_t n, const char *word) { return n == strlen(word) && !memcmp(text, word, n); }

/* Which field a name is, 0 for none of ours. */
static int field_of(const char *name, size_t n) {
    if (is(name, n, "type")) return HAS_TYPE;
    if (is(name, n, "kind")) return HAS_KIND;
    if (is(name, n, "count")) return HAS_COUNT;
    return 0;
}

static int set_type(up_command *command, const char *text, size_t n) {
    if (is(text, n, "REACT")) {
        command->react = 1;
        return 1;
    }
    return is(text, n, "PING");
}

static int complete(const up_command *command, int fields) {
    if (!(fields & HAS_TYPE)) return 0;
    return command->react ? (fields & HAS_KIND) != 0 : fields == HAS_TYPE;
}

static int json_command(cursor *c, up_command *command) {
    int fields = 0;
    *command = (up_command){.count = 1};
    if (!takes(c, '{')) return 0;
    do {
        const char *name, *text;
        size_t name_n, text_n;
        if (!json_string(c, &name, &name_n) || !takes(c, ':')) return 0;
        int field = field_of(name, name_n);
        if (!field || fields & field) return 0;
        fields |= field;
        if (field == HAS_COUNT) {
            if (!json_number(c, &command->count)) return 0;
        } else {
            if (!json_string(c, &text, &text_n)) return 0;
            if (field == HAS_TYPE && !set_type(command, text, text_n)) return 0;
            if (field == HAS_KIND) command->kind = text, command->kind_n = text_n;
        }
    } while (takes(c, ','));
    return takes(c, '}') && complete(command, fields);
}

static int json_message(cursor *c, up_command *out) {
    int count = 0;
    skip_space(c);
    if (c->at < c->end && *c->at == '[') {
        c->at++;
        skip_space(c);
        do {
            if (count == UP_COMMANDS_MAX || !json_command(c, &out[count++])) return 0;
        } while (takes(c, ','));
        if (!takes(c, ']')) return 0;
    } else if (json_command(c, &out[0])) {
        count = 1;
    }
    return c->at == c->end ? count : 0;
}

/* ---- msgpack ---------------------------------------------------------------------------------- */

static int pack_byte(cursor *c, uint8_t *byte) {
    if (c->at == c->end) return 0;
    *byte = (uint8_t)*c->at++;
    return 1;
}

static int pack_string(cursor *c, const char **text, size_t *n) {
    uint8_t head, size;
    if (!pack_byte(c, &head)) return 0;
    if (head >= 0xA0 && head <= 0xBF) *n = head & 0x1F;
    else if (head == 0xD9 && pack_byte(c, &size)) *n = size;
    else return 0;
    if ((size_t)(c->end - c->at) < *n) return 0;
    *text = c->at;
    c->at += *n;
    return 1;
}

static int pack_number(cursor *c, uint32_t *number) {
    uint8_t head, byte;
    if (!pack_byte(c, &head)) return 0;
    if (head < 0x80) {
        *number = head;
        return 1;
    }
    if (head != 0xCC && head != 0xCD) return 0;
    *number = 0;
    for (int left = head == 0xCC ? 1 : 2; left; left--) {
        if (!pack_byte(c, &byte)) return 0;
        *number = *number << 8 | byte;
    }
    return 1;
}

static int pack_command(cursor *c, up_command *command) {
    uint8_t head;
    int fields = 0;
    *command = (up_command){.count = 1};
    if (!pack_byte(c, &head) || head < 0x81 || head > 0x83) return 0;
    for (int left = head & 0x0F; left; left--) {
        const char *name, *text;
        size_t name_n, text_n;
        if (!pack_string(c, &name, &name_n)) return 0;
        int field = field_of(name, name_n);
        if (!field || fields & field) return 0;
        fields |= field;
        if (field == HAS_COUNT) {
            if (!pack_number(c, &command->count)) return 0;
        } else {
            if (!pack_string(c, &text, &text_n)) return 0;
            if (field == HAS_TYPE && !set_type(command, text, text_n)) return 0;
            if (field == HAS_KIND) command->kind = text, command->kind_n = text_n;
        }
    }
    return complete(command, fields);
}

static int pack_message(cursor *c, up_command *out) {
    uint8_t head = c->at < c->end ? (uint8_t)*c->at : 0;
    int count = 1;
    if (head >= 0x90 && head <= 0x9F) {
        c->at++;
        count = head & 0x0F;
    } else if (head == 0xDC && c->end - c->at >= 3) {
        count = (uint8_t)c->at[1] << 8 | (uint8_t)c->at[2];
        c->at += 3;
    }
    if (count > UP_COMMANDS_MAX) return 0;
    for (int at = 0; at < count; at++)
        if (!pack_command(c, &out[at])) return 0;
    return c->at == c->end ? count : 0;
}

int up_commands_read(const uint8_t *data, size_t n, int text, up_command *out) {
    cursor c = {(const char *)data, (const char *)data + n};
    return text ? json_message(&c, out) : pack_message(&c, out);
}

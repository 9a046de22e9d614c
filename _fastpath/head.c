#include "head.h"

#include <string.h>
#include <strings.h>

#define TARGET_MAX 8192 /* what the HTTP server behind takes of a request line */

size_t up_head_end(const char *data, size_t n, size_t looked_at) {
    size_t from = looked_at > 3 ? looked_at - 3 : 0;
    const char *found = n - from < 4 ? NULL : memmem(data + from, n - from, "\r\n\r\n", 4);
    return found ? (size_t)(found - data) + 4 : 0;
}

int up_head_strange(const char *data, size_t n) {
    static const char begin[] = "GET /";
    size_t known = n < sizeof begin - 1 ? n : sizeof begin - 1;
    if (memcmp(data, begin, known)) return 1;
    const char *end = data + n, *at = data;
    while ((at = memchr(at, '\n', (size_t)(end - at)))) {
        if (at[-1] != '\r') return 1;
        if (++at == end) return 0;
    }
    return 0;
}

static up_text trimmed(const char *from, const char *to) {
    while (from < to && (*from == ' ' || *from == '\t')) from++;
    while (to > from && (to[-1] == ' ' || to[-1] == '\t')) to--;
    return (up_text){from, (size_t)(to - from)};
}

static int is(up_text text, const char *word) {
    return text.at && text.n == strlen(word) && !strncasecmp(text.at, word, text.n);
}

/* Step through a comma-separated list; 0 at its end. */
static int next_entry(up_text *rest, up_text *entry) {
    if (!rest->at || !rest->n) return 0;
    const char *comma = memchr(rest->at, ',', rest->n);
    const char *end = rest->at + rest->n;
    *entry = trimmed(rest->at, comma ? comma : end);
    *rest = comma ? (up_text){comma + 1, (size_t)(end - comma - 1)} : (up_text){end, 0};
    return 1;
}

static int has_token(up_text list, const char *word) {
    up_text entry;
    while (next_entry(&list, &entry))
        if (is(entry, word)) return 1;
    return 0;
}

static int is_base64(up_text key) {
    if (key.n != 24 || key.at[22] != '=' || key.at[23] != '=') return 0;
    for (size_t at = 0; at < 22; at++) {
        char c = key.at[at];
        if (!((c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '+' || c == '/'))
            return 0;
    }
    return 1;
}

static int is_name(const char *from, const char *to) {
    if (from == to) return 0;
    for (; from < to; from++) {
        char c = *from;
        if (!((c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '-' || c == '_'))
            return 0;
    }
    return 1;
}

int up_head_read(const char *data, size_t n, up_head *head) {
    memset(head, 0, sizeof *head);
    head->n = n;
    const char *end = data + n - 2; /* of the last line */
    const char *line_end = memmem(data, n, "\r\n", 2);
    if (!line_end || line_end - data > TARGET_MAX) return UP_HEAD_OTHER;
    if (line_end - data < 15 || memcmp(data, "GET /", 5) || memcmp(line_end - 9, " HTTP/1.1", 9)) return UP_HEAD_OTHER;
    const char *target = data + 4, *target_end = line_end - 9;
    for (const char *at = target; at < target_end; at++)
        if (*at <= ' ' || *at > '~' || *at == '#') return UP_HEAD_OTHER;
    const char *mark = memchr(target, '?', (size_t)(target_end - target));
    head->path = (up_text){target, (size_t)((mark ? mark : target_end) - target)};
    if (memchr(head->path.at, '%', head->path.n)) return UP_HEAD_OTHER; /* decoding is the server's */
    head->query = mark ? (up_text){mark + 1, (size_t)(target_end - mark - 1)} : (up_text){target_end, 0};
    up_text upgrade = {0}, connection = {0}, version = {0};
    static const struct {
        const char *name;
        size_t n;
    } names[] = {
        {"upgrade", 7}, {"connection", 10}, {"sec-websocket-version", 21}, {"sec-websocket-key", 17},
        {"sec-websocket-protocol", 22}, {"sec-websocket-extensions", 24}, {"authorization", 13}, {"origin", 6},
        {"x-forwarded-for", 15},
    };
    up_text *texts[] = {&upgrade, &connection, &version, &head->key, &head->protocols, &head->extensions,
                        &head->authorization, &head->origin, &head->forwarded};
    for (const char *line = line_end + 2; line < end; line = line_end + 2) {
        line_end = memmem(line, (size_t)(data + n - line), "\r\n", 2);
        const char *colon = memchr(line, ':', (size_t)(line_end - line));
        if (!colon || !is_name(line, colon)) return UP_HEAD_OTHER;
        for (const char *at = colon; at < line_end; at++)
            if ((unsigned char)*at < ' ' && *at != '\t') return UP_HEAD_OTHER;
        size_t name_n = (size_t)(colon - line);
        for (size_t which = 0; which < sizeof names / sizeof *names; which++)
            if (name_n == names[which].n && !strncasecmp(line, names[which].name, name_n)) {
                if (texts[which]->at) return UP_HEAD_OTHER; /* twice: joining them is the server's */
                *texts[which] = trimmed(colon + 1, line_end);
            }
        /* A request with a body is no upgrade that anybody sends. */
        if ((name_n == 14 && !strncasecmp(line, "content-length", 14)) ||
            (name_n == 17 && !strncasecmp(line, "transfer-encoding", 17)) ||
            (name_n == 6 && !strncasecmp(line, "expect", 6)))
            return UP_HEAD_OTHER;
    }
    if (!is(upgrade, "websocket") || !has_token(connection, "upgrade") || !is(version, "13") || !head->key.at ||
        !is_base64(head->key))
        return UP_HEAD_OTHER;
    return UP_HEAD_UPGRADE;
}

/* ---- what is asked for ------------------------------------------------------------------------ */

static int is_number(up_text text) {
    if (!text.n || text.n > 16) return 0;
    for (size_t at = 0; at < text.n; at++)
        if (text.at[at] < '0' || text.at[at] > '9') return 0;
    return 1;
}

int up_head_plain(const up_head *head) {
    static const char prefix[] = "/stream/";
    size_t skip = sizeof prefix - 1;
    if (head->authorization.at || head->path.n <= skip || head->path.n > skip + 64 ||
        memcmp(head->path.at, prefix, skip) || up_head_offers(head->protocols, "uproar.token."))
        return 0;
    for (size_t at = skip; at < head->path.n; at++) {
        char c = head->path.at[at];
        if (!((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-')) return 0;
    }
    const char *at = head->query.at, *end = at + head->query.n;
    while (at < end) {
        const char *stop = memchr(at, '&', (size_t)(end - at));
        if (!stop) stop = end;
        size_t n = (size_t)(stop - at);
        if (n > 8 && !memcmp(at, "backlog=", 8)) {
            if (!is_number((up_text){at + 8, n - 8})) return 0;
        } else if (n > 5 && !memcmp(at, "rate=", 5)) {
            up_text rate = {at + 5, n - 5};
            if (!is(rate, "all") && !is(rate, "50") && !is(rate, "20") && !is(rate, "5")) return 0;
        } else {
            return 0;
        }
        at = stop + 1;
    }
    return 1;
}

int up_head_choose(up_text protocols, const up_text *known, int count) {
    up_text entry;
    while (next_entry(&protocols, &entry))
        for (int which = 0; which < count; which++)
            if (entry.n == known[which].n && !memcmp(entry.at, known[which].at, entry.n)) return which;
    return -1;
}

int up_head_offers(up_text list, const char *prefix) {
    up_text entry;
    size_t n = strlen(prefix);
    while (next_entry(&list, &entry))
        if (entry.n >= n && !memcmp(entry.at, prefix, n)) return 1;
    return 0;
}

/* ---- Sec-WebSocket-Accept: SHA-1 (FIPS 180-4) of 60 bytes, two blocks, in base64 ---------------- */

static uint32_t rotl(uint32_t value, int bits) { return value << bits | value >> (32 - bits); }

static void sha1_block(uint32_t state[5], const uint8_t block[64]) {
    uint32_t w[80];
    for (int t = 0; t < 16; t++)
        w[t] = (uint32_t)block[4 * t] << 24 | (uint32_t)block[4 * t + 1] << 16 | (uint32_t)block[4 * t + 2] << 8 |
               block[4 * t + 3];
    for (int t = 16; t < 80; t++) w[t] = rotl(w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16], 1);
    uint32_t a = state[0], b = state[1], c = state[2], d = state[3], e = state[4];
    for (int t = 0; t < 80; t++) {
        uint32_t f, k;
        if (t < 20) f = (b & c) | (~b & d), k = 0x5A827999;
        else if (t < 40) f = b ^ c ^ d, k = 0x6ED9EBA1;
        else if (t < 60) f = (b & c) | (b & d) | (c & d), k = 0x8F1BBCDC;
        else f = b ^ c ^ d, k = 0xCA62C1D6;
        uint32_t next = rotl(a, 5) + f + e + k + w[t];
        e = d, d = c, c = rotl(b, 30), b = a, a = next;
    }
    state[0] += a, state[1] += b, state[2] += c, state[3] += d, state[4] += e;
}

void up_head_accept(const char *key, char out[28]) {
    uint8_t text[128] = {0};
    memcpy(text, key, 24);
    memcpy(text + 24, "258EAFA5-E914-47DA-95CA-C5AB0DC85B11", 36);
    text[60] = 0x80;
    text[126] = 480 >> 8; /* bits */
    text[127] = 480 & 0xFF;
    uint32_t state[5] = {0x67452301, 0xEFCDAB89, 0x98BADCFE, 0x10325476, 0xC3D2E1F0};
    sha1_block(state, text);
    sha1_block(state, text + 64);
    uint8_t digest[21] = {0};
    for (int at = 0; at < 20; at++) digest[at] = (uint8_t)(state[at / 4] >> (24 - 8 * (at % 4)));
    static const char letters[] = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    for (int at = 0, to = 0; at < 21; at += 3, to += 4) {
        uint32_t bits = (uint32_t)digest[at] << 16 | (uint32_t)digest[at + 1] << 8 | digest[at + 2];
        for (int part = 0; part < 4; part++) out[to + part] = letters[bits >> (18 - 6 * part) & 63];
    }
    out[27] = '=';
}

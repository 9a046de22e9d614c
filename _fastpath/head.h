/* The request head of an upgrade to WebSocket (RFC 9112, RFC 6455 section 4.2), without sockets.
 *
 * Only a head that is beyond doubt is read here. Whatever else comes, sound or not, is for the HTTP server behind:
 * it answers and refuses in words. */
#ifndef UPROAR_HEAD_H
#define UPROAR_HEAD_H
#include <stddef.h>
#include <stdint.h>

typedef struct {
    const char *at; /* NULL: the header is missing */
    size_t n;
} up_text;

/* Where the parts of a head lie in the caller's bytes. */
typedef struct {
    up_text path, query;
    up_text key, protocols, extensions, authorization, origin, forwarded;
    size_t n; /* bytes of the head, the empty line included */
} up_head;

enum { UP_HEAD_OTHER = 0, UP_HEAD_UPGRADE = 1 };

/* How many bytes the head in `data` has, 0 while its end has not come. */
size_t up_head_end(const char *data, size_t n, size_t looked_at);

/* Whether the beginning of a head already tells that it is no upgrade, or not even HTTP. */
int up_head_strange(const char *data, size_t n);

/* Read a complete head of n bytes; UP_HEAD_UPGRADE for an upgrade that can be taken. */
int up_head_read(const char *data, size_t n, up_head *head);

/* Write the 28 characters of Sec-WebSocket-Accept for a key of 24. */
void up_head_accept(const char *key, char out[28]);

/* What a plain viewer asks for: a sound stream path, and no query but backlog and rate. */
int up_head_plain(const up_head *head);

/* Return the first of the `known` names that a list of subprotocols has, in the order of the list; -1 for none. */
int up_head_choose(up_text protocols, const up_text *known, int count);

/* Whether an entry of a comma-separated list begins with a prefix. */
int up_head_offers(up_text list, const char *prefix);
#endif

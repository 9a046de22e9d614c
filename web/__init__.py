"""The browser's side: the JavaScript client and the pages, as files that the gateway serves.

Comes in: nothing; there is no build step and no code but what lies here. Goes out: `index.html` at
`/`, `stream.html` at `/stream/{id}` and the rest, flat, at `/assets/NAME`, all under a
Content-Security-Policy that knows no inline script and no inline style.

`client.js` speaks the native protocol and knows no page; `msgpack.js`, `wire.js` and `codes.js` are
its parts. `page.js` puts the viewer page together from `session.js` (who one is), `rows.js` and
`row.js` (what was said), `actions.js` (what one may do to it), `pending.js` (what is on its way),
`follow.js` (where the reader is), `composer.js` (what one says) and `status.js` (how the connection
is). `start.js` is the start page's.
"""

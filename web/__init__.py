"""The browser's side: the JavaScript client and the pages, as files that the gateway serves.

Comes in: nothing; there is no build step and no code but what lies here. Goes out: `index.html` at
`/`, `stream.html` at `/stream/{id}` and the rest, flat, at `/assets/NAME`, all under a
Content-Security-Policy that knows no inline script and no inline style.

`client.js` speaks the native protocol and knows no page; `msgpack.js`, `wire.js` and `codes.js` are
its parts, `rest.js` and `moderation.js` call the REST API. `page.js` puts the viewer page together:
who one is (`session.js`), what was said (`rows.js`, `row.js`, `follow.js`), what one says
(`composer.js`, `pending.js`, `pace.js`), what holds in the room (`mode.js`, `pinned.js`,
`banner.js`, `status.js`), reactions (`reactions.js`, `floats.js`), and for moderators what they may
do (`actions.js`, `menu.js`) and their drawers (`drawers.js`, `queue.js`, `settings.js`). `start.js`
is the start page's.
"""

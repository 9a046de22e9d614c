// The positional arrays of docs/protocol.md ("msgpack") to the events that JSON would have brought.

import { decode } from "./msgpack.js";

const SHOWN = ["all", "sampled", "held"];
const ROLES = ["viewer", "vip", "moderator", "broadcaster", "service"];
// 100 ns steps: UUID time counts from 1582-10-15.
const GREGORIAN_OFFSET_MS = 12_219_292_800_000n;
const PER_MS = 10_000n;

/** A message that is not what docs/protocol.md says. */
export class WireError extends Error {
  name = "WireError";
}

/** Return the events of a binary message; throws WireError or MsgpackError. */
export function decodeBinary(bytes) {
  return toEvents(decode(bytes));
}

/** Return the events of a text message; throws WireError. */
export function decodeText(text) {
  let events;
  try {
    events = JSON.parse(text);
  } catch (error) {
    throw new WireError(`not JSON: ${error.message}`);
  }
  if (!Array.isArray(events) || !events.every((event) => event && typeof event === "object")) {
    throw new WireError("a message is an array of events");
  }
  return events;
}

/** Return the events of a decoded message `[base_ts, base_offset, node, [event, …]]`. */
export function toEvents(message) {
  if (!Array.isArray(message) || !Array.isArray(message[3])) {
    throw new WireError("a message is [base_ts, base_offset, node, events]");
  }
  const [ts, offset, node, arrays] = message;
  const base = { ts, offset, node, users: [], last: { ts, offset } };
  const events = [];
  for (const array of arrays) {
    if (!Array.isArray(array)) throw new WireError("an event is an array");
    const [code, ...fields] = array;
    const read = READERS[code];
    if (read) events.push(read(fields, base)); // unknown types are to be ignored
  }
  return events;
}

const READERS = [
  ([fields]) => ({ type: "WELCOME", ...fields }),
  readComment,
  ([offset, id], base) => ({
    type: "COMMENT_DELETED",
    comment_id: uuidText(id),
    offset: base.offset + offset,
  }),
  ([offset, userId, until], base) => ({
    type: "USER_REMOVED",
    user_id: userId,
    offset: base.offset + offset,
    ...optional({ until }),
  }),
  ([offset], base) => ({ type: "CLEARED", offset: base.offset + offset }),
  ([count, position], base) => ({ type: "VIEWERS", count, position: base.offset + position }),
  ([nonce, id, offset, shown, remaining, resetMs], base) => ({
    type: "ACK",
    nonce,
    id: uuidText(id),
    offset: base.offset + offset,
    shown: SHOWN[shown],
    limit: remaining == null ? null : { remaining, reset_ms: resetMs },
  }),
  ([nonce, code, message, retryAfterMs]) => ({
    type: "REJECTED",
    nonce,
    code,
    message,
    ...optional({ retry_after_ms: retryAfterMs }),
  }),
  ([from, to, reason], base) => ({
    type: "GAP",
    from: base.offset + from,
    to: base.offset + to,
    reason,
  }),
  ([afterMs]) => ({ type: "RECONNECT", after_ms: afterMs }),
  ([position, serverTime], base) => ({
    type: "PONG",
    position: base.offset + position,
    server_time: base.ts + serverTime,
  }),
];

// Codes from 11 on are maps of the JSON fields.
const MAPS = [
  "COMMENT_RESTORED", "COMMENT_APPROVED", "COMMENT_PINNED", "COMMENT_UNPINNED", "MODE", "BANNER",
  "STREAM_STARTED", "STREAM_ENDED", "FLAGGED", "HELD", "HELD_RESOLVED", "SANCTION", "TERMS",
  "REACTIONS",
];
for (const type of MAPS) READERS.push(([fields]) => ({ type, ...fields }));

/** `ts` and `offset` are differences to those of the comment before. */
function readComment([later, user, text, id = 0, skipped = 0, extra], base) {
  const ts = base.last.ts + later;
  const offset = base.last.offset + 1 + skipped;
  base.last = { ts, offset };
  const { reply_to: replyTo, ...rare } = extra ?? {};
  return {
    type: "COMMENT",
    id: typeof id === "number" ? timeUuid(ts, id, base.node) : uuidText(id),
    offset,
    user: readUser(user, base.users),
    text,
    ts,
    ...optional({ reply_to: replyTo == null ? null : uuidText(replyTo) }),
    ...rare,
  };
}

/** An author in full joins `users`; an integer is the index of one that did. */
function readUser(user, users) {
  if (typeof user === "number") {
    if (!(user in users)) throw new WireError(`author ${user} was not named in this message`);
    return users[user];
  }
  if (!Array.isArray(user)) throw new WireError("an author is an array or an index");
  const [id, name, role, shade, badges] = user;
  const color = typeof shade === "number" ? colorText(shade) : shade;
  const author = { id, name, role: ROLES[role ?? 0], ...optional({ color, badges }) };
  users.push(author);
  return author;
}

function colorText(rgb) {
  if (!(rgb >= 0 && rgb <= 0xffffff)) throw new WireError("a color has 24 bits");
  return `#${rgb.toString(16).padStart(6, "0")}`;
}

function optional(fields) {
  return Object.fromEntries(Object.entries(fields).filter(([, value]) => value != null));
}

/** The text of the time UUID number `sequence` of millisecond `ts`; `node` is its last 8 bytes. */
export function timeUuid(ts, sequence, node) {
  const ticks = (BigInt(ts) + GREGORIAN_OFFSET_MS) * PER_MS + BigInt(sequence);
  const bytes = new Uint8Array(16);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, Number(ticks & 0xffffffffn));
  view.setUint16(4, Number((ticks >> 32n) & 0xffffn));
  view.setUint16(6, Number((ticks >> 48n) & 0x0fffn) | 0x1000);
  if (!(node instanceof Uint8Array) || node.length !== 8) {
    throw new WireError("a message with short ids has a node of 8 bytes");
  }
  bytes.set(node, 8);
  return uuidText(bytes);
}

/** The unix ms in a time UUID: when the comment of this id was taken. */
export function timeOf(id) {
  const [low, middle, high] = id.split("-");
  const ticks = BigInt(`0x${high.slice(1)}${middle}${low}`);
  return Number(ticks / PER_MS - GREGORIAN_OFFSET_MS);
}

const HEX = Array.from({ length: 256 }, (_, byte) => byte.toString(16).padStart(2, "0"));

/** The 36 characters of an id's 16 bytes. */
export function uuidText(bytes) {
  if (!(bytes instanceof Uint8Array) || bytes.length !== 16) {
    throw new WireError("a comment id is 16 bytes");
  }
  let text = "";
  for (let index = 0; index < 16; index++) {
    if (index === 4 || index === 6 || index === 8 || index === 10) text += "-";
    text += HEX[bytes[index]];
  }
  return text;
}

// web/wire.js against tests/vectors/protocol.json, and codes.js against docs/protocol.md.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import test from "node:test";

import { CLOSE_CODES, REJECTIONS } from "../../web/codes.js";
import { encode } from "../../web/msgpack.js";
import { decodeBinary, decodeText, toEvents, WireError } from "../../web/wire.js";

const read = (path) => readFileSync(new URL(`../../${path}`, import.meta.url), "utf8");
const NODE = new Uint8Array([0x9f, 0x3c, 0x8b, 0x1d, 0x52, 0xe7, 0xa6, 0x04]);
const vectors = JSON.parse(read("tests/vectors/protocol.json"));

test("there are vectors for every type of event", () => {
  const types = new Set(vectors.flatMap(({ events }) => events.map(({ type }) => type)));
  assert.deepEqual(
    [...types].sort(),
    (
      "ACK BANNER CLEARED COMMENT COMMENT_APPROVED COMMENT_DELETED COMMENT_PINNED COMMENT_RESTORED " +
      "COMMENT_UNPINNED FLAGGED GAP HELD HELD_RESOLVED MODE PONG REACTIONS RECONNECT REJECTED " +
      "SANCTION STREAM_ENDED STREAM_STARTED TERMS USER_REMOVED VIEWERS WELCOME"
    ).split(" "),
  );
});

for (const { name, events, msgpack } of vectors) {
  test(`vector: ${name}`, () => {
    assert.deepEqual(decodeBinary(new Uint8Array(Buffer.from(msgpack, "hex"))), events);
    assert.deepEqual(decodeText(JSON.stringify(events)), events);
  });
}

test("unknown types and further fields are ignored", () => {
  const events = toEvents([0, 10, null, [[99, 1, 2], [4, 5, "a later field"], [9, 7]]]);
  assert.deepEqual(events, [
    { type: "CLEARED", offset: 15 },
    { type: "RECONNECT", after_ms: 7 },
  ]);
});

test("malformed messages are refused with a WireError", () => {
  for (const message of [
    null, 5, [], {}, [0, 0, null], [0, 0, null, 5], [0, 0, null, [5]],
    [0, 0, null, [[1, 0, ["u"], "no node"]]],
    [0, 0, NODE, [[1, 0, 3, "no such author"]]],
    [0, 0, NODE, [[1, 0, "ada", "an author of another shape"]]],
    [0, 0, NODE, [[1, 0, ["u", "n", 0, -1], "no color"]]],
    [0, 0, NODE, [[1, 0, ["u"], "an id of another shape", "text"]]],
    [0, 0, NODE, [[2, 0, "text"]]],
  ]) {
    assert.throws(() => decodeBinary(encode(message)), WireError, JSON.stringify(message));
  }
  for (const text of ["", "nonsense", "{}", "5", "[null]", "[5]"]) {
    assert.throws(() => decodeText(text), WireError, text);
  }
});

/** The rows of the first table below a heading of docs/protocol.md, as arrays of cells. */
function table(heading) {
  const section = read("docs/protocol.md").split(`${heading}\n`)[1].split(/\n#/)[0];
  return section.split("\n").filter((line) => line.startsWith("| "))
    .map((line) => line.split("|").slice(1, -1).map((cell) => cell.trim().replace(/`/g, "")))
    .slice(1);
}

test("the close codes are those of docs/protocol.md", () => {
  const answers = { yes: "yes", no: "no", "yes, later": "later", "with a new token": "token" };
  const documented = table("## Close codes").map(([code, name, , reconnect]) => [
    code,
    { name, reconnect: answers[reconnect] },
  ]);
  const ours = Object.entries(CLOSE_CODES).map(([code, { name, reconnect }]) => [
    code,
    { name, reconnect },
  ]);
  assert.deepEqual(ours, documented);
});

test("every rejection of docs/protocol.md has words for people", () => {
  const documented = table("### REJECTED codes").map(([code]) => code);
  assert.ok(documented.length >= 7);
  for (const code of documented) assert.match(REJECTIONS[code] ?? "", /\.$/, code);
});

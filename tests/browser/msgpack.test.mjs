// web/msgpack.js: every length and width there is, and bytes that are no MessagePack.

import assert from "node:assert/strict";
import test from "node:test";

import { decode, encode, MsgpackError } from "../../web/msgpack.js";

const bytes = (hex) => Uint8Array.from(hex.match(/../g) ?? [], (byte) => parseInt(byte, 16));
const hex = (data) => Buffer.from(data).toString("hex");

const FORMS = [
  [null, "c0"], [false, "c2"], [true, "c3"],
  [0, "00"], [127, "7f"], [128, "cc80"], [255, "ccff"], [256, "cd0100"], [65535, "cdffff"],
  [65536, "ce00010000"], [4294967295, "ceffffffff"], [4294967296, "cf0000000100000000"],
  [Number.MAX_SAFE_INTEGER, "cf001fffffffffffff"], [2n ** 64n - 1n, "cfffffffffffffffff"],
  [-1, "ff"], [-32, "e0"], [-33, "d0df"], [-128, "d080"], [-129, "d1ff7f"], [-32768, "d18000"],
  [-32769, "d2ffff7fff"], [-2147483648, "d280000000"], [-2147483649, "d3ffffffff7fffffff"],
  [Number.MIN_SAFE_INTEGER, "d3ffe0000000000001"], [-(2n ** 63n), "d38000000000000000"],
  [1.5, "cb3ff8000000000000"], [-0, "cb8000000000000000"],
  ["", "a0"], ["ü", "a2c3bc"], ["a\u{e0000}", "a561f3a08080"],
  [[], "90"], [[1, [2]], "92019102"], [{}, "80"], [{ a: { b: null } }, "81a16181a162c0"],
  [new Uint8Array([1, 2]), "c4020102"],
];

test("every form of the specification that the protocol uses, both ways", () => {
  for (const [value, form] of FORMS) {
    assert.equal(hex(encode(value)), form, String(value));
    assert.deepEqual(decode(bytes(form)), value, form);
  }
});

test("lengths around every boundary come back", () => {
  for (const size of [15, 16, 31, 32, 255, 256, 65535, 65536]) {
    const keys = Array.from({ length: size }, (_, index) => [`k${index}`, index]);
    for (const value of [
      "x".repeat(size),
      "🎉".repeat(size),
      new Uint8Array(size).fill(7),
      Array(size).fill(1),
      Object.fromEntries(keys),
    ]) {
      assert.deepEqual(decode(encode(value)), value);
    }
  }
});

test("float32 and wide integers that fit are numbers", () => {
  assert.equal(decode(bytes("ca3fc00000")), 1.5);
  assert.equal(decode(bytes("cf0000000000000005")), 5);
  assert.equal(decode(bytes("d3fffffffffffffffb")), -5);
});

test("undefined properties are left out, as in JSON", () => {
  assert.equal(hex(encode({ a: 1, b: undefined })), "81a16101");
});

test("a key named __proto__ is a key", () => {
  const value = decode(bytes("81a95f5f70726f746f5f5f81a16101"));
  assert.equal(Object.getPrototypeOf(value), Object.prototype);
  assert.deepEqual(Object.keys(value), ["__proto__"]);
});

test("what is cut off anywhere is refused", () => {
  const whole = encode([1, -70000, 2 ** 40, 1.5, "text", { key: new Uint8Array(300) }, [null]]);
  for (let size = 0; size < whole.length; size++) {
    assert.throws(() => decode(whole.subarray(0, size)), MsgpackError, `${size} bytes`);
  }
});

test("malformed input is refused with a MsgpackError and nothing else", () => {
  for (const [form, why] of [
    ["0000", "bytes after the end"],
    ["c1", "never used"],
    ["d4000a", "an extension"],
    ["ddffffffff00", "an array of four thousand million values in one byte"],
    ["dfffffffff00", "a map of that size"],
    ["dbffffffff00", "a string of that size"],
    ["a2c328", "a string that is not UTF-8"],
    ["8101c0", "a key that is no string"],
    ["91".repeat(100) + "c0", "nested a hundred deep"],
  ]) {
    assert.throws(() => decode(bytes(form)), MsgpackError, why);
  }
});

test("random bytes never break out of MsgpackError", () => {
  let seed = 20261122;
  const random = () => (seed = (Math.imul(seed, 1103515245) + 12345) >>> 0) / 2 ** 32;
  for (let round = 0; round < 20_000; round++) {
    const noise = Uint8Array.from({ length: 1 + random() * 24 }, () => random() * 256);
    try {
      decode(noise);
    } catch (error) {
      assert.ok(error instanceof MsgpackError, `${hex(noise)}: ${error}`);
    }
  }
});

// MessagePack as far as the protocol uses it: everything but extension types.
//
// Integers beyond 2^53 come out as BigInt, the rest as Number. Maps have string keys and become
// plain objects; `bin` is Uint8Array. Input is bounded by its own size: a length that promises more
// than the message holds is refused before anything is allocated for it.

const MAX_DEPTH = 32; // the protocol nests four deep
const utf8 = new TextEncoder();
const strictUtf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** Bytes that are no MessagePack, or a value that has none. */
export class MsgpackError extends Error {
  name = "MsgpackError";
}

/** Return the value of a whole message (Uint8Array or ArrayBuffer); throws MsgpackError. */
export function decode(bytes) {
  const reader = new Reader(bytes instanceof Uint8Array ? bytes : new Uint8Array(bytes));
  const value = reader.value(0);
  if (reader.at !== reader.bytes.length) {
    throw new MsgpackError(`${reader.bytes.length - reader.at} bytes after the end of the value`);
  }
  return value;
}

class Reader {
  constructor(bytes) {
    this.bytes = bytes;
    this.view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    this.at = 0;
  }

  /** Advance by `size` bytes and return where they begin. */
  take(size) {
    const start = this.at;
    if (size > this.bytes.length - start) {
      throw new MsgpackError(`the value at byte ${start} is cut off`);
    }
    this.at = start + size;
    return start;
  }

  value(depth) {
    if (depth > MAX_DEPTH) throw new MsgpackError(`nested deeper than ${MAX_DEPTH}`);
    const { view } = this;
    const head = view.getUint8(this.take(1));
    if (head < 0x80) return head;
    if (head >= 0xe0) return head - 0x100;
    if (head < 0x90) return this.map(head & 0x0f, depth);
    if (head < 0xa0) return this.array(head & 0x0f, depth);
    if (head < 0xc0) return this.string(head & 0x1f);
    switch (head) {
      case 0xc0: return null;
      case 0xc2: return false;
      case 0xc3: return true;
      case 0xc4: return this.binary(view.getUint8(this.take(1)));
      case 0xc5: return this.binary(view.getUint16(this.take(2)));
      case 0xc6: return this.binary(view.getUint32(this.take(4)));
      case 0xca: return view.getFloat32(this.take(4));
      case 0xcb: return view.getFloat64(this.take(8));
      case 0xcc: return view.getUint8(this.take(1));
      case 0xcd: return view.getUint16(this.take(2));
      case 0xce: return view.getUint32(this.take(4));
      case 0xcf: return narrow(view.getBigUint64(this.take(8)));
      case 0xd0: return view.getInt8(this.take(1));
      case 0xd1: return view.getInt16(this.take(2));
      case 0xd2: return view.getInt32(this.take(4));
      case 0xd3: return narrow(view.getBigInt64(this.take(8)));
      case 0xd9: return this.string(view.getUint8(this.take(1)));
      case 0xda: return this.string(view.getUint16(this.take(2)));
      case 0xdb: return this.string(view.getUint32(this.take(4)));
      case 0xdc: return this.array(view.getUint16(this.take(2)), depth);
      case 0xdd: return this.array(view.getUint32(this.take(4)), depth);
      case 0xde: return this.map(view.getUint16(this.take(2)), depth);
      case 0xdf: return this.map(view.getUint32(this.take(4)), depth);
      default: throw new MsgpackError(`type byte 0x${head.toString(16)} is not used here`);
    }
  }

  string(size) {
    const start = this.take(size);
    try {
      return strictUtf8.decode(this.bytes.subarray(start, start + size));
    } catch {
      throw new MsgpackError(`the string at byte ${start} is not UTF-8`);
    }
  }

  binary(size) {
    const start = this.take(size);
    return this.bytes.slice(start, start + size);
  }

  array(length, depth) {
    this.promise(length);
    const items = [];
    for (let index = 0; index < length; index++) items.push(this.value(depth + 1));
    return items;
  }

  map(length, depth) {
    this.promise(2 * length);
    const entries = [];
    for (let index = 0; index < length; index++) {
      const key = this.value(depth + 1);
      if (typeof key !== "string") throw new MsgpackError("a map key is not a string");
      entries.push([key, this.value(depth + 1)]);
    }
    return Object.fromEntries(entries); // defines properties, so that `__proto__` is only a name
  }

  /** Every value has at least one byte: refuse a length that the rest can't hold. */
  promise(values) {
    if (values > this.bytes.length - this.at) {
      throw new MsgpackError(`${values} values promised beyond the end of the message`);
    }
  }
}

function narrow(wide) {
  const number = Number(wide);
  return Number.isSafeInteger(number) ? number : wide;
}

/** Return the bytes of a value; properties that are undefined are left out, as in JSON. */
export function encode(value) {
  const writer = new Writer();
  writer.value(value, 0);
  return writer.bytes.slice(0, writer.at);
}

class Writer {
  constructor() {
    this.bytes = new Uint8Array(256);
    this.view = new DataView(this.bytes.buffer);
    this.at = 0;
  }

  /** Make room for `size` bytes and return where they begin. */
  room(size) {
    const start = this.at;
    if (start + size > this.bytes.length) {
      const larger = new Uint8Array(Math.max(2 * this.bytes.length, start + size));
      larger.set(this.bytes);
      this.bytes = larger;
      this.view = new DataView(larger.buffer);
    }
    this.at = start + size;
    return start;
  }

  byte(byte) {
    const start = this.room(1); // before `view`, which a growing buffer replaces
    this.view.setUint8(start, byte);
  }

  uint16(value) {
    const start = this.room(2);
    this.view.setUint16(start, value);
  }

  uint32(value) {
    const start = this.room(4);
    this.view.setUint32(start, value);
  }

  value(value, depth) {
    if (depth > MAX_DEPTH) throw new MsgpackError(`nested deeper than ${MAX_DEPTH}`);
    if (value === null || value === undefined) this.byte(0xc0);
    else if (value === false) this.byte(0xc2);
    else if (value === true) this.byte(0xc3);
    else if (typeof value === "number") this.number(value);
    else if (typeof value === "bigint") this.wide(value);
    else if (typeof value === "string") this.string(value);
    else if (value instanceof Uint8Array) this.binary(value);
    else if (Array.isArray(value)) this.array(value, depth);
    else if (typeof value === "object") this.map(value, depth);
    else throw new MsgpackError(`a ${typeof value} has no MessagePack form`);
  }

  number(value) {
    if (!Number.isSafeInteger(value) || Object.is(value, -0)) {
      this.byte(0xcb);
      const start = this.room(8);
      this.view.setFloat64(start, value);
    } else if (value >= 0) {
      if (value < 0x80) this.byte(value);
      else if (value < 0x100) { this.byte(0xcc); this.byte(value); }
      else if (value < 0x10000) { this.byte(0xcd); this.uint16(value); }
      else if (value < 0x100000000) { this.byte(0xce); this.uint32(value); }
      else this.wide(BigInt(value));
    } else if (value >= -0x20) this.byte(value + 0x100);
    else if (value >= -0x80) { this.byte(0xd0); this.byte(value + 0x100); }
    else if (value >= -0x8000) { this.byte(0xd1); this.uint16(value + 0x10000); }
    else if (value >= -0x80000000) { this.byte(0xd2); this.uint32(value + 0x100000000); }
    else this.wide(BigInt(value));
  }

  wide(value) {
    if (value < -(1n << 63n) || value >= 1n << 64n) {
      throw new MsgpackError("an integer has at most 64 bits");
    }
    this.byte(value < 0n ? 0xd3 : 0xcf);
    const start = this.room(8);
    this.view.setBigUint64(start, BigInt.asUintN(64, value));
  }

  string(text) {
    const bytes = utf8.encode(text);
    if (bytes.length < 0x20) this.byte(0xa0 | bytes.length);
    else this.length(bytes.length, 0xd9, 0xda, 0xdb);
    const start = this.room(bytes.length);
    this.bytes.set(bytes, start);
  }

  binary(bytes) {
    this.length(bytes.length, 0xc4, 0xc5, 0xc6);
    const start = this.room(bytes.length);
    this.bytes.set(bytes, start);
  }

  array(items, depth) {
    if (items.length < 0x10) this.byte(0x90 | items.length);
    else this.length(items.length, null, 0xdc, 0xdd);
    for (const item of items) this.value(item, depth + 1);
  }

  map(object, depth) {
    const entries = Object.entries(object).filter(([, value]) => value !== undefined);
    if (entries.length < 0x10) this.byte(0x80 | entries.length);
    else this.length(entries.length, null, 0xde, 0xdf);
    for (const [key, value] of entries) {
      this.string(key);
      this.value(value, depth + 1);
    }
  }

  /** Write a type byte with its length; `byte8` is null for types that have no 8-bit form. */
  length(size, byte8, byte16, byte32) {
    if (size < 0x100 && byte8 !== null) { this.byte(byte8); this.byte(size); }
    else if (size < 0x10000) { this.byte(byte16); this.uint16(size); }
    else { this.byte(byte32); this.uint32(size); }
  }
}

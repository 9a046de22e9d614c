// web/client.js as a state machine: sockets and time are made here, the protocol is the real one.
// (tests/browser/test_page.py runs the same client on real WebSockets.)

import assert from "node:assert/strict";
import test from "node:test";

import { CLOSE_CODES } from "../../web/codes.js";
import { Rejected, UproarClient } from "../../web/client.js";
import { decode, encode } from "../../web/msgpack.js";

/** Time that passes when it is told to. */
class Clock {
  constructor() {
    this.time = 0;
    this.timers = [];
  }

  now() {
    return this.time;
  }

  after(ms, call) {
    const timer = { at: this.time + ms, call };
    this.timers.push(timer);
    return timer;
  }

  cancel(timer) {
    this.timers = this.timers.filter((other) => other !== timer);
  }

  pass(ms) {
    const end = this.time + ms;
    for (;;) {
      const due = this.timers.filter(({ at }) => at <= end).sort((a, b) => a.at - b.at)[0];
      if (!due) break;
      this.cancel(due);
      this.time = Math.max(this.time, due.at);
      due.call();
    }
    this.time = end;
  }
}

/** A client with the sockets it opened; the newest is `socket`. */
function setUp(options = {}) {
  const clock = new Clock();
  const sockets = [];
  class Socket {
    constructor(url, protocols) {
      Object.assign(this, { url: new URL(url), protocols, protocol: "", readyState: 0, sent: [] });
      sockets.push(this);
    }

    send(data) {
      const read = typeof data === "string" ? JSON.parse(data) : decode(data);
      this.sent.push(...(Array.isArray(read) ? read : [read]));
    }

    close(code) {
      this.readyState = 3;
      this.closedWith = code;
    }

    // What the network and the server do.
    serve(...events) {
      this.protocol = this.protocols[0];
      this.readyState = 1;
      this.onmessage({ data: JSON.stringify(events) });
    }

    cut(code = 1006) {
      this.readyState = 3;
      this.onclose({ code });
    }

    comments() {
      return this.sent.filter(({ type }) => type === "COMMENT");
    }
  }
  const client = new UproarClient({
    url: "ws://chat.test/stream/demo",
    codec: "json",
    WebSocket: Socket,
    clock,
    random: () => 1,
    ...options,
  });
  const states = [];
  const events = [];
  client.addEventListener("state", ({ detail }) => states.push(detail));
  client.addEventListener("events", ({ detail }) => events.push(...detail));
  return {
    client, clock, sockets, states, events,
    get socket() {
      return sockets.at(-1);
    },
    get offsets() {
      return events.filter(({ type }) => type === "COMMENT").map(({ offset }) => offset);
    },
  };
}

const welcome = (fields = {}) => ({
  type: "WELCOME", stream: "demo", epoch: "e1", offset: 100, user: { id: "u1", name: "Ada" },
  ping_s: 30, recovered: null, ...fields,
});
const comment = (offset, fields = {}) => ({ type: "COMMENT", id: `c${offset}`, offset, ...fields });

/** A client that is live at offset 100. */
function live(options) {
  const room = setUp(options);
  room.client.connect();
  room.socket.serve(welcome());
  return room;
}

test("the way up: disconnected, connecting, live", () => {
  const room = setUp({ token: "a.b.c", backlog: 20, rate: 50 });
  assert.equal(room.client.state, "disconnected");
  room.client.connect();
  room.client.connect();
  assert.equal(room.sockets.length, 1);
  assert.deepEqual(room.socket.protocols, ["uproar.v1.json", "uproar.token.a.b.c"]);
  assert.equal(room.socket.url.search, "?backlog=20&rate=50");
  room.socket.serve(welcome());
  assert.deepEqual(room.states.map(({ state }) => state), ["connecting", "live"]);
  assert.deepEqual(room.client.user, { id: "u1", name: "Ada" });
});

test("msgpack: commands go out and events come in as bytes", () => {
  const room = setUp({ codec: "msgpack" });
  room.client.connect();
  Object.assign(room.socket, { readyState: 1, protocol: room.socket.protocols[0] });
  const { type, ...fields } = welcome();
  room.socket.onmessage({ data: encode([0, 100, null, [[0, fields], [5, 7, 3]]]).buffer });
  assert.equal(room.client.state, "live");
  assert.deepEqual(room.events[1], { type: "VIEWERS", count: 7, position: 103 });
  room.client.sendComment("hello").catch(() => {});
  assert.equal(room.socket.sent[0].text, "hello");
});

test("the position: live offsets, GAP, PONG and VIEWERS; neither backlog nor ACK", () => {
  const { client, socket } = live();
  const steps = [
    [comment(90, { historical: true }), 100],
    [comment(900, { historical: true }), 100],
    [comment(101), 101],
    [{ type: "COMMENT_DELETED", comment_id: "c101", offset: 102 }, 102],
    [{ type: "GAP", from: 102, to: 110, reason: "too_slow" }, 110],
    [{ type: "COMMENT_DELETED", comment_id: "c1", offset: 105 }, 110],
    [{ type: "PONG", position: 120, server_time: 0 }, 120],
    [{ type: "VIEWERS", count: 3, position: 119 }, 120],
    [{ type: "VIEWERS", count: 3, position: 125 }, 125],
    [{ type: "ACK", nonce: "n", id: "c200", offset: 200, shown: "all", limit: null }, 125],
    [{ type: "SOMETHING_LATER", offset: 130 }, 130],
  ];
  for (const [event, position] of steps) {
    socket.serve(event);
    assert.equal(client.position, position, event.type);
  }
});

test("a lost connection resumes by epoch and position, and every comment comes once", () => {
  const room = live();
  room.socket.serve(comment(101), comment(102));
  room.socket.cut();
  assert.equal(room.client.state, "waiting");
  room.clock.pass(500);
  assert.equal(room.socket.url.search, "?epoch=e1&offset=102");
  room.socket.serve(welcome({ offset: 102, recovered: true }), comment(102), comment(103));
  room.socket.serve(comment(103), comment(104));
  assert.deepEqual(room.offsets, [101, 102, 103, 104]);
});

test("a deletion folded into a gap is handed out though it lies below the position", () => {
  const room = live();
  const deletion = { type: "COMMENT_DELETED", comment_id: "c50", offset: 105 };
  const gap = { type: "GAP", from: 100, to: 110, reason: "too_slow" };
  room.socket.serve(gap, deletion, comment(111));
  assert.deepEqual(room.events.slice(-2), [deletion, comment(111)]);
});

test("not recovered: the server's offset counts, also a lower one of another epoch", () => {
  const room = live();
  room.socket.serve(comment(500));
  room.socket.cut();
  room.clock.pass(500);
  room.socket.serve(welcome({ epoch: "e2", offset: 7, recovered: false }), comment(8));
  assert.equal(room.client.position, 8);
  assert.deepEqual(room.offsets, [500, 8]);
  room.socket.cut();
  room.clock.pass(1000);
  assert.equal(room.socket.url.search, "?epoch=e2&offset=8");
});

test("waits double up to a cap, with full jitter, and start anew after a stable time", () => {
  const room = setUp();
  room.client.connect();
  for (let round = 0; round < 8; round++) {
    room.socket.cut();
    room.clock.pass(room.states.at(-1).retryMs);
  }
  const waits = room.states
    .filter(({ state }) => state === "waiting")
    .map(({ retryMs }) => retryMs);
  assert.deepEqual(waits, [500, 1000, 2000, 4000, 8000, 16_000, 20_000, 20_000]);
  room.socket.serve(welcome());
  room.clock.pass(4999);
  room.socket.cut(); // not stable yet
  assert.equal(room.states.at(-1).retryMs, 20_000);
  room.clock.pass(20_000);
  room.socket.serve(welcome());
  room.clock.pass(5000);
  room.socket.cut();
  assert.equal(room.states.at(-1).retryMs, 500);

  const lucky = live({ random: () => 0.25 });
  lucky.socket.cut();
  assert.equal(lucky.states.at(-1).retryMs, 125);
});

for (const [code, { reconnect, text }] of Object.entries(CLOSE_CODES)) {
  test(`close ${code}: reconnect ${reconnect}`, () => {
    const room = live();
    room.socket.cut(Number(code));
    const ends = reconnect === "no" || reconnect === "token";
    const { state, code: told, text: said, retryMs } = room.states.at(-1);
    assert.deepEqual([state, told, said], [ends ? "closed" : "waiting", Number(code), text]);
    if (reconnect === "later") assert.ok(retryMs >= 5000);
    room.clock.pass(60_000);
    assert.equal(room.sockets.length > 1, !ends);
  });
}

test("4001: with a new token the client goes on where it was, its comments too", async () => {
  const room = live({ token: "old.old.old" });
  const ack = room.client.sendComment("hello");
  room.socket.serve(comment(101));
  room.socket.cut(4001);
  room.client.setToken("new.new.new");
  room.client.connect();
  assert.equal(room.socket.url.search, "?epoch=e1&offset=101");
  assert.equal(room.socket.protocols[1], "uproar.token.new.new.new");
  room.socket.serve(welcome({ offset: 101, recovered: true }));
  const [{ nonce }] = room.socket.comments();
  room.socket.serve({ type: "ACK", nonce, id: "c102", offset: 102, shown: "all", limit: null });
  assert.equal((await ack).id, "c102");
});

test("a token while live connects again at once; the old socket is not heard any more", () => {
  const room = live();
  const [old] = room.sockets;
  room.client.setToken("a.b.c");
  assert.equal(room.client.state, "connecting");
  assert.equal(old.closedWith, 1000);
  old.onmessage({ data: JSON.stringify([comment(101)]) });
  old.onclose({ code: 1006 });
  room.socket.serve(welcome({ offset: 100, recovered: true }), comment(101));
  assert.deepEqual(room.offsets, [101]);
  assert.equal(room.client.state, "live");
});

test("a token that is no JWT is refused with words", () => {
  assert.throws(() => live().client.setToken("a b"), /a token is a JWT/);
});

test("RECONNECT: at its time, not before, and without jitter", () => {
  const room = live();
  room.socket.serve({ type: "RECONNECT", after_ms: 700 });
  room.clock.pass(699);
  assert.equal(room.sockets.length, 1);
  room.clock.pass(1);
  assert.equal(room.sockets.length, 2);
  assert.equal(room.sockets[0].closedWith, 1000);
  assert.equal(room.socket.url.search, "?epoch=e1&offset=100");
});

test("RECONNECT: where the server closes first, the rest of the time is waited for", () => {
  const room = live();
  room.socket.serve({ type: "RECONNECT", after_ms: 700 });
  room.clock.pass(200);
  room.socket.cut(1001);
  assert.equal(room.states.at(-1).retryMs, 500);
  room.clock.pass(499);
  assert.equal(room.sockets.length, 1);
  room.clock.pass(1);
  assert.equal(room.sockets.length, 2);
  room.clock.pass(200);
  assert.equal(room.sockets.length, 2);
});

test("a ping each ping_s, and a silent connection is given up after twice that", () => {
  const room = live();
  for (let round = 1; round <= 3; round++) {
    room.clock.pass(30_000);
    assert.equal(room.socket.sent.length, round);
    room.socket.serve({ type: "PONG", position: 100, server_time: 0 });
  }
  room.clock.pass(59_999);
  assert.equal(room.client.state, "live");
  room.clock.pass(1);
  assert.equal(room.client.state, "waiting");
  assert.equal(room.sockets[0].closedWith, 1000);
});

test("a socket that never gets a WELCOME is given up", () => {
  const room = setUp();
  room.client.connect();
  room.clock.pass(10_000);
  assert.equal(room.client.state, "waiting");
});

test("an unreadable message costs the connection, not the client", () => {
  const room = live();
  room.socket.onmessage({ data: "nonsense" });
  assert.equal(room.client.state, "waiting");
  assert.match(room.states.at(-1).text, /unreadable/);
  room.clock.pass(500);
  room.socket.serve(welcome({ recovered: true }));
  assert.equal(room.client.state, "live");
});

test("retryNow ends the waiting; disconnect ends everything", async () => {
  const room = live();
  room.socket.cut();
  room.client.retryNow();
  assert.equal(room.client.state, "connecting");
  const lost = assert.rejects(room.client.sendComment("x"), { code: "disconnected" });
  room.client.disconnect();
  await lost;
  assert.equal(room.client.state, "disconnected");
  assert.equal(room.clock.timers.length, 0);
  assert.equal(room.socket.closedWith, 1000);
});

test("sendComment: resolved by its ACK, rejected by its REJECTED", async () => {
  const { client, socket } = live();
  const good = client.sendComment("one", { replyTo: "c99" });
  const bad = client.sendComment("two");
  const [one, two] = socket.sent;
  assert.deepEqual(one, { type: "COMMENT", text: "one", nonce: one.nonce, reply_to: "c99" });
  assert.match(one.nonce, /^[0-9a-f]{32}$/);
  assert.notEqual(one.nonce, two.nonce);
  socket.serve(
    { type: "REJECTED", nonce: null, code: "bad_request", message: "of something else" },
    { type: "REJECTED", nonce: two.nonce, code: "rate_limited", message: "m", retry_after_ms: 900 },
    { type: "ACK", nonce: one.nonce, id: "c101", offset: 101, shown: "all", limit: null },
  );
  assert.equal((await good).id, "c101");
  await assert.rejects(bad, (error) => {
    assert.ok(error instanceof Rejected);
    const { code, message, retryAfterMs, nonce } = error;
    assert.deepEqual([code, message, retryAfterMs, nonce], ["rate_limited", "m", 900, two.nonce]);
    return true;
  });
});

test("unacknowledged comments go out again, in order, under their nonces", async () => {
  const room = live();
  const results = ["one", "two", "three"].map((text) => room.client.sendComment(text));
  const first = room.socket.comments();
  room.socket.serve({ type: "ACK", nonce: first[1].nonce, id: "c2", offset: 102, shown: "all" });
  room.socket.cut();
  results.push(room.client.sendComment("four")); // while there is no connection
  room.clock.pass(500);
  room.socket.serve(welcome({ offset: 100, recovered: true }));
  const again = room.socket.comments();
  assert.deepEqual(again.map(({ text }) => text), ["one", "three", "four"]);
  assert.deepEqual(again.slice(0, 2).map(({ nonce }) => nonce), [first[0].nonce, first[2].nonce]);
  for (const { nonce } of again) {
    room.socket.serve({ type: "ACK", nonce, id: nonce, offset: 1, shown: "all", limit: null });
  }
  assert.equal((await Promise.all(results)).length, 4);
});

test("after 30 s without an answer a comment comes back, with its nonce", async () => {
  const room = live();
  const lost = room.client.sendComment("hello");
  const [{ nonce }] = room.socket.comments();
  room.clock.pass(20_000);
  room.socket.cut();
  room.clock.pass(9999);
  const failed = assert.rejects(lost, { code: "unconfirmed", nonce });
  room.clock.pass(1);
  await failed;
  room.client.sendComment("hello", { nonce }).catch(() => {});
  room.client.retryNow();
  room.socket.serve(welcome({ recovered: true }));
  assert.deepEqual(room.socket.comments().map((command) => command.nonce), [nonce]);
});

test("`unavailable` is tried again under the same nonce while there is time", async () => {
  const room = live();
  const result = room.client.sendComment("hello");
  const [{ nonce }] = room.socket.comments();
  const refusal = { type: "REJECTED", nonce, code: "unavailable", message: "m" };
  room.socket.serve({ ...refusal, retry_after_ms: 2000 });
  room.clock.pass(1999);
  assert.equal(room.socket.comments().length, 1);
  room.clock.pass(1);
  assert.deepEqual(room.socket.comments().map((command) => command.nonce), [nonce, nonce]);
  const failed = assert.rejects(result, { code: "unavailable" });
  room.socket.serve({ ...refusal, retry_after_ms: 60_000 });
  await failed;
});

test("comments on their way are bounded, and need a connection to come", async () => {
  const room = live();
  const lost = Array.from({ length: 20 }, () => room.client.sendComment("x"));
  await assert.rejects(room.client.sendComment("x"), { code: "too_many" });
  room.socket.cut(4003);
  const outcomes = await Promise.allSettled(lost);
  assert.ok(outcomes.every(({ reason }) => reason.code === "disconnected"));
  await assert.rejects(room.client.sendComment("x"), { code: "disconnected" });
});

test("a reaction goes out while live, and is given up otherwise", () => {
  const room = live();
  assert.equal(room.client.react("fire", 3), true);
  assert.deepEqual(room.socket.sent, [{ type: "REACT", kind: "fire", count: 3 }]);
  room.socket.cut();
  assert.equal(room.client.react("fire"), false);
});

test("forget: the next connection begins anew", () => {
  const room = live();
  room.client.forget();
  room.client.setToken("a.b.c");
  assert.equal(room.socket.url.search, "");
});

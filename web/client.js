// The client of the native protocol (docs/protocol.md): one stream, one connection, no page.
//
//     const client = new UproarClient({ url: "wss://chat.example/stream/demo", token });
//     client.addEventListener("events", ({ detail }) => detail.forEach(show));
//     client.addEventListener("state", ({ detail }) => console.log(detail.state));
//     client.connect();
//     const ack = await client.sendComment("hello");
//
// It keeps the connection: after a loss it waits (full jitter, so that a thousand viewers don't
// come back in one instant), connects again with its epoch and position and hands out what follows,
// every comment once. A comment that was not acknowledged is sent again under its own nonce, which
// the server counts once.

import { closeRule, REJECTIONS } from "./codes.js";
import { encode } from "./msgpack.js";
import { decodeBinary, decodeText } from "./wire.js";

const WELCOME_MS = 10_000; // from opening the socket to WELCOME
const BACKOFF_MS = 500; // the first wait is below this, and the bound doubles
const BACKOFF_CAP_MS = 20_000;
const LATER_MS = 5_000; // the least wait after a close that says "later"
const STABLE_MS = 5_000; // live for this long: the back-off starts anew
const CONFIRM_MS = 30_000; // a comment not acknowledged by then is given back to its author
const MAX_PENDING = 20; // comments on their way; one message holds 100 commands, a second 50
const DEFAULT_PING_S = 30;

// Every change of state there is; anything else is a fault of this file.
const TRANSITIONS = {
  disconnected: ["connecting"],
  connecting: ["live", "waiting", "closed", "disconnected"],
  live: ["connecting", "waiting", "closed", "disconnected"],
  waiting: ["connecting", "disconnected"],
  closed: ["connecting", "disconnected"],
};

const REAL_CLOCK = {
  now: () => performance.now(),
  after: (ms, call) => setTimeout(call, ms),
  cancel: (timer) => clearTimeout(timer),
};

/** A comment that did not get through. `nonce` is for sending it again as the same comment. */
export class Rejected extends Error {
  name = "Rejected";

  constructor(code, { message, nonce, retryAfterMs = null }) {
    super(message || REJECTIONS[code] || "The comment was not accepted.");
    this.code = code;
    this.nonce = nonce;
    this.retryAfterMs = retryAfterMs;
  }
}

/**
 * Emits `state` with detail {state, code, text, retryMs, reason} (`reason`: the server's own
 * words for a close that ends everything) and `events` with detail [event, …], in the shapes of
 * docs/protocol.md: one server message, less what was already handed out.
 *
 * States: disconnected (connect() was not called, or disconnect() was), connecting (until WELCOME),
 * live, waiting (for the next try), closed (by a code after which trying again is of no use: 4001
 * wants setToken() and connect(); position and epoch are kept, so that resumes too).
 */
export class UproarClient extends EventTarget {
  constructor({
    url,
    token = null,
    codec = "msgpack",
    backlog = null,
    rate = null,
    WebSocket = globalThis.WebSocket,
    clock = REAL_CLOCK,
    random = Math.random,
  }) {
    super();
    this.url = url;
    this.state = "disconnected";
    this.user = null; // as WELCOME names it; null: read only
    this.epoch = null;
    this.position = null;
    this._token = checked(token);
    this._codec = codec;
    this._query = { backlog, rate };
    this._WebSocket = WebSocket;
    this._clock = clock;
    this._random = random;
    this._socket = null;
    this._timers = new Map(); // name → timer; a name has at most one
    this._attempt = 0;
    this._liveSince = null;
    this._heardAt = 0;
    this._reconnectAt = null; // set by RECONNECT
    this._newest = null; // the largest offset of a comment that was handed out
    this._pending = new Map(); // nonce → comment on its way, in the order of sending
  }

  /** Connect, or connect again after a terminal close. Does nothing while there is a connection. */
  connect() {
    if (this.state === "live" || this.state === "connecting") return;
    this._open();
  }

  /** Close for good; comments that were not acknowledged are rejected with `disconnected`. */
  disconnect() {
    this._dropSocket();
    this._cancelAll();
    this._setState("disconnected");
    this._rejectAll("disconnected");
  }

  /** Use another token (null: none), at once where there is a connection, resuming. */
  setToken(token) {
    this._token = checked(token);
    if (this.state === "live") this._open();
    else if (this.state === "connecting") this._openSocket();
  }

  /** Don't wait any longer: the network is said to be back. */
  retryNow() {
    if (this.state === "waiting") this._open();
  }

  /**
   * Send a comment; resolves to its ACK, rejects with `Rejected`.
   *
   * While there is no connection it waits for one, 30 s in all. To send a failed comment again,
   * pass the nonce of its `Rejected`: had it arrived after all, it still appears once.
   */
  sendComment(text, { replyTo = null, nonce = newNonce() } = {}) {
    if (this.state === "closed" || this.state === "disconnected") {
      return Promise.reject(new Rejected("disconnected", { nonce }));
    }
    if (this._pending.size >= MAX_PENDING) {
      return Promise.reject(new Rejected("too_many", { nonce }));
    }
    const command = { type: "COMMENT", text, nonce };
    if (replyTo !== null) command.reply_to = replyTo;
    return new Promise((resolve, reject) => {
      this._pending.set(nonce, { command, resolve, reject, until: this._clock.now() + CONFIRM_MS });
      this._after(`confirm ${nonce}`, CONFIRM_MS, () => this._reject(nonce, "unconfirmed"));
      if (this.state === "live") this._send(command);
    });
  }

  /** Count a reaction; it is not sent again, totals come as events. False: not connected. */
  react(kind, count = 1) {
    if (this.state !== "live") return false;
    this._send({ type: "REACT", kind, count });
    return true;
  }

  /** Don't resume with the next connection: begin with a backlog, as somebody else sees it. */
  forget() {
    this.epoch = null;
    this.position = null;
  }

  _setState(state, { code = null, text = null, retryMs = null, reason = "" } = {}) {
    if (state === this.state) return;
    if (!TRANSITIONS[this.state].includes(state)) {
      throw new Error(`no way from state ${this.state} to ${state}`);
    }
    if (state === "live") this._liveSince = this._clock.now();
    this.state = state;
    this._emit("state", { state, code, text, retryMs, reason });
  }

  _emit(name, detail) {
    this.dispatchEvent(new CustomEvent(name, { detail }));
  }

  // Connecting.

  _open() {
    this._cancel("retry");
    this._setState("connecting");
    this._openSocket();
  }

  _openSocket() {
    this._dropSocket();
    this._reconnectAt = null;
    const protocols = [`uproar.v1.${this._codec}`];
    if (this._token) protocols.push(`uproar.token.${this._token}`);
    const socket = new this._WebSocket(this._address(), protocols);
    socket.binaryType = "arraybuffer";
    this._socket = socket;
    // A socket that was dropped may still speak for a moment; nobody listens to it.
    const ours = (handle) => (event) => {
      if (socket === this._socket) handle(event);
    };
    socket.onmessage = ours((event) => this._onMessage(event.data));
    socket.onclose = ours((event) => this._onClose(event.code, event.reason));
    this._after("welcome", WELCOME_MS, () => this._lost("The server did not answer."));
  }

  _address() {
    const address = new URL(this.url);
    const resume = this.epoch === null ? {} : { epoch: this.epoch, offset: this.position };
    for (const [key, value] of Object.entries({ ...this._query, ...resume })) {
      if (value !== null) address.searchParams.set(key, value);
    }
    return address.href;
  }

  _dropSocket() {
    const socket = this._socket;
    this._socket = null;
    for (const name of ["welcome", "ping", "watch", "reconnect"]) this._cancel(name);
    socket?.close(1000);
  }

  _onClose(code, reason = "") {
    this._dropSocket();
    const rule = closeRule(code);
    if (rule.reconnect === "yes") this._wait(code, rule.text);
    else if (rule.reconnect === "later") this._wait(code, rule.text, LATER_MS);
    else {
      this._cancel("retry");
      this._setState("closed", { code, text: rule.text, reason });
      // With a new token they may still arrive; until then each keeps its own deadline.
      if (rule.reconnect === "no") this._rejectAll("disconnected");
    }
  }

  _lost(text) {
    this._dropSocket();
    this._wait(null, text);
  }

  _wait(code, text, leastMs = 0) {
    const wasLiveMs = this.state === "live" ? this._clock.now() - this._liveSince : 0;
    if (wasLiveMs >= STABLE_MS) this._attempt = 0;
    let retryMs;
    if (this._reconnectAt !== null) {
      // The server spread these out itself.
      retryMs = Math.max(0, this._reconnectAt - this._clock.now());
    } else {
      const bound = Math.min(BACKOFF_CAP_MS, BACKOFF_MS * 2 ** this._attempt);
      retryMs = leastMs + this._random() * bound;
      this._attempt += 1;
    }
    this._setState("waiting", { code, text, retryMs });
    this._after("retry", retryMs, () => this._open());
  }

  // Being connected.

  _onMessage(data) {
    this._heardAt = this._clock.now();
    let events;
    try {
      events = typeof data === "string" ? decodeText(data) : decodeBinary(data);
    } catch (error) {
      this._lost(`The server sent something unreadable: ${error.message}.`);
      return;
    }
    const fresh = events.filter((event) => this._take(event));
    if (fresh.length > 0) this._emit("events", fresh);
  }

  /** Follow one event; false for a comment that was handed out before. */
  _take(event) {
    switch (event.type) {
      case "WELCOME":
        this._welcome(event);
        break;
      case "COMMENT":
        if (event.historical) break; // the backlog: no part of the position
        if (event.offset <= this._newest) return false;
        this._newest = event.offset;
        this._advance(event.offset);
        break;
      case "GAP":
        this._advance(event.to);
        break;
      case "VIEWERS":
      case "PONG":
        this._advance(event.position);
        break;
      case "ACK":
        this._settle(event.nonce)?.resolve(event);
        break;
      case "REJECTED":
        this._refused(event);
        break;
      case "RECONNECT":
        this._reconnectAt = this._clock.now() + event.after_ms;
        this._after("reconnect", event.after_ms, () => this._open());
        break;
      default:
        // Deletions and the like are handed out even if repeated: folded into a GAP they may lie
        // below the position, and doing them twice changes nothing.
        if (Number.isSafeInteger(event.offset)) this._advance(event.offset);
    }
    return true;
  }

  _advance(offset) {
    if (offset > this.position) this.position = offset;
  }

  _welcome(event) {
    this._cancel("welcome");
    const resumed = event.recovered === true && event.epoch === this.epoch;
    this.position = resumed ? Math.max(this.position, event.offset) : event.offset;
    this._newest = this.position;
    this.epoch = event.epoch;
    this.user = event.user;
    this._keepAlive(1000 * (event.ping_s || DEFAULT_PING_S));
    this._setState("live");
    const waiting = [...this._pending.values()].map(({ command }) => command);
    if (waiting.length > 0) this._send(waiting);
  }

  /** Ping every `pingMs`; a connection that brings nothing for twice as long is dead. */
  _keepAlive(pingMs) {
    const ping = () => {
      this._send({ type: "PING" });
      this._after("ping", pingMs, ping);
    };
    const watch = () => {
      const left = this._heardAt + 2 * pingMs - this._clock.now();
      if (left > 0) this._after("watch", left, watch);
      else this._lost("The connection went silent.");
    };
    this._after("ping", pingMs, ping);
    this._after("watch", 2 * pingMs, watch);
  }

  _send(command) {
    const socket = this._socket;
    if (socket?.readyState !== 1) return; // closing: what matters is sent again after WELCOME
    socket.send(socket.protocol.endsWith("msgpack") ? encode(command) : JSON.stringify(command));
  }

  // Comments on their way.

  _refused({ nonce, code, message, retry_after_ms: retryAfterMs = null }) {
    const pending = this._pending.get(nonce);
    if (!pending) return;
    const retryAt = this._clock.now() + (retryAfterMs ?? Infinity);
    if (code === "unavailable" && retryAt < pending.until) {
      this._after(`again ${nonce}`, retryAfterMs, () => {
        if (this.state === "live") this._send(pending.command);
      });
    } else {
      this._reject(nonce, code, { message, retryAfterMs });
    }
  }

  /** Take a comment off the list; undefined when it is not there any more. */
  _settle(nonce) {
    const pending = this._pending.get(nonce);
    this._pending.delete(nonce);
    this._cancel(`confirm ${nonce}`);
    this._cancel(`again ${nonce}`);
    return pending;
  }

  _reject(nonce, code, more = {}) {
    this._settle(nonce)?.reject(new Rejected(code, { nonce, ...more }));
  }

  _rejectAll(code) {
    for (const nonce of [...this._pending.keys()]) this._reject(nonce, code);
  }

  // Timers, each with a name.

  _after(name, ms, call) {
    this._cancel(name);
    const fire = () => {
      this._timers.delete(name);
      call();
    };
    this._timers.set(name, this._clock.after(ms, fire));
  }

  _cancel(name) {
    if (!this._timers.has(name)) return;
    this._clock.cancel(this._timers.get(name));
    this._timers.delete(name);
  }

  _cancelAll() {
    for (const name of [...this._timers.keys()]) this._cancel(name);
  }
}

/** A token as it may stand in a subprotocol entry; throws TypeError, with words. */
function checked(token) {
  if (token !== null && !/^[\w.-]+$/.test(token)) {
    throw new TypeError("a token is a JWT: letters, digits, `-`, `_` and two dots");
  }
  return token;
}

/** 128 random bits in hex; `crypto.randomUUID` is not there on plain HTTP. */
function newNonce() {
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

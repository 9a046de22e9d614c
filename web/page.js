// The viewer page of one stream: puts the parts together.

import { Actions } from "./actions.js";
import { UproarClient } from "./client.js";
import { Composer } from "./composer.js";
import { Follow } from "./follow.js";
import { Pending } from "./pending.js";
import { Rows } from "./rows.js";
import { Session } from "./session.js";
import { Status } from "./status.js";

const MODERATING = ["moderator", "broadcaster", "service"];
const RENEW_MS = 60_000; // a token that is refused again within this is not renewed again

const part = (id) => document.getElementById(id);
const parts = (...ids) => Object.fromEntries(ids.map((id) => [id, part(id)]));

const stream = decodeURIComponent(location.pathname.split("/")[2] ?? "").toLowerCase();
const session = new Session();
const client = new UproarClient({
  url: Object.assign(new URL(`/stream/${encodeURIComponent(stream)}`, location), {
    protocol: location.protocol === "https:" ? "wss:" : "ws:",
  }).href,
  token: session.token,
  codec: new URLSearchParams(location.search).get("codec") === "json" ? "json" : "msgpack",
});

const status = new Status(
  parts("connection", "word", "viewers", "viewerCount", "notice", "noticeText", "noticeButton"),
);
const follow = new Follow({
  scroller: part("scroller"),
  content: part("content"),
  pill: part("pill"),
  onFollow: () => rows.flush(),
});
const pending = new Pending({
  list: part("pending"),
  send: (text, options) => client.sendComment(text, options),
  has: (id) => rows.has(id),
  onChange: () => follow.settle(),
  onRejected: (error) => {
    if (error.code === "rate_limited" && error.retryAfterMs) composer.block(error.retryAfterMs);
  },
});
const rows = new Rows({
  log: part("log"),
  isMoving: () => follow.moving,
  claim: (comment) => pending.claim(comment),
  onFlush: ({ fresh }) => {
    follow.count(fresh);
    follow.settle();
  },
});
const composer = new Composer(
  parts(
    ...["form", "text", "counter", "send", "identity", "leave"],
    ...["replying", "replyingTo", "replyCancel"],
    ...["nameForm", "nameField", "nameButton", "nameError"],
  ),
  { onName: becomeGuest, onSend: send, onLeave: leave },
);
const actions = new Actions({
  log: part("log"),
  rowOf: (node) => rows.rowOf(node),
  hold: (held) => follow.hold(held),
  onReply: (row) => composer.reply(row),
  onDelete: remove,
});

let user = null;
let renewedAt = -Infinity;

async function becomeGuest(name) {
  await session.become(name);
  composer.setIdentity(session.guestName);
  reconnect();
}

function send(text, replyTo) {
  follow.resume();
  pending.add(text, user ?? session.user, replyTo);
}

function leave() {
  session.leave();
  composer.setIdentity(null, session.guestName);
  reconnect();
}

async function remove(row) {
  try {
    await session.deleteComment(stream, row.id);
  } catch (error) {
    status.notify(error.message);
  }
}

function reconnect() {
  status.notify(null);
  client.setToken(session.token);
  client.connect();
}

function welcome(event) {
  user = event.user;
  const canWrite = user !== null && session.token !== null;
  composer.setIdentity(canWrite ? user.name : null, session.guestName);
  if (event.limits) composer.setLimits(event.limits);
  actions.allow({ reply: canWrite, delete: canWrite && MODERATING.includes(user.role) });
  status.setViewers(event.viewers);
}

/** The server refused the token: a guest gets another one, unless that was just tried. */
async function renew(text) {
  const name = session.guestName;
  const isFresh = performance.now() - renewedAt < RENEW_MS;
  const wasGiven = session.isGiven;
  session.leave();
  if (wasGiven || isFresh || name === "") {
    composer.setIdentity(null, name);
    reconnect(); // reading needs no token
    status.notify(wasGiven ? "Your token has expired or is not valid here." : text);
    return;
  }
  renewedAt = performance.now();
  try {
    await becomeGuest(name);
  } catch (error) {
    composer.setIdentity(null, name);
    reconnect();
    status.notify(error.message);
  }
}

client.addEventListener("state", ({ detail: { state, code, text } }) => {
  document.body.dataset.state = state;
  status.setState(state, text);
  if (state !== "closed") return;
  if (code === 4001 && session.token !== null) renew(text);
  else if (code === 4003) {
    const act = () => (session.leave(), reconnect());
    status.notify(text, { label: "Go on without it", act });
  } else status.notify(text, { label: "Connect again", act: reconnect });
});

client.addEventListener("events", ({ detail: events }) => {
  for (const event of events) {
    if (event.type === "WELCOME") {
      welcome(event);
      if (event.recovered === false) pending.dropAcknowledged();
    } else if (event.type === "VIEWERS") status.setViewers(event.count);
    else if (event.type === "GAP") pending.dropAcknowledged();
  }
  rows.push(events);
});

addEventListener("online", () => client.retryNow());
addEventListener("hashchange", () => {
  if (session.takeFragment()) reconnect();
});
part("scroller").addEventListener("keydown", (event) => actions.key(event));

part("streamName").textContent = stream;
document.title = `${stream} · uproar`;
composer.setIdentity(session.user?.name ?? null, session.guestName);
client.connect();

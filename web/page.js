// The viewer page of one stream: puts the parts together.

import { Actions } from "./actions.js";
import { Banner } from "./banner.js";
import { UproarClient } from "./client.js";
import { ServerClock } from "./clock.js";
import { sentence } from "./codes.js";
import { Composer } from "./composer.js";
import { Drawers } from "./drawers.js";
import { Floats } from "./floats.js";
import { Follow } from "./follow.js";
import { Menu } from "./menu.js";
import { ModeLine } from "./mode.js";
import { Moderation } from "./moderation.js";
import { Pace } from "./pace.js";
import { Pending, SHOWN } from "./pending.js";
import { PinnedComment } from "./pinned.js";
import { Queue } from "./queue.js";
import { Reactions } from "./reactions.js";
import { Rows } from "./rows.js";
import { Session } from "./session.js";
import { Settings } from "./settings.js";
import { Status } from "./status.js";
import { timeOf } from "./wire.js";

const MODERATING = ["moderator", "broadcaster", "service"];
const REFUSED = "refused by a moderator";
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
const clock = new ServerClock();
const pace = new Pace({ clock, onChange: (until) => composer.blockUntil(until) });
const modeLine = new ModeLine(parts("modeLine", "modeText"));
const pinned = new PinnedComment(parts("pinned", "pinnedBody", "pinnedToggle", "pinnedUnpin"), {
  clock,
  onUnpin: () => attempt(moderation.unpin()),
  onChange: () => follow.settle(),
});
const banner = new Banner({ banner: part("banner"), onChange: () => follow.settle() });
const reactions = new Reactions({
  reactions: part("reactions"),
  floats: new Floats({ layer: part("floats") }),
  send: (kind, count) => client.react(kind, count),
  onRefused: () => composer.focus(),
});
const moderation = new Moderation({ stream, token: () => session.token });
const pending = new Pending({
  list: part("pending"),
  send: (text, options) => client.sendComment(text, options),
  has: (id) => rows.has(id),
  onChange: () => follow.settle(),
  onAck: ({ id, shown }) => {
    pace.wrote(timeOf(id));
    if (shown !== "all") rows.note(id, SHOWN[shown], shown === "held" ? REFUSED : undefined);
  },
  onRejected: ({ code, retryAfterMs }) => pace.refused(code, retryAfterMs),
});
const rows = new Rows({
  log: part("log"),
  isMoving: () => follow.moving,
  claim: (comment) => pending.claim(comment),
  onFlush: ({ fresh }) => {
    follow.count(fresh);
    follow.settle();
    actions.refresh();
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
  onAct: (name, row, button) => ACTS[name](row, button),
});
const menu = new Menu(parts("menu", "menuTitle", "menuItems"), {
  hold: (held) => follow.hold(held),
  onSanction: ({ id }, action, seconds) => attempt(moderation.sanction(id, action, seconds)),
});
const queue = new Queue(parts("queueButton", "queueCount", "queueList", "queueEmpty"), {
  moderation,
  onError: (text) => status.notify(text),
});
const settings = new Settings(parts("settingsForm"), {
  change: (changes) => moderation.changeMode(changes),
  onError: (text) => status.notify(text),
});
const drawers = new Drawers(
  [
    [part("queueButton"), part("queue")],
    [part("settingsButton"), part("settings")],
  ],
  { onChange: () => follow.settle() },
);

// What the buttons of a row do.
const ACTS = {
  reply: (row) => composer.reply(row),
  pin: (row) => attempt(moderation.pin(row.id)),
  delete: (row) => attempt(moderation.delete(row.id)),
  restore: (row) => attempt(moderation.restore(row.id)),
  approve: (row) => queue.resolve(row.id, "approve"),
  deny: (row) => queue.resolve(row.id, "deny"),
  more: (row, button) => menu.open(row.user, button),
};

let user = null;
let isModerating = false;
let hasEnded = false;
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

/** Wait for a moderator's act; say why when it can't be done. */
async function attempt(act) {
  try {
    await act;
  } catch (error) {
    status.notify(error.message);
  }
}

function reconnect() {
  status.notify(null);
  // Moderators see other rows than viewers do: then the list begins anew.
  if (MODERATING.includes(session.user?.role) !== isModerating) client.forget();
  client.setToken(session.token);
  client.connect();
}

function welcome(event) {
  clock.hear(event.server_time);
  if (user?.id !== event.user?.id) pace.reset();
  user = event.user;
  hasEnded = false;
  const canWrite = user !== null && session.token !== null;
  isModerating = canWrite && MODERATING.includes(user.role);
  composer.setIdentity(canWrite ? user.name : null, session.guestName);
  if (event.limits) composer.setLimits(event.limits);
  modeLine.begin(event.mode ?? {});
  reactions.begin(event.reactions ?? {}, canWrite);
  pinned.show(event.pinned);
  pinned.allowUnpin(isModerating);
  banner.show(event.sampling);
  status.setViewers(event.viewers);
  rows.setModerating(isModerating);
  actions.allow({ reply: canWrite, moderate: isModerating });
  part("tools").hidden = !isModerating;
  if (isModerating) queue.load();
  else {
    queue.clear();
    drawers.close();
  }
  modeChanged();
}

/** What may be sent now, after the mode or the stream's state has changed. */
function modeChanged() {
  const { mode } = modeLine;
  settings.show(mode);
  pace.setMode(mode, isModerating);
  if (hasEnded) composer.close("The stream has ended");
  else composer.close(mode.frozen && !isModerating ? "Nobody may write now" : null);
  follow.settle();
}

/** Take what concerns more than the list. */
function take(event) {
  switch (event.type) {
    case "WELCOME":
      welcome(event);
      if (event.recovered === false) pending.dropAcknowledged();
      break;
    case "VIEWERS":
      status.setViewers(event.count);
      break;
    case "REACTIONS":
      reactions.change(event.totals);
      break;
    case "PONG":
      clock.hear(event.server_time);
      break;
    case "COMMENT":
      if (event.user.id === user?.id) pace.wrote(event.ts);
      break;
    case "COMMENT_DELETED":
      pending.remove(event.comment_id);
      break;
    case "COMMENT_PINNED":
      pinned.show(event);
      break;
    case "COMMENT_UNPINNED":
      pinned.unpin(event.comment_id);
      break;
    case "USER_REMOVED":
      if (event.user_id === user?.id && event.until) pace.timedOut(event.until);
      break;
    case "MODE":
      modeLine.change(event);
      modeChanged();
      break;
    case "BANNER":
      banner.show(event.sample_ratio, event.text ?? undefined);
      break;
    case "STREAM_STARTED":
    case "STREAM_ENDED":
      hasEnded = event.type === "STREAM_ENDED";
      modeChanged();
      break;
    case "GAP":
      pending.dropAcknowledged();
      break;
  }
  if (isModerating) queue.take(event);
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

client.addEventListener("state", ({ detail: { state, code, text, reason } }) => {
  const why = code === 4003 && reason ? sentence(reason) : text; // a ban is one of its reasons
  document.body.dataset.state = state;
  status.setState(state, why);
  if (state !== "closed") return;
  if (code === 4001 && session.token !== null) renew(text);
  else if (code === 4003) {
    const act = () => (session.leave(), reconnect());
    status.notify(why, { label: "Go on without it", act });
  } else status.notify(text, { label: "Connect again", act: reconnect });
});

client.addEventListener("events", ({ detail: events }) => {
  for (const event of events) take(event);
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

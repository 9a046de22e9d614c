// The list of comments: bounded, in the stream's order, painted once per animation frame.
//
// While the reader follows, the newest `limit` comments are in the page. While the reader is
// elsewhere nothing is taken away above: up to `limit` more are added below, and what comes beyond
// that is held back, again the newest `limit`, until the reader returns.

import { divider, Row } from "./row.js";

const MAX_NOTES = 100;
const MAX_QUEUED = 1000; // a hidden page gets no animation frames: from here on apply at once

const SANCTIONS = {
  timeout: "timed out",
  ban: "banned",
  unban: "unbanned",
  shadow_ban: "shadow banned",
  unshadow_ban: "no longer shadow banned,",
  strike: "given a strike",
  kick: "disconnected",
};
const timeOfDay = new Intl.DateTimeFormat(undefined, { timeStyle: "short" });

const startedText = (title) =>
  title ? `The stream has started: ${title}` : "The stream has started.";

export class Rows {
  /** `onFlush({rows, fresh})` is called after each change; `fresh` counts new live comments. */
  constructor({ log, limit = 500, isMoving, claim, onFlush }) {
    this._log = log;
    this._limit = limit;
    this._isMoving = isMoving;
    this._claim = claim; // takes a viewer's own comment out of those on their way
    this._onFlush = onFlush;
    this._rows = new Map(); // comment id → Row, oldest first
    this._held = new Map(); // comment id → COMMENT
    this._queue = [];
    this._frame = null;
    this._backlogOpen = false; // historical rows stand last: the live ones begin with a divider
    this._fragment = null;
    this._fresh = 0;
    this._isModerating = false;
    this._notes = new Map(); // comment id → {text, removed}: what its author is told about it
  }

  /** Whether what was removed stays readable, and sanctions are told. */
  setModerating(isModerating) {
    this._isModerating = isModerating;
  }

  /**
   * Tell the author something about an own comment, now or when it comes; `removed` is what its
   * tombstone is to say.
   */
  note(id, text, removed = undefined) {
    this._notes.set(id, { text, removed });
    if (this._notes.size > MAX_NOTES) this._notes.delete(this._notes.keys().next().value);
    const row = this._rows.get(id);
    if (row && !row.isRemoved) row.note(text);
  }

  has(id) {
    return this._rows.has(id) || this._held.has(id);
  }

  /** The row of an element inside it, undefined when there is none. */
  rowOf(node) {
    return this._rows.get(node?.closest?.(".row")?.dataset.id);
  }

  /** Take events; they show with the next frame. */
  push(events) {
    for (const event of events) this._queue.push(event);
    if (this._queue.length >= MAX_QUEUED) this.flush();
    else this._frame ??= requestAnimationFrame(() => this.flush());
  }

  /** Show what is queued, and what was held back if the reader is at the bottom again. */
  flush() {
    if (this._frame !== null) cancelAnimationFrame(this._frame);
    this._frame = null;
    const queue = this._queue;
    this._queue = [];
    this._fresh = 0;
    this._fragment = document.createDocumentFragment();
    if (this._isMoving()) this._release();
    for (const event of queue) this._apply(event);
    this._log.append(this._fragment);
    this._fragment = null;
    if (this._isMoving()) this._trim();
    this._onFlush({ fresh: this._fresh });
  }

  _apply(event) {
    switch (event.type) {
      case "WELCOME":
        if (event.recovered !== true) this._restart(event.recovered === false);
        break;
      case "COMMENT":
        this._comment(event);
        break;
      case "COMMENT_DELETED":
        this._removeWhere(({ id }) => id === event.comment_id);
        break;
      case "COMMENT_RESTORED":
        this._restore({ ...event.comment, offset: event.offset });
        break;
      case "COMMENT_APPROVED":
        this._approve({ ...event.comment, offset: event.offset });
        break;
      case "USER_REMOVED":
        this._removeWhere(
          ({ userId, offset }) => userId === event.user_id && offset < event.offset,
        );
        break;
      case "CLEARED":
        this._clear();
        this._append(divider("cleared", "The chat was cleared by a moderator."));
        break;
      case "GAP":
        this._append(divider("gap", "Some comments were not shown."));
        break;
      case "STREAM_STARTED":
        this._append(divider("started", startedText(event.title)));
        break;
      case "STREAM_ENDED":
        this._append(divider("ended", "The stream has ended."));
        break;
      case "SANCTION":
        if (this._isModerating) this._append(divider("sanction", this._sanctionText(event)));
        break;
    }
  }

  _comment(comment) {
    const isOwn = this._claim(comment);
    if (this.has(comment.id)) return;
    if (!comment.historical && !isOwn) this._fresh += 1;
    if (!this._isMoving() && this._rows.size >= 2 * this._limit) {
      this._held.set(comment.id, comment);
      if (this._held.size > this._limit) this._held.delete(this._held.keys().next().value);
    } else {
      this._show(comment);
    }
  }

  _show(comment) {
    if (comment.historical) this._backlogOpen = true;
    else if (this._backlogOpen) {
      this._backlogOpen = false;
      this._append(divider("live", "live from here"));
    }
    const row = new Row(comment, this._rows.get(comment.reply_to));
    this._rows.set(row.id, row);
    if (this._notes.has(row.id)) row.note(this._notes.get(row.id).text);
    this._append(row.element);
    // Before they reach the page: a burst costs no more than the list is long.
    if (this._isMoving() && this._rows.size >= 2 * this._limit) this._trim();
  }

  _append(node) {
    this._fragment.append(node);
  }

  _release() {
    for (const comment of this._held.values()) this._show(comment);
    this._held.clear();
  }

  _removeWhere(isGone) {
    for (const row of this._rows.values()) {
      const { id, offset, user } = row;
      if (isGone({ id, offset, userId: user.id })) {
        row.remove({ readable: this._isModerating, words: this._notes.get(id)?.removed });
        this._notes.delete(id);
      }
      if (row.quotes && !this._isModerating && isGone(row.quotes)) row.dropQuote();
    }
    for (const { id, offset, user } of this._held.values()) {
      if (isGone({ id, offset, userId: user.id })) this._held.delete(id);
    }
  }

  /** The comment comes back where its tombstone stands; without one its place is here. */
  _restore(comment) {
    const row = this._rows.get(comment.id);
    if (!row) this._comment(comment);
    else if (row.isRemoved) {
      const whole = new Row({ ...comment, offset: row.offset }, this._rows.get(comment.reply_to));
      const hadFocus = row.element.contains(document.activeElement);
      row.element.replaceWith(whole.element);
      if (hadFocus) whole.element.focus();
      this._rows.set(whole.id, whole); // a key that is there keeps its place
    }
  }

  /** A held comment's place is here; where it stood for moderators and its author it goes. */
  _approve(comment) {
    this._notes.delete(comment.id);
    this._held.delete(comment.id);
    const row = this._rows.get(comment.id);
    if (row) {
      if (row.offset >= comment.offset) return; // told twice
      this._rows.delete(comment.id);
      row.element.remove();
    }
    this._comment(comment);
  }

  _sanctionText({ user_id: userId, action, until, by }) {
    const name = (id) => {
      for (const { user } of this._rows.values()) if (user.id === id) return user.name;
      return id;
    };
    const what = SANCTIONS[action] ?? action;
    const end = until ? ` until ${timeOfDay.format(until)}` : "";
    return `${name(userId)} ${what}${end} by ${name(by)}`;
  }

  _clear() {
    this._rows.clear();
    this._held.clear();
    this._log.replaceChildren();
    this._fragment.replaceChildren();
    this._backlogOpen = false;
  }

  /** A backlog follows. What stood here may have been deleted meanwhile, so it goes. */
  _restart(isMissing) {
    this._clear();
    if (isMissing) this._append(divider("gap", "You were away: comments may be missing here."));
  }

  _trim() {
    for (const row of this._rows.values()) {
      if (this._rows.size <= this._limit) break;
      this._rows.delete(row.id);
      const parent = row.element.parentNode;
      while (parent.firstChild !== row.element) parent.firstChild.remove(); // dividers above it
      row.element.remove();
    }
  }
}

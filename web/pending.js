// A viewer's own comments between Enter and their place in the list.
//
// A row appears at once, dimmed. ACK tells the id; the COMMENT of that id takes the row's place,
// whichever of the two comes first. COMMENT carries no nonce, so one that comes before its ACK is
// known by its author and text: shown twice, even for a frame, would be worse than a wrong guess.

import { refusalText } from "./codes.js";
import { element, nameElement } from "./row.js";

const MAX_FAILED = 5; // older ones are given up

/** What an author is told of a comment that not everybody is shown, by ACK.shown. */
export const SHOWN = {
  sampled: "the chat moves too fast to show this to everybody",
  held: "waits for a moderator",
};

export class Pending {
  /** `send(text, options)` returns the promise of an ACK; `has(id)` asks the list. */
  constructor({ list, send, has, onChange, onAck, onRejected }) {
    this._list = list;
    this._send = send;
    this._has = has;
    this._onChange = onChange;
    this._onAck = onAck;
    this._onRejected = onRejected;
    this._entries = new Set();
  }

  /** Show a comment as on its way, and send it. */
  add(text, user, replyTo) {
    const entry = { text, replyTo, nonce: undefined, id: null, user, element: null };
    entry.element = this._build(entry);
    this._try(entry);
  }

  /** Take the comment out of those on their way; true when it was one of them. */
  claim(comment) {
    const entries = [...this._entries];
    const entry =
      entries.find(({ id }) => id === comment.id) ??
      entries.find(
        ({ id, nonce, text, user: { id: author } }) =>
          id === null && nonce === undefined && author === comment.user.id && text === comment.text,
      );
    if (!entry || comment.historical) return false;
    this._drop(entry);
    return true;
  }

  /** A comment was refused or removed after all. */
  remove(id) {
    for (const entry of this._entries) if (entry.id === id) this._drop(entry);
  }

  /** After a gap an acknowledged comment may never come: history has it, here it goes. */
  dropAcknowledged() {
    for (const entry of this._entries) if (entry.id !== null) this._drop(entry);
  }

  _try(entry) {
    entry.element.classList.remove("failed");
    entry.status.textContent = "";
    this._entries.add(entry);
    this._list.append(entry.element);
    this._onChange();
    const { text, replyTo, nonce } = entry;
    entry.nonce = undefined; // back with the next failure
    this._send(text, { replyTo, nonce }).then(
      (ack) => {
        entry.id = ack.id;
        if (this._has(ack.id)) this._drop(entry);
        else if (ack.shown !== "all") entry.status.textContent = SHOWN[ack.shown];
        this._onAck(ack);
      },
      (error) => this._fail(entry, error),
    );
  }

  _fail(entry, error) {
    entry.nonce = error.nonce; // the same comment when sent again
    entry.element.classList.add("failed");
    const again = element("button", "again", "not sent – try again");
    again.type = "button";
    again.addEventListener("click", () => this._try(entry));
    const away = element("button", "away", "×");
    away.type = "button";
    away.setAttribute("aria-label", "Give this comment up");
    away.addEventListener("click", () => this._drop(entry));
    const reason = element("span", "reason", refusalText(error.code, error.message));
    entry.status.replaceChildren(again, away, reason);
    this._entries.add(entry);
    this._list.append(entry.element);
    const failed = [...this._entries].filter(({ nonce }) => nonce !== undefined);
    for (const old of failed.slice(0, -MAX_FAILED)) this._drop(old);
    this._onChange();
    this._onRejected(error);
  }

  _drop(entry) {
    this._entries.delete(entry);
    entry.element.remove();
    this._onChange();
  }

  _build(entry) {
    const row = element("div", "row pending");
    const line = element("div", "line");
    const words = element("span", "words", entry.text);
    words.dir = "auto";
    line.append(nameElement(entry.user), element("span", "colon", ": "), words);
    entry.status = element("div", "status");
    entry.status.setAttribute("role", "alert");
    row.append(line, entry.status);
    return row;
  }
}

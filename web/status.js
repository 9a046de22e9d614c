// The header's right side: how the connection is, and how many watch.

import { compact } from "./numbers.js";

const WORDS = {
  disconnected: "not connected",
  connecting: "connecting",
  live: "live",
  waiting: "reconnecting",
  closed: "closed",
};

export class Status {
  constructor({ connection, word, viewers, viewerCount, notice, noticeText, noticeButton }) {
    this._parts = { connection, word, viewers, viewerCount, notice, noticeText, noticeButton };
    this._act = null;
    noticeButton.addEventListener("click", () => {
      const act = this._act;
      this.notify(null);
      act?.();
    });
  }

  /** Show a client's state; `text` says why it is so. */
  setState(state, text) {
    const { connection, word } = this._parts;
    connection.dataset.state = state;
    connection.title = text ?? "";
    word.textContent = WORDS[state];
    if (state !== "live") this.setViewers(null); // nobody knows
  }

  /** Show how many watch; null: unknown. */
  setViewers(count) {
    const { viewers, viewerCount } = this._parts;
    viewers.hidden = count === null || count === undefined;
    if (viewers.hidden) return;
    viewerCount.textContent = compact(count);
    viewers.title = `${count.toLocaleString("en")} watching`;
  }

  /** Say something above the composer, with a button for what to do about it; null: nothing. */
  notify(text, { label = "Dismiss", act = null } = {}) {
    const { notice, noticeText, noticeButton } = this._parts;
    notice.hidden = text === null;
    noticeText.textContent = text ?? "";
    noticeButton.textContent = label;
    this._act = act;
  }
}

// The pinned comment, above the list. It goes by itself when its time is over.

import { nameElement } from "./row.js";

const LONGEST_MS = 2 ** 31 - 1; // that a timer can wait; a pin may stand longer

export class PinnedComment {
  /** `clock` is a ServerClock; `onUnpin()` is what moderators may do; `onChange()` after each. */
  constructor({ pinned, pinnedBody, pinnedToggle, pinnedUnpin }, { clock, onUnpin, onChange }) {
    this._parts = { pinned, pinnedBody, pinnedToggle, pinnedUnpin };
    this._clock = clock;
    this._onChange = onChange;
    this._id = null;
    this._timer = null;
    pinnedToggle.addEventListener("click", () => {
      this._fold(pinnedToggle.getAttribute("aria-expanded") === "true");
    });
    pinnedUnpin.addEventListener("click", onUnpin);
  }

  /** Show {comment_id, comment, until?}, or with null nothing. */
  show(pin) {
    clearTimeout(this._timer);
    const { pinned, pinnedBody } = this._parts;
    const isNew = pin !== null && pin.comment_id !== this._id;
    this._id = pin?.comment_id ?? null;
    pinned.hidden = pin === null;
    pinnedBody.replaceChildren();
    if (pin !== null) {
      const { user, text } = pin.comment;
      const words = document.createElement("span");
      words.className = "words";
      words.dir = "auto";
      words.textContent = text;
      pinnedBody.append(nameElement(user), ": ", words);
      if (isNew) this._fold(false);
      if (pin.until) this._wait(pin.until);
    }
    this._onChange();
  }

  /** A comment is pinned no longer. */
  unpin(commentId) {
    if (commentId === this._id) this.show(null);
  }

  allowUnpin(isAllowed) {
    this._parts.pinnedUnpin.hidden = !isAllowed;
  }

  _wait(until) {
    const left = this._clock.local(until) - this._clock.now();
    if (left <= 0) this.show(null);
    else this._timer = setTimeout(() => this._wait(until), Math.min(left, LONGEST_MS));
  }

  _fold(isFolded) {
    const { pinned, pinnedToggle } = this._parts;
    pinned.classList.toggle("folded", isFolded);
    pinnedToggle.setAttribute("aria-expanded", String(!isFolded));
    pinnedToggle.setAttribute("aria-label", isFolded ? "Show it all" : "Fold it up");
    this._onChange();
  }
}

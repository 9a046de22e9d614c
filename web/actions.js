// What one may do to a comment: the buttons that come to the row under the pointer or the focus.
//
// There is one set of them, moved from row to row: 500 rows don't need 1,000 buttons. While the
// pointer is on it the list stands still, so that a click removes the comment one sees.

import { element } from "./row.js";

export class Actions {
  /** `rowOf(node)` finds a row; `hold(held)` stops the list. */
  constructor({ log, rowOf, hold, onReply, onDelete }) {
    this._log = log;
    this._rowOf = rowOf;
    this._onDelete = onDelete;
    this._row = null;
    this._box = element("span", "actions");
    this._box.setAttribute("aria-live", "off"); // or the log would read it out at every row
    this._reply = this._button("reply", "Reply", () => onReply(this._row));
    this._delete = this._button("delete", "Delete", () => onDelete(this._row));
    this._box.addEventListener("pointerenter", () => hold(true));
    this._box.addEventListener("pointerleave", () => hold(false));
    this._release = () => hold(false);
    this.allow({ reply: false, delete: false });
    log.addEventListener("pointerover", (event) => this._moveTo(rowOf(event.target)));
    log.addEventListener("pointerleave", () => this._away());
    log.addEventListener("focusin", (event) => this._moveTo(rowOf(event.target)));
  }

  allow({ reply, delete: remove }) {
    this._reply.hidden = !reply;
    this._delete.hidden = !remove;
    if (!reply && !remove) this._away();
  }

  /** Up and Down go from row to row, Delete removes: `key(event)` is for the list's scroller. */
  key(event) {
    const row = this._rowOf(document.activeElement);
    const step = { ArrowUp: "previousElementSibling", ArrowDown: "nextElementSibling" }[event.key];
    if (step) {
      let next = row ? row.element[step] : this._log.lastElementChild;
      while (next && !next.matches(".row")) next = next[step];
      if (!next) return;
      event.preventDefault();
      next.focus();
    } else if (event.key === "Delete" && row && !row.isRemoved && !this._delete.hidden) {
      this._onDelete(row);
    }
  }

  _moveTo(row) {
    const isOffered = !this._reply.hidden || !this._delete.hidden;
    if (!row || row.isRemoved || !isOffered) this._away();
    else if (row !== this._row || !this._box.isConnected) {
      this._row = row;
      row.side.prepend(this._box);
    }
  }

  _away() {
    if (this._box.contains(document.activeElement)) return;
    this._box.remove();
    this._row = null;
    this._release();
  }

  _button(name, label, act) {
    const button = element("button", `action ${name}`, label);
    button.type = "button";
    button.addEventListener("click", () => {
      this._release(); // what was aimed at is hit: the list may move again
      if (this._row && !this._row.isRemoved) act();
    });
    this._box.append(button);
    return button;
  }
}

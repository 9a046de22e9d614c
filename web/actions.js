// What one may do to a comment: the buttons that come to the row under the pointer or the focus.
//
// There is one set of them, moved from row to row: 500 rows don't need 3,000 buttons. While the
// pointer is on it the list stands still, so that a click removes the comment one sees.

import { element } from "./row.js";

// In the order in which they stand; `reply` is anybody's who writes, the rest moderators'.
const BUTTONS = [
  ["approve", "Approve"],
  ["deny", "Deny"],
  ["restore", "Restore"],
  ["reply", "Reply"],
  ["pin", "Pin"],
  ["delete", "Delete"],
  ["more", "⋯"],
];

const LONG_MS = 500; // a press is long from here on
const SLOP_PX = 12; // a finger is never quite still

/** The buttons that make sense for a row. */
function offered(row) {
  if (row.isRemoved) return ["restore", "more"];
  if (row.visibility === "held") return ["approve", "deny", "more"];
  if (row.visibility === "shadow") return ["delete", "more"];
  return ["reply", "pin", "delete", "more"];
}

export class Actions {
  /**
   * `rowOf(node)` finds a row; `hold(held)` stops the list; `onAct(name, row, button)` is called
   * with one of the names above. `more` is for what concerns the author.
   */
  constructor({ log, rowOf, hold, onAct }) {
    this._log = log;
    this._rowOf = rowOf;
    this._onAct = onAct;
    this._row = null;
    this._allowed = [];
    this._box = element("span", "actions");
    this._box.setAttribute("aria-live", "off"); // or the log would read it out at every row
    this._buttons = new Map(BUTTONS.map(([name, label]) => [name, this._button(name, label)]));
    this._buttons.get("more").setAttribute("aria-haspopup", "menu");
    this._box.addEventListener("pointerenter", () => hold(true));
    this._box.addEventListener("pointerleave", () => hold(false));
    this._release = () => hold(false);
    log.addEventListener("pointerover", (event) => this._moveTo(rowOf(event.target)));
    log.addEventListener("pointerleave", () => this._away());
    log.addEventListener("focusin", (event) => this._moveTo(rowOf(event.target)));
    log.addEventListener("pointerdown", (event) => this._press(event));
    log.addEventListener("pointermove", (event) => this._moved(event));
    log.addEventListener("pointerup", (event) => this._lifted(event));
    log.addEventListener("pointercancel", () => this._cancelled());
    log.addEventListener("contextmenu", (event) => this._contextMenu(event));
    this._pressed = null; // a finger on a row: {row, at, x, y, isMenu}
  }

  allow({ reply, moderate }) {
    this._allowed = BUTTONS.map(([name]) => name).filter((name) =>
      name === "reply" ? reply : moderate,
    );
    this.refresh();
  }

  /** Rows changed: offer what is right for the row that has the buttons. */
  refresh() {
    const row = this._row && this._rowOf(this._row.element);
    if (row !== this._row) this._away();
    this._offer(row ?? null);
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
    } else if (event.key === "Delete" && row) {
      if (this._names(row).includes("delete")) this._onAct("delete", row);
    }
  }

  // A long press opens what the last button opens. It opens when the finger is lifted: a menu that
  // stood there before would be dismissed by that.

  _press({ pointerType, target, timeStamp, clientX, clientY }) {
    const row = this._rowOf(target);
    const isMeant = pointerType !== "mouse" && row && !this._box.contains(target);
    const press = { row, at: timeStamp, x: clientX, y: clientY, isMenu: false };
    this._pressed = isMeant && this._names(row).includes("more") ? press : null;
  }

  _moved({ clientX, clientY }) {
    const press = this._pressed;
    if (press && Math.hypot(clientX - press.x, clientY - press.y) > SLOP_PX) this._pressed = null;
  }

  _lifted({ timeStamp }) {
    const press = this._pressed;
    this._pressed = null;
    if (!press || timeStamp - press.at < LONG_MS) return;
    setTimeout(() => {
      this._moveTo(press.row);
      this._onAct("more", press.row, this._buttons.get("more"));
    });
  }

  _cancelled() {
    if (this._pressed?.isMenu) this._lifted({ timeStamp: Infinity }); // the browser's long press
    this._pressed = null;
  }

  _contextMenu(event) {
    if (!this._pressed) return;
    event.preventDefault();
    this._pressed.isMenu = true;
  }

  _names(row) {
    return offered(row).filter((name) => this._allowed.includes(name));
  }

  _moveTo(row) {
    if (!row || this._names(row).length === 0) this._away();
    else if (row !== this._row || !this._box.isConnected) {
      this._row = row;
      this._offer(row);
      row.side.prepend(this._box);
    }
  }

  _offer(row) {
    const names = row ? this._names(row) : [];
    for (const [name, button] of this._buttons) button.hidden = !names.includes(name);
    if (row) this._buttons.get("more").setAttribute("aria-label", `More about ${row.user.name}`);
  }

  _away() {
    if (this._box.contains(document.activeElement)) return;
    this._box.remove();
    this._row = null;
    this._release();
  }

  _button(name, label) {
    const button = element("button", `action ${name}`, label);
    button.type = "button";
    button.addEventListener("click", (event) => {
      if (event.detail > 1) return; // a double click is meant for what stood here before
      this._release(); // what was aimed at is hit: the list may move again
      if (this._row && this._names(this._row).includes(name)) this._onAct(name, this._row, button);
    });
    this._box.append(button);
    return button;
  }
}

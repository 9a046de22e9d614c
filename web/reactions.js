// The row of reactions: what this viewer taps is added up and sent twice a second, what all tapped
// comes as totals.

import { compact } from "./numbers.js";
import { element } from "./row.js";

const KINDS = {
  fire: ["🔥", "Fire"],
  heart: ["❤️", "Heart"],
  clap: ["👏", "Clap"],
  laugh: ["😂", "Laugh"],
  wow: ["😮", "Wow"],
  sad: ["😢", "Sad"],
};
const SEND_MS = 500;
const MOST = 100; // that one command may count; nobody taps faster

export class Reactions {
  /**
   * `send(kind, count)` is called at most once a kind and 500 ms; `onRefused()` when somebody who
   * may only read taps.
   */
  constructor({ reactions, floats, send, onRefused }) {
    this._box = reactions;
    this._floats = floats;
    this._send = send;
    this._onRefused = onRefused;
    this._buttons = new Map(); // kind → {button, total, count, emoji}
    this._tapped = new Map(); // kind → taps to be sent
    this._echo = new Map(); // kind → own taps that will come back in a total
    this._timer = null;
    this._mayReact = false;
    for (const kind of Object.keys(KINDS)) this._add(kind);
  }

  /** Start from WELCOME.reactions; kinds that the page does not know get their name. */
  begin(totals, mayReact) {
    this._mayReact = mayReact;
    this._echo.clear();
    for (const kind of this._buttons.keys()) this._show(kind, totals[kind] ?? 0);
    for (const [kind, total] of Object.entries(totals)) this._show(kind, total);
    for (const { button, name } of this._buttons.values()) {
      button.title = mayReact ? name : `${name}: choose a name first`;
    }
  }

  /** Totals changed: show them, and let rise what others tapped. */
  change(totals) {
    for (const [kind, total] of Object.entries(totals)) {
      const before = this._buttons.get(kind)?.total ?? 0;
      const own = Math.min(this._echo.get(kind) ?? 0, Math.max(0, total - before));
      this._echo.set(kind, (this._echo.get(kind) ?? 0) - own);
      this._show(kind, total);
      const others = total - before - own;
      if (others > 0) this._floats.rise(this._buttons.get(kind).emoji, others);
    }
  }

  _tap(kind) {
    if (!this._mayReact) {
      this._onRefused();
      return;
    }
    const taps = this._tapped.get(kind) ?? 0;
    if (taps >= MOST) return;
    this._tapped.set(kind, taps + 1);
    this._floats.rise(this._buttons.get(kind).emoji);
    this._timer ??= setTimeout(() => this._flush(), SEND_MS);
  }

  _flush() {
    this._timer = null;
    for (const [kind, count] of this._tapped) {
      this._echo.set(kind, (this._echo.get(kind) ?? 0) + count);
      this._send(kind, count);
    }
    this._tapped.clear();
  }

  _show(kind, total) {
    const shown = this._buttons.get(kind) ?? this._add(kind);
    shown.total = total;
    shown.count.textContent = total > 0 ? compact(total) : "";
    shown.button.setAttribute("aria-label", `${shown.name}, ${total.toLocaleString("en")}`);
  }

  _add(kind) {
    const [emoji, name] = KINDS[kind] ?? [kind, kind];
    const button = element("button", "reaction");
    button.type = "button";
    button.dataset.kind = kind;
    button.title = name;
    button.setAttribute("aria-label", name);
    const sign = element("span", "reaction-sign", emoji);
    sign.setAttribute("aria-hidden", "true");
    const count = element("span", "reaction-count");
    button.append(sign, count);
    button.addEventListener("click", () => this._tap(kind));
    this._box.append(button);
    const shown = { button, count, emoji, name, total: 0 };
    this._buttons.set(kind, shown);
    return shown;
  }
}

// What waits for a moderator: held comments to decide on, flagged ones to look at.
//
// The first decision wins: HELD_RESOLVED takes an item away for everybody, and who comes second is
// told that it was decided already.

import { element, nameElement } from "./row.js";

const MAX_ITEMS = 200; // in the page; held ones beyond that come when there is room
const ALREADY = "This was already decided.";

export class Queue {
  /**
   * `moderation` does what is decided; `onError(text)` tells why not. `onDelete(id)` removes a
   * flagged comment.
   */
  constructor({ queueButton, queueCount, queueList, queueEmpty }, { moderation, onError }) {
    this._parts = { queueButton, queueCount, queueList, queueEmpty };
    this._moderation = moderation;
    this._onError = onError;
    this._items = new Map(); // comment id → {element, kind}
    this._beyond = 0; // held ones that the page does not have
  }

  /** Start anew with what is held now. */
  async load() {
    let found;
    try {
      found = await this._moderation.held();
    } catch (error) {
      this._onError(error.message);
      return;
    }
    for (const [id, { kind }] of [...this._items]) if (kind === "held") this._drop(id);
    this._beyond = Math.max(0, found.waiting - found.held.length);
    for (const held of found.held) this._add("held", held);
    this._changed();
  }

  /** Forget everything: one moderates no longer. */
  clear() {
    this._items.clear();
    this._beyond = 0;
    this._parts.queueList.replaceChildren();
    this._changed();
  }

  /** Follow HELD, FLAGGED and what settles them. */
  take(event) {
    switch (event.type) {
      case "HELD":
        this._add("held", event);
        break;
      case "FLAGGED":
        this._add("flagged", event);
        break;
      case "HELD_RESOLVED":
      case "COMMENT_DELETED":
      case "COMMENT_APPROVED":
        this._drop(event.comment_id);
        break;
      default:
        return;
    }
    this._changed();
    const isRoom = this._items.size < MAX_ITEMS / 2;
    if (this._beyond > 0 && isRoom) {
      this._beyond = 0; // asked once; load() says how many are left
      this.load();
    }
  }

  /** Decide on a held comment, from here or from its row. */
  async resolve(id, action) {
    const item = this._items.get(id);
    item?.lock(true);
    try {
      await this._moderation.resolve(id, action);
    } catch (error) {
      item?.lock(false);
      this._onError(error.status === 409 ? ALREADY : error.message);
      if (error.status !== 409) return;
    }
    this._drop(id);
    this._changed();
  }

  async _delete(id) {
    try {
      await this._moderation.delete(id);
    } catch (error) {
      this._onError(error.message);
    }
  }

  _add(kind, found) {
    const { comment, comment_id: id } = found;
    if (this._items.get(id)?.kind === "held") return; // asking for a decision comes first
    this._drop(id);
    if (this._items.size >= MAX_ITEMS) {
      if (kind === "held") this._beyond += 1;
      return;
    }
    const item = element("li", `item ${kind}`);
    item.dataset.id = id;
    const line = element("div", "item-line");
    line.append(nameElement(comment.user), ": ", marked(comment.text, found.spans ?? []));
    const below = element("div", "item-below");
    below.append(element("span", "item-why", reason(kind, found)));
    const buttons =
      kind === "held"
        ? [
            ["approve", "Approve", () => this.resolve(id, "approve")],
            ["deny", "Deny", () => this.resolve(id, "deny")],
          ]
        : [
            ["delete", "Delete", () => this._delete(id)],
            ["dismiss", "Dismiss", () => (this._drop(id), this._changed())],
          ];
    const made = buttons.map(([name, label, act]) => {
      const button = element("button", `action ${name}`, label);
      button.type = "button";
      button.setAttribute("aria-label", `${label}: ${comment.user.name}, ${comment.text}`);
      button.addEventListener("click", act);
      return button;
    });
    below.append(...made);
    item.append(line, below);
    const lock = (isLocked) => made.forEach((button) => (button.disabled = isLocked));
    this._items.set(id, { kind, element: item, lock });
    this._parts.queueList.append(item);
  }

  _drop(id) {
    const item = this._items.get(id);
    if (!item) return;
    this._items.delete(id);
    // Whoever works through the queue by keyboard stays in it.
    const hadFocus = item.element.contains(document.activeElement);
    const next = item.element.nextElementSibling ?? item.element.previousElementSibling;
    item.element.remove();
    if (hadFocus) (next?.querySelector("button") ?? this._parts.queueButton).focus();
  }

  _changed() {
    const { queueButton, queueCount, queueEmpty } = this._parts;
    const count = this._items.size + this._beyond;
    queueCount.textContent = count > 0 ? String(count) : "";
    queueButton.classList.toggle("waiting", count > 0);
    queueEmpty.hidden = this._items.size > 0;
  }
}

/** The text with its spans [first, end) of code points marked. */
function marked(text, spans) {
  const words = element("span", "words");
  words.dir = "auto";
  const chars = [...text];
  let at = 0;
  for (const [first, end] of [...spans].sort(([a], [b]) => a - b)) {
    if (first < at || end <= first) continue; // overlaps what is marked
    words.append(chars.slice(at, first).join(""));
    words.append(element("mark", "mark", chars.slice(first, end).join("")));
    at = end;
  }
  words.append(chars.slice(at).join(""));
  return words;
}

function reason(kind, { rule, category, score }) {
  const parts = [kind === "held" ? "waits" : "flagged"];
  if (rule && !(kind === "held" && rule === "hold")) parts.push(rule);
  if (category && !rule?.startsWith(category)) parts.push(category);
  if (score > 0 && score < 1) parts.push(score.toLocaleString("en", { maximumFractionDigits: 2 }));
  return parts.join(" · ");
}

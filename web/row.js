// One comment as the page shows it. What people wrote becomes text nodes, never markup.

import { authorColors } from "./colors.js";

const BADGES = {
  broadcaster: ["host", "Broadcaster"],
  moderator: ["mod", "Moderator"],
  vip: ["vip", "VIP"],
  service: ["bot", "Service"],
};
const HIDDEN = {
  held: "Only moderators and its author see this: it waits for a decision",
  shadow: "Only moderators and its author see this: the author is shadow banned",
};
const REMOVED = "removed by a moderator";
const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
const calendar = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

/** Return an element with a class and, if given, text. */
export function element(tag, className, text = null) {
  const made = document.createElement(tag);
  made.className = className;
  if (text !== null) made.textContent = text;
  return made;
}

/** The author's name in a readable colour. `bdi` keeps bidirectional tricks inside. */
export function nameElement(user) {
  const name = element("bdi", "author", user.name);
  const colors = authorColors(user);
  name.style.setProperty("--on-light", colors.light);
  name.style.setProperty("--on-dark", colors.dark);
  return name;
}

/** A divider across the list. */
export function divider(kind, text) {
  const line = element("div", `divider ${kind}`);
  line.append(element("span", "divider-text", text));
  return line;
}

export class Row {
  /** `quoted` is the row that the comment answers, where the list has it. */
  constructor(comment, quoted = null) {
    this.id = comment.id;
    // The backlog lies before everything live, whatever its offsets count from.
    this.offset = comment.historical ? -1 : comment.offset;
    this.user = comment.user;
    this.text = comment.text;
    this.visibility = comment.visibility ?? "all"; // or held, or shadow: for moderators' eyes
    this.isRemoved = false;
    this.quotes = null; // the comment quoted above, as {id, userId, offset}
    this._words = element("span", "words", comment.text);
    this._words.dir = "auto";
    this._quote = null;
    this._note = null;
    this.side = null; // where time and buttons show
    this.element = this._build(comment, quoted);
  }

  _build(comment, quoted) {
    const row = element("div", "row");
    row.tabIndex = -1;
    row.dataset.id = comment.id;
    if (quoted && !quoted.isRemoved) {
      this.quotes = { id: quoted.id, userId: quoted.user.id, offset: quoted.offset };
      this._quote = element("div", "quote");
      this._quote.append(element("bdi", "quote-author", quoted.user.name), " ");
      const words = element("bdi", "quote-words", quoted.text);
      this._quote.append(words);
      row.append(this._quote);
    }
    const line = element("div", "line");
    if (this.visibility !== "all") {
      row.classList.add(this.visibility);
      const mark = element("span", "badge unseen-by-others", this.visibility);
      mark.title = HIDDEN[this.visibility] ?? "";
      line.append(mark, " ");
    }
    const badge = BADGES[comment.user.role];
    if (badge) {
      const [short, long] = badge;
      const mark = element("span", `badge ${comment.user.role}`, short);
      mark.title = long;
      line.append(mark, " ");
    }
    line.append(nameElement(comment.user), element("span", "colon", ": "), this._words);
    const time = element("time", "time", clock.format(comment.ts));
    time.dateTime = new Date(comment.ts).toISOString();
    time.title = calendar.format(comment.ts);
    this.side = element("span", "side");
    this.side.append(time);
    row.append(line, this.side);
    return row;
  }

  /**
   * Put a tombstone in the comment's place, as high as the comment was: nothing below moves.
   * `readable` leaves the words, dimmed: moderators may want to take it back.
   */
  remove({ readable = false, words = REMOVED } = {}) {
    if (this.isRemoved) return;
    this.isRemoved = true;
    this.note(null);
    if (readable) {
      this.element.classList.add("removed", "readable");
      this._words.after(" ", element("span", "removed-mark", words));
      return;
    }
    this.text = "";
    const { height } = this.element.getBoundingClientRect(); // 0 while not in the page yet
    this._words.textContent = words;
    this.dropQuote();
    this.element.classList.add("removed");
    if (height > 0) this.element.style.minHeight = `${height}px`;
  }

  /** Say something about the comment below it, to its author; null: nothing. */
  note(text) {
    if (text === null) {
      this._note?.remove();
      this._note = null;
      return;
    }
    if (!this._note) {
      this._note = element("div", "note");
      this.element.append(this._note);
    }
    this._note.textContent = text;
  }

  /** Take back what the row quotes: the quoted comment is gone. */
  dropQuote() {
    this.quotes = null;
    this._quote?.replaceChildren(REMOVED);
  }
}

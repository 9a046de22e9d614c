// The mode of a stream in words: what holds for those who write.

const MINUTE = 60;
const HOUR = 60 * MINUTE;
const DAY = 24 * HOUR;

/** "5 s", "10 min", "2 h", "3 days": the largest unit that divides. */
export function duration(seconds) {
  const units = [[DAY, "day"], [HOUR, "h"], [MINUTE, "min"]];
  const [size, unit] = units.find(([each]) => seconds >= each && seconds % each === 0) ?? [1, "s"];
  const count = seconds / size;
  return `${count} ${unit}${unit === "day" && count > 1 ? "s" : ""}`;
}

/** What holds, most important first; nothing for a stream in which everything is allowed. */
export function modeWords(mode) {
  if (mode.frozen) return ["Nobody may write now"];
  const words = [];
  if (mode.slow_s) words.push(`Slow mode: ${duration(mode.slow_s)}`);
  if (mode.followers_only === true) words.push("Followers only");
  else if (mode.followers_only) {
    words.push(`Followers of ${duration(60 * mode.followers_only)} and longer only`);
  }
  if (mode.subscribers_only) words.push("Subscribers only");
  if (mode.emote_only) words.push("Emotes only");
  if (mode.unique) words.push("No repeated comments");
  if (mode.min_chars) words.push(`At least ${mode.min_chars} characters`);
  if (mode.min_account_age_s) {
    words.push(`Accounts older than ${duration(mode.min_account_age_s)}`);
  }
  if (mode.hold === true) words.push("Comments are checked before they are shown");
  else if (mode.hold) words.push("Some comments are checked before they are shown");
  return words;
}

/** The line above the composer. */
export class ModeLine {
  constructor({ modeLine, modeText }) {
    this._line = modeLine;
    this._text = modeText;
    this.mode = {}; // what WELCOME said, and every MODE since
  }

  /** Start from WELCOME.mode. */
  begin(mode) {
    this.mode = { ...mode };
    this._show();
  }

  /** Follow a MODE event. */
  change({ type, offset, ...changes }) {
    Object.assign(this.mode, changes);
    this._show();
  }

  _show() {
    const text = modeWords(this.mode).join(" · ");
    this._line.hidden = text === "";
    if (this._text.textContent !== text) this._text.textContent = text;
  }
}

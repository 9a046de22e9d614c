// The line that says so when a room is too fast to show everything.

const TEXT = "Chat moving fast! Showing sampled comments";

export class Banner {
  constructor({ banner, onChange }) {
    this._banner = banner;
    this._onChange = onChange;
  }

  /** Say which share of the comments is shown; null for all of them. */
  show(ratio, text = TEXT) {
    const isSampled = ratio !== null && ratio !== undefined && ratio < 1;
    const percent = (100 * ratio).toLocaleString("en", { maximumFractionDigits: 1 });
    this._banner.hidden = !isSampled;
    this._banner.textContent = isSampled ? `${text} (${percent} %)` : "";
    this._onChange();
  }
}

// Emoji that rise from the reactions: never more than a few, and none for who wants no motion.

import { element } from "./row.js";

const MOST = 30; // at once
const MOST_PER_CHANGE = 8;
const stillness = matchMedia("(prefers-reduced-motion: reduce)");

export class Floats {
  constructor({ layer }) {
    this._layer = layer;
  }

  /** Let some emoji rise from where `button` stands: more for a larger count, within bounds. */
  rise(emoji, button, count = 1) {
    if (stillness.matches || document.hidden) return;
    const wanted = Math.min(Math.ceil(Math.log2(count + 1)), MOST_PER_CHANGE);
    const from = button.getBoundingClientRect();
    const frame = this._layer.getBoundingClientRect();
    for (let index = 0; index < wanted && this._layer.childElementCount < MOST; index++) {
      const one = element("span", "float", emoji);
      const jitter = (Math.random() - 0.5) * from.width;
      one.style.setProperty("--x", `${from.left - frame.left + from.width / 2 + jitter}px`);
      one.style.setProperty("--drift", `${Math.round((Math.random() - 0.5) * 60)}px`);
      one.style.setProperty("--delay", `${Math.round(Math.random() * 450)}ms`);
      one.addEventListener("animationend", () => one.remove());
      this._layer.append(one);
    }
  }
}

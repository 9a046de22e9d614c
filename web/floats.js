// Emoji that rise from the reactions: never more than a few, and none for who wants no motion.

import { element } from "./row.js";

const MOST = 30; // at once
const MOST_PER_CHANGE = 8;
const EDGE_PX = 28;
const LANE_PX = 72;
const stillness = matchMedia("(prefers-reduced-motion: reduce)");

export class Floats {
  constructor({ layer }) {
    this._layer = layer;
  }

  /** Let some emoji rise at the list's end side, where few words are: more for a larger count. */
  rise(emoji, count = 1) {
    if (stillness.matches || document.hidden) return;
    const wanted = Math.min(Math.ceil(Math.log2(count + 1)), MOST_PER_CHANGE);
    for (let index = 0; index < wanted && this._layer.childElementCount < MOST; index++) {
      const one = element("span", "float", emoji);
      one.style.setProperty("--from-end", `${Math.round(EDGE_PX + Math.random() * LANE_PX)}px`);
      one.style.setProperty("--drift", `${Math.round((Math.random() - 0.5) * 50)}px`);
      one.style.setProperty("--delay", `${Math.round(Math.random() * 450)}ms`);
      one.addEventListener("animationend", () => one.remove());
      this._layer.append(one);
    }
  }
}

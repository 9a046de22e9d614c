// The mode as moderators set it: one control a setting, each change sent at once.

import { duration } from "./mode.js";
import { element } from "./row.js";

const CHOICES = [
  [
    "slow_s", "Slow mode", [0, 3, 5, 10, 30, 60, 120],
    (seconds) => seconds ? duration(seconds) : "off",
  ],
  [
    "followers_only", "Followers only", [false, true, 10, 60, 1440, 10_080],
    (minutes) => minutes === true ? "on" : minutes ? `${duration(60 * minutes)} and longer` : "off",
  ],
  [
    "hold", "Check comments first", [false, "flagged", true],
    (hold) => ({ false: "off", flagged: "flagged ones", true: "all" })[hold],
  ],
];
const SWITCHES = [
  ["subscribers_only", "Subscribers only"],
  ["emote_only", "Emotes only"],
  ["unique", "No repeated comments"],
  ["frozen", "Freeze: nobody may write"],
];

export class Settings {
  /** `change(changes)` sends a change and may throw with words; `onError(text)` shows them. */
  constructor({ settingsForm }, { change, onError }) {
    this._change = change;
    this._onError = onError;
    this._mode = {};
    this._controls = new Map(); // setting → show(value)
    this._sending = new Map(); // setting → changes on their way: what was chosen stays shown
    for (const [name, label, values, text] of CHOICES) {
      settingsForm.append(this._choice(name, label, values, text));
    }
    for (const [name, label] of SWITCHES) settingsForm.append(this._switch(name, label));
    settingsForm.addEventListener("submit", (event) => event.preventDefault());
  }

  /** Show what holds. */
  show(mode) {
    this._mode = mode;
    for (const [name, show] of this._controls) {
      if (!this._sending.get(name)) show(mode[name] ?? false);
    }
  }

  async _set(name, value) {
    this._sending.set(name, (this._sending.get(name) ?? 0) + 1);
    try {
      await this._change({ [name]: value });
    } catch (error) {
      this._onError(error.message);
    } finally {
      this._sending.set(name, this._sending.get(name) - 1);
      this.show(this._mode); // what holds now, or still
    }
  }

  _choice(name, label, values, text) {
    const select = element("select", "choice");
    const option = (value) => {
      const made = element("option", "", text(value));
      made.value = JSON.stringify(value);
      return made;
    };
    select.append(...values.map(option));
    select.name = name;
    select.addEventListener("change", () => this._set(name, JSON.parse(select.value)));
    this._controls.set(name, (value) => {
      const wanted = JSON.stringify(value === false ? values[0] : value);
      if (![...select.options].some((one) => one.value === wanted)) select.append(option(value));
      select.value = wanted;
    });
    return labelled(label, select);
  }

  _switch(name, label) {
    const box = element("input", "switch");
    box.type = "checkbox";
    box.name = name;
    box.addEventListener("change", () => this._set(name, box.checked));
    this._controls.set(name, (value) => (box.checked = Boolean(value)));
    return labelled(label, box);
  }
}

function labelled(text, control) {
  const label = element("label", "setting");
  label.append(element("span", "setting-name", text), control);
  return label;
}

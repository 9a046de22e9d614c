// The moderators' drawers: panels above the list, one open at a time, each with its button.

export class Drawers {
  /** `pairs` are [button, panel]; `onChange()` is called when the list's height changes. */
  constructor(pairs, { onChange }) {
    this._pairs = pairs;
    this._onChange = onChange;
    for (const [button, panel] of pairs) {
      button.addEventListener("click", () => this._show(panel.hidden ? panel : null));
      panel.addEventListener("keydown", (event) => {
        if (event.key !== "Escape") return;
        this.close();
        button.focus();
      });
    }
  }

  close() {
    this._show(null);
  }

  _show(open) {
    for (const [button, panel] of this._pairs) {
      panel.hidden = panel !== open;
      button.setAttribute("aria-expanded", String(panel === open));
    }
    this._onChange();
  }
}

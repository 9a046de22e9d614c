// What a moderator may do about an author: a menu that opens at a row's last button.

const ACTS = [
  ["timeout", 60, "Time out for 1 min"],
  ["timeout", 600, "Time out for 10 min"],
  ["timeout", 3600, "Time out for 1 h"],
  ["ban", null, "Ban"],
  ["shadow_ban", null, "Shadow ban"],
  ["unban", null, "End ban or timeout"],
  ["unshadow_ban", null, "End shadow ban"],
];
const GAP_PX = 4;

export class Menu {
  /** `hold(held)` stops the list; `onSanction(user, action, seconds)` does what was chosen. */
  constructor({ menu, menuTitle, menuItems }, { hold, onSanction }) {
    this._menu = menu;
    this._title = menuTitle;
    this._items = menuItems;
    this._user = null;
    for (const [action, seconds, label] of ACTS) {
      const item = document.createElement("button");
      item.type = "button";
      item.setAttribute("role", "menuitem");
      item.className = `menu-item ${action}`;
      item.textContent = label;
      item.addEventListener("click", () => {
        menu.hidePopover();
        onSanction(this._user, action, seconds);
      });
      menuItems.append(item);
    }
    menu.addEventListener("toggle", ({ newState }) => hold(newState === "open"));
    menu.addEventListener("keydown", (event) => this._key(event));
  }

  /** Open for an author, near an element. */
  open(user, near) {
    this._user = user;
    this._title.textContent = user.name;
    this._items.setAttribute("aria-label", `About ${user.name}`);
    this._menu.showPopover();
    const { width, height } = this._menu.getBoundingClientRect();
    const { top, bottom, right } = near.getBoundingClientRect();
    const above = bottom + GAP_PX + height > innerHeight;
    const left = Math.max(GAP_PX, Math.min(right, innerWidth - GAP_PX) - width);
    this._menu.style.setProperty("--left", `${left}px`);
    const y = above ? Math.max(GAP_PX, top - GAP_PX - height) : bottom + GAP_PX;
    this._menu.style.setProperty("--top", `${y}px`);
    this._items.firstElementChild.focus();
  }

  _key(event) {
    const items = [...this._items.children];
    const at = items.indexOf(document.activeElement);
    const to = {
      ArrowDown: (at + 1) % items.length,
      ArrowUp: (at - 1 + items.length) % items.length,
      Home: 0,
      End: items.length - 1,
    }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    items[to].focus();
  }
}

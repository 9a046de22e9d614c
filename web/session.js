// Who one is in this browser: a guest with a name, or the bearer of a token given in the address.
//
// A guest's name and token lie in localStorage, so that they outlive the tab. A token from the
// fragment (`/stream/demo#token=…`) is good for this tab alone and is taken out of the address,
// where it would be copied and shown.

import { request } from "./rest.js";

const GUEST_KEY = "uproar.guest"; // {name, token}
const GIVEN_KEY = "uproar.token";
const JWT = /^[\w-]+\.[\w-]+\.[\w-]+$/;
const EXPIRY_MARGIN_S = 30; // a token about to expire is not worth a connection

export class Session {
  constructor() {
    this._guestStore = new Shelf(() => localStorage, GUEST_KEY);
    this._givenStore = new Shelf(() => sessionStorage, GIVEN_KEY);
    this._guest = this._guestStore.read() ?? { name: "", token: null };
    this._given = this._givenStore.read();
    this.takeFragment();
  }

  /** Take a token up from the address; true when there was one. */
  takeFragment() {
    const token = new URLSearchParams(location.hash.slice(1)).get("token");
    if (token === null) return false;
    history.replaceState(history.state, "", location.pathname + location.search);
    if (!JWT.test(token)) return false;
    this._given = token;
    this._givenStore.write(token);
    return true;
  }

  /** The token to connect with, null for none: then one can only read. */
  get token() {
    if (this._given !== null) return this._given;
    return isCurrent(this._guest.token) ? this._guest.token : null;
  }

  /** {id, name, role} as the token says, null without one; WELCOME has the last word. */
  get user() {
    const claims = claimsOf(this.token);
    return claims && { id: claims.sub, name: claims.name ?? claims.sub, role: claims.role };
  }

  /** The name that a guest chose here, also when the token is gone. */
  get guestName() {
    return this._guest.name;
  }

  /** Whether the token was given in the address, and so can't be replaced by asking for another. */
  get isGiven() {
    return this._given !== null;
  }

  /** Become a guest of this name; throws RestError. */
  async become(name) {
    const answer = await request("POST", "/session", { body: { name } });
    this._guest = { name: answer.user?.name ?? name, token: answer.token };
    this._guestStore.write(this._guest);
  }

  /** Forget the token in use; a guest's name stays as a proposal. */
  leave() {
    if (this._given !== null) {
      this._given = null;
      this._givenStore.clear();
    } else {
      this._guest = { ...this._guest, token: null };
      this._guestStore.write(this._guest);
    }
  }
}

function isCurrent(token) {
  const claims = claimsOf(token);
  if (claims === null) return false;
  return claims.exp === undefined || claims.exp - EXPIRY_MARGIN_S > Date.now() / 1000;
}

/** What a JWT says, unverified: that is the server's to do. Null when it says nothing readable. */
function claimsOf(token) {
  try {
    const payload = token.split(".")[1].replace(/-/g, "+").replace(/_/g, "/");
    const bytes = Uint8Array.from(atob(payload), (char) => char.charCodeAt(0));
    return JSON.parse(new TextDecoder().decode(bytes));
  } catch {
    return null;
  }
}

/** One value in a browser's storage; where that is switched off it lasts as long as the page. */
class Shelf {
  constructor(open, key) {
    this._open = open;
    this._key = key;
  }

  read() {
    try {
      return JSON.parse(this._open().getItem(this._key));
    } catch {
      return null;
    }
  }

  write(value) {
    try {
      this._open().setItem(this._key, JSON.stringify(value));
    } catch {
      // Nothing to do: the page works without.
    }
  }

  clear() {
    try {
      this._open().removeItem(this._key);
    } catch {
      // As above.
    }
  }
}

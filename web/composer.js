// Where one writes: first a name, then comments.

import { countdown } from "./numbers.js";

const PLACEHOLDER = "Say something";
const CLOSE_TO_LIMIT = 20; // from here on the counter draws attention
const CONTROLS = /[\u0000-\u001f\u007f-\u009f]+/g; // refused by the server; pasted line ends too
const LONE_SURROGATES = /\p{Surrogate}/gu;

/** A text as it is sent: one line, without what the server refuses. */
export function cleaned(text) {
  return text.replace(CONTROLS, " ").replace(LONE_SURROGATES, "").trim();
}

/** Length as the server counts it. */
export function codePoints(text) {
  let count = 0;
  for (const _ of text) count += 1;
  return count;
}

export class Composer {
  /**
   * `parts` are the elements of stream.html; `onName(name)` may throw with a message for people,
   * `onSend(text, replyTo)` takes a comment, `onLeave()` gives the identity up.
   */
  constructor(parts, { onName, onSend, onLeave }) {
    this._parts = parts;
    this._onName = onName;
    this._onSend = onSend;
    this._maxChars = 500;
    this._blockedUntil = 0;
    this._blockTimer = null;
    this._closed = null; // why nobody may write
    this._replyTo = null;
    parts.nameForm.addEventListener("submit", (event) => this._submitName(event));
    parts.form.addEventListener("submit", (event) => this._submit(event));
    parts.text.addEventListener("keydown", (event) => this._key(event));
    parts.text.addEventListener("input", () => this._changed());
    parts.leave.addEventListener("click", onLeave);
    parts.replyCancel.addEventListener("click", () => this.reply(null));
  }

  /** Show the form for writing as `name`, or with null the one that asks for a name. */
  setIdentity(name, proposal = "") {
    const { form, nameForm, nameField, identity } = this._parts;
    const hadFocus = nameForm.contains(document.activeElement);
    form.hidden = name === null;
    nameForm.hidden = name !== null;
    if (name === null) nameField.value ||= proposal;
    else identity.textContent = name;
    if (name !== null && hadFocus) this._parts.text.focus();
    this._changed();
  }

  setLimits({ max_chars: maxChars }) {
    this._maxChars = maxChars;
    this._changed();
  }

  /** Answer a row's comment with the next one; null: none. */
  reply(row) {
    const { replying, replyingTo, text } = this._parts;
    this._replyTo = row?.id ?? null;
    replying.hidden = row === null;
    replyingTo.textContent = row?.user.name ?? "";
    text.focus();
  }

  /** Don't send before `until` (performance.now()): the button counts down, writing goes on. */
  blockUntil(until) {
    this._blockedUntil = until;
    this._countDown();
  }

  /** Don't send at all, for a reason; null: do. */
  close(reason) {
    this._closed = reason;
    const { text, send } = this._parts;
    text.placeholder = reason ?? PLACEHOLDER;
    send.title = reason ?? "";
    this._countDown();
  }

  /** Put the cursor where one says who one is, or writes. */
  focus() {
    const { nameForm, nameField, text } = this._parts;
    (nameForm.hidden ? text : nameField).focus();
  }

  _countDown() {
    clearTimeout(this._blockTimer);
    const left = this._blockedUntil - performance.now();
    const { send } = this._parts;
    if (left > 0 && this._closed === null) {
      const seconds = Math.ceil(left / 1000);
      send.textContent = countdown(seconds);
      send.setAttribute("aria-label", `Send again in ${seconds} seconds`);
      this._blockTimer = setTimeout(() => this._countDown(), left % 1000 || 1000);
    } else {
      send.textContent = "Send";
      send.removeAttribute("aria-label");
    }
    this._changed();
  }

  _changed() {
    const { text, counter, send } = this._parts;
    const left = this._maxChars - codePoints(cleaned(text.value));
    counter.textContent = text.value === "" ? "" : String(left);
    counter.classList.toggle("close", left <= CLOSE_TO_LIMIT);
    counter.classList.toggle("over", left < 0);
    text.setAttribute("aria-invalid", String(left < 0));
    send.setAttribute("aria-disabled", String(!this._canSend()));
    text.style.height = "auto"; // the field grows with what is in it; style.css bounds it
    if (text.scrollHeight > 0) text.style.height = `${text.scrollHeight}px`;
  }

  _canSend() {
    const length = codePoints(cleaned(this._parts.text.value));
    if (this._closed !== null) return false;
    return length > 0 && length <= this._maxChars && performance.now() >= this._blockedUntil;
  }

  _key(event) {
    if (event.key === "Escape" && this._replyTo !== null) this.reply(null);
    // Enter that ends an input method's composition is not meant for us.
    if (event.key !== "Enter" || event.isComposing) return;
    event.preventDefault();
    this._parts.form.requestSubmit();
  }

  _submit(event) {
    event.preventDefault();
    if (!this._canSend()) return;
    const { text } = this._parts;
    const comment = cleaned(text.value);
    const replyTo = this._replyTo;
    text.value = "";
    this.reply(null);
    this._changed();
    this._onSend(comment, replyTo);
  }

  async _submitName(event) {
    event.preventDefault();
    const { nameField, nameButton, nameError } = this._parts;
    const name = cleaned(nameField.value);
    if (nameButton.disabled) return;
    nameError.textContent = name === "" ? "A name has at least one character." : "";
    if (name === "") return;
    nameButton.disabled = true;
    try {
      await this._onName(name);
    } catch (error) {
      nameError.textContent = error.message;
    } finally {
      nameButton.disabled = false;
    }
  }
}

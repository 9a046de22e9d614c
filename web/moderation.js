// What moderators do, as REST calls: each returns when the log has it and throws RestError.

import { request } from "./rest.js";

export class Moderation {
  /** `token()` gives the token in use. */
  constructor({ stream, token }) {
    this._base = `/stream/${encodeURIComponent(stream)}`;
    this._token = token;
  }

  delete(commentId) {
    return this._call("DELETE", `/comments/${commentId}`);
  }

  restore(commentId) {
    return this._call("POST", `/comments/${commentId}/restore`);
  }

  pin(commentId) {
    return this._call("POST", "/pin", { comment_id: commentId });
  }

  unpin() {
    return this._call("DELETE", "/pin");
  }

  /** `action` is timeout (with seconds), ban, unban, shadow_ban or unshadow_ban. */
  sanction(userId, action, seconds = null) {
    const body = seconds === null ? {} : { seconds };
    return this._call("POST", `/users/${encodeURIComponent(userId)}/${action}`, body);
  }

  /** The comments that wait for a decision, as HELD events show them, and how many there are. */
  async held() {
    const { held, waiting } = await this._call("GET", "/held");
    return { held, waiting: waiting ?? held.length };
  }

  /** `action` is approve or deny; one decided before is refused with status 409. */
  resolve(commentId, action) {
    return this._call("POST", `/held/${commentId}`, { action });
  }

  changeMode(changes) {
    return this._call("PATCH", "/mode", changes);
  }

  _call(method, path, body = null) {
    return request(method, this._base + path, { body, token: this._token() });
  }
}

// The close codes and rejections of docs/protocol.md, with words for people. A test compares them.

/**
 * What to do after a close: `reconnect` is "yes", "later" (not at once), "token" (with a new token)
 * or "no".
 */
export const CLOSE_CODES = {
  1000: { name: "normal", reconnect: "no", text: "The connection was closed." },
  1001: { name: "going_away", reconnect: "yes", text: "The server is restarting." },
  1002: { name: "protocol_error", reconnect: "no", text: "The server can't read this page." },
  1003: { name: "unsupported_data", reconnect: "no", text: "The server can't read this page." },
  1007: { name: "invalid_payload", reconnect: "no", text: "The server can't read this page." },
  1009: { name: "too_big", reconnect: "no", text: "That was too long for the server." },
  1011: { name: "internal_error", reconnect: "yes", text: "Something went wrong on the server." },
  1013: { name: "try_again_later", reconnect: "yes", text: "The chat is busy." },
  4000: { name: "bad_request", reconnect: "no", text: "The address of this chat is malformed." },
  4001: { name: "unauthorized", reconnect: "token", text: "Your session has expired." },
  4003: { name: "forbidden", reconnect: "no", text: "Your token is for another stream." },
  4004: { name: "unknown_stream", reconnect: "no", text: "There is no stream of this name." },
  4005: { name: "kicked", reconnect: "no", text: "A moderator has closed your connection." },
  4008: { name: "too_slow", reconnect: "yes", text: "The connection could not keep up." },
  4029: { name: "too_many_commands", reconnect: "later", text: "That was too fast." },
};

/** A close that the table does not know, 1005 and 1006 among them: the network's doing. */
const LOST = { name: "lost", reconnect: "yes", text: "The connection was lost." };

/** The entry for a close code. */
export function closeRule(code) {
  return CLOSE_CODES[code] ?? LOST;
}

/** Why a comment was refused, for its author. The last three are made by the client itself. */
export const REJECTIONS = {
  rate_limited: "You are writing too fast.",
  too_long: "The comment is too long.",
  empty: "There is nothing to read in it.",
  read_only: "You can only read here: choose a name first.",
  not_allowed: "You are not allowed to do this.",
  unavailable: "The chat can't take comments right now.",
  bad_request: "The comment has characters that can't be sent.",
  slow_mode: "Slow mode is on.",
  banned: "You can't write in this chat.",
  timed_out: "You can't write for a while.",
  frozen: "The chat is frozen.",
  duplicate: "This was just said.",
  denied: "A moderator refused the comment.",
  conflict: "This was decided already.",
  unconfirmed: "The server did not confirm it in time.",
  disconnected: "You are not connected.",
  too_many: "Too many comments are waiting to be sent.",
};

// Here the server's own sentence says more than the code does: which length, which mode.
const EXPLAINED = ["too_long", "not_allowed", "bad_request", "frozen"];

/** Why something was refused, as a sentence for people; `message` is the server's. */
export function refusalText(code, message) {
  const ours = REJECTIONS[code];
  return ours && (!message || !EXPLAINED.includes(code)) ? ours : sentence(message || "Refused.");
}

/** A server's message as a sentence of the page. */
export function sentence(message) {
  const text = message.charAt(0).toUpperCase() + message.slice(1);
  return /[.!?…]$/.test(text) ? text : `${text}.`;
}

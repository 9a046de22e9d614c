// Calls of the REST API. A refusal is a problem object (RFC 9457) with a sentence for people.

import { sentence } from "./codes.js";

const REQUEST_MS = 10_000;

/** A request that was refused, or did not arrive (`status` 0); the message is for people. */
export class RestError extends Error {
  name = "RestError";

  constructor(message, { status = 0, code = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

/** Return the decoded answer; throws RestError. */
export async function request(method, path, { body = null, token = null } = {}) {
  const headers = {};
  if (body !== null) headers["Content-Type"] = "application/json";
  if (token !== null) headers.Authorization = `Bearer ${token}`;
  let response;
  try {
    response = await fetch(path, {
      method,
      headers,
      body: body === null ? null : JSON.stringify(body),
      signal: AbortSignal.timeout(REQUEST_MS),
    });
  } catch {
    throw new RestError("The server can't be reached. Try again in a moment.");
  }
  const answer = await response.json().catch(() => null);
  if (!response.ok) {
    const { status } = response;
    const { code = null, detail = null } = answer ?? {};
    const message = detail ?? `The server refused this (${status}).`;
    throw new RestError(sentence(message), { status, code });
  }
  return answer ?? {};
}

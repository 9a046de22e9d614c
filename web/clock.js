// The server's time on this page: times on the wire are the server's, a viewer's clock may be off.

const MONOTONIC = () => performance.now();

export class ServerClock {
  /** `now()` is a monotonic clock in ms. */
  constructor(now = MONOTONIC) {
    this.now = now;
    this._ahead = Date.now() - now(); // until the server was heard
  }

  /** The server said what time it is (unix ms), a moment ago. */
  hear(serverTime) {
    this._ahead = serverTime - this.now();
  }

  /** The server's time now, unix ms. */
  get server() {
    return this.now() + this._ahead;
  }

  /** Where a time of the server's lies on the monotonic clock. */
  local(serverTime) {
    return serverTime - this._ahead;
  }
}

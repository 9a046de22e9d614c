// When a viewer may write again: slow mode, the rate limit and timeouts, as ends in time.
//
// Slow mode counts from the time of one's own newest comment, so it holds after a reload and for a
// comment written in another tab, and a changed mode changes the wait. The other waits are what the
// server said.

export class Pace {
  /** `clock` is a ServerClock; `onChange(until)` gets the end of the wait on its `now()`. */
  constructor({ clock, onChange }) {
    this._clock = clock;
    this._onChange = onChange;
    this._isExempt = false;
    this.reset();
  }

  /** Another author, who has written nothing yet. */
  reset() {
    this._slowMs = 0;
    this._wrote = null; // server ms
    this._refused = 0; // on the monotonic clock, as all below
    this._slowed = 0;
    this._timedOut = 0;
  }

  /** Follow the mode; moderators pass slow mode. */
  setMode({ slow_s: slowS = 0 }, isExempt) {
    const slowMs = slowS * 1000;
    if (slowMs !== this._slowMs) this._slowed = 0; // said of another mode
    this._slowMs = slowMs;
    this._isExempt = isExempt;
    this._changed();
  }

  /** An own comment of this time stands. */
  wrote(ts) {
    if (ts <= this._wrote) return;
    this._wrote = ts;
    this._changed();
  }

  /** A comment was refused; only some codes mean a wait. */
  refused(code, retryAfterMs) {
    const end = this._clock.now() + (retryAfterMs ?? 0);
    if (code === "slow_mode") this._slowed = end;
    else if (code === "rate_limited") this._refused = end;
    else if (code === "timed_out") this._timedOut = end;
    else return;
    this._changed();
  }

  /** A moderator said: not before this time of the server's. */
  timedOut(until) {
    this._timedOut = this._clock.local(until);
    this._changed();
  }

  /** The end of the wait on the monotonic clock; it may lie in the past. */
  get until() {
    const slow = this._slowMs > 0 && this._wrote !== null && !this._isExempt;
    return Math.max(
      slow ? this._clock.local(this._wrote + this._slowMs) : 0,
      this._isExempt ? 0 : this._slowed,
      this._refused,
      this._timedOut,
    );
  }

  _changed() {
    this._onChange(this.until);
  }
}

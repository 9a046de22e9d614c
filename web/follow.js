// Whether the reader is at the newest comment, and the pill that leads back there.
//
// Following ends when the reader scrolls up, however little, and begins again within a line of the
// bottom on the way down. Only the reader's own scrolling counts: content that grows, a keyboard
// that opens or a window that shrinks leave it as it was.

const LINE_PX = 24;
const SLACK_PX = 2; // fractions of a pixel on zoomed pages

export class Follow {
  /** `onFollow` is called when following begins again. */
  constructor({ scroller, content, pill, onFollow }) {
    this.following = true;
    this._scroller = scroller;
    this._pill = pill;
    this._onFollow = onFollow;
    this._lastTop = 0;
    this._fresh = 0;
    this._held = false;
    scroller.addEventListener("scroll", () => this._scrolled(), { passive: true });
    pill.addEventListener("click", () => this.resume());
    const sizes = new ResizeObserver(() => this.settle());
    sizes.observe(scroller);
    sizes.observe(content);
  }

  /** Whether rows may be moved under the reader's eyes. */
  get moving() {
    return this.following && !this._held;
  }

  /** Keep everything in place while a control in a row is about to be used. */
  hold(held) {
    if (held === this._held) return;
    this._held = held;
    if (!held && this.following) this.resume();
    else this._show();
  }

  /** Go to the newest comment and follow again. */
  resume() {
    this.following = true;
    this._held = false;
    this._fresh = 0;
    this._onFollow();
    this.settle();
    this._show();
  }

  /** Content or sizes changed: stay at the bottom if that is where the reader is. */
  settle() {
    if (!this.moving) return;
    this._scroller.scrollTop = this._scroller.scrollHeight;
    this._lastTop = this._scroller.scrollTop;
  }

  /** Count comments that came while the reader was elsewhere. */
  count(comments) {
    if (this.moving || comments === 0) return;
    this._fresh += comments;
    this._show();
  }

  _scrolled() {
    const { scrollTop, scrollHeight, clientHeight } = this._scroller;
    const below = scrollHeight - clientHeight - scrollTop;
    const up = scrollTop < this._lastTop;
    this._lastTop = scrollTop;
    if (up && below > SLACK_PX && this.following) {
      this.following = false;
      this._show();
    } else if (!up && below <= LINE_PX && !this.following) {
      this.resume();
    }
  }

  _show() {
    this._pill.hidden = this.moving || (this.following && this._fresh === 0);
    if (this._fresh === 0) this._pill.textContent = "Back to the newest";
    else if (this._fresh === 1) this._pill.textContent = "1 new comment";
    else this._pill.textContent = `${this._fresh.toLocaleString("en")} new comments`;
  }
}

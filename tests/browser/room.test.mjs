// What holds in a room: web/pace.js, mode.js, numbers.js, clock.js and the texts of codes.js.

import assert from "node:assert/strict";
import test from "node:test";

import { ServerClock } from "../../web/clock.js";
import { refusalText, REJECTIONS, sentence } from "../../web/codes.js";
import { duration, modeWords } from "../../web/mode.js";
import { compact, countdown } from "../../web/numbers.js";
import { Pace } from "../../web/pace.js";
import { timeOf, timeUuid } from "../../web/wire.js";

/** A pace on a page that is at 1,000 ms while the server is at 50,000. */
function setUp() {
  const time = { now: 1000 };
  const clock = new ServerClock(() => time.now);
  clock.hear(50_000);
  const said = [];
  return { time, clock, said, pace: new Pace({ clock, onChange: (until) => said.push(until) }) };
}

test("slow mode counts from one's own newest comment, on the server's clock", () => {
  const { pace, said } = setUp();
  pace.setMode({ slow_s: 5 }, false);
  assert.equal(pace.until, 0);
  pace.wrote(50_000);
  assert.equal(pace.until, 6000);
  pace.wrote(48_000); // from the backlog
  assert.equal(pace.until, 6000);
  pace.setMode({ slow_s: 30 }, false);
  assert.equal(pace.until, 31_000);
  pace.setMode({}, false);
  assert.equal(pace.until, 0);
  assert.equal(said.at(-1), 0);
});

test("a clock that was wrong is set right by what the server says later", () => {
  const { pace, clock, time } = setUp();
  pace.setMode({ slow_s: 5 }, false);
  pace.wrote(50_000);
  time.now = 2000;
  clock.hear(52_000); // a second was lost on the way before
  assert.equal(pace.until, 5000);
  assert.equal(clock.server, 52_000);
});

test("moderators pass slow mode, but nobody the limits", () => {
  const { pace } = setUp();
  pace.setMode({ slow_s: 60 }, true);
  pace.wrote(50_000);
  assert.equal(pace.until, 0);
  pace.refused("rate_limited", 3000);
  assert.equal(pace.until, 4000);
});

test("the longest wait counts, and a wait of slow mode ends with the mode", () => {
  const { pace } = setUp();
  pace.setMode({ slow_s: 10 }, false);
  pace.refused("slow_mode", 8000);
  pace.refused("rate_limited", 2000);
  assert.equal(pace.until, 9000);
  pace.refused("too_long", 99_000);
  pace.refused("not_allowed", null);
  assert.equal(pace.until, 9000);
  pace.setMode({}, false);
  assert.equal(pace.until, 3000);
  pace.timedOut(110_000);
  assert.equal(pace.until, 61_000);
  pace.reset();
  assert.equal(pace.until, 0);
});

test("the mode in words", () => {
  assert.deepEqual(modeWords({}), []);
  assert.deepEqual(modeWords({ slow_s: 0, emote_only: false, hold: false }), []);
  assert.deepEqual(modeWords({ slow_s: 5, followers_only: true }), ["Slow mode: 5 s", "Followers only"]);
  assert.deepEqual(modeWords({ followers_only: 10 }), ["Followers of 10 min and longer only"]);
  assert.deepEqual(modeWords({ followers_only: 0 }), []);
  assert.deepEqual(modeWords({ frozen: true, slow_s: 5 }), ["Nobody may write now"]);
  assert.deepEqual(modeWords({ emote_only: true, hold: true }), [
    "Emotes only",
    "Comments are checked before they are shown",
  ]);
  assert.deepEqual(modeWords({ hold: "flagged" }), ["Some comments are checked before they are shown"]);
  assert.deepEqual(modeWords({ min_account_age_s: 259_200 }), ["Accounts older than 3 days"]);
});

test("durations and counts at a glance", () => {
  assert.deepEqual([5, 60, 90, 600, 7200, 86_400].map(duration), [
    "5 s", "1 min", "90 s", "10 min", "2 h", "1 day",
  ]);
  assert.deepEqual([1, 99, 125, 3600, 3725].map(countdown), ["1 s", "99 s", "2:05", "1:00:00", "1:02:05"]);
  assert.deepEqual([0, 999, 9999, 15_200, 1_250_000].map(compact), ["0", "999", "9,999", "15.2k", "1.3M"]);
});

test("the time in a comment's id is the one it was made from", () => {
  const ts = 1_790_000_000_123;
  assert.equal(timeOf(timeUuid(ts, 42, new Uint8Array(8))), ts);
});

test("refusals: our words by code, the server's where they say more", () => {
  assert.equal(refusalText("banned", "you are banned from this stream"), REJECTIONS.banned);
  assert.equal(refusalText("not_allowed", "emotes only"), "Emotes only.");
  assert.equal(refusalText("frozen", null), REJECTIONS.frozen);
  assert.equal(refusalText("of_a_later_version", "do it later!"), "Do it later!");
  assert.equal(sentence("wait"), "Wait.");
});

"""The viewer page in a real Chromium, on a real system, as people use it."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import time
from typing import Any

import pytest

from .conftest import Pages, System
from .steps import PHONE, expect, join, live, send, words

pytestmark = pytest.mark.browser

# Counts, in every frame from now on, how often each text shows; `window.most` is the largest.
WATCH_DOUBLES = """() => {
  window.most = {};
  const look = () => {
    const now = {};
    for (const words of document.querySelectorAll('#content .words')) {
      now[words.textContent] = (now[words.textContent] ?? 0) + 1;
    }
    for (const [text, count] of Object.entries(now)) {
      window.most[text] = Math.max(window.most[text] ?? 0, count);
    }
    requestAnimationFrame(look);
  };
  look();
}"""

WATCH_STATES = """() => {
  window.states = [];
  new MutationObserver(() => window.states.push(document.body.dataset.state))
    .observe(document.body, { attributes: true, attributeFilter: ['data-state'] });
}"""


def shown(page: Any) -> list[tuple[str, str]]:
    """(id, text) of every row, as it stands."""
    pairs: list[list[str]] = page.eval_on_selector_all(
        "#log .row", "rows => rows.map(r => [r.dataset.id, r.querySelector('.words').textContent])"
    )
    return [(comment_id, text) for comment_id, text in pairs]


def texts(page: Any) -> list[str]:
    return [text for _, text in shown(page)]


def top_row(page: Any) -> list[Any]:
    """The first row in view and where it stands."""
    found: list[Any] = page.evaluate(
        """() => {
          const top = document.querySelector('#scroller').getBoundingClientRect().top;
          const row = [...document.querySelectorAll('#log .row')]
            .find((row) => row.getBoundingClientRect().bottom > top);
          return [row.dataset.id, Math.round(row.getBoundingClientRect().top)];
        }"""
    )
    return found


@pytest.mark.parametrize("codec", ["msgpack", "json"])
def test_a_guest_takes_a_name_and_writes(pages: Pages, stream: str, codec: str) -> None:
    page = live(pages.open(f"/stream/{stream}?codec={codec}"))
    expect(page.locator("#streamName")).to_have_text(stream)
    expect(page.locator(".empty")).to_be_visible()
    expect(page.locator("#form")).to_be_hidden()
    join(page, "Ann 🐙")
    page.evaluate(WATCH_DOUBLES)
    page.fill("#text", "hé🎉")
    expect(page.locator("#counter")).to_have_text("497")
    page.press("#text", "Enter")
    expect(page.locator("#text")).to_have_value("")
    send(page, "second")
    expect(words(page)).to_have_text(["hé🎉", "second"])
    expect(page.locator("#log .author")).to_have_text(["Ann 🐙", "Ann 🐙"])
    expect(page.locator("#pending .row")).to_have_count(0)
    assert page.evaluate("window.most") == {"hé🎉": 1, "second": 1}
    expect(page.locator(".empty")).to_be_hidden()

    page.reload()
    expect(page.locator("#identity")).to_have_text("Ann 🐙")
    expect(words(page)).to_have_text(["hé🎉", "second"])
    send(page, "third")
    expect(words(page)).to_have_text(["hé🎉", "second", "third"])
    expect(page.locator(".divider.live")).to_have_count(1)


def test_two_people_see_the_same(pages: Pages, stream: str) -> None:
    ann = live(pages.open(f"/stream/{stream}"))
    ben = live(pages.open(f"/stream/{stream}?codec=json"))
    join(ann, "Ann")
    join(ben, "Ben")
    for number in range(5):
        send(ann, f"ann {number}")
        send(ben, f"ben {number}")
    for page in (ann, ben):
        expect(page.locator("#log .row")).to_have_count(10)
        expect(page.locator("#pending .row")).to_have_count(0)
    assert shown(ann) == shown(ben)
    for name in ("ann", "ben"):
        said = [text for text in texts(ann) if text.startswith(name)]
        assert said == [f"{name} {number}" for number in range(5)]
    reader = live(pages.open(f"/stream/{stream}"))
    expect(reader.locator("#log .row")).to_have_count(10)
    assert shown(reader) == shown(ann)


def test_a_moderator_deletes(pages: Pages, system: System, stream: str) -> None:
    viewer = live(pages.open(f"/stream/{stream}", viewport={"width": 500, "height": 800}))
    token = system.tokens["moderator"]
    moderator = live(pages.open(f"/stream/{stream}#token={token}"))
    assert "token" not in moderator.url
    system.say(stream, ["keep this", "rude " * 40, "and this", "by keyboard"])
    for page in (viewer, moderator):
        expect(page.locator("#log .row")).to_have_count(4)
    height = viewer.locator("#log .row").nth(1).bounding_box()["height"]
    assert height > 60, "the comment to delete takes several lines"
    viewer.hover("#log .row:has-text('rude')")
    expect(viewer.locator(".action.delete:visible")).to_have_count(0)

    moderator.hover("#log .row:has-text('rude')")
    moderator.click(".action.delete")
    expect(words(viewer).nth(1)).to_have_text("removed by a moderator")
    assert "rude" not in viewer.content()
    expect(moderator.locator("#log .row.readable")).to_contain_text("rude rude")
    assert viewer.locator("#log .row").nth(1).bounding_box()["height"] == height

    moderator.focus("#scroller")
    moderator.keyboard.press("ArrowUp")
    expect(moderator.locator("#log .row").nth(3)).to_be_focused()
    moderator.keyboard.press("Delete")
    expect(words(viewer).nth(3)).to_have_text("removed by a moderator")
    viewer.reload()
    expect(words(viewer)).to_have_text(["keep this", "and this"])


def test_a_dead_gateway_loses_and_repeats_nothing(
    pages: Pages, system: System, stream: str
) -> None:
    pages.may_lose_connections = True
    writer = live(pages.open(f"/stream/{stream}"))
    join(writer, "Ann")
    reader = live(pages.open(f"/stream/{stream}?codec=json"))
    system.say(stream, ["before"])
    for page in (writer, reader):
        expect(words(page)).to_have_text(["before"])
        page.evaluate(WATCH_STATES)
        page.evaluate("() => { window.first = document.querySelector('#log .row') }")
    writer.evaluate(WATCH_DOUBLES)
    for pid in system.pids["gateway"]:
        with contextlib.suppress(ProcessLookupError):  # by an earlier run of this test
            os.kill(pid, signal.SIGKILL)
    send(writer, "while away")
    deadline = time.monotonic() + 30
    while True:
        try:
            system.say(stream, ["after"], key=stream)
            break
        except OSError:  # nobody listens yet, or a connection was cut: not acknowledged
            assert time.monotonic() < deadline, "no gateway came back within 30 s"
            writer.wait_for_timeout(50)  # lets the pages' events through
    for page in (writer, reader):
        live(page)
        expect(page.locator("#log .row")).to_have_count(3)
        assert "waiting" in page.evaluate("window.states")
        assert page.evaluate("window.first.isConnected"), "resumed, not begun anew"
    assert shown(writer) == shown(reader)
    assert texts(reader)[0] == "before"
    assert sorted(texts(reader)[1:]) == ["after", "while away"]
    expect(writer.locator("#pending .row")).to_have_count(0)
    assert writer.evaluate("window.most")["while away"] == 1
    assert reader.locator(".divider.gap").count() == 0


def test_markup_stays_text(pages: Pages, system: System, stream: str) -> None:
    nasty = [
        "<script>document.title = 'owned'</script>",
        "<img src=x onerror=\"document.title='owned'\">",
        "<b>bold</b> &amp; https://example.com/",
        "javascript:alert(1)",
    ]
    page = live(pages.open(f"/stream/{stream}"))
    join(page, "<i>Mallory</i>")
    ids = system.say(stream, nasty)
    expect(words(page)).to_have_text(nasty)
    page.hover(f'.row[data-id="{ids[0]}"]')
    page.click(".action.reply")
    expect(page.locator("#replying")).to_be_visible()
    send(page, "<u>quoted</u>")
    expect(page.locator("#log .quote-words")).to_have_text([nasty[0]])
    expect(page.locator("#log .author").last).to_have_text("<i>Mallory</i>")
    assert page.locator("#content").locator("script, img, b, i, u, a").count() == 0
    assert page.title() == f"{stream} · uproar"


def test_the_list_is_bounded_but_not_under_the_reader(
    pages: Pages, system: System, stream: str
) -> None:
    page = live(pages.open(f"/stream/{stream}"))
    system.say(stream, [f"line {number}" for number in range(620)])
    expect(words(page).last).to_have_text("line 619")
    assert texts(page) == [f"line {number}" for number in range(120, 620)]

    page.hover("#scroller")
    page.mouse.wheel(0, -400)
    expect(page.locator("#pill")).to_be_visible()
    before = top_row(page)
    system.say(stream, [f"more {number}" for number in range(60)])
    expect(page.locator("#pill")).to_have_text("60 new comments")
    assert top_row(page) == before
    assert page.locator("#log .row").count() == 560

    page.click("#pill")
    expect(page.locator("#pill")).to_be_hidden()
    expect(words(page).last).to_be_in_viewport()
    expect(page.locator("#log .row")).to_have_count(500)
    assert texts(page)[-1] == "more 59"
    system.say(stream, ["one more"])
    expect(words(page).last).to_have_text("one more")
    expect(words(page).last).to_be_in_viewport()
    expect(page.locator("#log .row")).to_have_count(500)

    page.hover("#scroller")
    page.mouse.wheel(0, -400)
    expect(page.locator("#pill")).to_have_text("Back to the newest")
    page.mouse.wheel(0, 800)
    expect(page.locator("#pill")).to_be_hidden()
    system.say(stream, ["and the last"])
    expect(words(page).last).to_have_text("and the last")
    expect(words(page).last).to_be_in_viewport()


def test_far_more_than_fits_while_the_reader_is_away(
    pages: Pages, system: System, stream: str
) -> None:
    page = live(pages.open(f"/stream/{stream}"))
    system.say(stream, [f"line {number}" for number in range(100)])
    expect(words(page).last).to_have_text("line 99")
    page.hover("#scroller")
    page.mouse.wheel(0, -400)
    expect(page.locator("#pill")).to_be_visible()
    system.say(stream, [f"more {number}" for number in range(1600)])
    expect(page.locator("#pill")).to_have_text("1,600 new comments")
    assert texts(page)[0] == "line 0"
    assert page.locator("#log .row").count() == 1000
    page.click("#pill")
    expect(page.locator("#log .row")).to_have_count(500)
    assert texts(page) == [f"more {number}" for number in range(1100, 1600)]


def test_the_list_holds_no_more_than_it_says(pages: Pages) -> None:
    counts = pages.open("/").evaluate(
        """async () => {
          const { Rows } = await import('/assets/rows.js');
          let moving = false;
          const log = document.createElement('div');
          const rows = new Rows({
            log, limit: 10, isMoving: () => moving, claim: () => false, onFlush: () => {},
          });
          const user = { id: 'u', name: 'Ann', role: 'viewer' };
          const counts = [];
          for (let n = 0; n < 5000; n++) {
            rows.push([{ type: 'COMMENT', id: `c${n}`, offset: n, user, text: 't', ts: 0 }]);
          }
          counts.push(rows._queue.length < 1000);
          rows.flush();
          counts.push(log.childElementCount, rows._held.size, rows._queue.length);
          moving = true;
          rows.flush();
          counts.push(log.childElementCount, rows._held.size, log.lastChild.dataset.id);
          return counts;
        }"""
    )
    assert counts == [True, 20, 10, 0, 10, 0, "c4999"]


def test_the_eleventh_comment_in_a_minute_waits(pages: Pages, stream: str) -> None:
    page = live(pages.open(f"/stream/{stream}"))
    join(page, "Ann")
    for number in range(11):
        send(page, f"comment {number}")
    again = page.locator("#pending .again")
    expect(again).to_have_text("not sent – try again")
    expect(page.locator("#log .row")).to_have_count(10)
    countdown = page.locator("#send")
    assert countdown.text_content().endswith(" s")
    page.fill("#text", "typing goes on")
    page.press("#text", "Enter")
    expect(page.locator("#text")).to_have_value("typing goes on")
    page.click(".away")
    expect(page.locator("#pending .row")).to_have_count(0)


def test_what_is_too_long_is_not_sent(pages: Pages, stream: str) -> None:
    page = live(pages.open(f"/stream/{stream}"))
    join(page, "Ann")
    page.fill("#text", "🎉" * 501)
    expect(page.locator("#counter")).to_have_text("-1")
    expect(page.locator("#text")).to_have_attribute("aria-invalid", "true")
    page.press("#text", "Enter")
    page.fill("#text", "🎉" * 500)
    expect(page.locator("#counter")).to_have_text("0")
    page.press("#text", "Enter")
    expect(words(page)).to_have_text(["🎉" * 500])


def test_a_refused_token_is_renewed(pages: Pages, stream: str) -> None:
    def part(claims: dict[str, Any]) -> str:
        return base64.urlsafe_b64encode(json.dumps(claims).encode()).decode().rstrip("=")

    claims = {"sub": "x", "name": "Ann", "exp": int(time.time()) + 3600}
    forged = f"{part({'alg': 'HS256', 'typ': 'JWT'})}.{part(claims)}.{'A' * 43}"
    page = live(pages.open("/stream/" + stream))
    page.evaluate(
        "guest => localStorage.setItem('uproar.guest', JSON.stringify(guest))",
        {"name": "Ann", "token": forged},
    )
    page.reload()
    live(page)
    expect(page.locator("#identity")).to_have_text("Ann")
    send(page, "hello")
    expect(words(page)).to_have_text(["hello"])
    assert page.evaluate("JSON.parse(localStorage.getItem('uproar.guest')).token") != forged

    given = live(pages.open(f"/stream/{stream}#token={forged}"))
    expect(given.locator("#notice")).to_be_visible()
    expect(given.locator("#nameForm")).to_be_visible()
    expect(words(given)).to_have_text(["hello"])


def test_leaving_and_coming_back_as_somebody_else(pages: Pages, stream: str) -> None:
    page = live(pages.open(f"/stream/{stream}"))
    join(page, "Ann")
    send(page, "as Ann")
    expect(words(page)).to_have_text(["as Ann"])
    page.click("#leave")
    expect(page.locator("#nameField")).to_have_value("Ann")
    join(page, "Bea")
    send(page, "as Bea")
    expect(words(page)).to_have_text(["as Ann", "as Bea"])
    expect(page.locator("#log .author")).to_have_text(["Ann", "Bea"])


@pytest.mark.parametrize("width", [320, 375])
def test_a_phone_needs_no_sideways_scrolling(
    pages: Pages, system: System, stream: str, width: int
) -> None:
    phone = {**PHONE, "viewport": {"width": width, "height": 640}}
    system.say(stream, ["x" * 500, "wide 🎉" * 60, "a word " * 40])
    page = live(pages.open(f"/stream/{stream}#token={system.tokens['moderator']}", **phone))
    expect(page.locator("#log .row")).to_have_count(3)
    page.tap("#log .row >> nth=2")
    expect(page.locator(".action.delete")).to_be_visible()
    for selector in ("html", "#scroller"):
        over = page.eval_on_selector(selector, "one => one.scrollWidth - one.clientWidth")
        assert over == 0, selector
    expect(page.locator("#send")).to_be_in_viewport(ratio=1)
    start = pages.open("/", **phone)
    assert start.evaluate("document.documentElement.scrollWidth") == width


def test_the_start_page_leads_to_a_stream(pages: Pages, stream: str) -> None:
    page = pages.open("/")
    page.fill("#streamId", "no spaces, please")
    page.keyboard.press("Enter")
    expect(page.locator("#openError")).not_to_be_empty()
    page.fill("#streamId", stream.upper())
    page.keyboard.press("Enter")
    expect(page.locator("#streamName")).to_have_text(stream)
    live(page)
    page.click(".home")
    expect(page.locator("a[href='/stream/demo']")).to_be_visible()

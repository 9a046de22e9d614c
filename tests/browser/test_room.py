"""The room on the viewer page: modes, reactions, pins, moderators' acts, on a real system."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from uproar.client import Viewer, stream_url

from .conftest import Pages, System, running
from .steps import PHONE, act, expect, join, live, row, send, words

pytestmark = pytest.mark.browser


def guest(pages: Pages, stream: str, name: str, **context: Any) -> Any:
    """A page on which somebody may write."""
    page = live(pages.open(f"/stream/{stream}?codec=json", **context))
    join(page, name)
    return page


def moderator(pages: Pages, system: System, stream: str, **context: Any) -> Any:
    """A page with a moderator's token."""
    token = system.tokens["moderator"]
    page = live(pages.open(f"/stream/{stream}#token={token}", **context))
    expect(page.locator("#tools")).to_be_visible()
    return page


def set_mode(system: System, stream: str, **changes: Any) -> None:
    system.request("PATCH", f"/stream/{stream}/mode", changes, "moderator")


def service(system: System, stream: str) -> Viewer:
    viewer = Viewer(stream_url(system.http, stream), token=system.tokens["service"])
    viewer.connect()
    return viewer


def seconds_left(page: Any) -> int:
    """What the send button counts down from; 0 when it doesn't."""
    found = re.fullmatch(r"(?:(\d+):)?(\d+)(?: s)?", page.locator("#send").inner_text())
    return int(found[1] or 0) * 60 + int(found[2]) if found else 0


# -- modes ----------------------------------------------------------------------------------------


def test_the_page_says_which_mode_holds(pages: Pages, system: System, stream: str) -> None:
    page = guest(pages, stream, "Ann")
    line = page.locator("#modeLine")
    expect(line).to_be_hidden()
    set_mode(system, stream, slow_s=5, emote_only=True)
    expect(line).to_have_text("Slow mode: 5 s · Emotes only")
    set_mode(system, stream, emote_only=False, followers_only=True)
    expect(line).to_have_text("Slow mode: 5 s · Followers only")
    late = live(pages.open(f"/stream/{stream}"))
    expect(late.locator("#modeLine")).to_have_text("Slow mode: 5 s · Followers only")
    send(page, "I follow nobody")
    expect(page.locator("#pending .reason")).to_have_text(
        "Only followers may write in this stream now."
    )

    set_mode(system, stream, frozen=True)
    expect(line).to_have_text("Nobody may write now")
    send(page, "frozen")
    expect(page.locator("#text")).to_have_value("frozen")
    expect(page.locator("#send")).to_have_attribute("aria-disabled", "true")
    set_mode(system, stream, frozen=False, followers_only=False, slow_s=0)
    expect(line).to_be_hidden()
    page.press("#text", "Enter")
    expect(words(page)).to_have_text(["frozen"])


def test_slow_mode_counts_down_in_the_button(pages: Pages, system: System, stream: str) -> None:
    set_mode(system, stream, slow_s=60)
    page = guest(pages, stream, "Ann")
    send(page, "first")
    expect(words(page)).to_have_text(["first"])
    expect(page.locator("#send")).to_have_text(re.compile(r"^\d+ s$"))
    assert 50 < seconds_left(page) <= 60
    send(page, "second")
    expect(page.locator("#text")).to_have_value("second")

    page.reload()
    expect(words(page)).to_have_text(["first"])
    expect(page.locator("#send")).to_have_text(re.compile(r"^\d+ s$"))
    assert 30 < seconds_left(page) <= 60

    set_mode(system, stream, slow_s=2)
    expect(page.locator("#send")).to_have_text("Send")
    send(page, "third")
    expect(words(page)).to_have_text(["first", "third"])
    expect(page.locator("#send")).to_have_text(re.compile(r"^[12] s$"))
    send(page, "fourth")
    expect(page.locator("#send")).to_have_text("Send")
    page.press("#text", "Enter")
    expect(words(page)).to_have_text(["first", "third", "fourth"])
    expect(page.locator("#pending .row")).to_have_count(0)


def test_a_moderator_sets_the_mode(pages: Pages, system: System, stream: str) -> None:
    viewer = guest(pages, stream, "Ann")
    first, second = (moderator(pages, system, stream) for _ in range(2))
    expect(viewer.locator("#tools")).to_be_hidden()
    for page in (first, second):
        page.click("#settingsButton")
    first.select_option("[name=slow_s]", label="30 s")
    first.check("[name=emote_only]")
    expect(viewer.locator("#modeLine")).to_have_text("Slow mode: 30 s · Emotes only")
    expect(second.locator("[name=slow_s]")).to_have_value("30")
    expect(second.locator("[name=emote_only]")).to_be_checked()
    set_mode(system, stream, slow_s=7)
    expect(first.locator("[name=slow_s] option:checked")).to_have_text("7 s")
    second.check("[name=frozen]")
    expect(viewer.locator("#modeLine")).to_have_text("Nobody may write now")
    send(first, "moderators may")
    expect(words(viewer)).to_have_text(["moderators may"])
    first.focus("[name=slow_s]")
    first.keyboard.press("Escape")
    expect(first.locator("#settings")).to_be_hidden()
    expect(first.locator("#settingsButton")).to_be_focused()


def test_an_ended_stream(pages: Pages, system: System, stream: str) -> None:
    page = guest(pages, stream, "Ann")
    system.request("POST", "/stream", {"id": stream, "title": "Launch"}, "broadcaster")
    expect(page.locator(".divider.started")).to_have_text("The stream has started: Launch")
    system.request("POST", f"/stream/{stream}/end", {}, "broadcaster")
    expect(page.locator(".divider.ended")).to_have_text("The stream has ended.")
    page.fill("#text", "too late")
    expect(page.locator("#send")).to_have_attribute("aria-disabled", "true")
    expect(page.locator("#text")).to_have_attribute("placeholder", "The stream has ended")
    system.request("POST", "/stream", {"id": stream}, "broadcaster")
    expect(page.locator("#send")).to_have_attribute("aria-disabled", "false")


# -- reactions ------------------------------------------------------------------------------------


def test_reactions_are_added_up_and_shown_to_all(pages: Pages, system: System, stream: str) -> None:
    sent: list[dict[str, Any]] = []

    def listen(socket: Any) -> None:
        socket.on("framesent", lambda frame: sent.append(json.loads(frame)))

    ann = guest(pages, stream, "Ann")
    ann.on("websocket", listen)
    ann.reload()
    live(ann)
    reader = live(pages.open(f"/stream/{stream}"))
    for _ in range(7):
        ann.click(".reaction[data-kind=fire]")
    ann.focus(".reaction[data-kind=heart]")
    ann.keyboard.press("Enter")
    for page in (ann, reader):
        expect(page.locator("[data-kind=fire] .reaction-count")).to_have_text("7")
        expect(page.locator("[data-kind=heart] .reaction-count")).to_have_text("1")
    reacts = [command for command in sent if command["type"] == "REACT"]
    assert sum(one["count"] for one in reacts if one["kind"] == "fire") == 7
    assert len(reacts) < 8, "taps are added up"

    poster = service(system, stream)
    poster.send([{"type": "REACT", "kind": "fire", "count": 100}] * 100)
    poster.send([{"type": "REACT", "kind": "fire", "count": 100}] * 52)
    poster.close()
    expect(reader.locator("[data-kind=fire] .reaction-count")).to_have_text("15.2k")
    label = reader.locator("[data-kind=fire]").get_attribute("aria-label")
    assert label == "Fire, 15,207"
    late = live(pages.open(f"/stream/{stream}"))
    expect(late.locator("[data-kind=fire] .reaction-count")).to_have_text("15.2k")
    late.click(".reaction[data-kind=fire]")
    expect(late.locator("#nameField")).to_be_focused()


@pytest.mark.parametrize("motion", ["no-preference", "reduce"])
def test_emoji_rise_but_only_a_few(pages: Pages, stream: str, motion: str) -> None:
    page = guest(pages, stream, "Ann", reduced_motion=motion)
    page.evaluate(
        """() => {
          window.most = 0;
          const layer = document.querySelector('#floats');
          const look = () => { window.most = Math.max(window.most, layer.childElementCount) };
          new MutationObserver(look).observe(layer, { childList: true });
          for (let tap = 0; tap < 95; tap++) document.querySelector('[data-kind=clap]').click();
        }"""
    )
    expect(page.locator("[data-kind=clap] .reaction-count")).to_have_text("95")
    assert page.evaluate("window.most") == (30 if motion == "no-preference" else 0)
    expect(page.locator(".float")).to_have_count(0)


# -- what stands above the list -------------------------------------------------------------------


def test_a_pinned_comment(pages: Pages, system: System, stream: str) -> None:
    viewer = guest(pages, stream, "Ann", **PHONE)
    mod = moderator(pages, system, stream)
    long = "The schedule: " + "launch at nine, then soup. " * 12
    ids = system.say(stream, ["one", long, "<b>three</b>"])
    act(mod, "The schedule", "pin")
    pinned = viewer.locator("#pinnedBody .words")
    expect(pinned).to_have_text(long)
    expect(mod.locator("#pinnedBody .words")).to_have_text(long)
    high = viewer.locator("#pinned").bounding_box()["height"]
    viewer.tap("#pinnedToggle")
    expect(viewer.locator("#pinnedToggle")).to_have_attribute("aria-expanded", "false")
    assert viewer.locator("#pinned").bounding_box()["height"] < high / 2
    assert viewer.evaluate("document.documentElement.scrollWidth") == 375
    late = live(pages.open(f"/stream/{stream}"))
    expect(late.locator("#pinnedBody .words")).to_have_text(long)
    expect(late.locator("#pinnedUnpin")).to_be_hidden()

    mod.click("#pinnedUnpin")
    for page in (viewer, mod, late):
        expect(page.locator("#pinned")).to_be_hidden()
    pin = {"comment_id": ids[2], "seconds": 2}
    system.request("POST", f"/stream/{stream}/pin", pin, "moderator")
    expect(pinned).to_have_text("<b>three</b>")
    expect(viewer.locator("#pinned")).to_be_hidden()

    act(mod, "one", "pin")
    expect(pinned).to_have_text("one")
    act(mod, "one", "delete")
    expect(viewer.locator("#pinned")).to_be_hidden()


def test_a_sampled_room_says_so(chromium: Any) -> None:
    with running(sampling__threshold=100, sampling__calm_s=2) as system:
        pages = Pages(chromium, system)
        page = live(pages.open("/stream/fast"))
        expect(page.locator("#banner")).to_be_hidden()
        for burst in range(6):
            system.say("fast", [f"fast {burst} {number}" for number in range(200)])
        expect(page.locator("#banner")).to_have_text(
            "Chat moving fast! Showing sampled comments (20 %)"
        )
        late = live(pages.open("/stream/fast"))
        expect(late.locator("#banner")).to_be_visible()
        for one in (page, late):
            expect(one.locator("#banner")).to_be_hidden()
        for context in pages.contexts:
            context.close()
        assert pages.complaints == []


# -- moderators -----------------------------------------------------------------------------------


def test_what_was_deleted_can_be_restored(pages: Pages, system: System, stream: str) -> None:
    viewer = guest(pages, stream, "Ann")
    mod = moderator(pages, system, stream)
    ids = system.say(stream, ["before", "the words in question", "after"])
    viewer.hover(f'.row[data-id="{ids[1]}"]')
    viewer.click(".action.reply")
    send(viewer, "an answer")
    expect(viewer.locator("#log .quote-words")).to_have_text(["the words in question"])
    act(mod, "question", "delete")
    tombstone = "removed by a moderator"
    expect(words(viewer)).to_have_text(["before", tombstone, "after", "an answer"])
    expect(viewer.locator("#log .quote")).to_have_text([tombstone])
    expect(mod.locator(".row.readable")).to_contain_text("the words in question")

    act(mod, "question", "restore")
    for page in (viewer, mod):
        expect(words(page)).to_have_text(["before", "the words in question", "after", "an answer"])
        expect(page.locator(".row.removed")).to_have_count(0)
    viewer.reload()
    expect(words(viewer)).to_have_text(["before", "the words in question", "after", "an answer"])


def test_a_timeout_and_its_end(pages: Pages, system: System, stream: str) -> None:
    ann, ben = guest(pages, stream, "Ann"), guest(pages, stream, "Ben")
    send(ann, "rude words")
    send(ben, "kind words")
    mod = moderator(pages, system, stream)
    act(mod, "rude words", "more")
    expect(mod.locator("#menu")).to_be_visible()
    expect(mod.locator("#menuTitle")).to_have_text("Ann")
    mod.get_by_role("menuitem", name="Time out for 1 min").click()
    expect(ann.locator("#log .removed .words")).to_have_text(["removed by a moderator"])
    expect(ann.locator("#send")).to_have_text(re.compile(r"^\d+ s$"))
    assert 50 < seconds_left(ann) <= 60
    expect(ben.locator("#send")).to_have_text("Send")
    expect(mod.locator(".divider.sanction")).to_contain_text("Ann timed out until")
    assert ben.locator(".divider.sanction").count() == 0
    expect(mod.locator(".row.readable")).to_contain_text("rude words")


def test_a_ban_says_so_to_whom_it_concerns(pages: Pages, system: System, stream: str) -> None:
    ann = guest(pages, stream, "Ann")
    send(ann, "rude words")
    mod = moderator(pages, system, stream)
    act(mod, "rude words", "more")
    mod.get_by_role("menuitem", name="Ban", exact=True).click()
    expect(ann.locator("#noticeText")).to_have_text("You are banned from this stream.")
    ann.click("#noticeButton")
    live(ann)
    expect(ann.locator("#nameForm")).to_be_visible()


def test_a_shadow_ban_shows_to_moderators_alone(pages: Pages, system: System, stream: str) -> None:
    ann, ben = guest(pages, stream, "Ann"), guest(pages, stream, "Ben")
    send(ann, "bait")
    mod = moderator(pages, system, stream)
    act(mod, "bait", "more")
    mod.get_by_role("menuitem", name="Shadow ban", exact=True).click()
    expect(mod.locator(".divider.sanction")).to_contain_text("Ann shadow banned by")
    send(ann, "more bait")
    expect(words(ann)).to_have_text(["bait", "more bait"])
    expect(ann.locator("#pending .row")).to_have_count(0)
    assert ann.locator(".note, .badge").count() == 0
    expect(row(mod, "more bait").locator(".badge")).to_have_text("shadow")
    send(ben, "hello")
    expect(words(ben)).to_have_text(["bait", "hello"])


def test_held_comments_wait_in_the_queue(pages: Pages, system: System, stream: str) -> None:
    ann, ben = guest(pages, stream, "Ann"), guest(pages, stream, "Ben")
    first, second = (moderator(pages, system, stream) for _ in range(2))
    set_mode(system, stream, hold=True)
    expect(ann.locator("#modeLine")).to_have_text("Comments are checked before they are shown")
    send(ann, "please show this")
    note = ann.locator("#content .row .note, #pending .status")
    expect(note.filter(has_text="waits for a moderator")).to_have_count(1)
    for page in (first, second):
        expect(page.locator("#queueCount")).to_have_text("1")
        expect(row(page, "please show this").locator(".badge")).to_have_text("held")
        page.click("#queueButton")
    system.say(stream, ["meanwhile"])
    expect(words(ben)).to_have_text(["meanwhile"])

    first.click("#queue .action.approve")
    for page in (ann, ben, first, second):
        expect(words(page)).to_have_text(["meanwhile", "please show this"])
        expect(page.locator(".note, .badge:text('held')")).to_have_count(0)
    for page in (first, second):
        expect(page.locator("#queueEmpty")).to_be_visible()
        expect(page.locator("#queueCount")).to_have_text("")

    send(ann, "never show this")
    expect(ann.locator("#log .note")).to_have_text(["waits for a moderator"])
    act(second, "never show this", "deny")
    expect(words(ann)).to_have_text(["meanwhile", "please show this", "refused by a moderator"])
    expect(words(ben)).to_have_text(["meanwhile", "please show this"])
    expect(first.locator("#queue .item")).to_have_count(0)
    expect(first.locator(".row.readable")).to_contain_text("never show this")

    send(ann, "and this?")
    expect(first.locator("#queue .item")).to_contain_text("and this?")
    late = moderator(pages, system, stream)
    expect(late.locator("#queueCount")).to_have_text("1")


def test_who_decides_second_is_told(pages: Pages, system: System, stream: str) -> None:
    pages.may_be_refused = True
    set_mode(system, stream, hold=True)
    ann = guest(pages, stream, "Ann")
    mod = moderator(pages, system, stream)
    send(ann, "show this")
    mod.click("#queueButton")
    expect(mod.locator("#queue .item")).to_have_count(1)

    def overtake(route: Any) -> None:
        path = route.request.url.removeprefix(system.http)
        system.request("POST", path, {"action": "approve"}, "broadcaster")
        route.continue_()

    mod.route("**/held/*", overtake)
    mod.click("#queue .action.deny")
    expect(mod.locator("#noticeText")).to_have_text("This was already decided.")
    expect(mod.locator("#queue .item")).to_have_count(0)
    expect(words(ann)).to_have_text(["show this"])


def test_flagged_comments_come_to_the_queue(pages: Pages, system: System, stream: str) -> None:
    ann, mod = guest(pages, stream, "Ann"), moderator(pages, system, stream)
    send(ann, "look at https://example.com/offer now")
    item = mod.locator("#queue .item.flagged")
    expect(mod.locator("#queueCount")).to_have_text("1")
    mod.click("#queueButton")
    expect(item).to_contain_text("look at https://example.com/offer now")
    item.locator(".action.delete").click()
    expect(words(ann)).to_have_text(["removed by a moderator"])
    expect(item).to_have_count(0)


def test_the_menu_by_keyboard(pages: Pages, system: System, stream: str) -> None:
    ann, mod = guest(pages, stream, "Ann"), moderator(pages, system, stream)
    send(ann, "hello")
    expect(words(mod)).to_have_text(["hello"])
    mod.focus("#scroller")
    mod.keyboard.press("ArrowUp")
    more = mod.locator(".action.more")
    for _ in range(4):
        mod.keyboard.press("Tab")
    expect(more).to_be_focused()
    mod.keyboard.press("Enter")
    expect(mod.get_by_role("menuitem", name="Time out for 1 min")).to_be_focused()
    mod.keyboard.press("ArrowUp")
    expect(mod.get_by_role("menuitem", name="End shadow ban")).to_be_focused()
    mod.keyboard.press("Escape")
    expect(mod.locator("#menu")).to_be_hidden()
    expect(more).to_be_focused()


def test_a_moderator_on_a_phone(pages: Pages, system: System, stream: str) -> None:
    phone = {**PHONE, "viewport": {"width": 320, "height": 568}}
    ann, mod = guest(pages, stream, "Ann"), moderator(pages, system, stream, **phone)
    send(ann, "a comment " * 20)
    set_mode(system, stream, slow_s=120, followers_only=True, emote_only=True)
    expect(mod.locator("#modeLine")).to_be_visible()
    over = "() => document.documentElement.scrollWidth - innerWidth"
    long_press(mod, mod.locator("#log .row"))
    expect(mod.locator("#menu")).to_be_visible()
    expect(mod.get_by_role("menuitem", name="Ban", exact=True)).to_be_in_viewport(ratio=1)
    mod.keyboard.press("Escape")
    for button in ("#queueButton", "#settingsButton"):
        mod.tap(button)
        assert mod.evaluate(over) == 0
    expect(mod.locator("#send")).to_be_in_viewport(ratio=1)
    expect(mod.locator(".reaction").last).to_be_in_viewport(ratio=1)


def long_press(page: Any, what: Any) -> None:
    """Hold a finger on something for longer than a tap takes."""
    box = what.bounding_box()
    session = page.context.new_cdp_session(page)
    point = {"x": box["x"] + 40, "y": box["y"] + 10}
    session.send("Input.dispatchTouchEvent", {"type": "touchStart", "touchPoints": [point]})
    page.wait_for_timeout(700)  # this is the press, not a wait for the page
    session.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})


def test_giving_the_role_up_hides_what_only_moderators_see(
    pages: Pages, system: System, stream: str
) -> None:
    mod = moderator(pages, system, stream)
    system.say(stream, ["stays", "goes"])
    act(mod, "goes", "delete")
    expect(mod.locator(".row.readable")).to_have_count(1)
    mod.click("#leave")
    expect(mod.locator("#tools")).to_be_hidden()
    expect(words(mod)).to_have_text(["stays"])
    assert "goes" not in mod.locator("#content").inner_text()

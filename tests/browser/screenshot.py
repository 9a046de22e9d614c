"""Takes the screenshot of a busy room that README shows.

    python -m tests.browser.screenshot docs/screenshot-room.png

A demo system runs, people watch and react, a moderator pins and deletes; what the page then shows
is what the picture shows. `--dark` and `--phone` take other views, `--moderator` a moderator's.
Names and emoji want fonts: on Debian, fonts-noto-color-emoji and fonts-wqy-microhei.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from uproar.client import Viewer, stream_url

from .conftest import CHROMIUM, FLAGS, System, running
from .steps import expect, live

STREAM = "demo"
TOTALS = {"fire": 15_200, "heart": 8_400, "clap": 3_100, "laugh": 1_240, "wow": 610, "sad": 38}
VIEWERS = 140
TALK_S = 60.0  # for the demo's conversation to fill a window
DESKTOP: dict[str, Any] = {"viewport": {"width": 760, "height": 860}}
HANDHELD: dict[str, Any] = {
    "viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True,
}  # fmt: skip


def watch(system: System) -> list[Viewer]:
    """Return connected viewers; they count as long as they are kept."""
    viewers = []
    for _ in range(VIEWERS):
        viewer = Viewer(stream_url(system.http, STREAM), backlog=0)
        viewer.connect()
        viewers.append(viewer)
    return viewers


def react(service: Viewer, totals: dict[str, int]) -> None:
    """Add reactions, a hundred a command."""
    for kind, count in totals.items():
        full, rest = divmod(count, 100)
        counts = [100] * full + ([rest] if rest else [])
        for start in range(0, len(counts), 100):
            batch = counts[start : start + 100]
            service.send([{"type": "REACT", "kind": kind, "count": one} for one in batch])


def busy(system: System, page: Any) -> None:
    """Wait until the room has talked enough, then pin and delete as a moderator would."""
    rows = page.locator("#log .row")
    deadline = time.monotonic() + TALK_S
    while rows.count() < 60 and time.monotonic() < deadline:
        page.wait_for_timeout(200)  # lets the page's events through
    hosts = page.locator("#log .row:has(.badge.broadcaster)")
    expect(hosts.first).to_be_attached()
    pinned = hosts.first.get_attribute("data-id")
    system.request("POST", f"/stream/{STREAM}/pin", {"comment_id": pinned}, "moderator")
    viewers = page.locator("#log .row:not(:has(.badge)):not(:has(.quote))")
    removed = viewers.nth(-7).get_attribute("data-id")
    system.request("DELETE", f"/stream/{STREAM}/comments/{removed}", role="moderator")
    expect(page.locator("#pinned")).to_be_visible()
    expect(page.locator(".row.removed").first).to_be_attached()


def take(out: Path, *, dark: bool, phone: bool, moderator: bool) -> None:
    """Run a demo system and save the picture."""
    from playwright.sync_api import sync_playwright

    with running("--demo") as system, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        context = browser.new_context(
            **(HANDHELD if phone else DESKTOP),
            device_scale_factor=2 if phone else 1.5,
            color_scheme="dark" if dark else "light",
        )
        page = context.new_page()
        token = f"#token={system.tokens['moderator']}" if moderator else ""
        page.goto(f"{system.http}/stream/{STREAM}{token}")
        live(page)
        if not moderator:
            page.fill("#nameField", "Mira")
            page.click("#nameButton")
            expect(page.locator("#identity")).to_have_text("Mira")
            live(page)
        viewers = watch(system)
        service = Viewer(stream_url(system.http, STREAM), token=system.tokens["service"])
        service.connect()
        react(service, TOTALS)
        busy(system, page)
        expect(page.locator("[data-kind=fire] .reaction-count")).to_have_text("15.2k")
        expect(page.locator("#viewerCount")).not_to_have_text("1")
        react(service, {"fire": 20, "heart": 20, "clap": 20})
        expect(page.locator(".float").nth(2)).to_be_attached()
        page.wait_for_timeout(600)  # the emoji are on their way
        page.screenshot(path=str(out))
        for viewer in [service, *viewers]:
            viewer.close()
        browser.close()


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path)
    for flag in ("--dark", "--phone", "--moderator"):
        parser.add_argument(flag, action="store_true")
    wanted = parser.parse_args()
    take(wanted.out, dark=wanted.dark, phone=wanted.phone, moderator=wanted.moderator)


if __name__ == "__main__":
    main()

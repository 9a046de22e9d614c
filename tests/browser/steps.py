"""What people do on the viewer page, one function a step."""

from __future__ import annotations

from typing import Any

from .conftest import STEP_MS

PHONE = {"viewport": {"width": 375, "height": 667}, "has_touch": True, "is_mobile": True}


def expect(thing: Any) -> Any:
    """Playwright's assertions, which wait for what is expected."""
    from playwright.sync_api import expect as expect_of

    expect_of.set_options(timeout=STEP_MS)
    return expect_of(thing)


def live(page: Any) -> Any:
    """Return the page once it is connected."""
    expect(page.locator("body")).to_have_attribute("data-state", "live")
    return page


def join(page: Any, name: str) -> None:
    """Become a guest."""
    page.fill("#nameField", name)
    page.keyboard.press("Enter")
    expect(page.locator("#identity")).to_have_text(name)
    expect(page.locator("#text")).to_be_focused()
    live(page)


def send(page: Any, text: str) -> None:
    """Write a comment and press Enter."""
    page.fill("#text", text)
    page.press("#text", "Enter")


def words(page: Any) -> Any:
    """The texts of the rows in the list."""
    return page.locator("#log .row .words")


def row(page: Any, text: str) -> Any:
    """The row of a comment."""
    return page.locator("#log .row").filter(has=page.locator(".words", has_text=text))


def act(page: Any, text: str, button: str) -> None:
    """Press a button of a comment's row."""
    row(page, text).hover()
    row(page, text).locator(f".action.{button}").click()

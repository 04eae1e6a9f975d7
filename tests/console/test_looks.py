"""How the pages look, measured in the browser: contrast of every text in both themes, the keyboard, and a phone. Every page has
something on it, in every state.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from flows.capture.recover import finished
from flows.ledger import Ledger, State
from flows.ledger.runs import AMISS
from flows.transfer.gate import override
from tests.capture.conftest import imu, lavfi, record
from tests.console.browser import Seen, chromium
from tests.console.conftest import enter, until
from tests.steps.conftest import make

__all__ = ["chromium"]  # a fixture

pytestmark = pytest.mark.timeout(900)
LONG = "DCIM/100MEDIA/" + "a-file-name-that-has-no-end-" * 7 + ".mp4"
PAGES = (
    "/", "/transfers", "/transfers?flight=F1&all=1", "/transfers/1", "/problems", "/jobs", "/devices", "/recordings",
    "/logs?source=console", "/logs?source=audit",
)  # fmt: skip
LEAST = 4.5
"""WCAG 2.1 AA, for text of any size."""

CONTRASTS = """() => {
  const parse = (c) => { const m = c.match(/[\\d.]+/g).map(Number); return [m[0], m[1], m[2], m.length > 3 ? m[3] : 1]; };
  const over = (a, b) => [0, 1, 2].map((i) => a[i] * a[3] + b[i] * (1 - a[3])).concat(1);
  const light = (c) => {
    const f = c.slice(0, 3).map((v) => { v /= 255; return v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * f[0] + 0.7152 * f[1] + 0.0722 * f[2];
  };
  const ground = (e) => {
    const layers = [];
    for (; e; e = e.parentElement) layers.push(parse(getComputedStyle(e).backgroundColor));
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255, 1]);
  };
  const found = [];
  const look = (e, color, text) => {
    const below = ground(e), ink = over(parse(color), below), [a, b] = [light(ink), light(below)];
    found.push([(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), text.trim().slice(0, 40), e.tagName + "." + (e.className.baseVal ?? e.className)]);
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const e = node.parentElement;
    if (!node.textContent.trim() || !e.checkVisibility({ visibilityProperty: true }) || e.closest("button:disabled, option, title, script, style")) continue;
    const style = getComputedStyle(e);
    look(e, e.closest("svg") ? style.fill : style.color, node.textContent);
  }
  for (const e of document.querySelectorAll("input:not([type=checkbox]):not([type=hidden]), select")) {
    look(e, getComputedStyle(e).color, e.value || "(" + e.name + ")");
    if (e.placeholder) look(e, getComputedStyle(e, "::placeholder").color, e.placeholder);
  }
  return found;
}"""


def fill(home: Path, archive: Path) -> None:
    """Something for every page."""
    archive.mkdir()
    with Ledger.open() as ledger:
        for state in State:
            enter(ledger, (f"{state.lower()}.mp4", state), flight="F1", device="cam-1", sha256="ab" * 32)
        enter(
            ledger,
            (LONG, State.FAILED),
            kind="DISK_FULL",
            stage="write",
            message="no room at " + "x" * 200,
            flight="F2",
        )
        found = json.dumps([{"rule": "placeholder", "text": "a name that was never filled in"}])
        enter(ledger, ("{flight}.mp4", State.BLOCKED), findings=found, flight="F2")
        enter(
            ledger,
            ("late.mp4", State.QUEUED),
            kind="NETWORK",
            message="the NAS is away",
            next_attempt_at=4_000_000_000_000,
        )
        enter(ledger, ("moving.mp4", State.DELIVERING), bytes_done=400, wish="pause")
        make(archive / "clip.mp4", seconds=0.5)
        enter(
            ledger,
            ("clip.mp4", State.VERIFIED),
            destination=f"local:{archive}",
            flight="F1",
            verified_by="checksum",
            size=(archive / "clip.mp4").stat().st_size,
        )
        override(ledger, "card", "placeholder", "*.tmp.mp4", who="pat", why="because " * 20)
        override(ledger, "card", "prefix", "re:" + "x" * 150, who="pat", why="it was asked for")
        ledger.revoke(2, who="pat", why="not any more")
        ledger.hold("card", who="pat")
        run = ledger.begin_run("card", flight="F1", device="cam-1")
        ledger.end_run(
            run,
            {
                "delivered": 3,
                "bytes": 10**9,
                "seconds": 5.0,
                "failed": 0,
                **dict.fromkeys(AMISS, 0),
                "destinations": [],
            },
        )
    root = home / "recordings"
    _, manifest = record(root, lavfi("left", frames=40), imu(count=50), flight="F1")
    finished(root / manifest.id)
    (root / "broken").mkdir()
    (home / "agent").mkdir()
    told = {"device": "cam-1", "at": "2026-11-22T20:00:00+00:00", "battery": {"percent": 71.0}, "recording": {"state": "recording", "seconds": 5.0},
            "storage": {"free": 10**9, "total": 10**11}, "troubles": {"camera": "does not answer"}}  # fmt: skip
    (home / "agent/status.json").write_text(json.dumps(told))
    (home / "logs").mkdir(exist_ok=True)
    levels = ("INFO", "WARNING", "ERROR")
    (home / "logs/console.log").write_text(
        "".join(f"2026-11-22 20:00:00,000 {level} {'x' * 300}\n" for level in levels)
    )


@pytest.fixture(params=["light", "dark"])
def seen(
    request: pytest.FixtureRequest, chromium: Browser, running: str, token: str, onblock_home: Path, tmp_path: Path
) -> Iterator[Seen]:
    fill(onblock_home, tmp_path / "archive")
    with Seen.logged_in(chromium, running, token, color_scheme=request.param) as seen:
        yield seen


def opened(page: Page, path: str) -> None:
    """A page, with all that can be unfolded unfolded, and what it shows loaded."""
    page.goto(path)
    expect(page.locator("h1")).to_be_visible()
    for summary in page.locator("summary").all():
        summary.click()
    pictures = "[...document.images].every((i) => { i.scrollIntoView(); return i.complete && i.naturalWidth; })"
    until(f"the pictures of {path}", lambda: page.evaluate(pictures))


def test_every_text_can_be_read(seen: Seen) -> None:
    page, measured = seen.page, 0
    for path in PAGES:
        opened(page, path)
        found: list[Any] = page.evaluate(CONTRASTS)
        measured += len(found)
        assert [f for f in found if f[0] < LEAST] == [], path
    assert measured > 400
    page.goto("/transfers?flight=F1")
    page.get_by_text("Do something with all").click()
    page.get_by_role("button", name="Pause all").click()
    expect(page.get_by_role("button", name="Yes, pause")).to_be_visible()
    assert [f for f in page.evaluate(CONTRASTS) if f[0] < LEAST] == []
    page.goto("/recordings")
    page.get_by_role("link", name="Play clip.mp4").click()
    expect(page.locator("#player-name")).to_be_visible()
    assert [f for f in page.evaluate(CONTRASTS) if f[0] < LEAST] == []
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Log out").click()
    expect(page.get_by_role("heading", name="Log in")).to_be_visible()
    assert [f for f in page.evaluate(CONTRASTS) if f[0] < LEAST] == []


def test_nothing_is_wider_than_a_phone(seen: Seen) -> None:
    page = seen.page
    page.set_viewport_size({"width": 360, "height": 740})
    wider = """() => [document.documentElement.scrollWidth, ...[...document.querySelectorAll("main *")].filter((e) => e.checkVisibility()
        && e.getBoundingClientRect().right > 360.5 && !e.closest(".table, svg")).map((e) => e.outerHTML.slice(0, 120))]"""
    for path in PAGES:
        opened(page, path)
        assert page.evaluate(wider) == [360], path
    page.goto("/recordings")
    page.get_by_role("link", name="Play clip.mp4").click()
    box = page.locator("#player").bounding_box()
    assert box is not None and box["x"] >= 0 and box["x"] + box["width"] <= 360


FOCUSED = """() => {
  const e = document.activeElement, style = getComputedStyle(e), box = e.getBoundingClientRect();
  e.dataset.seen = "";
  return [e.tagName, e.textContent.trim().slice(0, 30), parseFloat(style.outlineWidth) >= 2 && style.outlineStyle !== "none", box.width > 0];
}"""
LEFT = """() => [...document.querySelectorAll("a[href], button, input:not([type=hidden]), select, summary")].filter((e) =>
    e.checkVisibility() && !e.disabled && e.dataset.seen === undefined).map((e) => e.outerHTML.slice(0, 120))"""


def test_all_is_reached_by_the_keyboard_and_it_is_seen_where_one_is(
    chromium: Browser, running: str, token: str, onblock_home: Path, tmp_path: Path
) -> None:
    fill(onblock_home, tmp_path / "archive")
    with Seen.logged_in(chromium, running, token) as seen:
        page = seen.page
        page.add_init_script("window.EventSource = class { addEventListener() {} close() {} }")
        for path in ("/transfers?flight=F1", "/problems", "/jobs", "/devices", "/recordings", "/logs"):
            page.goto(path)
            # a page that renews itself would take the marks away
            page.evaluate("document.getElementById('live').removeAttribute('data-every')")
            page.keyboard.press("Tab")
            assert page.evaluate(FOCUSED)[1] == "To the content"
            for _ in range(400):
                page.keyboard.press("Tab")
                tag, text, outlined, there = page.evaluate(FOCUSED)
                if tag == "BODY" or text == "To the content":
                    break
                assert outlined and there, (path, tag, text)
            assert page.evaluate(LEFT) == [], path
        page.goto("/problems")
        page.locator("summary", has_text="Override").first.focus()
        page.keyboard.press("Enter")
        page.get_by_label("Why").first.fill("by keyboard")
        page.keyboard.press("Enter")
        expect(page.locator("#told")).to_contain_text("override 4")

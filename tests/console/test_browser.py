"""What an operator does, in a real browser: look at a transfer while it moves, pause it, let it go on, cancel it, ask for it
again, let a blocked file pass. Debian's Chromium, driven by Playwright; the job runs in a process of its own.
"""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from playwright.sync_api import Browser, expect

from deployments.console.access import People, Role
from flows.ledger import Ledger, State
from tests.console.browser import Seen, chromium
from tests.console.conftest import enter, until
from tests.steps.conftest import make

__all__ = ["chromium"]  # a fixture

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def seen(chromium: Browser, running: str, token: str) -> Iterator[Seen]:
    """A page of somebody who has logged in with his token."""
    with Seen.logged_in(chromium, running, token) as seen:
        yield seen


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Runs a job from `card` to `archive` of the test's folder, in a process; keywords are further keys."""
    started: list[subprocess.Popen[bytes]] = []
    (tmp_path / "card").mkdir()

    def start(name: str, **keys: Any) -> subprocess.Popen[bytes]:
        job = {
            "name": name, "source": {"type": "local-storage", "root": str(tmp_path / "card")},
            "destination": {"type": "local-storage", "root": str(tmp_path / "archive"), "create_root": True}, **keys,
        }  # fmt: skip
        file = tmp_path / f"{name}.yaml"
        file.write_text(yaml.safe_dump(job))
        process = subprocess.Popen(
            [sys.executable, "-m", "deployments.cli", "run", str(file)], stdin=subprocess.DEVNULL, env=os.environ.copy()
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def put(tmp_path: Path, name: str, size: int) -> None:
    (tmp_path / "card" / name).write_bytes(random.Random(name).randbytes(size))
    os.utime(tmp_path / "card" / name, (1_700_000_000, 1_700_000_000))


def test_a_transfer_is_seen_moving_paused_resumed_cancelled_and_asked_for_again(
    seen: Seen, run: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    page = seen.page
    put(tmp_path, "clip.mp4", 200 << 20)
    slow = {"bandwidth": {"up": "2 MiB"}}
    first = run("slow", **slow)

    # seen without a reload, with a bar that moves
    row = page.locator("#rows tbody tr", has_text="clip.mp4")
    expect(row.locator(".state")).to_have_text("delivering")
    bar = row.get_by_label("delivered")
    expect(bar).to_have_attribute("value", re.compile("[1-9]"))
    before = float(bar.get_attribute("value") or 0)
    until("a bar that moves", lambda: float(bar.get_attribute("value") or 0) > before)
    expect(row.locator(".speed")).to_contain_text("MB/s")

    row.get_by_role("button", name="Pause").click()
    expect(page.locator("#told")).to_contain_text("will pause")
    expect(row.locator(".state")).to_have_text("paused")
    assert first.wait(180) == 1  # some files are not where they belong

    row.get_by_role("button", name="Resume").click()
    expect(row.locator(".state")).to_have_text("queued")
    second = run("slow", **slow)
    expect(row.locator(".state")).to_have_text("delivering")
    assert float(bar.get_attribute("value") or before) >= before  # it goes on where it was

    row.get_by_role("button", name="Cancel").click()
    expect(row.locator(".state")).to_have_text("cancelled")
    second.wait(180)
    assert not (tmp_path / "archive" / "clip.mp4").exists()

    row.get_by_role("checkbox").check()
    expect(page.locator("#selected")).to_have_text("1 selected")
    page.get_by_role("group").get_by_role("button", name="Retry").click()
    expect(row.locator(".state")).to_have_text("queued")
    assert run("slow").wait(180) == 0
    expect(row.locator(".state")).to_have_text("verified")
    assert (tmp_path / "archive" / "clip.mp4").stat().st_size == 200 << 20

    row.get_by_role("link", name="clip.mp4").click()
    expect(page.get_by_role("heading", name="History")).to_be_visible()
    expect(page.get_by_role("row", name=re.compile("retry by admin"))).to_be_visible()


def test_a_blocked_file_is_let_pass_and_the_override_taken_back(
    seen: Seen, run: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    page = seen.page
    put(tmp_path, "{flight}.mp4", 1000)
    gate = {"gate": {"placeholder": "hard"}}
    assert run("strict", **gate).wait(180) == 1
    page.get_by_role("link", name="Blocked and failed").click()
    row = page.locator("tr", has_text="{flight}.mp4").first
    expect(row.locator(".state")).to_have_text("blocked")
    row.get_by_text("Override", exact=True).click()
    row.get_by_label("Why").fill("named by hand <b>before</b> the flight")
    row.get_by_role("button", name="Let it pass").click()
    expect(page.locator("#told")).to_contain_text("override 1")
    expect(page.get_by_text("named by hand <b>before</b> the flight")).to_be_visible()
    assert run("strict", **gate).wait(180) == 0
    page.reload()
    expect(page.get_by_text("Nothing is blocked")).to_be_visible()
    page.get_by_text("Revoke", exact=True).first.click()
    page.locator("details[open]").get_by_label("Why").fill("it was renamed")
    page.locator("details[open]").get_by_role("button", name="Revoke").click()
    expect(page.get_by_text("revoked", exact=True)).to_be_visible()
    with Ledger.open() as ledger:
        (made,) = ledger.overrides("strict")
    assert (made.who, made.revoked and made.revoked.why) == ("admin", "it was renamed")


def test_a_job_is_held_and_let_go(seen: Seen, run: Callable[..., subprocess.Popen[bytes]], tmp_path: Path) -> None:
    page = seen.page
    put(tmp_path, "a.mp4", 1000)
    assert run("card").wait(180) == 0
    page.get_by_role("link", name="Jobs").click()
    page.get_by_role("button", name="Hold").click()
    expect(page.get_by_text("held by admin")).to_be_visible()
    page.get_by_role("button", name="Let it go on").click()
    expect(page.get_by_role("button", name="Hold")).to_be_visible()
    with Ledger.open() as ledger:
        assert ledger.held("card") is None


def test_a_viewer_sees_and_has_no_buttons(chromium: Browser, running: str, run: Any, tmp_path: Path) -> None:
    token = People().add("guest", Role.VIEWER)
    put(tmp_path, "{flight}.mp4", 1000)
    assert run("strict", gate={"placeholder": "hard"}).wait(180) == 1
    context = chromium.new_context(base_url=running)
    page = context.new_page()
    page.goto("/")
    page.get_by_label("Your token").fill(token)
    page.keyboard.press("Enter")
    for name in ("Transfers", "Blocked and failed", "Jobs"):
        page.get_by_role("link", name=name).click()
        expect(page.get_by_role("heading", name=name, level=1)).to_be_visible()
        buttons = page.get_by_role("main").get_by_role("button").filter(visible=True)
        expect(buttons).to_have_count(0 if name == "Jobs" else 1)  # that of the filter
    context.close()


def test_pages_fit_a_phone_and_the_theme_stays(chromium: Browser, running: str, token: str) -> None:
    context = chromium.new_context(base_url=running, viewport={"width": 360, "height": 740}, color_scheme="light")
    page = context.new_page()
    page.goto("/login")
    page.get_by_label("Your token").fill(token)
    page.keyboard.press("Enter")
    expect(page.get_by_role("heading", name="Overview")).to_be_visible()
    for path in ("/", "/transfers", "/problems", "/jobs", "/devices", "/recordings", "/logs"):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 360, path
    ground = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("button", name="Theme").click()
    dark = page.evaluate(ground)
    assert dark != light
    page.goto("/jobs")
    assert page.evaluate(ground) == dark
    page.get_by_role("button", name="Menu").click()
    page.get_by_role("link", name="Devices").click()
    expect(page.get_by_role("heading", name="Devices")).to_be_visible()
    context.close()


# -- many files at once -----------------------------------------------------------------------------------------------


def test_what_is_ticked_is_meant_on_whatever_page_it_is_now(seen: Seen) -> None:
    page = seen.page
    with Ledger.open() as ledger:
        first = enter(ledger, ("old.mp4", State.QUEUED))
        enter(ledger, *((f"f{i}.mp4", State.QUEUED) for i in range(60)))
        page.goto("/transfers?state=QUEUED")
        page.get_by_role("link", name="Older").click()
        page.get_by_role("row", name="old.mp4").get_by_role("checkbox").check()
        expect(page.locator("#selected")).to_have_text("1 selected")
        page.evaluate(
            "htmx.ajax('GET', '/transfers?state=QUEUED', {target: '#live', select: '#live', swap: 'outerHTML'})"
        )
        expect(page.get_by_role("row", name="f59.mp4")).to_be_visible()
        expect(page.get_by_role("row", name="old.mp4")).to_have_count(0)
        page.get_by_role("group", name="ticked").get_by_role("button", name="Pause").click()
        expect(page.locator("#told")).to_have_text("1 paused")
        expect(page.locator("#selected")).to_have_text("")
        rows = ledger.choose(states=[State.PAUSED])
        assert [r.id for r in rows] == first


def test_all_that_fit_are_paused_after_their_number_was_told(seen: Seen) -> None:
    page = seen.page
    with Ledger.open() as ledger:
        enter(ledger, *((f"f{i}.mp4", State.QUEUED) for i in range(120)), flight="F1")
        enter(ledger, ("other.mp4", State.QUEUED), flight="F2")
        page.get_by_label("Flight").fill("F1")
        page.get_by_role("button", name="Show").click()
        page.get_by_text("Do something with all files that fit").click()
        page.get_by_role("button", name="Pause all").click()
        expect(page.locator("#told")).to_contain_text("Pause all files of flight F1: 120 at this moment")
        expect(page.get_by_role("button", name="No", exact=True)).to_be_focused()
        page.keyboard.press("Enter")
        expect(page.locator("#told")).to_have_text("")
        assert ledger.choose(states=[State.PAUSED]) == []
        page.get_by_role("button", name="Pause all").click()
        page.get_by_role("button", name="Yes, pause 120 files").click()
        expect(page.locator("#told")).to_have_text("120 paused")
        assert len(ledger.choose(states=[State.PAUSED])) == 120
        assert [r.path for r in ledger.choose(states=[State.QUEUED])] == ["other.mp4"]


def test_what_is_over_is_cleared_and_what_failed_dismissed_and_both_come_back(seen: Seen) -> None:
    page = seen.page
    with Ledger.open() as ledger:
        enter(ledger, ("done.mp4", State.VERIFIED), ("failed.mp4", State.FAILED), ("waiting.mp4", State.QUEUED))
        page.goto("/transfers")
        page.get_by_role("button", name="Clear completed").click()
        expect(page.get_by_role("row", name="done.mp4")).to_have_count(0)
        page.get_by_role("row", name="failed.mp4").get_by_role("button", name="Dismiss").click()
        expect(page.get_by_role("row", name="failed.mp4")).to_have_count(0)
        expect(page.get_by_role("row", name="waiting.mp4")).to_be_visible()
        page.get_by_role("link", name="Show all").click()
        expect(page.get_by_role("row", name="done.mp4")).to_be_visible()
        page.goto("/transfers")
        page.get_by_role("button", name="Take all back").click()
        for name in ("done.mp4", "failed.mp4", "waiting.mp4"):
            expect(page.get_by_role("row", name=name)).to_be_visible()
        assert len(ledger.choose(job="card")) == 3


# -- play -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("native", [True, False], ids=["as the browser can", "by hls.js"])
def test_a_clip_is_played_by_its_playlist(
    seen: Seen, run: Callable[..., subprocess.Popen[bytes]], tmp_path: Path, native: bool
) -> None:
    page = seen.page
    make(tmp_path / "card" / "GX01.mp4", seconds=6.0, gop=15)
    make(tmp_path / "card" / "GX02.mp4", seconds=1.0)
    steps = [{"kind": "thumbnail", "width": 320}, {"kind": "hls", "segment": "1s", "only": ["GX01.mp4"]}]
    assert run("clips", steps=steps).wait(180) == 0
    if not native:
        page.add_init_script("HTMLMediaElement.prototype.canPlayType = () => ''")
    page.get_by_role("link", name="Recordings", exact=True).click()
    clip = page.locator("article", has_text="GX01.mp4")
    until("its picture", lambda: clip.locator(".screen img").evaluate("e => e.naturalWidth") == 320)
    clip.locator("summary").click()
    expect(clip.locator(".files li")).to_have_count(2)  # its pieces are not listed
    expect(clip).to_contain_text("thumbnail, hls")
    clip.get_by_role("link", name="Play GX01.mp4").press("Enter")
    video = page.locator("#player video")
    until("it plays", lambda: float(video.evaluate("e => e.currentTime")) > 1)
    assert video.evaluate("e => [e.videoWidth, e.error]") == [320, None]
    assert video.evaluate("e => e.src").startswith("http" if native else "blob:")
    video.evaluate("e => { e.currentTime = 5 }")  # a part that was not asked for yet
    until("it goes on there", lambda: float(video.evaluate("e => e.currentTime")) > 5.2)
    page.get_by_role("button", name="Close").click()
    expect(video).not_to_be_visible()
    assert video.evaluate("e => e.getAttribute('src')") is None

    page.locator("article", has_text="GX02.mp4").get_by_role("link", name="Play").click()  # the file itself
    until("it plays", lambda: float(video.evaluate("e => e.currentTime")) > 0.2)
    assert "/media/" in str(video.evaluate("e => e.src"))
    page.keyboard.press("Escape")
    expect(video).not_to_be_visible()

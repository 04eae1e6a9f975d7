"""A device in the console, as an operator sees it: a real agent with a test camera, a real Prefect server, and a browser that
starts a recording, stops it, looks at it and plays it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from deployments.console.access import People, Role
from tests.agent.test_agent import Machine
from tests.console.browser import Seen, chromium
from tests.deployments.conftest import end, until
from tests.deployments.test_hooks import start_console

__all__ = ["chromium"]  # a fixture

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture
def device(api: str, onblock_home: Path) -> Iterator[Machine]:
    """An agent on the machine of the console."""
    onblock_home.mkdir()
    machine = Machine(onblock_home.parent)
    machine.start(PREFECT_API_URL=api, PREFECT_HOME=str(onblock_home.parent / "prefect"))
    try:
        yield machine
    finally:
        machine.end()


@pytest.fixture
def seen(api: str, chromium: Browser) -> Iterator[Seen]:
    """The console, by an operator."""
    token = People().add("op", Role.OPERATOR)
    process, url = start_console()
    try:
        with Seen.logged_in(chromium, url, token) as seen:
            yield seen
    finally:
        end(process)


def test_a_recording_is_started_stopped_looked_at_and_played(device: Machine, seen: Seen) -> None:
    page = seen.page
    page.get_by_role("link", name="Devices").click()
    card = page.locator("#device-cam-01")
    expect(card.locator("h3 .state")).to_have_text("idle")
    expect(card).to_contain_text("free of")  # its disk
    card.get_by_role("button", name="Start recording").click()
    expect(page.locator("#told")).to_contain_text("cam-01 is asked to start recording")
    expect(card.locator("h3 .state")).to_have_text("recording")
    until("it goes on", lambda: len([*device.home.glob("recordings/*/left/*.mkv")]) > 1)

    card.get_by_role("button", name="Stop recording").click()
    expect(page.locator("#told")).to_contain_text("cam-01 is asked to stop recording")
    expect(card.locator("h3 .state")).to_have_text("idle")
    until("it is merged", lambda: [m for m in device.manifests() if m["final"]])
    (manifest,) = device.manifests()
    assert manifest["state"] == "sealed" and manifest["streams"]["left"]["written"] > 0

    page.get_by_role("link", name="Recordings", exact=True).click()
    clip = page.locator("#here article", has_text=manifest["id"])
    expect(clip.locator(".state")).to_have_text("sealed")
    until("a frame of it", lambda: clip.locator(".screen img").evaluate("e => e.naturalWidth") == 160)
    clip.get_by_text("Timeline", exact=True).click()
    until("its timeline", lambda: clip.locator(".timeline").evaluate("e => e.naturalWidth") > 1000)
    clip.get_by_role("link", name="Play").click()
    video = page.locator("#player video")
    until("it plays", lambda: float(video.evaluate("e => e.currentTime")) > 0.5)
    assert video.evaluate("e => [e.videoWidth, e.error]") == [160, None]
    page.keyboard.press("Escape")
    expect(page.locator("#player")).not_to_be_visible()

    page.goto("/logs?device=cam-01&level=info")
    expect(page.locator("#live")).to_contain_text(manifest["id"])  # what the run of `capture` has logged
    page.get_by_label("Device").select_option("any")
    page.get_by_label("From level").select_option("error")
    page.get_by_role("button", name="Show").click()
    expect(page.locator("#live")).not_to_contain_text(manifest["id"])

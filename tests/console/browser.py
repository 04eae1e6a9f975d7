"""Debian's Chromium, driven by Playwright, and a page of the console in it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

PATIENCE_MS = 180_000.0
expect.set_options(timeout=PATIENCE_MS)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("Chromium is not installed: python -m tests.servers.install")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-dev-shm-usage"])
        yield browser
        browser.close()


class Seen:
    """A page, and what its browser complained about."""

    def __init__(self, page: Page):
        self.page, self.complaints = page, []
        page.set_default_timeout(PATIENCE_MS)
        page.on("pageerror", lambda e: self.complaints.append(str(e)))
        page.on("console", lambda m: self.complaints.append(m.text) if m.type == "error" else None)
        page.on("request", self._asked)
        self.elsewhere: list[str] = []

    @classmethod
    @contextmanager
    def logged_in(cls, browser: Browser, url: str, token: str, **options: Any) -> Iterator[Seen]:
        """A page of somebody who has logged in, who complains about nothing and asks nobody else."""
        with closing(browser.new_context(base_url=url, **options)) as context:
            seen = cls(context.new_page())
            page = seen.page
            page.goto("/transfers")
            page.get_by_label("Your token").fill(token)
            page.get_by_role("button", name="Log in").click()
            expect(page.get_by_role("heading", name="Transfers")).to_be_visible()
            yield seen
            assert not seen.complaints, seen.complaints  # the policy against foreign scripts among them
            assert not seen.elsewhere, seen.elsewhere

    def _asked(self, request: Any) -> None:
        if not request.url.startswith(("http://127.0.0.1", "data:", "blob:")):
            self.elsewhere.append(request.url)

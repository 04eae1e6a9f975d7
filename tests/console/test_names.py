"""Forty hostile file names are text on every page, whatever they hold, and JSON in the API."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

from blocks import names
from deployments.console.access import Role
from flows.ledger import State
from flows.ledger.listing import Wanted
from flows.transfer.gate import override
from flows.transfer.patterns import compile_pattern
from tests.console.conftest import Site

HOSTILE = [
    "<script>alert(1)</script>.mp4", "<img src=x onerror=alert(1)>.mp4", "\"><script>alert(1)</script>", "'><svg onload=alert(1)>",
    "a&amp;b.mp4", "a&lt;b.mp4", "{{ 7*7 }}.mp4", "{% raw %}.mp4", "${7*7}.mp4", "<%= 7*7 %>.mp4", "javascript:alert(1)",
    "' or 1=1 --", "'; DROP TABLE files; --", "a\nb.mp4", "a\r\nSet-Cookie: x=1.mp4", "a\tb.mp4", "\x1b[31mred.mp4",
    "\x07bell.mp4", "\u202egpm.exe", "\u200bzero.mp4", "\u2028line.mp4", "\ufeffbom.mp4", "-rf", "--help", "$(reboot)",
    "`reboot`", "| cat", "; ls", "*", "?", "[a-z]", "%00.mp4", "%2e%2e%2f", "..%2f..%2fetc", "CON", "a" * 240 + ".mp4",
    os.fsdecode(b"\xff\xfe.mp4"), os.fsdecode(b"caf\xe9<b>.mp4"), "<style>*{display:none}</style>", "</td></tr></table><h1>gone</h1>",
    " hx-get=/logout hx-trigger=load ", "\"hx-on:load=\"alert(1)", "<meta http-equiv=refresh content=0>", "🎥<b>.mp4",
]  # fmt: skip


class Text(HTMLParser):
    """The elements and the text of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self.asks: set[str] = set()
        self.pictures: set[str] = set()
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.asks |= {str(value).partition("?")[0] for name, value in attrs if name == "hx-get"}
        self.pictures |= {str(v).rpartition("/")[0] for name, v in attrs if tag == "img" and name == "src"}
        self.text += " "

    def handle_data(self, data: str) -> None:
        self.text += data


def read(html: str) -> Text:
    page = Text()
    page.feed(html)
    return page


@pytest.fixture
def full(site: Site) -> Iterator[Site]:
    """Each name as a failed file, a blocked one and a delivered one, in messages, findings, overrides, log and audit."""
    assert len(HOSTILE) >= 40
    found = [{"rule": "prefix", "text": "begins with <b>x</b>"}]
    for state in (State.FAILED, State.BLOCKED, State.VERIFIED):
        for name in HOSTILE:
            site.rows(
                (name, state), message=f"{names.display(name)}: <b>no</b>" if state is State.FAILED else None,
                findings=json.dumps(found) if state is State.BLOCKED else None, kind="UNKNOWN" if state is State.FAILED else None,
                flight="F<1>", device="cam",
            )  # fmt: skip
    override(site.ledger, "card", "prefix", "<img src=x onerror=alert(1)>*", who="pat", why="<b>because</b>")
    logs = Path(os.environ["ONBLOCK_HOME"], "logs")
    logs.mkdir(parents=True)
    lines = "".join(f"2026-11-22 20:00:00,000 WARNING {names.display(n)}\n" for n in HOSTILE)
    (logs / "console.log").write_text(lines)
    site.audit.write("pat", "x", path=[names.display(n) for n in HOSTILE])
    yield site


PAGES = {
    "/transfers?state=FAILED": True, "/transfers?state=VERIFIED": True, "/problems?state=BLOCKED": True, "/problems?state=FAILED": True,
    "/recordings": True, "/logs?source=console": True, "/logs?source=audit": True, "/": False, "/jobs": False, "/devices": False,
}  # fmt: skip


@pytest.mark.parametrize("path", PAGES)
def test_names_are_text_on_every_page(full: Site, path: str) -> None:
    answer = full.browser(Role.ADMIN).get(path)
    assert answer.status_code == 200
    page = read(answer.text)
    assert (
        page.tags.count("script") == 2
        and page.tags.count("h1") == 1
        and page.pictures <= {"/pictures"}
        and "b" not in page.tags
    )
    assert page.tags.count("meta") == 3 and "style" not in page.tags
    assert not {a for a in page.attributes if a.startswith(("on", "hx-on"))} and page.asks <= {"/transfers/bulk"}
    if PAGES[path]:
        missing = [
            n
            for n in HOSTILE
            if names.display(n) not in page.text and json.dumps(names.display(n))[1:-1] not in page.text
        ]
        assert missing == []


def test_names_are_text_on_the_page_of_each(full: Site) -> None:
    browser = full.browser()
    for row in full.office.listing.page(full_of(State.BLOCKED), limit=100).rows:
        answer = browser.get(f"/transfers/{row['id']}")
        page = read(answer.text)
        assert names.display(row["path"]) in page.text
        assert page.tags.count("script") == 2 and page.tags.count("h1") == 1 and "b" not in page.tags


def test_names_are_text_in_what_an_action_tells(full: Site) -> None:
    browser = full.browser()
    ids = [r["id"] for r in full.office.listing.page(full_of(State.VERIFIED), limit=100).rows]
    for number in ids:
        answer = browser.post("/transfers/actions", data={"one": f"pause:{number}"})
        assert answer.status_code == 409
        assert read(answer.text).tags == []


def test_a_name_in_a_query_is_text(full: Site) -> None:
    browser = full.browser()
    for name in HOSTILE:
        answer = browser.get(
            "/transfers", params={"q": names.display(name), "flight": name.encode("utf-8", "replace").decode()}
        )
        assert answer.status_code == 200
        page = read(answer.text)
        assert page.tags.count("script") == 2 and page.tags.count("h1") == 1 and "b" not in page.tags


def test_names_are_json_in_the_api_and_labels_in_the_metrics(full: Site) -> None:
    program = full.program()
    told = program.get("/api/v1/transfers?state=FAILED&limit=100").json()["items"]
    assert {t["path"] for t in told} == {names.display(n) for n in HOSTILE}
    assert program.get("/metrics").status_code == 200


def test_an_override_of_a_file_is_for_that_file_alone(full: Site) -> None:
    """The pattern is made from the ledger's path, so that no form has to carry a name with line breaks or stars."""
    browser = full.browser()
    rows = {r["path"]: r["id"] for r in full.office.listing.page(full_of(State.BLOCKED), limit=100).rows}
    for name in ("a\nb.mp4", "*", "[a-z]", os.fsdecode(b"\xff\xfe.mp4"), "<img src=x onerror=alert(1)>.mp4"):
        answer = browser.post(
            "/overrides", data={"id": str(rows[name]), "rule": "prefix", "scope": "file", "why": "fine"}
        )
        assert answer.status_code == 200, answer.text
        pattern = full.ledger.overrides("card")[-1].path
        assert [n for n in HOSTILE if compile_pattern(pattern).fullmatch(n)] == [name]


def full_of(state: State) -> Wanted:
    return Wanted(states=frozenset({state}))

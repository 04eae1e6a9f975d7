"""What the pages' forms do, as a browser sends them: what is ticked and nothing else, all that fits and only when that is
said, what is put aside and comes back, and nothing that is not well formed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import update

from deployments.console.access import Role
from flows.ledger import State
from flows.ledger.listing import LARGEST_ID
from flows.ledger.models import File
from flows.ledger.store import now_ms
from tests.console.conftest import Site

StateOf = Callable[[int], State]


def listed(site: Site, path: str = "/transfers", role: Role = Role.OPERATOR) -> set[int]:
    """The numbers of the rows on a page."""
    answer = site.browser(role).get(path)
    assert answer.status_code == 200
    return {int(n) for n in re.findall(r'<tr id="t(\d+)"', answer.text)}


# -- what is meant ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["pause", "resume", "cancel", "retry", "dismiss", "priority-urgent"])
def test_where_nothing_is_ticked_nothing_is_meant(site: Site, state_of: StateOf, action: str) -> None:
    """However the page is filtered: rows that were ticked may have left it."""
    ids = site.rows(("a", State.QUEUED), ("b", State.QUEUED))
    form = {"action": action, "scope": "ids", "job": "card", "state": "QUEUED"}
    for sent in (form, {k: v for k, v in form.items() if k != "scope"}):
        answer = site.browser().post("/transfers/actions", data=sent)
        assert answer.status_code == 422 and "tick" in answer.text
    assert [state_of(i) for i in ids] == [State.QUEUED] * 2
    assert {r["priority"] for r in site.office.listing.rows(ids)} == {0}


def test_those_that_are_ticked_are_meant_whatever_the_filter(site: Site, state_of: StateOf) -> None:
    ids = site.rows(("a", State.QUEUED), ("b", State.QUEUED), ("c", State.QUEUED))
    form = {"action": "pause", "scope": "ids", "job": "card", "id": [str(ids[0]), str(ids[2])]}
    assert site.browser().post("/transfers/actions", data=form).status_code == 200
    assert [state_of(i) for i in ids] == [State.PAUSED, State.QUEUED, State.PAUSED]


def test_all_that_fit_are_counted_first_and_asked_for_by_their_own_button(site: Site, state_of: StateOf) -> None:
    ids = site.rows(("a", State.QUEUED), ("b", State.QUEUED), ("c", State.FAILED), flight="F<1>")
    other = site.rows(("d", State.QUEUED), flight="F2")
    browser = site.browser()
    asked = browser.get("/transfers/bulk", params={"action": "pause", "flight": "F<1>"})
    assert asked.status_code == 200
    assert (
        "Yes, pause 2 files" in asked.text and "flight F&lt;1&gt;" in asked.text and "HX-Trigger" not in asked.headers
    )
    assert [state_of(i) for i in ids] == [State.QUEUED, State.QUEUED, State.FAILED]
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', asked.text.replace("&lt;", "<").replace("&gt;", ">")))
    assert fields == {"scope": "filter", "flight": "F<1>", "action": "pause"}
    assert "2 paused" in browser.post("/transfers/actions", data=fields).text
    assert [state_of(i) for i in (*ids, *other)] == [State.PAUSED, State.PAUSED, State.FAILED, State.QUEUED]
    none = browser.get("/transfers/bulk", params={"action": "pause", "flight": "F<1>"})
    assert none.status_code == 200 and "<button" not in none.text


def test_all_of_nothing_in_particular_cannot_be_meant(site: Site, state_of: StateOf) -> None:
    (number,) = site.rows(("a", State.QUEUED))
    browser = site.browser()
    for query in ({"action": "pause"}, {"action": "pause", "q": "a", "job": "card"}, {"action": "pause", "job": "\0"}):
        assert browser.get("/transfers/bulk", params=query).status_code == 422
    with site.browser(Role.VIEWER) as viewer:  # it is counted row by row
        assert viewer.get("/transfers/bulk", params={"action": "pause", "flight": "F1"}).status_code == 403
        assert browser.post("/transfers/actions", data=query | {"scope": "filter"}).status_code == 422
    assert browser.get("/transfers/bulk", params={"action": "erase", "job": "card"}).status_code == 404
    dismissed = browser.post("/transfers/actions", data={"action": "dismiss", "scope": "filter", "job": "card"})
    assert dismissed.status_code == 422
    assert state_of(number) is State.QUEUED


# -- what is put aside ------------------------------------------------------------------------------------------------


def touched(site: Site, number: int, **values: Any) -> None:
    """Something has happened to a row."""
    with site.ledger._write() as c:
        c.execute(update(File).where(File.id == number).values(updated_at=now_ms() + 1000, **values))


def test_what_is_over_is_cleared_from_ones_own_list_and_from_nowhere_else(site: Site, state_of: StateOf) -> None:
    over = site.rows(("a", State.VERIFIED), ("b", State.DUPLICATE), ("c", State.CANCELLED))
    waiting = site.rows(("d", State.QUEUED), ("e", State.FAILED), ("f", State.DELIVERING))
    browser = site.browser()
    assert listed(site) == {*over, *waiting}
    answer = browser.post("/transfers/aside", data={"at": str(now_ms())})
    assert answer.status_code == 200 and answer.headers["HX-Trigger"] == "changed"
    assert listed(site) == listed(site, "/transfers?job=card") == set(waiting)
    assert listed(site, role=Role.ADMIN) == {*over, *waiting}
    assert listed(site, "/transfers?all=1") == listed(site, "/transfers?flight=&all=1") == {*over, *waiting}
    assert listed(site, "/transfers?state=VERIFIED") == {over[0]}  # who asks for them has them
    assert listed(site, "/transfers?q=a") == {over[0]}
    assert [state_of(i) for i in over] == [State.VERIFIED, State.DUPLICATE, State.CANCELLED]
    assert len(site.program().get("/api/v1/transfers").json()["items"]) == 6

    touched(site, waiting[2], state=State.VERIFIED)  # what is delivered afterwards is there
    touched(site, over[1])
    assert listed(site) == {*waiting, over[1]}
    assert browser.post("/transfers/aside", data={"restore": "1"}).status_code == 200
    assert listed(site) == {*over, *waiting}


def test_with_a_filter_of_flight_or_device_it_is_cleared_alike(site: Site) -> None:
    site.rows(("a", State.VERIFIED), flight="F1", device="cam")
    (waiting,) = site.rows(("b", State.QUEUED), flight="F1", device="cam")
    site.browser().post("/transfers/aside", data={"at": str(now_ms())})
    assert listed(site, "/transfers?flight=F1") == listed(site, "/transfers?device=cam&job=card") == {waiting}


def test_what_is_dismissed_is_back_when_something_happens_to_it(site: Site, state_of: StateOf) -> None:
    failed, blocked, busy, other = site.rows(
        ("a", State.FAILED), ("b", State.BLOCKED), ("c", State.DELIVERING), ("d", State.FAILED)
    )
    browser = site.browser()
    assert browser.post("/transfers/actions", data={"one": f"dismiss:{busy}"}).status_code == 409
    assert browser.post("/transfers/actions", data={"one": f"dismiss:{LARGEST_ID}"}).status_code in (409, 422)
    assert browser.post("/transfers/actions", data={"one": f"dismiss:{failed}"}).status_code == 200
    ticked = {"action": "dismiss", "scope": "ids", "id": [str(blocked), str(blocked)]}
    assert "1 dismissed" in browser.post("/transfers/actions", data=ticked).text
    assert listed(site) == {busy, other} and listed(site, "/problems") == {other}
    assert listed(site, "/problems?state=FAILED") == {failed, other}
    assert listed(site, "/problems?all=1") == {failed, blocked, other}
    assert listed(site, "/problems", Role.ADMIN) == {failed, blocked, other}
    assert (state_of(failed), state_of(blocked)) == (State.FAILED, State.BLOCKED)

    touched(site, failed)
    assert listed(site) == {failed, busy, other}
    browser.post("/transfers/actions", data={"one": f"dismiss:{other}"})
    assert listed(site) == {failed, busy}, "what has come back is not put aside by another one"


def test_a_console_that_is_started_anew_knows_what_is_put_aside(site: Site) -> None:
    (number,) = site.rows(("a", State.FAILED))
    site.browser().post("/transfers/actions", data={"one": f"dismiss:{number}"})
    again = Site.__new__(Site)
    again.__dict__ |= site.__dict__
    from deployments.console.app import create_app
    from deployments.console.desk import Desk
    from flows.ledger.hooks import Hooks

    again.app = create_app(Desk(Hooks(site.ledger.engine), site.office.server.api), site.office, site.people)
    assert listed(again) == set() and listed(again, "/transfers?all=1") == {number}
    (site.people.folder / "aside.json").write_text("[1]")
    again.app = create_app(Desk(Hooks(site.ledger.engine), site.office.server.api), site.office, site.people)
    assert listed(again) == {number}


# -- what is not well formed ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "form"),
    [
        (f"/overrides/{-(10**19)}/revoke", {"why": "x"}), (f"/overrides/{10**19}/revoke", {"why": "x"}), ("/overrides/0/revoke", {"why": "x"}),
        ("/overrides/1/revoke", {"why": ""}), ("/overrides/1/revoke", {"why": "\0"}), ("/overrides/1/revoke", {"why": "x" * 5000}),
        ("/jobs/card/run", {"flight": "\0"}), ("/jobs/card/run", {"flight": "F" * 200}), ("/jobs/card/plan", {"flight": "\0"}),
        ("/jobs/%00/run", {}), ("/jobs/%00/pause", {}), ("/jobs/" + "x" * 200 + "/run", {}), ("/devices/%00/start", {}),
        ("/overrides", {"id": "1", "rule": "prefix", "why": "\0"}), ("/overrides", {"id": "1", "rule": "prefix", "why": "x" * 900_000}),
        ("/overrides", {"id": "1", "rule": "", "why": "x"}), ("/overrides", {"id": "1", "rule": "p", "why": "x", "expires": "\0"}),
        ("/overrides", {"id": "-1", "rule": "p", "why": "x"}), ("/transfers/actions", {"one": f"pause:{10**19}"}),
        ("/transfers/actions", {"action": "pause", "scope": "filter", "flight": "\0"}), ("/transfers/actions", {"one": "x" * 90_000}),
        ("/transfers/aside", {"at": "-1"}), ("/transfers/aside", {"at": "9" * 30}), ("/transfers/aside", {}),
    ],
)  # fmt: skip
def test_what_is_not_well_formed_is_refused_and_nothing_is_done(site: Site, path: str, form: dict[str, str]) -> None:
    site.rows(("a", State.BLOCKED))
    answer = site.browser().post(path, data=form)
    assert answer.status_code == 422, (answer.status_code, answer.text[:300])
    assert site.ledger.overrides("card") == [] and site.ledger.held("card") is None
    assert not (site.people.folder / "aside.json").exists()


def test_an_override_of_a_form_is_made_as_the_api_makes_it(site: Site) -> None:
    (number,) = site.rows(("{flight}.mp4", State.BLOCKED))
    form = {"id": str(number), "rule": "placeholder", "scope": "file", "why": "by hand", "expires": "7d"}
    assert site.browser().post("/overrides", data=form).status_code == 200
    (made,) = site.ledger.overrides("card")
    assert (made.rule, made.why, made.who) == ("placeholder", "by hand", "operator") and made.expires_at
    assert site.browser().post(f"/overrides/{made.id}/revoke", data={"why": "done"}).status_code == 200
    assert [o.revoked is not None for o in site.ledger.overrides("card")] == [True]

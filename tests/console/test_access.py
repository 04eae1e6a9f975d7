"""Who gets in, as what, and who does not: every route that there is, and every way in that there is not."""

from __future__ import annotations

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from typer.testing import CliRunner

from blocks.errors import ConfigError
from deployments.access import access
from deployments.console.access import IDLE_S, WITHIN_S, WRONG, People, Role, Sessions, Throttle
from deployments.console.guard import MOST_BYTES, OPEN, SAFE
from flows.ledger import State
from tests.console.conftest import Site

FILLED = {"number": "1", "recording": "x", "name": "card", "what": "start", "path": "app.css", "event_id": "x"}
THEIR_OWN = {"/hooks/{name}", "/login", "/logout"}
"""What changes something, and is not for operators: it has its own tests."""
ADMINS_ONLY = {"/api/v1/config/jobs/{name}", "/config/jobs/{name}", "/jobs/{name}"}
"""Jobs are changed by admins, however the router tells its path."""


def routes(site: Site) -> list[tuple[str, str]]:
    """(method, path) of all there are, however deep they are nested."""

    def below(some: Any) -> list[APIRoute]:
        found: list[APIRoute] = []
        for route in some:
            if isinstance(route, APIRoute):
                found.append(route)
            elif hasattr(route, "routes"):
                found += below(route.routes or [])
            elif hasattr(route, "original_router"):
                found += below(route.original_router.routes)
        return found

    return sorted((m, r.path) for r in below(site.app.routes) for m in r.methods or ())


def test_all_routes_are_found(site: Site) -> None:
    told = {(m.upper(), p) for p, ms in site.app.openapi()["paths"].items() for m in ms}
    found = set(routes(site))
    assert told <= found
    assert {("POST", "/transfers/actions"), ("POST", "/hooks/{name}"), ("GET", "/metrics"), ("GET", "/")} <= found


def test_what_changes_something_refuses_viewers_strangers_and_pages_from_elsewhere(site: Site) -> None:
    changing = [(m, p) for m, p in routes(site) if m not in SAFE and p not in THEIR_OWN]
    assert len(changing) >= 12
    viewer, stranger, operator = site.program(Role.VIEWER), site.program(None), site.program()
    browser, watching, admin = site.browser(), site.browser(Role.VIEWER), site.program(Role.ADMIN)
    for method, pattern in changing:
        path = pattern.format(**FILLED)

        def ask(client: TestClient, **head: str) -> int:
            return client.request(method, path, headers=head, json={}).status_code  # noqa: B023

        assert ask(viewer) == 403, path
        assert ask(watching) == 403, path
        assert ask(stranger) == 401, path
        for site_of in ("cross-site", "same-site", "none"):
            assert ask(browser, **{"Sec-Fetch-Site": site_of}) == 403, (path, site_of)
            assert ask(operator, **{"Sec-Fetch-Site": site_of}) == 403, (path, site_of)
        old = TestClient(site.app, cookies=browser.cookies)  # a browser of the time before Sec-Fetch-Site
        assert ask(old, Origin="http://evil.example") == 403, path
        assert ask(old, Origin="null") == 403, path
        assert ask(old) == 403, path
        if pattern in ADMINS_ONLY:
            assert ask(operator) == ask(browser) == 403, path
            assert ask(admin) not in (401, 403), path
            continue
        assert ask(operator) not in (401, 403), path  # else the refusals would prove nothing
        assert ask(browser) not in (401, 403), path
    assert all(line["status"] >= 400 for line in site.audit.recent() if line["what"].startswith("POST")), (
        "nothing was done"
    )


def test_what_only_looks_refuses_strangers(site: Site) -> None:
    looking = [(m, p) for m, p in routes(site) if m == "GET" and p not in OPEN]
    looking += [("GET", "/api/v1/openapi.json"), ("GET", "/nothing"), ("GET", "/api/v1/nothing")]
    stranger = site.program(None)
    for method, pattern in looking:
        answer = stranger.request(method, pattern.format(**FILLED))
        if pattern.startswith("/api/") or pattern == "/metrics":
            assert answer.status_code == 401, pattern
        else:
            assert answer.status_code == 303, pattern
            assert answer.headers["location"].startswith("/login"), pattern
    for path in ("/health", "/login", "/static/app.css"):
        assert stranger.get(path).status_code == 200


def test_only_admins_read_the_audit_log(site: Site) -> None:
    assert site.program(Role.OPERATOR).get("/api/v1/audit").status_code == 403
    assert site.program(Role.ADMIN).get("/api/v1/audit").status_code == 200
    assert "audit" not in site.browser(Role.OPERATOR).get("/logs?source=audit").text


def test_webhooks_are_asked_for_their_signature_and_nothing_else(site: Site) -> None:
    answer = site.program(None).post("/hooks/flight-end", content=b"{}")
    assert answer.status_code == 401
    assert "X-Onblock-Sender" in answer.json()["detail"]


# -- log in, log out --------------------------------------------------------------------------------------------------


def test_a_session_is_opened_by_a_token_and_ended_by_a_log_out(site: Site) -> None:
    browser = site.browser()
    kept = browser.cookies["onblock"]
    assert browser.get("/transfers").status_code == 200
    assert browser.post("/logout").status_code == 303
    browser.cookies.set("onblock", kept)
    assert browser.get("/transfers").status_code == 303


def test_the_cookie_is_for_this_site_alone_and_no_script(site: Site) -> None:
    answer = site.program(None).post("/login", data={"token": site.tokens[Role.VIEWER]})
    told = answer.headers["set-cookie"].lower()
    assert "httponly" in told and "samesite=lax" in told and "path=/" in told and "secure" not in told
    assert site.tokens[Role.VIEWER].lower() not in told


def test_another_token_or_none_ends_sessions_and_programs(site: Site) -> None:
    browser, program = site.browser(), site.program()
    site.people.add("operator", Role.OPERATOR)
    assert browser.get("/").status_code == 303
    assert program.get("/api/v1/jobs").status_code == 401
    viewer = site.browser(Role.VIEWER)
    site.people.remove("viewer")
    assert viewer.get("/").status_code == 303


def test_a_role_that_was_taken_counts_at_once(site: Site) -> None:
    token = site.people.add("pat", Role.OPERATOR)
    program = TestClient(site.app, headers={"Authorization": f"Bearer {token}"})
    (number,) = site.rows(("a", State.QUEUED))
    file = site.people.folder / "people.json"
    told = json.loads(file.read_text())
    told["pat"]["role"] = "viewer"
    file.write_text(json.dumps(told, indent=2))
    assert program.post("/api/v1/transfers/actions", json={"action": "cancel", "ids": [number]}).status_code == 403


@pytest.mark.parametrize(
    "where", ["//evil.example/", "https://evil.example", "/\\evil.example", "/login", "javascript:1"]
)
def test_a_log_in_leads_nowhere_else(site: Site, where: str) -> None:
    answer = site.program(None).post("/login", data={"token": site.tokens[Role.VIEWER], "next": where})
    assert answer.headers["location"] == "/"


def test_guessing_is_limited_and_told(site: Site) -> None:
    stranger = site.program(None)
    codes = [stranger.post("/login", data={"token": f"onblock_{i}"}).status_code for i in range(WRONG + 3)]
    assert codes == [401] * WRONG + [429] * 3
    refused = stranger.post("/login", data={"token": "onblock_x"})
    assert refused.status_code == 429 and int(refused.headers["retry-after"]) <= WITHIN_S + 1
    # programs that guess are no better off
    assert stranger.get("/api/v1/jobs", headers={"Authorization": "Bearer x"}).status_code == 429
    assert sum(line["what"] == "wrong token" for line in site.audit.recent()) == WRONG
    # who has a session goes on
    assert site.program(None).get("/health").status_code == 200


def test_the_throttle_forgets(onblock_home: Path) -> None:
    now = [0.0]
    throttle = Throttle(lambda: now[0])
    for _ in range(WRONG):
        assert throttle.wait_s("a") == 0
        throttle.count("a")
    assert throttle.wait_s("a") == WITHIN_S
    assert throttle.wait_s("b") == 0
    now[0] = WITHIN_S
    assert throttle.wait_s("a") == 0


def test_sessions_end_by_themselves(onblock_home: Path) -> None:
    now, people = [0.0], People(onblock_home)
    token = people.add("pat", Role.VIEWER)
    sessions = Sessions(people, lambda: now[0])
    person = people.by_token(token)
    assert person is not None
    secret = sessions.open(person)
    for _ in range(40):
        now[0] += IDLE_S / 2
        if sessions.person(secret) is None:
            break
    assert 6 * 86_400 < now[0] < 8 * 86_400  # used all the time, it ends after a week
    other = sessions.open(person)
    now[0] += IDLE_S + 1
    assert sessions.person(other) is None


# -- the files --------------------------------------------------------------------------------------------------------


def test_the_first_start_makes_an_admin_whom_nobody_else_can_read(onblock_home: Path) -> None:
    people = People()
    file = people.first_start()
    assert file is not None and file.parent == onblock_home / "console"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    person = people.by_token(file.read_text().strip())
    assert person is not None and (person.name, person.role) == ("admin", Role.ADMIN)
    assert file.read_text().strip() not in (file.parent / "people.json").read_text()
    assert stat.S_IMODE((file.parent / "people.json").stat().st_mode) == 0o600
    before = file.read_text()
    assert People().first_start() == file and file.read_text() == before  # the second start makes nobody
    file.unlink()
    assert People().first_start() is None  # he keeps it elsewhere


def test_two_installations_have_two_tokens(tmp_path: Path) -> None:
    tokens = [p.read_text() for p in (People(tmp_path / str(i)).first_start() for i in range(2)) if p]
    assert len(set(tokens)) == 2


@pytest.mark.parametrize("name", ["", "../x", "a b", "-a", "a\nb", "x" * 101])
def test_bad_names_are_refused(onblock_home: Path, name: str) -> None:
    with pytest.raises(ConfigError):
        People().add(name, Role.VIEWER)
    assert People().all() == []


# -- what every answer has --------------------------------------------------------------------------------------------


def test_every_answer_forbids_scripts_and_frames_from_elsewhere(site: Site) -> None:
    browser = site.browser()
    for path in ("/", "/transfers", "/nothing", "/api/v1/jobs", "/static/app.js", "/health"):
        head = browser.get(path).headers
        policy = head["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy and "http" not in policy and "*" not in policy
        assert head["x-content-type-options"] == "nosniff"
        assert head["referrer-policy"] == "same-origin"


def test_pages_have_nothing_inline_and_nothing_from_elsewhere(site: Site) -> None:
    site.rows(("a.mp4", State.FAILED), ("b.mp4", State.VERIFIED))
    browser = site.browser(Role.ADMIN)
    for path in (
        "/",
        "/transfers",
        "/transfers/1",
        "/problems",
        "/jobs",
        "/devices",
        "/recordings",
        "/logs",
        "/logs?source=audit",
    ):
        text = browser.get(path).text
        assert " style=" not in text and "<style" not in text and " onclick" not in text, path
        assert "http://" not in text.replace("http://www.w3.org/2000/svg", "") and "https://" not in text, path
        assert text.count("<script") == text.count('<script src="/static/'), path


def test_long_bodies_and_those_of_unknown_length_are_refused(site: Site) -> None:
    program = site.program()
    assert program.post("/api/v1/overrides", content=b"x" * (MOST_BYTES + 1)).status_code == 413
    assert program.post("/api/v1/overrides", content=iter([b"{}"])).status_code == 411


def test_what_cannot_be_written_down_is_not_done(site: Site, state_of: Callable[[int], State]) -> None:
    (number,) = site.rows(("a", State.QUEUED))
    site.audit.file.unlink(missing_ok=True)
    site.audit.file.mkdir()
    answer = site.program().post("/api/v1/transfers/actions", json={"action": "cancel", "ids": [number]})
    assert answer.status_code == 507
    assert state_of(number) is State.QUEUED


def test_actions_are_written_down_with_who_and_what(site: Site) -> None:
    (number,) = site.rows(("a", State.QUEUED))
    site.program().post("/api/v1/transfers/actions", json={"action": "pause", "ids": [number]})
    line = site.audit.recent()[0]
    assert (line["who"], line["action"], line["ids"], line["status"]) == ("operator", "pause", [number], 200)
    assert stat.S_IMODE(site.audit.file.stat().st_mode) == 0o600
    assert all(token not in site.audit.file.read_text() for token in site.tokens.values())


def test_the_command_line_gives_and_takes_tokens(onblock_home: Path) -> None:
    def onblock(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(access, words)
        return (2 if isinstance(done.exception, ConfigError) else done.exit_code), done.stdout.strip()

    assert onblock("list")[1].startswith("nobody yet")
    code, token = onblock("add", "alex", "--role", "operator")
    person = People().by_token(token)
    assert code == 0 and person is not None and (person.name, person.role) == ("alex", Role.OPERATOR)
    assert onblock("list")[1].startswith("alex  operator  since")
    assert onblock("add", "eve", "--role", "root")[0] == 2
    assert onblock("remove", "alex") == (0, "alex has no access any more")
    assert onblock("remove", "alex")[0] == 2
    assert People().by_token(token) is None


def test_a_browser_is_told_on_a_page_and_a_program_in_json(site: Site) -> None:
    browser = site.browser()
    page = browser.get("/transfers/77", headers={"Accept": "text/html"})
    assert page.status_code == 404 and "there is no transfer 77" in page.text and "<nav" in page.text
    assert browser.get("/transfers/77", headers={"Accept": "*/*"}).json()["status"] == 404
    assert browser.get("/nothing<b>", headers={"Accept": "text/html"}).status_code == 404

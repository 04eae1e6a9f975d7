"""The API for programs: pages, actions as the command line has them, errors as RFC 9457 has them, and no 5xx."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, settings
from prometheus_client.parser import text_string_to_metric_families
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from deployments.console.access import Role
from flows.ledger import State
from flows.ledger.listing import STRIDE, Listing, Wanted
from tests.console.conftest import Site

StateOf = Callable[[int], State]


def everything(client: TestClient, **query: str) -> list[int]:
    """The ids of all pages, in the order in which they come."""
    found: list[int] = []
    while True:
        page = client.get("/api/v1/transfers", params=query).json()
        found += [t["id"] for t in page["items"]]
        if page["next"] is None:
            return found
        query["cursor"] = page["next"]


def test_pages_hold_each_row_once_the_newest_first(site: Site) -> None:
    ids = site.rows(*((f"f{i}", State.QUEUED) for i in range(25)))
    ids += site.rows(*((f"g{i}", State.VERIFIED) for i in range(25)), job="other")
    program = site.program(Role.VIEWER)
    assert everything(program, limit="7") == sorted(ids, reverse=True)
    assert everything(program, limit="7", job="other") == sorted(ids[25:], reverse=True)
    assert everything(program, limit="10", state="QUEUED") == sorted(ids[:25], reverse=True)
    assert everything(program, job="card", state="VERIFIED") == []
    assert everything(program, q="F1") == [ids[i] for i in (19, 18, 17, 16, 15, 14, 13, 12, 11, 10, 1)]


def test_a_search_that_takes_too_long_for_one_page_goes_on_with_the_next(site: Site) -> None:
    wanted = site.rows(("needle", State.VERIFIED))
    site.rows(*((f"hay{i}", State.VERIFIED) for i in range(3 * STRIDE)))
    listing = Listing(site.ledger.engine)
    before, pages, found = None, 0, []
    while True:
        page = listing.page(Wanted(text="NEEDLE"), before=before, limit=10, budget_s=0.0)
        found += [r["id"] for r in page.rows]
        pages, before = pages + 1, page.next
        if before is None:
            break
    assert found == wanted
    assert pages == 4


def test_a_file_is_found_by_its_hash_and_by_flight_and_device(site: Site) -> None:
    digest = "ab" * 32
    (one,) = site.rows(("a", State.VERIFIED), sha256=digest, flight="F1", device="cam-1")
    site.rows(("b", State.VERIFIED), sha256="cd" * 32, flight="F2", device="cam-1")
    program = site.program(Role.VIEWER)
    assert everything(program, q=digest.upper()) == [one]
    assert everything(program, q=digest, state="FAILED") == []
    assert everything(program, flight="F1") == [one]
    assert len(everything(program, device="cam-1")) == 2
    assert [r["id"] for r in program.get("/api/v1/recordings?flight=F1").json()["items"]] == [one]


def test_rows_tell_what_a_person_must_know(site: Site) -> None:
    (number,) = site.rows(("DCIM/a.mp4", State.FAILED), kind="DISK_FULL", message="no room", stage="write", tries=3)
    told = site.program(Role.VIEWER).get(f"/api/v1/transfers/{number}").json()
    assert (told["path"], told["state"], told["kind"], told["message"]) == (
        "DCIM/a.mp4",
        "FAILED",
        "DISK_FULL",
        "no room",
    )
    history = site.program(Role.VIEWER).get(f"/api/v1/transfers/{number}/history").json()
    assert [e["what"] for e in history["events"]] == ["failed", "queued"]


@pytest.mark.parametrize(
    ("action", "before", "after"),
    [
        ("pause", State.QUEUED, State.PAUSED), ("resume", State.PAUSED, State.QUEUED), ("cancel", State.BLOCKED, State.CANCELLED),
        ("retry", State.FAILED, State.QUEUED), ("retry", State.VERIFIED, State.QUEUED),
    ],
)  # fmt: skip
def test_actions_do_what_the_command_line_does(
    site: Site, state_of: StateOf, action: str, before: State, after: State
) -> None:
    (number,) = site.rows(("a", before))
    answer = site.program().post("/api/v1/transfers/actions", json={"action": action, "ids": [number]})
    assert answer.status_code == 200, answer.text
    assert answer.json()["moved"] == 1
    assert state_of(number) is after


def test_what_does_not_fit_one_of_them_is_refused_and_nothing_changes(site: Site, state_of: StateOf) -> None:
    queued, done = site.rows(("a", State.QUEUED), ("b", State.VERIFIED))
    answer = site.program().post("/api/v1/transfers/actions", json={"action": "pause", "ids": [queued, done]})
    assert answer.status_code == 409
    assert answer.headers["content-type"] == "application/problem+json"
    told = answer.json()
    assert (
        told["status"] == 409
        and told["title"] == "Conflict"
        and "is VERIFIED" in told["detail"]
        and told["kind"] == "CONFIG"
    )
    assert state_of(queued) is State.QUEUED


def test_a_number_that_is_none_is_not_found(site: Site) -> None:
    program = site.program()
    assert program.get("/api/v1/transfers/77").status_code == 404
    answer = program.post("/api/v1/transfers/actions", json={"action": "pause", "ids": [77]})
    assert answer.status_code == 404 and "77" in answer.json()["detail"]


def test_a_whole_job_is_held_and_let_go(site: Site) -> None:
    site.rows(("a", State.VERIFIED))
    program = site.program()
    assert program.post("/api/v1/transfers/actions", json={"action": "pause", "job": "card"}).status_code == 200
    assert site.ledger.held("card") == "operator"
    assert program.post("/api/v1/transfers/actions", json={"action": "resume", "job": "card"}).status_code == 200
    assert site.ledger.held("card") is None


def test_priority_goes_to_those_that_fit(site: Site) -> None:
    site.rows(("a", State.QUEUED), ("b", State.QUEUED), flight="F1")
    site.rows(("c", State.QUEUED), flight="F2")
    ask = {"action": "priority", "level": "URGENT", "flight": "F1"}
    assert site.program().post("/api/v1/transfers/actions", json=ask).json()["moved"] == 2
    told = {t["path"]: t["priority"] for t in site.program().get("/api/v1/transfers").json()["items"]}
    assert told == {"a": "URGENT", "b": "URGENT", "c": "NORMAL"}


def test_an_override_is_made_and_revoked_with_who_and_why(site: Site) -> None:
    site.rows(("a", State.BLOCKED))
    program = site.program()
    ask = {"job": "card", "rule": "placeholder", "path": "*.mp4", "why": "a test clip", "expires": "7d"}
    made = program.post("/api/v1/overrides", json=ask)
    assert made.status_code == 201, made.text
    assert made.json()["who"] == "operator" and made.json()["state"] == "active"
    number = made.json()["id"]
    assert program.post(f"/api/v1/overrides/{number}/revoke", json={"why": ""}).status_code == 422
    assert program.post(f"/api/v1/overrides/{number}/revoke", json={"why": "done"}).json()["state"] == "revoked"
    assert program.post(f"/api/v1/overrides/{number}/revoke", json={"why": "again"}).status_code == 409


def test_counts_and_metrics_say_the_same(site: Site) -> None:
    site.rows(("a", State.FAILED), ("b", State.FAILED), kind="AUTH")
    site.rows(("c", State.VERIFIED), ("d", State.QUEUED))
    program = site.program(Role.VIEWER)
    told = program.get("/api/v1/stats/summary").json()
    assert told["totals"] | {"failed": 2, "delivered": 1, "queued": 1} == told["totals"]
    assert told["failures"] == {"AUTH": 2}
    answer = program.get("/metrics")
    metrics = {f.name: f.samples for f in text_string_to_metric_families(answer.text)}
    assert {(s.labels["state"], s.value) for s in metrics["onblock_files"]} == {
        ("FAILED", 2),
        ("QUEUED", 1),
        ("VERIFIED", 1),
    }
    assert [(s.labels, s.value) for s in metrics["onblock_failed_files"]] == [
        ({"onblock_job": "card", "kind": "AUTH"}, 2)
    ]
    assert metrics["onblock_queue_age_seconds"][0].value >= 0


def test_without_a_prefect_server_what_needs_one_says_so(site: Site) -> None:
    site.rows(("a", State.QUEUED))
    program = site.program()
    assert program.post("/api/v1/jobs/card/run", json={}).status_code == 503
    assert program.get("/api/v1/logs/recent").status_code == 503
    assert [j["name"] for j in program.get("/api/v1/jobs").json()] == ["card"]
    told = program.get("/api/v1/health").json()
    assert told["ledger"] == "ok" and not told["ok"] and "Prefect" in told["prefect"]


NEED_PREFECT = {
    "POST /jobs/{name}/run", "POST /jobs/{name}/plan", "POST /devices/{name}/recording/{what}", "GET /jobs/{name}/config", "GET /logs/recent",
    "GET /config/jobs", "GET /config/jobs/{name}",
}  # fmt: skip
"""What asks the Prefect server, which is away here, and has nothing to say without it."""


@pytest.mark.timeout(600)
def test_no_request_that_fits_the_openapi_document_or_not_is_a_5xx_of_ours(site: Site) -> None:
    """503 is what a Prefect server that is away is told by, where there is nothing to say without one: nothing else above
    499 may come."""
    site.rows(("a", State.QUEUED), ("b", State.FAILED), ("c", State.VERIFIED))
    site.audit.file.parent.mkdir(exist_ok=True)
    schema = schemathesis.openapi.from_asgi(
        "/api/v1/openapi.json", site.app, headers={"Authorization": f"Bearer {site.tokens[Role.ADMIN]}"}
    )
    token, asked, away = {"Authorization": f"Bearer {site.tokens[Role.ADMIN]}"}, 0, set[str]()
    for found in schema.get_all_operations():
        operation = found.ok()
        name = f"{operation.method.upper()} {operation.path.removeprefix('/api/v1')}"
        if operation.path.endswith("/stream"):
            continue

        from hypothesis import given

        @settings(
            max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None, derandomize=True
        )
        @given(
            case=operation.as_strategy(generation_mode=GenerationMode.POSITIVE)
            | operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)
        )
        def ask(case: schemathesis.Case) -> None:
            nonlocal asked
            asked += 1
            answer = case.call(headers=token)
            if answer.status_code == 503 and name in NEED_PREFECT:  # noqa: B023 (it is called here and now)
                told = json.loads(answer.content)
                assert told["kind"] == "NETWORK" and told["detail"].startswith("the Prefect server does not answer")
                away.add(name)  # noqa: B023
                return
            case.validate_response(answer, checks=[not_a_server_error])

        ask()
    assert asked > 200
    assert away == NEED_PREFECT

"""What the console sees of a real Prefect server: every device that told something, every job's next run, and a login that is
refused.
"""

from __future__ import annotations

import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import SyncPrefectClient

from deployments.bootstrap import bootstrap
from deployments.console.pages import NAV
from deployments.console.prefect_api import PrefectApi
from deployments.console.server_view import EVENTS, RUNS, STATUS_EVENT, ServerView
from deployments.up import environment
from flows.ledger import Ledger
from tests.console.conftest import Site
from tests.deployments.conftest import answers, end, free_port, until


def event(device: str, at: datetime, n: int = 0) -> dict[str, Any]:
    """What the agent of a device tells."""
    return {
        "id": str(uuid.uuid4()), "event": STATUS_EVENT, "occurred": at.isoformat(), "related": [],
        "resource": {"prefect.resource.id": f"onblock.device.{device}"}, "payload": {"device": device, "n": n},
    }  # fmt: skip


def test_a_device_is_seen_however_much_others_tell(api: str) -> None:
    now = datetime.now(UTC)
    many = [event("cam-loud", now - timedelta(seconds=i / 10), i) for i in range(3 * EVENTS)]
    quiet, slow = event("cam-quiet", now - timedelta(seconds=200)), event("cam-old", now - timedelta(seconds=900))
    with httpx.Client(base_url=api, timeout=180) as http:
        http.post("/events", json=[slow, quiet, *many]).raise_for_status()
        view = ServerView(PrefectApi(api))

        def seen() -> dict[str, Any]:
            view._devices.forget()
            return {name: told for name, told in view._devices.get(180).items() if told and name.startswith("cam-")}

        until("the last of all", lambda: seen().get("cam-loud", {}).get("n") == 0 and "cam-quiet" in seen())
        assert "cam-old" not in seen()
        again = event("cam-loud", datetime.now(UTC), -1)
        http.post("/events", json=[again]).raise_for_status()
        until("what is new", lambda: seen()["cam-loud"]["n"] == -1)
        assert seen()["cam-quiet"]["told_at"]  # known from before, and not asked for again


def test_the_next_run_of_a_job_is_seen_however_many_others_have(api: str, write_job: Callable[..., Path]) -> None:
    bootstrap([write_job("due-often"), write_job("due-once")])
    view = ServerView(PrefectApi(api))
    found = {d.name: d for d in view._deployments.get(180) if d.name.startswith("due-")}
    soon, made = datetime.now(UTC) + timedelta(hours=3), []
    with httpx.Client(base_url=api, timeout=180) as http:

        def schedule(name: str, at: datetime) -> None:
            state = {"type": "SCHEDULED", "state_details": {"scheduled_time": at.isoformat()}}
            answer = http.post(f"/deployments/{found[name].id}/create_flow_run", json={"state": state})
            made.append(answer.raise_for_status().json()["id"])

        try:
            for n in range(RUNS + 5):
                schedule("due-often", soon + timedelta(seconds=n))
            schedule("due-once", soon + timedelta(days=1))

            def due() -> dict[str, str | None]:
                view._deployments.forget()
                return {d.name: d.next_at for d in view._deployments.get(180) if d.name.startswith("due-")}

            wanted = {"due-often": soon, "due-once": soon + timedelta(days=1)}
            until("both", lambda: {n: at and datetime.fromisoformat(at) for n, at in due().items()} == wanted)
        finally:
            for number in made:
                http.delete(f"/flow_runs/{number}")


@pytest.fixture
def locked_server(tmp_path: Path) -> Iterator[str]:
    """The API of a Prefect server that wants a login."""
    port, url = free_port(), ""
    url = f"http://127.0.0.1:{port}"
    given = {**os.environ, "PREFECT_HOME": str(tmp_path / "prefect"), "ONBLOCK_HOME": str(tmp_path / "onblock")}
    given["PREFECT_SERVER_API_AUTH_STRING"] = "admin:of the server"
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env=environment(given, "127.0.0.1", port, url), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        until("a Prefect server that answers", lambda: process.poll() is not None or answers(url), 120)
        assert process.poll() is None, (tmp_path / "server.log").read_text()
        yield f"{url}/api"
    finally:
        end(process)


def test_pages_work_where_the_login_at_the_server_is_wrong(locked_server: str, onblock_home: Path) -> None:
    with Ledger.open() as ledger:
        site = Site(ledger, onblock_home / "console", locked_server)
        browser = site.browser()
        for path, _ in NAV:
            page = browser.get(path, headers={"Accept": "text/html"})
            assert (path, page.status_code) == (path, 200), page.text
            assert "refuses our login" in page.text
        answer = site.program().post("/api/v1/jobs/card/run", json={})
        assert (answer.status_code, answer.json()["kind"]) == (503, "AUTH")
        right = PrefectApi(locked_server, "admin:of the server")
        assert ServerView(right).deployments() == []
        right.close()


def test_what_starts_a_job_is_known_as_soon_as_it_changes(
    api: str, client: SyncPrefectClient, write_job: Callable[..., Path]
) -> None:
    """Although it is only read when it has: as when somebody switches it off in Prefect's UI."""
    view = PrefectApi(api)
    asked: list[str] = []
    call = view.call
    view.call = lambda path, body: (asked.append(path), call(path, body))[1]  # type: ignore[method-assign]

    def devices() -> set[str]:
        view.refresh()
        return {start.device for start in view.known().starts if start.device.startswith("sw-")}

    bootstrap([write_job("switched", device="sw-1")])
    assert devices() == {"sw-1"}
    asked.clear()
    assert devices() == {"sw-1"} and len([path for path in asked if path == "/automations/filter"]) == 1, "the newest"
    deployment = client.read_deployment_by_name("transfer/switched")
    related = client.read_resource_related_automations(f"prefect.deployment.{deployment.id}")
    for automation in related:
        client.pause_automation(automation.id)
    assert devices() == set()
    for automation in related:
        client.resume_automation(automation.id)
    assert devices() == {"sw-1"}
    bootstrap([write_job("switched", device="sw-2")])
    assert devices() == {"sw-2"}
    for automation in client.read_resource_related_automations(f"prefect.deployment.{deployment.id}"):
        client.delete_automation(automation.id)
    assert devices() == set()

"""The console with a real Prefect server and worker: jobs as they are deployed, planned, run; logs; recording on a device."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from prefect.events import emit_event

from deployments.bootstrap import bootstrap
from deployments.console.access import People, Role
from deployments.console.server_view import STATUS_EVENT
from deployments.server import POOL
from tests.deployments.conftest import end, until
from tests.deployments.test_hooks import start_console


@pytest.fixture
def operator(api: str, write_job: Callable[..., Path], tmp_path: Path) -> Iterator[httpx.Client]:
    """A program with a token, and a job `console-card` with one file."""
    bootstrap([write_job("console-card", schedule={"cron": "30 5 * * *", "timezone": "Europe/Berlin"})])
    (tmp_path / "card" / "clip.mp4").write_bytes(b"clip" * 1000)
    os.utime(tmp_path / "card" / "clip.mp4", (1_700_000_000, 1_700_000_000))
    token = People().add("op", Role.OPERATOR)
    process, url = start_console()
    with httpx.Client(base_url=f"{url}/api/v1", headers={"Authorization": f"Bearer {token}"}, timeout=180) as client:
        yield client
    end(process)


def answer(ask: Callable[[], httpx.Response]) -> Any:
    """What is answered at last: Prefect's server may stand still for a minute."""

    def taken() -> httpx.Response | None:
        got = ask()
        assert got.status_code < 300 or got.status_code == 503, got.text
        return got if got.status_code < 300 else None

    return until("an answer", taken).json()


def test_a_job_is_listed_planned_and_run(operator: httpx.Client, worker: Callable[[str], Path], tmp_path: Path) -> None:
    def listed() -> dict[str, Any] | None:
        jobs = answer(lambda: operator.get("/jobs"))
        return next((j for j in jobs if j["name"] == "console-card" and j["next_run_at"]), None)

    job = until("a job with its next run", listed)
    assert job["deployed"] and job["schedules"] == ["30 5 * * * Europe/Berlin"] and job["states"] == {}

    config = answer(lambda: operator.get("/jobs/console-card/config"))
    assert config["source"] == "local-storage/console-card-source"

    plan = answer(lambda: operator.post("/jobs/console-card/plan", json={}))
    assert (plan["to_deliver"], plan["files"][0]["path"]) == (1, "clip.mp4")
    assert not (tmp_path / "archive" / "clip.mp4").exists()

    worker(POOL)
    run = answer(lambda: operator.post("/jobs/console-card/run", json={}))["flow_run_id"]
    until("the file", lambda: (tmp_path / "archive" / "clip.mp4").exists())
    page = until("a verified row", lambda: operator.get("/transfers?job=console-card&state=VERIFIED").json()["items"])
    assert page[0]["dest_path"] == "clip.mp4"
    history = operator.get(f"/transfers/{page[0]['id']}/history").json()
    assert history["run"]["flow_run_id"] == run

    def logged() -> list[dict[str, Any]]:
        return answer(lambda: operator.get("/logs/recent", params={"run": run}))

    assert until("logs of the run", logged)[0]["flow_run_id"] == run
    assert operator.post("/jobs/nothing-of-that-name/run", json={}).status_code == 404


def test_what_a_device_tells_is_shown(operator: httpx.Client) -> None:
    told = {
        "device": "cam-con",
        "battery": {"percent": 71.0, "charging": False},
        "recording": {"state": "idle"},
        "ssid": "<b>",
    }
    emit_event(STATUS_EVENT, {"prefect.resource.id": "onblock.device.cam-con"}, payload=told)

    def shown() -> dict[str, Any] | None:
        devices = answer(lambda: operator.get("/devices"))
        return next((d for d in devices if d["name"] == "cam-con" and d["status"]), None)

    status = until("what the device told", shown)["status"]
    assert status["battery"]["percent"] == 71.0
    head = operator.headers["Authorization"]
    metrics = httpx.get(
        str(operator.base_url).replace("/api/v1", "/metrics").rstrip("/"),
        headers={"Authorization": head},
        timeout=180,
    )
    assert 'onblock_device_battery_percent{device="cam-con"} 71.0' in metrics.text

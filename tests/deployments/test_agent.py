"""The agent and a real Prefect server that comes and goes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import FlowRun, WorkPoolStatus
from prefect.exceptions import ObjectNotFound

from tests.agent.test_agent import Machine
from tests.deployments.conftest import until
from tests.servers.faultproxy import FaultProxy


@pytest.fixture
def device(api: str, tmp_path: Path) -> Iterator[tuple[Machine, FaultProxy]]:
    """A device whose server is behind a proxy, which is down at first."""
    machine = Machine(tmp_path)
    proxy = FaultProxy(int(api.rpartition(":")[2].partition("/")[0])).up()
    proxy.down()
    try:
        machine.start(PREFECT_API_URL=f"http://127.0.0.1:{proxy.port}/api", PREFECT_HOME=str(tmp_path / "prefect"))
        yield machine, proxy
    finally:
        machine.end()
        proxy.down()


def events(client: SyncPrefectClient, name: str, resource: str) -> list[dict[str, Any]]:
    wanted = {"event": {"name": [name]}, "resource": {"id": [resource]}}
    return client.request("POST", "/events/filter", json={"filter": wanted}).json()["events"]


def test_a_device_works_without_its_server_and_catches_up(
    device: tuple[Machine, FaultProxy], client: SyncPrefectClient
):
    machine, proxy = device
    machine.state("idle")

    # the server is away: the button records, and what is to be told is kept
    machine.recording()
    machine.press()
    until("the event is kept", machine.events)
    status = until("the agent knows", lambda: (s := machine.status()).get("server_trouble") and s)
    assert status["worker"]["state"] == "waiting for the server" and status["events_waiting"] == 1
    (first,) = machine.manifests()

    # it comes: the event arrives, the worker begins, and the status is told
    proxy.up()
    until(
        "the event has arrived",
        lambda: events(client, "onblock.recording.completed", f"onblock.recording.{first['id']}"),
    )
    until("nothing is kept any more", lambda: not machine.events())
    told = until("the status is told", lambda: events(client, "onblock.device.status", "onblock.device.cam-01"))[0]
    assert told["payload"]["device"] == "cam-01" and told["payload"]["state"] == "idle"

    # a flow run records; the panel shows it, and the button ends it
    deployment = until("capture is deployed", lambda: _deployment(client, "capture/cam-01"))
    assert deployment.work_pool_name == "device-cam-01"
    run: FlowRun = client.create_flow_run_from_deployment(deployment.id)
    until("the panel shows it", lambda: machine.status().get("state") == "recording", 120)
    assert machine.status()["recording"]["id"] != first["id"]
    machine.press()
    until("the run is over", lambda: client.read_flow_run(run.id).state.is_final(), 120)  # type: ignore[union-attr]
    state = client.read_flow_run(run.id).state
    assert state is not None and state.is_completed() and "asked to stop" in (state.message or ""), state
    machine.state("idle")

    # the worker is killed: another one takes its place
    worker = until("a worker", lambda: (w := machine.status().get("worker", {})).get("pid") and w)
    pid: int = worker["pid"]
    for process in (*psutil.Process(pid).children(recursive=True), psutil.Process(pid)):
        with suppress(psutil.NoSuchProcess):  # it ended by itself
            process.kill()

    def another() -> bool:
        told = machine.status().get("worker", {})
        return told.get("state") == "running" and told["pid"] not in (None, pid)

    until("another worker", another)

    # SIGTERM while a flow run records: it is sealed
    client.create_flow_run_from_deployment(deployment.id)
    until("the panel shows it", lambda: machine.status().get("state") == "recording", 120)
    assert machine.end() == 0
    assert machine.manifests()[-1]["state"] == "sealed" and len(machine.manifests()) == 3
    assert json.loads((machine.home / "agent/status.json").read_text())["worker"]["state"] == "ended"


def test_a_worker_rests_while_there_is_nothing_to_do(api: str, client: SyncPrefectClient, tmp_path: Path):
    machine = Machine(tmp_path, worker={"rests_after": "0s"})

    def worker_is(state: str) -> bool:
        return machine.status().get("worker", {}).get("state") == state

    try:
        machine.start(PREFECT_API_URL=api, PREFECT_HOME=str(tmp_path / "prefect"))
        until("it rests", lambda: worker_is("resting"), 120)
        until("nothing is left of it", lambda: not machine.below())
        assert client.read_work_pool("device-cam-01").status == WorkPoolStatus.READY, "somebody looks after it"
        deployment = until("capture is deployed", lambda: _deployment(client, "capture/cam-01"))
        run = client.create_flow_run_from_deployment(deployment.id)
        until("the panel shows it", lambda: machine.status().get("state") == "recording", 120)
        begun = time.monotonic()
        while time.monotonic() < begun + 4:
            assert worker_is("running"), "a run is in its hands"
        machine.press()
        until("the run is over", lambda: client.read_flow_run(run.id).state.is_final(), 120)  # type: ignore[union-attr]
        assert client.read_flow_run(run.id).state.is_completed()  # type: ignore[union-attr]
        until("it rests again", lambda: worker_is("resting"), 120)

        client.delete_work_pool("device-cam-01")
        until("the pool is there again", lambda: _pool(client, "device-cam-01"), 120)
        again = until("so is capture", lambda: (d := _deployment(client, "capture/cam-01")).work_pool_name and d, 120)
        client.create_flow_run_from_deployment(again.id)
        until("the panel shows it", lambda: machine.status().get("state") == "recording", 120)
    finally:
        machine.end()


def _pool(client: SyncPrefectClient, name: str) -> Any:
    try:
        return client.read_work_pool(name)
    except ObjectNotFound:
        return None


def _deployment(client: SyncPrefectClient, name: str) -> Any:
    try:
        return client.read_deployment_by_name(name)
    except ObjectNotFound:
        return None

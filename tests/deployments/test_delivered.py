"""A recording ends, and nobody starts anything: the job of its device brings it, verified, to the archive."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName, FlowRunFilter
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound

from deployments.agent import work
from deployments.agent.outbox import Server
from deployments.agent.settings import SETTINGS
from deployments.bootstrap import bootstrap
from flows import starts
from flows.capture import announce, flow
from flows.capture.manifest import COMPLETED, Manifest, load
from tests.agent.test_agent import Machine
from tests.capture.conftest import imu, lavfi
from tests.deployments.conftest import until
from tests.deployments.test_capture import completed
from tests.servers.faultproxy import FaultProxy

DOCS = (Path(__file__).parents[2] / "docs/device.md").read_text("utf-8")


def job_of(name: str, of: str, recordings: Path, archive: Path, **keys: Any) -> str:
    """As the docs have it, from and to folders of the test."""
    (text,) = re.findall(r"^```yaml\n# recordings.yaml\n(.*?)^```$", DOCS, re.MULTILINE | re.DOTALL)
    job = yaml.safe_load(text)
    del job["schedule"]
    return yaml.safe_dump({
        **job, "name": name, "device": of,
        "source": {"type": "local-storage", "root": str(recordings), "create_root": True},
        "destination": {"type": "local-storage", "root": str(archive), "create_root": True}, **keys,
    })  # fmt: skip


def runs_of(client: SyncPrefectClient, job: str) -> list[FlowRun]:
    named = DeploymentFilter(name=DeploymentFilterName(any_=[job]))
    return client.read_flow_runs(deployment_filter=named, flow_run_filter=FlowRunFilter())


def ended(client: SyncPrefectClient, job: str) -> list[FlowRun]:
    """Its runs, once there are some and all of them are over."""

    def look() -> list[FlowRun]:
        runs = runs_of(client, job)
        return runs if runs and all(r.state is not None and r.state.is_final() for r in runs) else []

    return until(f"a run of {job}", look)


def arrived(archive: Path, device: str, manifest: dict[str, Any]) -> None:
    """The merged file lies there as it was read back after the merge, and the list of checksums agrees."""
    final, folder = manifest["final"], archive / device / manifest["id"]
    assert hashlib.sha256((folder / final["file"]).read_bytes()).hexdigest() == final["sha256"]
    assert json.loads((folder / "recording.json").read_bytes()) == manifest
    lists = list(archive.rglob("checksums.sha256"))
    assert lists
    for one in lists:
        subprocess.run(["sha256sum", "-c", "--strict", "--quiet", one.name], cwd=one.parent, check=True)
    assert any(final["file"] in one.read_text() for one in lists)


def test_the_end_of_a_recording_starts_the_job_of_its_device(
    api: str, client: SyncPrefectClient, onblock_home: Path, tmp_path: Path, worker: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    device, archive = "cam-told", tmp_path / "archive"
    capture = {"streams": [lavfi("left", frames=60), lavfi("right", frames=60)], "sensors": [imu(count=400)],
               "flight": "F7", "segment": "1 s", "limits": {"disk_mib": 0}}  # fmt: skip
    settings = tmp_path / "agent.yaml"
    jobs = {
        "rec-any": {}, "rec-flight": {"path": "{flight}/{path}"},
        "rec-other": {"device": "another"}, "rec-broken": {"include": "?"},
    }  # fmt: skip
    for name, keys in jobs.items():
        (tmp_path / f"{name}.yaml").write_text(job_of(name, device, onblock_home / "recordings", archive, **keys))
    settings.write_text(yaml.safe_dump({"capture": capture, "jobs": [f"{name}.yaml" for name in reversed(jobs)]}))
    monkeypatch.setenv(SETTINGS, str(settings))
    work.register(device)
    assert "rec-other.yaml: is a job of device 'another'" in caplog.text and "rec-broken.yaml" in caplog.text
    work.register(device)  # as when the worker starts again
    log = worker(f"device-{device}")

    run = client.create_flow_run_from_deployment(client.read_deployment_by_name(f"capture/{device}").id)
    for name in ("rec-any", "rec-flight"):
        (one,) = ended(client, name)
        assert one.state is not None and one.state.is_completed(), (one.state, log.read_text())
        assert one.parameters["device"] == device and "2 delivered" in (one.state.message or "")
        assert one.parameters.get("flight") == ("F7" if name == "rec-flight" else None)
    state = until("the end of the recording", lambda: (s := client.read_flow_run(run.id).state) and s.is_final() and s)
    assert state.is_completed(), state
    (manifest,) = [json.loads(p.read_text()) for p in onblock_home.glob("recordings/*/recording.json")]
    arrived(archive, device, manifest)
    assert (archive / "F7" / manifest["id"] / manifest["final"]["file"]).exists()
    assert not [*onblock_home.glob("recordings/*/.announce")]

    # told once more, as by an agent that found it owed, it starts nothing; Prefect's own automation did not, either
    (event,) = until("the event", lambda: completed(api, manifest["id"]))
    assert len(event["payload"]["runs"]) == 2
    folder = onblock_home / "recordings" / manifest["id"]
    assert flow.announced(folder, load(folder)) == ""
    assert [len(runs_of(client, name)) for name in ("rec-any", "rec-flight")] == [1, 1]


def test_what_is_switched_off_or_gone_starts_nothing(
    api: str, client: SyncPrefectClient, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(job_of("rec-off", "cam-off", tmp_path / "recordings", tmp_path / "archive"))
    bootstrap([job])
    deployment = client.read_deployment_by_name("transfer/rec-off")
    automations = client.read_resource_related_automations(f"prefect.deployment.{deployment.id}")
    (automation,) = [a for a in automations if "recording of cam-off" in a.name]
    server = Server(api)
    one, two, three = (Manifest(id=f"R{n}", device="cam-off", start_monotonic_ns=0, start_wall_ns=0) for n in range(3))

    httpx.patch(f"{api}/automations/{automation.id}", json={"enabled": False}, timeout=60).raise_for_status()
    server.tell(announce.event(one))
    assert not runs_of(client, "rec-off")
    httpx.patch(f"{api}/automations/{automation.id}", json={"enabled": True}, timeout=60).raise_for_status()
    for again in range(2):
        server.tell(announce.event(two))
        assert len(runs_of(client, "rec-off")) == 1, again
    assert (until("the first event", lambda: completed(api, "R0"))[0])["payload"]["runs"] == []

    gone = starts.Start(COMPLETED, "cam-off", str(uuid.uuid4()), {})
    assert starts.start(flow._post(client), announce.event(three), [gone]) == []
    assert "starts no run: " in caplog.text
    server.close()


def test_no_device_takes_the_job_of_another(
    api: str,
    client: SyncPrefectClient,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Settings and job were copied from one device to the next, and the name of the job was left."""
    for number in (1, 2):
        device = f"cam-copy{number}"
        home = tmp_path / device
        home.mkdir()
        (home / "job.yaml").write_text(job_of("rec-copied", device, home / "recordings", tmp_path / "archive"))
        (home / "agent.yaml").write_text(yaml.safe_dump({"jobs": ["job.yaml"]}))
        monkeypatch.setenv(SETTINGS, str(home / "agent.yaml"))
        work.register(device)
    assert client.read_deployment_by_name("transfer/rec-copied").work_pool_name == "device-cam-copy1"
    assert "is there already, in the pool 'device-cam-copy1'" in caplog.text


@pytest.fixture
def machine(api: str, tmp_path: Path) -> Iterator[tuple[Machine, FaultProxy]]:
    """A device with a job, behind a line that can be cut."""
    device = Machine(tmp_path, jobs=["job.yaml"])
    (device.home / "job.yaml").write_text(
        job_of("rec-agent", "cam-01", device.home / "recordings", tmp_path / "archive")
    )
    proxy = FaultProxy(int(api.rpartition(":")[2].partition("/")[0])).up()
    try:
        device.start(PREFECT_API_URL=f"http://127.0.0.1:{proxy.port}/api", PREFECT_HOME=str(tmp_path / "prefect"))
        yield device, proxy
    finally:
        device.end()
        proxy.down()


def test_what_the_button_recorded_without_a_server_is_delivered_when_it_is_back(
    machine: tuple[Machine, FaultProxy], client: SyncPrefectClient, api: str, tmp_path: Path
) -> None:
    device, proxy = machine
    device.state("idle")

    def deployed() -> bool:
        try:
            return not str(client.read_deployment_by_name("transfer/rec-agent").version).startswith("unfinished")
        except ObjectNotFound:
            return False

    until("the job is deployed", deployed)
    proxy.down()
    device.recording()
    device.press()
    until("the event is kept", device.events)
    assert device.events()[0]["event"] == COMPLETED and not runs_of(client, "rec-agent")
    proxy.up()
    (run,) = ended(client, "rec-agent")
    assert run.state is not None and run.state.is_completed() and "2 delivered" in (run.state.message or ""), run.state
    (manifest,) = device.manifests()
    arrived(tmp_path / "archive", "cam-01", manifest)
    (event,) = until("the event", lambda: completed(api, manifest["id"]))
    assert event["payload"]["runs"] == [str(run.id)]

"""Recording as flows on a real server: run, cancelled, recovered, and told by an event that starts the transfer."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling

from deployments.bootstrap import bootstrap
from flows.capture import announce, flow, merge
from flows.capture.manifest import COMPLETED, Manifest, load
from flows.capture.recorder import Recorder
from flows.capture.spec import CaptureSpec
from tests.capture.conftest import balanced, imu, lavfi, spec_of
from tests.deployments.conftest import free_port, until


def completed(api: str, recording: str) -> list[dict[str, Any]]:
    asked = {"filter": {"event": {"name": [COMPLETED]}, "resource": {"id": [f"onblock.recording.{recording}"]}}}
    return httpx.post(f"{api}/events/filter", json=asked, timeout=30).raise_for_status().json()["events"]


def only(root: Path) -> Manifest | None:
    folders = [p for p in root.glob("*/") if (p / "recording.json").exists()]
    return load(folders[0]) if folders else None


def test_a_recording_is_merged_by_a_task_and_told(api: str, onblock_home: Path) -> None:
    spec = spec_of(lavfi("a", frames=40), imu(count=100), flight="F7")
    state: Any = flow.capture(spec, return_state=True)
    assert state.is_completed(), state.message
    manifest = only(onblock_home / "recordings")
    assert manifest is not None and manifest.final is not None
    balanced(manifest)
    assert "a: 40 of 40; imu: 100 of 100" in state.message
    (event,) = until("the event", lambda: completed(api, manifest.id))
    assert event["payload"] == {
        "recording": manifest.id, "device": "cam-test", "flight": "F7", "state": "sealed",
        "file": manifest.final.file, "bytes": manifest.final.bytes, "sha256": manifest.final.sha256, "runs": [],
    }  # fmt: skip
    where = {"artifacts": {"key": {"any_": ["recording-cam-test"]}}}
    found = httpx.post(f"{api}/artifacts/latest/filter", json=where, timeout=30).raise_for_status().json()
    assert '"captured": 40' in found[0]["data"]


def test_what_the_disk_has_no_room_to_merge_is_told_as_it_is(
    api: str, onblock_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that a transfer takes the segments off the disk."""
    with monkeypatch.context() as full:
        full.setattr(merge, "SPARE", 1 << 62)  # no disk has that
        state: Any = flow.capture(spec_of(imu(count=100)), return_state=True)
    assert state.is_failed() and "the segments are sealed" in state.message
    manifest = only(onblock_home / "recordings")
    assert manifest is not None and manifest.final is None
    (event,) = until("the event", lambda: completed(api, manifest.id))
    assert (event["payload"]["file"], event["payload"]["state"]) == (None, "sealed")


def test_what_could_not_be_announced_is_announced_by_the_recovery(api: str, onblock_home: Path) -> None:
    away = f"http://127.0.0.1:{free_port()}/api"
    root = onblock_home / "recordings"
    recorder = Recorder(spec_of(imu(count=100)), root)
    recorder.run(threading.Event())
    manifest = merge.finish(recorder.folder)
    announce.owe(recorder.folder)
    with temporary_settings({PREFECT_API_URL: away}):
        assert "it is not announced yet" in flow.announced(recorder.folder, manifest)
    assert announce.owed(root) == [recorder.folder]
    state: Any = flow.recover_recordings(return_state=True)
    assert state.message == "0 recovered"
    assert until("the event", lambda: completed(api, manifest.id)) and not announce.owed(root)


@pytest.mark.parametrize("merged", [True, False])
def test_whoever_is_killed_after_the_seal_it_is_announced(
    api: str, onblock_home: Path, monkeypatch: pytest.MonkeyPatch, merged: bool
) -> None:
    """Also where the disk has no room to merge, and one that cannot be read stands beside it."""
    root = onblock_home / "recordings"
    recorder = Recorder(spec_of(imu(count=100), merge=merged), root)
    recorder.run(threading.Event())
    (root / "broken" / "recording.json").mkdir(parents=True)
    (root / "broken" / ".announce").touch()
    monkeypatch.setattr(merge, "SPARE", 1 << 62)  # no disk has that
    for _ in range(2):
        state: Any = flow.recover_recordings(return_state=True)
        assert state.is_failed() and "directory" in state.message, state.message
    (event,) = until("the event", lambda: completed(api, recorder.id))
    assert (event["payload"]["file"], event["payload"]["state"]) == (None, "sealed")
    assert (recorder.folder in announce.owed(root)) == merged, "with its file, later"


def test_what_cannot_be_recorded_fails_with_one_message(api: str) -> None:
    camera = {"name": "gone", "input": "/dev/video97", "format": "v4l2"}
    state: Any = flow.capture(spec_of(camera, duration="1 s"), return_state=True)
    assert state.is_failed()
    assert "/dev/video97: gone: there is no such camera or file" in state.message


@pytest.fixture
def deployed(api: str, client: SyncPrefectClient, tmp_path: Path) -> CaptureSpec:
    """The flow `capture` as a deployment in a pool of its own."""
    from prefect.client.schemas.actions import WorkPoolCreate

    spec = spec_of(lavfi("a", frames=None, rate=10), imu(count=None))
    client.create_work_pool(WorkPoolCreate(name="device-cam-test", type="process"))
    file = tmp_path / "prefect.yaml"
    entry = {"name": "cam-test", "entrypoint": "flows.capture.flow.capture", "work_pool": {"name": "device-cam-test"},
             "parameters": {"spec": spec.model_dump(mode="json")}}  # fmt: skip
    file.write_text(yaml.safe_dump({"deployments": [entry]}))
    bootstrap([], file)
    return spec


def test_cancelling_seals_and_the_recovery_merges(
    api: str, client: SyncPrefectClient, deployed: CaptureSpec, worker: Callable[[str], Path], onblock_home: Path
) -> None:
    log = worker("device-cam-test")
    run = client.create_flow_run_from_deployment(client.read_deployment_by_name("capture/cam-test").id)
    root = onblock_home / "recordings"

    def recording() -> bool:
        return len([*root.glob("*/a/000001.mkv")]) == 1

    until(f"a recording ({log.read_text() if log.exists() else ''})", recording, 90)
    client.set_flow_run_state(run.id, Cancelling())
    until("its end", lambda: client.read_flow_run(run.id).state_type == StateType.CANCELLED, 60)
    manifest = only(root)
    assert manifest is not None
    assert (manifest.state, manifest.stopped_because, manifest.final) == ("sealed", "interrupted", None)
    balanced(manifest)
    state: Any = flow.recover_recordings(return_state=True)
    assert state.message == "1 recovered"
    manifest = only(root)
    assert manifest is not None and manifest.final is not None
    assert manifest.final.packets == {n: e.written for n, e in manifest.streams.items()}
    assert until("the event", lambda: completed(api, manifest.id))
    assert flow.recover_recordings(return_state=True).message == "0 recovered"  # type: ignore[union-attr]

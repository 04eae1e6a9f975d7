"""Cleanup, retention and scrub on a real server: deployed with their schedules, run as flows, told as events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from prefect.client.orchestration import SyncPrefectClient
from prefect.exceptions import ObjectNotFound

from deployments.bootstrap import bootstrap
from flows.transfer.job import load_job
from flows.upkeep import flow
from tests.deployments.conftest import until
from tests.upkeep.conftest import Yard
from tests.upkeep.test_by_mistake import damage

NIGHTLY = {"cron": "0 3 * * *", "timezone": "Europe/Berlin"}


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(tmp_path)


def job(yard: Yard, **keys: Any) -> Path:
    return yard.yaml(name="upkeep", **keys)


def test_deployed_with_schedules_of_their_own_and_removed(
    api: str, client: SyncPrefectClient, yard: Yard, tmp_path: Path
) -> None:
    nothing = tmp_path / "prefect.yaml"
    nothing.write_text(yaml.safe_dump({"deployments": []}))
    keys = {
        "cleanup": {"action": "backup", "backup_folder": "old", "schedule": NIGHTLY},
        "retention": {"backup": {"max_age": "30 d"}, "schedule": NIGHTLY},
        "scrub": {"part": "1/7", "schedule": NIGHTLY},
    }
    bootstrap([job(yard, **keys)], nothing)
    for name in ("clean", "retention", "scrub"):
        found = client.read_deployment_by_name(f"{name}/upkeep")
        assert [s.schedule.model_dump(include={"cron", "timezone"}) for s in found.schedules] == [NIGHTLY]
        assert found.entrypoint == f"flows.upkeep.flow.{name}"
    kept = bootstrap([job(yard, **keys)], nothing)
    assert not kept.changed
    assert not [line for line in kept.made if "upkeep" in line]
    report = bootstrap([job(yard)], nothing)
    assert sum("is removed" in line for line in report.changed) == 3
    for name in ("clean", "retention", "scrub"):
        with pytest.raises(ObjectNotFound):
            client.read_deployment_by_name(f"{name}/upkeep")


def test_run_as_flows(api: str, client: SyncPrefectClient, yard: Yard) -> None:
    for name in "abc":
        yard.put(name, name.encode())
    yard.keys |= {"name": "upkeep", "cleanup": {"action": "backup", "backup_folder": "old"}}
    yard.proven()
    damage(yard.archive / "a")
    made = load_job(job(yard, cleanup=yard.keys["cleanup"], retention={"backup": {"max_files": 0}}))
    state: Any = flow.clean(made, return_state=True)
    assert (state.type, "2 moved into the backup folder" in state.message) == ("FAILED", True), state.message
    state = flow.retention(made, return_state=True)
    assert (state.type, state.message) == ("COMPLETED", "2 of 2 backups removed, 2 bytes")
    (yard.archive / "b").unlink()
    state = flow.scrub(made, part="1/1", return_state=True)
    assert (state.type, "1 damaged or lost" in state.message) == ("FAILED", True), state.message

    def told() -> list[Any]:
        asked = {"filter": {"event": {"name": ["onblock.scrub.damaged"]}}}
        return httpx.post(f"{api}/events/filter", json=asked, timeout=30).raise_for_status().json()["events"]

    (event,) = until("the event of what is lost", told)
    assert (event["payload"]["path"], event["payload"]["kind"]) == ("b", "NOT_FOUND")
    assert event["resource"]["prefect.resource.id"] == "onblock.job.upkeep"

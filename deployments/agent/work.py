"""`python -m deployments.agent.work DEVICE`: the worker of a device's pool, after the pool and what runs in it are there.

The settings of the agent, which say what `capture` records, are read from ONBLOCK_AGENT_SETTINGS.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from blocks.errors import ConfigError

if TYPE_CHECKING:
    from prefect.client.orchestration import SyncPrefectClient

    from flows.transfer.job import TransferJob

log = logging.getLogger("onblock.agent")


def register(device: str) -> None:
    """On the server: the pool `device-<device>`, and, where the settings say what to record, the deployments
    `capture/<device>`, `stop-capture/<device>` and `recover-recordings/<device>`; and `transfer/<job>` of its jobs. What is
    there and the same stays. A job that is no good is told, and does not stand in the way of the others."""
    from prefect.client.orchestration import get_client

    from deployments.agent.settings import load_settings, pool
    from deployments.deploy import deploy, deploy_job
    from deployments.server import Report, create_pool

    settings, report = load_settings(device), Report()
    entries = [
        ("recover-recordings", "flows.capture.flow.recover_recordings", {}),
        ("stop-capture", "flows.capture.flow.stop_capture", {"device": device}),
    ]
    if (spec := settings.spec(device)) is not None:
        parameters = {"spec": spec.model_dump(mode="json", exclude_unset=True)}
        entries.append(("capture", "flows.capture.flow.capture", parameters))
    with get_client(sync_client=True) as client:
        create_pool(client, report, pool(device))
        for name, entrypoint, given in entries:
            deploy(
                client,
                {
                    "name": device, "entrypoint": entrypoint, "description": f"{name} on {device}", "tags": ["onblock"],
                    "parameters": given, "work_pool": {"name": pool(device)},
                },
                report,
            )  # fmt: skip
        for file in settings.jobs:
            try:
                job = own_job(device, file)
                _must_be_free(client, job.name, pool(device))
                deploy_job(client, job, report, pool(device))
            except ConfigError as error:
                error.path = error.path or str(file)
                log.error("the job is not deployed: %s", error)
    for line in (*report.made, *report.changed):
        print(line, flush=True)


def _must_be_free(client: SyncPrefectClient, name: str, pool: str) -> None:
    """Raises ConfigError where another device, or a worker elsewhere, has a job of this name: it would be taken away."""
    from prefect.exceptions import ObjectNotFound

    try:
        there = client.read_deployment_by_name(f"transfer/{name}")
    except ObjectNotFound:
        return
    if there.work_pool_name != pool:
        raise ConfigError(
            f"the job {name!r} is there already, in the pool {there.work_pool_name!r}",
            remedy="give this one another `name:`, such as one with the device in it",
        )


def own_job(device: str, file: Path) -> TransferJob:
    """A job that the device brings to the server. Raises ConfigError for one that is not of this device."""
    from flows.transfer.job import load_job

    job = load_job(file)
    if job.device != device:
        raise ConfigError(
            f"is a job of device {job.device!r}, and this is {device!r}" if job.device else "is a job of no device",
            path=str(file), remedy=f"write `device: {device}` in it: then its recordings start it",
        )  # fmt: skip
    return job


def main(device: str) -> int:
    """Register, and work; the exit code, RESTS of `worker.py` when there was nothing to do for long."""
    from deployments import worker
    from deployments.agent.settings import load_settings, pool

    register(device)
    rests_after = load_settings(device).worker.rests_after
    return worker.main(pool(device), rests_after_s=None if rests_after is None else rests_after.total_seconds())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))

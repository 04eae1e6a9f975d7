"""Cleanup, retention and scrub as Prefect flows, so that each can run on a schedule of its own."""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.runtime import flow_run
from prefect.states import Completed, Failed

from flows.transfer.job import TransferJob
from flows.upkeep import told
from flows.upkeep.clean import clean as clean_here
from flows.upkeep.retention import retain
from flows.upkeep.scrub import scrub as scrub_here


@flow(name="clean", persist_result=False)  # pyright: ignore
def clean(job: TransferJob) -> State:
    """Take away from the source what is proven at every destination, as the job's `cleanup` says.

    Args:
        job: whose files.
    """
    return _ended(clean_here(job, flow_run_id=str(flow_run.id)), told.clean)


@flow(name="retention", persist_result=False)  # pyright: ignore
def retention(job: TransferJob) -> State:
    """Remove backups and delivered files that are beyond the limits of the job's `retention`.

    Args:
        job: whose files.
    """
    return _ended(retain(job, flow_run_id=str(flow_run.id)), told.retention)


@flow(name="scrub", persist_result=False)  # pyright: ignore
def scrub(job: TransferJob, part: str | None = None) -> State:
    """Read back a part of what a job has delivered, and have sent again what is damaged.

    Args:
        job: whose files.
        part: how much, such as 1/30; as the job's `scrub` says if it is not given.
    """

    def tell(event: str, payload: dict[str, Any]) -> None:
        resource = {"prefect.resource.id": f"onblock.job.{job.name}", "prefect.resource.name": job.name}
        emit_event(event, resource=resource, payload=payload)

    return _ended(scrub_here(job, part=part, told=tell, flow_run_id=str(flow_run.id)), told.scrub)


def _ended(summary: dict[str, Any], says: Any) -> State:
    text, well = says(summary)
    return Completed(message=text, data=summary) if well else Failed(message=text, data=summary)

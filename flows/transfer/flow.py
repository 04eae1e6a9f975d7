"""The story of a file, and of the run that carries it.

    scan -> gate -> plan -> deliver -> verify -> manifest

`transfer` is the Prefect flow: a deployment of it is a job. `run_here` is the same story told without Prefect's API,
for `onblock run` on a machine without a server. What each step does is in the file of its name.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from prefect import flow, task
from prefect.cache_policies import CachePolicy
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.context import TaskRunContext
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner

from blocks.errors import ConfigError
from blocks.storage.base import FileInfo
from flows.ledger import Ledger
from flows.transfer.gone import clear_gone
from flows.transfer.job import TransferJob
from flows.transfer.manifest import write_manifests
from flows.transfer.move import deliver_side_by_side
from flows.transfer.plan import plan
from flows.transfer.progress import Receipt, Watcher
from flows.transfer.retry import RETRIED, TASK_JITTER, TASK_RETRY_DELAYS_S
from flows.transfer.run import TransferRun
from flows.transfer.scan import scan
from flows.transfer.senders import ByPrefect, Here, Sender, Unfinished
from flows.transfer.shipment import Item, Shipment, pack

log = logging.getLogger("onblock.transfer")


def carry_out(run: TransferRun, sender: Sender) -> dict[str, Any]:
    """All of a run, whoever carries the shipments; its summary."""
    with sender:
        for shipment in shipments(run):
            sender.send(shipment)
        run.meter.scanning = False
        sender.collect(wait=True)
    clear_gone(run)
    run.finished()
    write_manifests(run)
    return run.summary()


def shipments(run: TransferRun) -> Iterator[Shipment]:
    """What there is to move: listed, judged, held against the ledger, packed. Streams."""
    with run.pool.session(run.job.source) as source:
        pages = scan(source, run.job, run.scanned, run.stop.wait)
        yield from pack(_items(run, pages), run.job.shipping)


def _items(run: TransferRun, pages: Iterator[list[FileInfo]]) -> Iterator[Item]:
    for page in pages:
        yield from plan(run, page)


def deliver_shipment(run: TransferRun, shipment: Shipment) -> Receipt:
    """Move one shipment and prove it. Raises Unfinished if some of its files did not arrive."""
    first_try = not shipment.begun.is_set()
    shipment.begun.set()
    run.watcher.shipment("started", shipment)
    run.meter.add(Receipt(deferred=-shipment.deferred))  # what an earlier try put off is tried now
    receipt, failures, elsewhere = deliver_side_by_side(run, shipment)
    shipment.deferred = receipt.deferred
    run.meter.add(receipt)
    if first_try:  # what another run has taken is on its way, but not here yet
        run.meter.add(Receipt(deferred=elsewhere))
    if not failures:
        run.watcher.shipment("completed", shipment, receipt)
        return receipt
    again = bool(failures & RETRIED)
    run.watcher.shipment("retry_scheduled" if again else "failed", shipment, receipt)
    raise Unfinished(receipt, sorted(failures), again=again)


# -- without Prefect's API ----------------------------------------------------------------------------------------


def run_here(
    job: TransferJob, *, flight: str | None = None, device: str | None = None, watcher: Watcher | None = None
) -> dict[str, Any]:
    """Run a job in this process; the summary. Raises OnblockError if it cannot run at all."""
    with Ledger.open() as ledger, TransferRun(job, ledger, flight=flight, device=device, watcher=watcher) as run:
        return carry_out(run, Here(run, deliver_shipment))


# -- with Prefect ---------------------------------------------------------------------------------------------------


class ShipmentVersions(CachePolicy):
    """A shipment's file versions, rows and destinations: the same work planned twice is done once."""

    def compute_key(
        self, task_ctx: TaskRunContext, inputs: dict[str, Any], flow_parameters: dict[str, Any], **kwargs: Any
    ) -> str:
        """The key of the shipment in this ledger."""
        run: TransferRun = inputs["run"]
        return "onblock-transfer-" + inputs["shipment"].key(f"{run.ledger.identity}\0{run.job.name}")


def worth_retrying(task: object, task_run: object, state: State) -> bool:
    """Only what may pass by waiting is tried again inside the task."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, Unfinished) and error.again


@task(
    name="deliver", task_run_name="{shipment}", cache_policy=ShipmentVersions(), persist_result=True,
    retries=len(TASK_RETRY_DELAYS_S), retry_delay_seconds=list(TASK_RETRY_DELAYS_S), retry_jitter_factor=TASK_JITTER,
    retry_condition_fn=worth_retrying,
)  # fmt: skip
def deliver(run: TransferRun, shipment: Shipment) -> Receipt:
    """One shipment as a task: tagged with its device, cached by its file versions."""
    return deliver_shipment(run, shipment)


@flow(name="transfer", task_runner=ThreadPoolTaskRunner(max_workers=16), persist_result=False)  # pyright: ignore
def transfer(job: TransferJob, flight: str | None = None, device: str | None = None) -> State:
    """Bring the files of a source, verified, to one or several destinations.

    Args:
        job: what to move, from where, to where.
        flight: the flight the files belong to, for `{flight}` in the job's path template.
        device: the device the files come from, if it is not the one named in the job.
    """
    from flows.transfer.report import PrefectWatcher

    require_limits(device or job.device)
    watcher = PrefectWatcher(job.name, str(flow_run.name), flight=flight, device=device or job.device)
    with (
        Ledger.open() as ledger,
        TransferRun(job, ledger, flight=flight, device=device, watcher=watcher, flow_run_id=str(flow_run.id)) as run,
    ):
        summary = carry_out(run, ByPrefect(run, deliver))
        watcher.finish(run.meter)
    watcher.summary(summary)
    text = told(summary)
    return Completed(message=text, data=summary) if all_well(summary) else Failed(message=text, data=summary)


def require_limits(device: str | None) -> None:
    """Raise ConfigError unless the server limits our tags: a limit that is missing is silently no limit."""
    with get_client(sync_client=True) as client:
        for tag in ["onblock"] + ([f"device:{device}"] if device else []):
            try:
                client.read_concurrency_limit_by_tag(tag)
            except ObjectNotFound as error:
                raise ConfigError(
                    f"the Prefect server has no concurrency limit for the tag {tag!r}",
                    remedy="`onblock up JOB.yaml` makes it; so does "
                    f"`prefect concurrency-limit create {tag} {4 if tag == 'onblock' else 2}`",
                ) from error


# -- for people -----------------------------------------------------------------------------------------------------


def all_well(summary: dict[str, Any]) -> bool:
    """Whether everything that was there is where it belongs."""
    return not (summary["failed"] or summary["blocked"] or summary["deferred"] or summary["problems"])


def told(summary: dict[str, Any]) -> str:
    """A summary in a sentence."""
    parts = [f"{summary['delivered']} delivered"]
    for what in ("adopted", "duplicates", "settling", "skipped", "deferred", "blocked", "failed"):
        if summary[what]:
            parts.append(f"{summary[what]} {what}")
    return ", ".join([*parts, *summary["problems"]])


__all__ = ["all_well", "carry_out", "run_here", "shipments", "told", "transfer"]

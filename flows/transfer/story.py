"""The story of a file, and of the run that carries it.

    scan -> gate -> plan -> deliver -> verify -> manifest

What each step does is in the file of its name. `run_here` tells it in this process, for `onblock run` on a machine
without a server; `flow.py` tells it as a Prefect flow.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from blocks.storage.base import FileInfo
from flows.ledger import Ledger
from flows.transfer.gone import clear_gone
from flows.transfer.job import TransferJob
from flows.transfer.manifest import write_manifests
from flows.transfer.move import deliver_side_by_side
from flows.transfer.plan import plan
from flows.transfer.priority import ahead, behind
from flows.transfer.progress import Receipt, Watcher
from flows.transfer.retry import RETRIED
from flows.transfer.run import TransferRun
from flows.transfer.scan import scan
from flows.transfer.senders import Here, Sender, Unfinished
from flows.transfer.shipment import Item, Shipment, pack


def carry_out(run: TransferRun, sender: Sender) -> dict[str, Any]:
    """All of a run, whoever carries the shipments; its summary."""
    with sender:
        for shipment in shipments(run):
            if run.held:
                break
            sender.send(shipment)
        run.meter.scanning = False
        sender.collect(wait=True)
    if run.held:
        run.problems.append(f"{run.job.name} was paused by {run.held}; `onblock transfers resume --job {run.job.name}`")
    clear_gone(run)
    run.finished()
    write_manifests(run)
    return run.summary()


def shipments(run: TransferRun) -> Iterator[Shipment]:
    """What there is to move: listed, judged, held against the ledger, packed. Streams."""
    with run.pool.session(run.job.source) as source:
        pages = chain(ahead(run), scan(source, run.job, run.scanned, run.stop.wait), behind(run))
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


def run_here(
    job: TransferJob, *, flight: str | None = None, device: str | None = None, watcher: Watcher | None = None
) -> dict[str, Any]:
    """Run a job in this process; the summary. Raises OnblockError if it cannot run at all."""
    with Ledger.open() as ledger, TransferRun(job, ledger, flight=flight, device=device, watcher=watcher) as run:
        return carry_out(run, Here(run, deliver_shipment))


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

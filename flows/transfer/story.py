"""The story of a file, and of the run that carries it.

    scan -> gate -> plan -> (fetch -> process ->) deliver -> verify -> manifest

What each step does is in the file of its name. `run_here` tells it in this process, for `onblock run` on a machine
without a server; `flow.py` tells it as a Prefect flow.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from blocks.errors import Kind
from blocks.storage.base import FileInfo
from flows.ledger import Ledger
from flows.ledger.runs import AMISS
from flows.transfer.fetch import Fetch
from flows.transfer.gone import clear_gone
from flows.transfer.job import TransferJob
from flows.transfer.manifest import write_manifests
from flows.transfer.move import deliver_side_by_side
from flows.transfer.plan import plan
from flows.transfer.priority import ahead, behind
from flows.transfer.process import Process
from flows.transfer.progress import Receipt, Watcher
from flows.transfer.retry import RETRIED
from flows.transfer.run import TransferRun
from flows.transfer.scan import scan
from flows.transfer.senders import Carrier, Do, Here, Part, Phase, Sender, Unfinished
from flows.transfer.shipment import Item, Shipment, pack
from flows.transfer.stored import clear_lockers, settle, stored, units


def carry_out(run: TransferRun, sender: Carrier) -> dict[str, Any]:
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
    clear_lockers(run)
    run.finished()
    write_manifests(run)
    return run.summary()


def shipments(run: TransferRun) -> Iterator[Shipment]:
    """What there is to move: listed, judged, held against the ledger, packed. Streams."""
    if not run.job.two_phases:
        yield from pack(_items(run, _listed(run)), run.job.shipping)
        return
    listed = iter(()) if run.source_away else _listed(run)
    yield from units(_items(run, stored(run)), _items(run, listed), run.job)


def _listed(run: TransferRun) -> Iterator[list[FileInfo]]:
    with run.pool.session(run.job.source) as source:
        yield from chain(ahead(run), scan(source, run.job, run.scanned, run.stop.wait), behind(run))


def _items(run: TransferRun, pages: Iterator[list[FileInfo]]) -> Iterator[Item]:
    for page in pages:
        yield from plan(run, page)


def bring(run: TransferRun, shipment: Shipment, do: Do) -> None:
    """The first part of two phases: into the spool."""
    do(Phase.FETCH, shipment)


def see_through(run: TransferRun, shipment: Shipment, do: Do) -> None:
    """The rest: through the steps, and to the destinations."""
    try:
        if shipment.fetched:
            do(Phase.PROCESS, shipment)
        for made in shipment.made:
            run.meter.planned(len(made.items), made.bytes)
            do(Phase.DELIVER, made)
    finally:
        settle(run, shipment)


def deliver(run: TransferRun, shipment: Shipment, do: Do) -> None:
    """The only part of jobs without steps: from the source to the destinations."""
    do(Phase.DELIVER, shipment)


def parts(run: TransferRun) -> list[Part]:
    """What is done with each shipment of a run."""
    return [bring, see_through] if run.job.two_phases else [deliver]


def fetch_shipment(run: TransferRun, shipment: Shipment) -> Receipt:
    """Bring one shipment into the spool. Raises Unfinished if some of its files did not get there."""
    first_try = _begin(run, shipment, Phase.FETCH)
    fetch = Fetch(run, shipment)
    try:
        receipt = fetch.fetch()
    finally:
        shipment.fetched += fetch.fetched
    return _end(run, shipment, Phase.FETCH, receipt, fetch.failures, fetch.elsewhere if first_try else 0)


def process_shipment(run: TransferRun, shipment: Shipment) -> Receipt:
    """Send what was fetched of one shipment through the steps. Raises Unfinished if some of it failed."""
    shipment.deferred = 0
    _begin(run, shipment, Phase.PROCESS)
    process = Process(run, shipment, shipment.fetched)
    receipt = process.process()
    shipment.made, shipment.held_rows = process.made, process.origins
    # what may pass by waiting waits for the next run: here, it would keep others from the processor
    return _end(run, shipment, Phase.PROCESS, receipt, process.failures - RETRIED, 0)


def deliver_shipment(run: TransferRun, shipment: Shipment) -> Receipt:
    """Move one shipment to its destinations and prove it. Raises Unfinished if some of its files did not arrive."""
    first_try = _begin(run, shipment, Phase.DELIVER)
    receipt, failures, elsewhere = deliver_side_by_side(run, shipment)
    return _end(run, shipment, Phase.DELIVER, receipt, failures, elsewhere if first_try else 0)


ACTS = {Phase.FETCH: fetch_shipment, Phase.PROCESS: process_shipment, Phase.DELIVER: deliver_shipment}
"""What each phase does."""


def _begin(run: TransferRun, shipment: Shipment, phase: Phase) -> bool:
    """Tell that a phase begins; whether it does for the first time."""
    first_try = phase not in shipment.tried
    shipment.tried.add(phase)
    shipment.begun.set()
    run.watcher.shipment(_event(run, phase, "started"), shipment)
    run.meter.add(Receipt(deferred=-shipment.deferred))  # what an earlier try put off is tried now
    return first_try


def _end(
    run: TransferRun, shipment: Shipment, phase: Phase, receipt: Receipt, failures: set[Kind], elsewhere: int
) -> Receipt:  # fmt: skip
    """Account for a phase. Raises Unfinished."""
    shipment.deferred = receipt.deferred
    run.meter.add(receipt)
    if elsewhere:  # what another run has taken is on its way, but not here yet
        run.meter.add(Receipt(deferred=elsewhere))
    if not failures:
        run.watcher.shipment(_event(run, phase, "completed"), shipment, receipt)
        return receipt
    again = bool(failures & RETRIED)
    run.watcher.shipment(_event(run, phase, "retry_scheduled" if again else "failed"), shipment, receipt)
    raise Unfinished(receipt, sorted(failures), again=again)


def _event(run: TransferRun, phase: Phase, what: str) -> str:
    return what if not run.job.two_phases else f"{phase}.{what}"


def here(run: TransferRun) -> Sender:
    """Who carries the shipments of a run in this process."""
    return Here(run, parts(run), ACTS)


def run_here(
    job: TransferJob, *, flight: str | None = None, device: str | None = None, watcher: Watcher | None = None
) -> dict[str, Any]:
    """Run a job in this process; the summary. Raises OnblockError if it cannot run at all."""
    with Ledger.open() as ledger, TransferRun(job, ledger, flight=flight, device=device, watcher=watcher) as run:
        return carry_out(run, here(run))


def all_well(summary: dict[str, Any]) -> bool:
    """Whether everything that was there is where it belongs."""
    return not any(summary[what] for what in AMISS)


def told(summary: dict[str, Any]) -> str:
    """A summary in a sentence."""
    parts = [f"{summary['delivered']} delivered"]
    for what in ("adopted", "duplicates", "settling", "skipped", "deferred", "blocked", "failed"):
        if summary[what]:
            parts.append(f"{summary[what]} {what}")
    return ", ".join([*parts, *summary["problems"]])

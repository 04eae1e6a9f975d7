"""What lies in the spool between two phases: taken up first, gathered into units, settled, and cleared away.

How a locker looks is in `locker.py`; fetching and processing are in `fetch.py` and `process.py`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from pydantic import ByteSize

from blocks.errors import OnblockError
from blocks.storage.base import FileInfo
from flows.transfer.job import TransferJob
from flows.transfer.locker import Locker, lockers_of, sweep
from flows.transfer.process import unit_key
from flows.transfer.run import TransferRun
from flows.transfer.scan import PAGE, Filter
from flows.transfer.shipment import Item, Shipment, pack

log = logging.getLogger("onblock.transfer")

ALONE = 1 << 20
"""Files of this size and more go through the phases by themselves, so that one is processed while the next is fetched."""
TOGETHER = 256
"""Smaller files go together, at most so many."""


def stored(run: TransferRun) -> Iterator[list[FileInfo]]:
    """Pages of what was fetched by runs before this one: it is delivered even if its source is away, or has other files
    by now. The listing leaves these versions out."""
    ages: dict[str, Any] = {
        "min_age": None,
        "max_age": None,
    }  # it was young enough, and old enough, when it was fetched
    wanted = Filter(run.job.model_copy(update=ages), time.time_ns())
    page: list[FileInfo] = []
    for locker in lockers_of(run.owner):
        if locker.fetched() is not None and wanted.wants(locker.file):
            page.append(locker.file)
        if len(page) >= PAGE:
            yield page
            run.ahead.update(f[:4] for f in page)
            page = []
    if page:
        yield page
        run.ahead.update(f[:4] for f in page)


def units(kept: Iterable[Item], listed: Iterable[Item], job: TransferJob) -> Iterator[Shipment]:
    """Shipments for two phases, of what is in the spool and of what the source shows. Files that a step wants together
    travel together, when the last of them was listed."""
    rules = job.shipping.model_copy(
        update={
            "large": ByteSize(min(job.shipping.large, ALONE)), "max_files": min(job.shipping.max_files, TOGETHER),
        }
    )  # fmt: skip
    groups: dict[tuple[str, str], tuple[list[Item], list[Item]]] = {}
    number = 0

    def single() -> Iterator[Item]:
        for side, items in enumerate((kept, listed)):
            for item in items:
                if (key := unit_key(job.steps, item.file.path)) is None:
                    yield item
                else:
                    groups.setdefault(key, ([], []))[side].append(item)

    for shipment in pack(single(), rules):
        number = shipment.number
        yield shipment
    for old, new in groups.values():
        # a camera that begins to count anew: what it shows now is no half of what was fetched before
        again = {item.file.path for item in old} & {item.file.path for item in new}
        for group in (old, new) if again else (old + new,):
            if group:
                number += 1
                yield Shipment(number, group, large=True)


def settle(run: TransferRun, shipment: Shipment) -> None:
    """What became of what was made decides about what it was made of. What nobody needs any more leaves the spool."""
    if shipment.held_rows:
        run.ledger.settle_origins(shipment.held_rows)
    _remove(run, [f.locker for f in shipment.fetched])


def clear_lockers(run: TransferRun) -> None:
    """Remove what lies in the spool for rows that are done with, or that were given up."""
    sweep()
    lockers = lockers_of(run.owner)
    try:
        while page := list(islice(lockers, PAGE)):
            _remove(run, page)
    except OnblockError as error:
        log.warning("the spool is not cleared: %s", error)


def _remove(run: TransferRun, lockers: Sequence[Locker]) -> None:
    """Those that nobody needs any more."""
    wanted = run.ledger.wanted(run.route_ids, [locker.file[:4] for locker in lockers])
    for number, locker in enumerate(lockers):
        if number not in wanted or not run.job.two_phases:
            locker.remove()

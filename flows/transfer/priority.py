"""Which files of a job go first: those that somebody gave a priority are taken from the ledger, before the listing and
after it. The others go in the order in which they are listed.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

from blocks.storage.base import FileInfo
from flows.transfer.run import TransferRun
from flows.transfer.scan import Filter

MOST = 10_000
"""So many go ahead in one run: they are remembered until its end."""


def ahead(run: TransferRun) -> Iterator[list[FileInfo]]:
    """Pages of what is HIGH and URGENT and waits, the most urgent first. The listing leaves these versions out."""
    wanted = Filter(run.job, time.time_ns())
    for way in run.ways:
        if way.route_id is None:
            continue
        for page in run.ledger.preferred(way.route_id, MOST):
            files = [f for f in page if f[:4] not in run.ahead and wanted.wants(f)]
            if files:
                yield files
            run.ahead.update(f[:4] for f in files)


def behind(run: TransferRun) -> Iterator[list[FileInfo]]:
    """Pages of what is LOW, and was listed by this run."""
    run.closing = True
    run.ahead.clear()  # the listing is over
    for way in run.ways:
        if way.route_id is not None:
            yield from run.ledger.postponed(way.route_id, run.id)

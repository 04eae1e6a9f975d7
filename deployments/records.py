"""What Prefect writes down of each shipment that was delivered, in a file of its own below PREFECT_HOME: so that one that is
planned twice is done once. Nobody but us removes them; which file version is where, the ledger knows.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from datetime import timedelta
from pathlib import Path

from prefect.settings import get_current_settings

log = logging.getLogger("onblock.worker")

PREFIX = "onblock-transfer-"
"""What their names begin with: see `ShipmentVersions` in `flows/transfer/flow.py`."""
KEPT = timedelta(days=7)
"""So long a file is tried again, at most: whatever asks for a shipment later has another attempt, so another record."""
EVERY_S = 86_400.0


def sweep(folder: Path, older_than: float) -> int:
    """Remove those in a folder that were written before then (s since the epoch); how many. Raises OSError."""
    found = 0
    try:
        there = os.scandir(folder)
    except FileNotFoundError:
        return 0
    with there:
        for entry in there:
            if not entry.name.startswith(PREFIX):
                continue
            try:
                if entry.stat(follow_symlinks=False).st_mtime < older_than:
                    os.unlink(entry.path)
                    found += 1
            except FileNotFoundError:  # another worker of this machine was quicker
                continue
    return found


async def watch() -> None:
    """Now, and once a day, until this is cancelled."""
    while True:
        folder = get_current_settings().results.local_storage_path
        try:
            await asyncio.to_thread(sweep, folder, time.time() - KEPT.total_seconds())
        except OSError as error:
            log.warning("records of old shipments stay: %s: %s", error.filename, os.strerror(error.errno or 0))
        await asyncio.sleep(EVERY_S)

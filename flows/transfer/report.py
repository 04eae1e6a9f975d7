"""What Prefect shows of a run: a progress bar, a table at the end, and events `onblock.transfer.*`.

Events: one per shipment of small files, one per large file, never more than that; the Prefect UI and automations see
them. Names of files in it are written for people (`names.display`).
"""

from __future__ import annotations

import logging
import time
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.events import emit_event
from prefect.exceptions import PrefectException

from flows.transfer.progress import Meter, Receipt
from flows.transfer.shipment import Shipment

log = logging.getLogger("onblock.transfer")


EVERY_S = 3.0
"""Seconds between two updates of the progress bar: each is a write to the server's database."""


class PrefectWatcher:
    """Tells the Prefect server. A server that is away costs the picture, never the files."""

    def __init__(self, job: str, run_label: str, *, flight: str | None, device: str | None):
        self._job, self._run_label, self._flight, self._device = job, run_label, flight, device
        self._artifact: UUID | None = None
        self._shown, self._next = -1.0, 0.0
        try:
            made = create_progress_artifact(
                progress=0.0, key=f"transfer-{_key(job)}", description=f"{job}: files planned so far"
            )
            assert isinstance(made, UUID)  # a coroutine only where an event loop runs
            self._artifact = made
        except (PrefectException, httpx.HTTPError) as error:
            log.warning("no progress in Prefect: %s", error)

    def tick(self, meter: Meter) -> None:
        """Bring the progress bar up to date, when it moved."""
        if self._artifact is None or not meter.files_planned:
            return
        share = (
            meter.bytes_done / meter.bytes_planned if meter.bytes_planned else meter.files_done / meter.files_planned
        )
        percent = round(min(share, 1.0) * (99.0 if meter.scanning else 100.0), 1)
        if percent == self._shown or time.monotonic() < self._next:
            return
        self._shown, self._next = percent, time.monotonic() + EVERY_S
        try:
            update_progress_artifact(artifact_id=self._artifact, progress=percent)
        except (PrefectException, httpx.HTTPError) as error:
            log.warning("no progress in Prefect: %s", error)
            self._artifact = None

    def shipment(self, event: str, shipment: Shipment, receipt: Receipt | None = None) -> None:
        """One event of a shipment of small files, when it is over; also its beginning if it is one large file."""
        if event in ("queued", "started") and not shipment.large:
            return
        first = shipment.items[0].file
        payload: dict[str, Any] = {
            "job": self._job, "flight": self._flight, "device": self._device, "shipment": shipment.number,
            "files": len(shipment.items), "bytes": shipment.bytes, "what": str(shipment),
        }  # fmt: skip
        if len(shipment.items) == 1:
            payload |= {"size": first.size, "mtime_ns": first.mtime_ns, "row": shipment.row_ids[0]}
        if receipt is not None:
            payload |= receipt.as_dict()
        emit_event(
            f"onblock.transfer.{event}",
            resource={
                "prefect.resource.id": f"onblock.job.{self._job}", "prefect.resource.name": self._job,
                "onblock.run": self._run_label, "onblock.device": self._device or "", "onblock.flight": self._flight or "",
            },
            payload=payload,
        )  # fmt: skip

    def finish(self, meter: Meter) -> None:
        """The last word of the progress bar."""
        self._next = 0.0
        self.tick(meter)

    def summary(self, summary: dict[str, Any]) -> None:
        """The table at the end of a run."""
        rows = [
            {"what": what, "value": str(summary[what])}
            for what in (
                "job", "scanned", "delivered", "adopted", "duplicates", "deferred", "failed", "blocked", "skipped",
                "settling", "bytes", "seconds",
            )
        ]  # fmt: skip
        rows += [{"what": f"verified by {how}", "value": str(n)} for how, n in summary["verified_by"].items()]
        for d in summary["destinations"]:
            rows.append({"what": "delivered to", "value": f"{d['place']}/{d['folder']}".rstrip("/")})
            if d["manifest"]:
                rows.append({"what": "manifest", "value": f"{d['place']}/{d['manifest']}"})
        rows += [{"what": "problem", "value": p} for p in summary["problems"]]
        try:
            create_table_artifact(rows, key=f"summary-{_key(self._job)}", description=f"What became of {self._job}")
        except (PrefectException, httpx.HTTPError) as error:
            log.warning("no summary in Prefect: %s", error)


def _key(job: str) -> str:
    """A job's name as artifact keys may be written."""
    return "".join(c if c.isalnum() else "-" for c in job.lower())

"""What Prefect shows of a run: a progress bar, a table at the end, and events `onblock.transfer.*`.

Events, of which the Prefect UI and automations know: `queued`, `started`, `progress`, `completed`, `failed`,
`retry_scheduled` for a shipment, with `fetch.` and `process.` before them for the first two of three phases (and
`deliver.` for the last), and `cancelled`, `paused`. Of a shipment of small files there is one, when it is over; of a file,
at most one a second. The rows of the ledger are in the payload. Names of files are written for people
(`names.display`).
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Any
from uuid import UUID

import httpx
from prefect.artifacts import create_progress_artifact, create_table_artifact, update_progress_artifact
from prefect.events import emit_event
from prefect.exceptions import PrefectException

from blocks import names
from flows.transfer.progress import Meter, Receipt
from flows.transfer.shipment import Shipment

log = logging.getLogger("onblock.transfer")


DELIVERED = "onblock.delivered"
"""The label of events of shipments that brought something, whatever became of the rest; the only one is `yes`."""
EVERY_S = 3.0
"""Seconds between two updates of the progress bar: each is a write to the server's database."""
TOLD_S = 1.0
"""Seconds at least between two events of how far one file is."""
MOST_ROWS = 20
"""So many rows stand in one event at most; `files` says how many there are."""


class PrefectWatcher:
    """Tells the Prefect server. A server that is away costs the picture, never the files."""

    def __init__(self, job: str, run_label: str, *, flight: str | None, device: str | None):
        self._job, self._run_label, self._flight, self._device = job, run_label, flight, device
        self._artifact: UUID | None = None
        self._shown, self._next = -1.0, 0.0
        self._lock = threading.Lock()
        self._told: dict[str, tuple[float, float]] = {}  # by path: how far it was said to be, and when to say more
        self._rows: dict[str, list[dict[str, Any]]] = {}  # of large files
        self._aside: dict[str, list[int]] = {}
        try:
            made = create_progress_artifact(
                progress=0.0, key=f"transfer-{_key(job)}", description=f"{job}: files planned so far"
            )
            assert isinstance(made, UUID)  # a coroutine only where an event loop runs
            self._artifact = made
        except (PrefectException, httpx.HTTPError) as error:
            log.warning("no progress in Prefect: %s", error)

    def tick(self, meter: Meter) -> None:
        """Bring the progress bar up to date, when it moved; tell what was set aside."""
        self._tell_aside()
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
        over = not event.endswith(("queued", "started"))
        if not over and not shipment.large:
            return
        rows = [
            {
                "id": leg.row_id, "path": names.display(file.path), "size": file.size, "mtime_ns": file.mtime_ns,
                "to": names.display(leg.dest_path), "destination": leg.way,
            }
            for file, legs in shipment.items[:MOST_ROWS] for leg in legs
        ]  # fmt: skip
        payload: dict[str, Any] = {
            "shipment": shipment.number, "files": len(shipment.items), "bytes": shipment.bytes, "what": str(shipment),
            "rows": rows,
        }  # fmt: skip
        if len(shipment.items) == 1:
            first = shipment.items[0].file
            payload |= {"size": first.size, "mtime_ns": first.mtime_ns, "row": shipment.row_ids[0]}
        with self._lock:
            if over:
                for file, _ in shipment.items:
                    self._told.pop(file.path, None)
                    self._rows.pop(file.path, None)
            else:
                self._rows[shipment.items[0].file.path] = rows
        if receipt is not None:
            payload |= receipt.as_dict()
        brought = receipt is not None and bool(receipt.delivered or receipt.adopted)
        self._emit(event, payload, **({DELIVERED: "yes"} if brought else {}))

    def progress(self, phase: str, path: str, done: float) -> None:
        """An event of how far a file is: of one file, a second and a twentieth apart at least."""
        now = time.monotonic()
        with self._lock:
            last, next_at = self._told.get(path, (0.0, now if phase == "process" else now + TOLD_S))
            if path not in self._told:
                self._told[path] = (last, next_at)
            if now < next_at or (last <= done < last + 0.05):
                return
            self._told[path] = (done, now + TOLD_S)
            rows = self._rows.get(path, [])
        payload = {"what": names.display(path), "percent": round(100 * done, 1), "rows": rows}
        self._emit(f"{phase}.progress" if phase else "progress", payload)

    def set_aside(self, what: str, row_id: int) -> None:
        """Gathered, and told with the next tick: somebody may have cancelled ten thousand."""
        with self._lock:
            self._aside.setdefault(what, []).append(row_id)

    def _tell_aside(self) -> None:
        with self._lock:
            aside, self._aside = self._aside, {}
        for what, ids in aside.items():
            self._emit(what, {"files": len(ids), "rows": [{"id": i} for i in ids[:MOST_ROWS]]})

    def _emit(self, event: str, payload: dict[str, Any], **labels: str) -> None:
        emit_event(
            f"onblock.transfer.{event}",
            resource={
                "prefect.resource.id": f"onblock.job.{self._job}", "prefect.resource.name": self._job,
                "onblock.run": self._run_label, "onblock.device": self._device or "", "onblock.flight": self._flight or "",
                **labels,
            },
            payload={"job": self._job, "flight": self._flight, "device": self._device} | payload,
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

"""What one run of a job carries along: its ledger entries, sessions, target and counters, and its heartbeat.

Made once per run, shared by its shipments. What happens with it is told in `story.py`.
"""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from typing import Any, Self

from blocks import names
from blocks.errors import OnblockError
from blocks.storage.base import Storage
from blocks.storage.pool import SessionPool
from flows.ledger.store import HEARTBEAT_S, Ledger
from flows.ledger.wishes import Wish
from flows.transfer.gate import Gate
from flows.transfer.job import Target, TransferJob
from flows.transfer.progress import Meter, Nobody, Watcher
from flows.transfer.reservations import QUIET_S, Reservations
from flows.transfer.resume import JOURNAL_S
from flows.transfer.scan import Scanned
from flows.transfer.spool import Spool, clear_dead
from flows.transfer.throttle import Throttle

log = logging.getLogger("onblock.transfer")


class Way:
    """One destination of the run: its storage, and its route and manifest in the ledger (None in a dry run)."""

    def __init__(self, storage: Storage, route_id: int | None, manifest_id: int | None):
        self.storage, self.route_id, self.manifest_id = storage, route_id, manifest_id


class TransferRun:
    """A context manager: enters the run into the ledger, beats its heart, and frees what it holds at the end.

    A `dry` run writes nothing anywhere. Raises ConfigError for a job that cannot run.
    """

    def __init__(
        self, job: TransferJob, ledger: Ledger, *, flight: str | None = None, device: str | None = None,
        watcher: Watcher | None = None, flow_run_id: str | None = None, dry: bool = False,
    ):  # fmt: skip
        self.job, self.ledger, self.dry = job, ledger, dry
        self.target = Target(job, flight, device)
        self.flight, self.device = flight, device or job.device
        self.watcher = watcher or Nobody()
        self.meter, self.scanned = Meter(), Scanned()
        self.pool = SessionPool()
        self.stop = threading.Event()
        self.content_lock = threading.Lock()
        self.id = ""
        self._noted = 0.0
        self.parallel = 1  # sessions that one shipment of small files keeps busy
        self.recovered = 0
        self.wishes: dict[int, Wish] = {}  # of rows we work on, as of a second ago
        self.held: str | None = None  # who has paused the job
        self.ahead: set[tuple[str, int, int, str]] = set()  # versions that were planned before the listing
        self.closing = False  # the listing is done: what has a low priority is due
        self.seconds = 0.0
        self.problems: list[str] = []
        self.throttle: Throttle | None = None  # without limits, nobody asks for any
        self._flow_run_id = flow_run_id
        self._ended = threading.Event()
        self._heart: threading.Thread | None = None

    def __enter__(self) -> Self:
        job = self.job
        self._open_all()
        self.gate = Gate(job, self.target, self.ledger.overrides(job.name, active=True), self.pool)
        if self.dry:
            self.ways = [Way(d, self.ledger.find_route(job.name, d.place()), None) for d in job.destinations]
            self._began = time.monotonic()
            return self
        clear_dead()
        self.id = self.ledger.begin_run(job.name, flight=self.flight, device=self.device, flow_run_id=self._flow_run_id)
        self.spool = Spool(self.id)
        self.recovered = self.ledger.recover()
        if self.recovered:
            log.warning("%d files were left behind by a run that died: taken up again", self.recovered)
        self.held = self.ledger.held(job.name)
        self.ways = []
        for storage in job.destinations:
            route_id = self.ledger.route(job.name, storage.place())
            manifest = (
                None if self.target.manifest is None else self.ledger.manifest(storage.place(), self.target.manifest)
            )
            self.ways.append(Way(storage, route_id, manifest))
        self.room = Reservations(self.ledger, self.id)
        if job.bandwidth is not None:
            places = [d.place() for d in job.destinations]
            self.throttle = Throttle(job.bandwidth, job.zone(), job.source.place(), places, wait=self.stop.wait)
            self.ledger.moor(self.id, self.throttle.places)
            self._recount(self.throttle, due=True)
        context = contextvars.copy_context()  # whoever watches may want to know which flow run this is
        self._heart = threading.Thread(target=context.run, args=(self._beat,), name="onblock-heartbeat", daemon=True)
        self._heart.start()
        self._began = time.monotonic()
        return self

    def ask(self) -> None:
        """Ask what is wanted of our files; once a second."""
        try:
            self.wishes, self.held = self.ledger.wishes(self.id), self.ledger.held(self.job.name)
        except OnblockError as error:
            log.warning("nobody can be asked what is wanted: %s", error)

    def wish(self, row_id: int) -> Wish | None:
        """What somebody wants of a file that we work on."""
        return Wish.PAUSE if self.held else self.wishes.get(row_id)

    def note_due(self) -> bool:
        """Whether the run may write down how far a file is: once a second, whichever file asks."""
        now = time.monotonic()
        if now - self._noted < JOURNAL_S:
            return False
        self._noted = now
        return True

    def _open_all(self) -> None:
        """A storage that cannot be opened is known before anything is done."""
        try:
            for storage in (self.job.source, *self.job.destinations):
                with self.pool.session(storage) as session:
                    self.parallel = max(self.parallel, session.features.parallel)
        except OnblockError:
            self.pool.close()
            raise

    def _recount(self, throttle: Throttle, *, due: bool = False) -> None:
        throttle.recount(lambda places: self.ledger.crowd(self.id, places), due=due)

    def _beat(self) -> None:
        last = time.monotonic()
        while not self._ended.wait(1.0):
            self.watcher.tick(self.meter)
            self.ask()
            self.room.tell(QUIET_S)
            if self.throttle is not None:
                self._recount(self.throttle)
            if time.monotonic() - last >= HEARTBEAT_S:
                last = time.monotonic()
                try:
                    self.ledger.heartbeat(self.id)
                except OnblockError as error:
                    log.warning("no heartbeat: %s", error)  # the lease outlives several of these

    def finished(self) -> None:
        """The last row is written: the clock stops."""
        self.seconds = time.monotonic() - self._began

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        if self._heart is not None:
            self._heart.join()
        self.pool.close()
        if not self.dry:
            self.spool.close()
            self.ledger.end_run(self.id, self.summary())
            if self.throttle is not None or self.room.used:
                self.ledger.unmoor(self.id)

    def summary(self) -> dict[str, Any]:
        """What became of the run, as `--json` prints it."""
        total = self.meter.total
        return {
            "job": self.job.name, "run_id": self.id, "scanned": self.scanned.files, "delivered": total.delivered,
            "adopted": total.adopted, "duplicates": total.duplicates, "deferred": total.deferred,
            "failed": total.failed, "blocked": total.blocked, "skipped": total.skipped,
            "settling": self.scanned.settling, "bytes": total.bytes, "seconds": round(self.seconds, 3),
            "verified_by": dict(total.verified_by), "problems": list(self.problems),
            "destinations": [
                {
                    "place": d.place(), "folder": names.display(self.target.folder),
                    "manifest": None if self.target.manifest is None else names.display(self.target.manifest),
                }
                for d in self.job.destinations
            ],
        }  # fmt: skip

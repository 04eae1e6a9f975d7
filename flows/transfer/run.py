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
from blocks.devices.base import Device
from blocks.errors import NetworkError, OnblockError
from blocks.storage.base import Storage
from blocks.storage.local import LocalStorage
from blocks.storage.pool import SessionPool
from flows.ledger.store import HEARTBEAT_S, Ledger
from flows.ledger.wishes import Wish
from flows.transfer.gate import Gate
from flows.transfer.job import Target, TransferJob
from flows.transfer.locker import files_root, lockers_of
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
        watcher: Watcher | None = None, flow_run_id: str | None = None, leader: str | None = None, dry: bool = False,
    ):  # fmt: skip
        self.job, self.ledger, self.dry = job, ledger, dry
        self.leader = leader  # the run that this one helps
        self.target = Target(job, flight, device)
        self.flight, self.device = flight, device or job.device
        self.watcher = watcher or Nobody()
        self.meter, self.scanned = Meter(), Scanned()
        self.pool = SessionPool()
        self.stop = ledger.giving_up = threading.Event()
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
        self._targets: dict[tuple[str | None, str | None], Target] = {}
        self._manifests: dict[tuple[str, str], int] = {}
        self.owner = ""  # of what lies in the spool between two phases
        self.source_away: NetworkError | None = None
        self._flow_run_id = flow_run_id
        self._ended = threading.Event()
        self._heart: threading.Thread | None = None

    def __enter__(self) -> Self:
        job = self.job
        self.owner = f"{self.ledger.identity}\0{job.name}\0{job.source.place()}"
        if job.two_phases:
            self.spool_way = Way(LocalStorage(root=str(files_root()), create_root=True), None, None)
        self._open_all()
        self.gate = Gate(job, self.target, self.ledger.overrides(job.name, active=True), self.pool)
        if self.dry:
            self.ways = [Way(d, self.ledger.find_route(job.name, d.place()), None) for d in job.destinations]
            self._began = time.monotonic()
            return self
        clear_dead()
        self.id = self.ledger.begin_run(
            job.name, flight=self.flight, device=self.device, flow_run_id=self._flow_run_id, leader=self.leader
        )
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
        """Ask what is wanted of our files, and what may pass; once a second."""
        try:
            self.wishes, self.held = self.ledger.wishes(self.id), self.ledger.held(self.job.name)
            self.gate.heed(self.ledger.overrides(self.job.name, active=True))
        except OnblockError as error:
            log.warning("nobody can be asked what is wanted: %s", error)

    def wish(self, *row_ids: int) -> Wish | None:
        """What somebody wants of a file that we work on, or of what it was made of."""
        if self.held:
            return Wish.PAUSE
        return next((wish for row_id in row_ids if (wish := self.wishes.get(row_id)) is not None), None)

    def note_due(self) -> bool:
        """Whether the run may write down how far a file is: once a second, whichever file asks."""
        now = time.monotonic()
        if now - self._noted < JOURNAL_S:
            return False
        self._noted = now
        return True

    def target_of(self, flight: str | None, device: str | None) -> Target:
        """Where files of a flight and device go. They may have been entered by a run for another one."""
        key = (flight, device)
        if key not in self._targets:
            self._targets[key] = Target(self.job, flight, device)
        return self._targets[key]

    def manifest_of(self, way: Way, target: Target) -> int | None:
        """The manifest in which they stand."""
        if target.manifest is None or target.manifest == self.target.manifest:
            return way.manifest_id
        key = (way.storage.place(), target.manifest)
        if key not in self._manifests:
            self._manifests[key] = self.ledger.manifest(*key)
        return self._manifests[key]

    @property
    def route_ids(self) -> list[int]:
        """The routes of all destinations."""
        return [way.route_id for way in self.ways if way.route_id is not None]

    def _open_all(self) -> None:
        """A storage that cannot be opened is known before anything is done. Of a source that is away, what lies in the
        spool can be delivered all the same."""
        try:
            for storage in (self.job.source, *self.job.destinations):
                try:
                    with self.pool.session(storage) as session:
                        self.parallel = max(self.parallel, session.features.parallel)
                except NetworkError as error:
                    if self.dry or storage is not self.job.source or not self._is_in_the_spool():
                        raise
                    self.source_away = error
                    self.scanned.complete = False
                    self.problems.append(f"{error}; what was fetched before is delivered")
        except OnblockError:
            self.pool.close()
            raise

    def _is_in_the_spool(self) -> bool:
        return self.job.two_phases and any(locker.fetched() for locker in lockers_of(self.owner))

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

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._ended.set()
        if error is not None:  # a run that was broken off is no success, whatever it had counted
            self.problems.append(_broken_off(error))
            self.finished()
        if self._heart is not None:
            self._heart.join()
        self.pool.close()
        if isinstance(self.job.source, Device) and self.leader is None:  # which others may still read from
            try:
                self.job.source.release()
            except OnblockError as error:
                log.error("%s", error)
                self.problems.append(str(error))
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
            **({"leader": self.leader} if self.leader else {}),
        }  # fmt: skip


def _broken_off(error: BaseException) -> str:
    """Why a run came to no end. Of what is no failure of ours only the class: nobody knows what its text holds."""
    if isinstance(error, OnblockError):
        return str(error)
    return f"the run was broken off ({type(error).__name__})"

"""What one run of upkeep carries along: its entry and heartbeat in the ledger, its sessions, its stop.

A run of upkeep is a run like any other in the ledger: what it holds is freed when it dies.
"""

from __future__ import annotations

import logging
import threading
import time
from contextlib import ExitStack
from typing import Any, Self

from blocks.devices.base import Device
from blocks.errors import Cancelled, ConfigError, OnblockError
from blocks.storage.base import Session
from flows.ledger import Ledger
from flows.ledger.store import HEARTBEAT_S
from flows.transfer.job import TransferJob

log = logging.getLogger("onblock.upkeep")


class Shift:
    """A context manager. A `dry` one writes nothing anywhere.

    `routes` are the job's ways in the ledger and `sessions` the destinations, in the same order. Raises ConfigError for
    a job that was never run, and what `Storage.open` raises, of the source only unless it `source_may_be_away`.
    """

    source: Session
    sessions: list[Session]

    def __init__(
        self,
        job: TransferJob,
        ledger: Ledger,
        *,
        dry: bool = False,
        flow_run_id: str | None = None,
        source_may_be_away: bool = False,
    ):
        self.job, self.ledger, self.dry = job, ledger, dry
        self.id = ""
        self.source_is_away = False
        self._source_may_be_away = source_may_be_away
        self.stop = ledger.giving_up = threading.Event()
        self.summary: dict[str, Any] = {"job": job.name}
        self._flow_run_id = flow_run_id
        self._stack = ExitStack()
        self._ended = threading.Event()
        self._heart: threading.Thread | None = None
        self._asked = -1.0  # when we asked last whether the job is on hold
        found = [ledger.find_route(job.name, d.place()) for d in job.destinations]
        self.routes = [route for route in found if route is not None]
        if len(self.routes) < len(found):
            place = job.destinations[found.index(None)].place()
            raise ConfigError(f"job {job.name!r} has never delivered to {place}", remedy="run the job first")

    def __enter__(self) -> Self:
        with self._stack:
            try:
                if isinstance(self.job.source, Device):
                    self._stack.callback(self.job.source.release)
                self.source = self._stack.enter_context(self.job.source.open())
            except OnblockError as error:
                if not self._source_may_be_away:
                    raise
                log.info("the source is away: %s", error)
                self.source_is_away = True
            self.sessions = [self._stack.enter_context(d.open()) for d in self.job.destinations]
            if not self.dry:
                self.ledger.recover()
                self.id = self.ledger.begin_run(
                    self.job.name, flight=None, device=self.job.device, flow_run_id=self._flow_run_id
                )
                self._heart = threading.Thread(target=self._beat, name="onblock-heartbeat", daemon=True)
                self._heart.start()
            self._stack = self._stack.pop_all()
        return self

    def _beat(self) -> None:
        while not self._ended.wait(HEARTBEAT_S):
            try:
                self.ledger.heartbeat(self.id)
            except OnblockError as error:
                log.warning("no heartbeat: %s", error)

    def go_on(self) -> None:
        """Raises Cancelled when the run is to stop, or somebody has put the job on hold."""
        if self.stop.is_set():
            raise Cancelled("the run was stopped")
        if time.monotonic() - self._asked < 1.0:
            return
        if (who := self.ledger.held(self.job.name)) is not None:
            raise Cancelled(f"{self.job.name} was paused by {who}; `onblock transfers resume --job {self.job.name}`")
        self._asked = time.monotonic()

    def __exit__(self, *exc: object) -> None:
        self._ended.set()
        with self._stack:
            if self._heart is not None:
                self._heart.join()
            if self.id:
                self.ledger.end_run(self.id, self.summary)

"""How far a run is, for those who watch: counters, and the interface through which they are told.

What the terminal shows is in `deployments/cli.py`; Prefect's artifacts and events are in `flow.py`'s neighbour
`report.py`. Nothing here knows either.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from threading import Lock
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from flows.transfer.shipment import Shipment


@dataclass
class Receipt:
    """What became of the files of one shipment, or of a whole run: one count per file and destination."""

    delivered: int = 0
    adopted: int = 0  # the same content was already at the final name
    duplicates: int = 0
    deferred: int = 0
    failed: int = 0
    blocked: int = 0
    skipped: int = 0
    bytes: int = 0
    verified_by: dict[str, int] = field(default_factory=dict)

    def add(self, other: Receipt) -> None:
        """Sum up."""
        for name in ("delivered", "adopted", "duplicates", "deferred", "failed", "blocked", "skipped", "bytes"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for how, n in other.verified_by.items():
            self.verified_by[how] = self.verified_by.get(how, 0) + n

    def verified(self, how: str, n: int = 1) -> None:
        """Count a proof."""
        self.verified_by[how] = self.verified_by.get(how, 0) + n

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return asdict(self)


class Meter:
    """Counters that the threads of a run share."""

    def __init__(self) -> None:
        self._lock = Lock()
        self.files_planned = self.bytes_planned = self.files_done = self.bytes_done = 0
        self.scanning = True
        self.total = Receipt()

    def planned(self, files: int, size: int) -> None:
        """A shipment was made up."""
        with self._lock:
            self.files_planned += files
            self.bytes_planned += size

    def moved(self, files: int, size: int) -> None:
        """Bytes were written, or a file was finished one way or another."""
        with self._lock:
            self.files_done += files
            self.bytes_done += size

    def add(self, receipt: Receipt) -> None:
        """A shipment, or a part of the planning, is accounted for."""
        with self._lock:
            self.total.add(receipt)


class Watcher(Protocol):
    """Somebody who is told how a run goes. Called from several threads."""

    def tick(self, meter: Meter) -> None:
        """Once a second."""
        ...

    def shipment(self, event: str, shipment: Shipment, receipt: Receipt | None = None) -> None:
        """`queued`, `started`, `completed`, `failed` or `retry_scheduled` has happened to a shipment; of two phases, the
        first ones have names of their own: `fetch.started`, `process.completed`."""
        ...

    def progress(self, phase: str, path: str, done: float) -> None:
        """How far a phase is with a large file, or the steps with any, 0 to 1; often. The phase is empty for a job that
        has but one."""
        ...

    def set_aside(self, what: str, row_id: int) -> None:
        """A file was `paused` or `cancelled`, as somebody had asked."""
        ...


class Nobody:
    """A watcher for runs that nobody watches."""

    def tick(self, meter: Meter) -> None:
        """Nothing."""

    def shipment(self, event: str, shipment: Shipment, receipt: Receipt | None = None) -> None:
        """Nothing."""

    def progress(self, phase: str, path: str, done: float) -> None:
        """Nothing."""

    def set_aside(self, what: str, row_id: int) -> None:
        """Nothing."""

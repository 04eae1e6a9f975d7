"""Room at a destination, and in the spool, kept free for files on their way, across all runs that use the same disk.

Before a file is written, its size and a tenth must be free beyond what others have reserved; whoever does not fit fails
before its first byte, and nobody fills a disk for all. What is written is no longer reserved: a run tells the ledger
with its next shipment, or once a second, so that room may seem smaller than it is for a moment, never larger. Where nobody can say how much
is free, nothing is checked. How a reservation is decided between runs is in `flows/ledger/berths.py`.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path

from blocks.errors import DiskFull, OnblockError
from blocks.storage.base import Session, Storage
from flows.ledger import Ledger

log = logging.getLogger("onblock.transfer")

DELIVERING = Fraction(11, 10)
"""Times the size of a file, to deliver it."""
PROCESSING = Fraction(2)
"""Times the size of a file, to process it: what goes in and what comes out lie side by side."""
QUIET_S = 2.0
"""A run that has reserved nothing for so long tells by itself what it has written."""
STEP = 1 << 20
"""What was written is told to the ledger in steps of so many bytes."""


def needed(size: int, *, unknown: int, there: int = 0, factor: Fraction = DELIVERING, growing: bool = False) -> int:
    """Bytes that must be free for a file of `size` bytes, of which `there` lie at the destination already.

    `unknown` is for a file whose size nobody knows: below 0, or 0 while it is `growing`.
    """
    if size < 0 or (growing and size == 0):
        return unknown
    return -(-max(0, size - there) * factor.numerator // factor.denominator)


def place_of(storage: Storage, session: Session) -> str:
    """What shares its room with this: the disk where it is one of this machine, else the storage's own place."""
    local = session.local_path("x")
    return f"room {storage.place()}" if local is None else disk_of(os.path.dirname(local))


def disk_of(folder: str | Path) -> str:
    """The file system of a folder of this machine, also of one that is yet to be made."""
    try:
        machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()  # host names are not unique
    except OSError:
        machine = socket.gethostname()
    return f"disk {machine} {os.stat(_existing(folder)).st_dev}"


def free_at(folder: str | Path) -> int:
    """Bytes that are free there for this account."""
    st = os.statvfs(_existing(folder))
    return st.f_bavail * st.f_frsize


def _existing(folder: str | Path) -> Path:
    path = Path(folder).absolute()
    return next((p for p in (path, *path.parents) if p.exists()), Path("/"))


class Hold:
    """Bytes that one thread has reserved at a place, less those that it has written."""

    def __init__(self, reserved: int = 0):
        self._reserved, self._written = reserved, 0

    def wrote(self, count: int) -> None:
        """So many bytes are on the disk."""
        self._written += count

    @property
    def left(self) -> int:
        """What is still to be kept free."""
        return max(0, self._reserved - math.floor(self._written * DELIVERING))


class Reservations:
    """What the threads of one run have reserved, by place."""

    def __init__(self, ledger: Ledger, run_id: str):
        self._ledger, self._run_id = ledger, run_id
        self._lock = threading.Lock()
        self._holds: dict[str, list[Hold]] = {}
        self._told: dict[str, int] = {}
        self._places: dict[int, str] = {}
        self._asked = 0.0

    @property
    def used(self) -> bool:
        """Whether anything was ever reserved."""
        return bool(self._told)

    def place(self, storage: Storage, session: Session) -> str:
        """`place_of`, asked once."""
        if id(storage) not in self._places:
            try:
                self._places[id(storage)] = place_of(storage, session)
            except OSError:
                return f"room {storage.place()}"  # whoever writes there hears why
        return self._places[id(storage)]

    def take(self, place: str, needs: Sequence[int], free: Callable[[], int | None]) -> tuple[Hold, list[int | None]]:
        """Reserve room for files, in one statement if all fit, else for those that do, in their order. What is free is
        asked for before and after: the ledger and the disk cannot be read at one moment.

        For each file None if it fits, or the bytes that there would have been for it. Raises what the ledger raises.
        """
        if not any(needs):
            return Hold(), [None] * len(needs)
        with self._lock:
            self._asked = time.monotonic()
            before = self._left(place)
            there = _asked(free)
            if there is None:
                return Hold(), [None] * len(needs)
            if not self.used:
                self._ledger.moor(self._run_id, [])  # clears away what the dead have left
            fits: list[int | None] = [None] * len(needs)
            for _ in range(5):
                total = sum(need for need, short in zip(needs, fits, strict=True) if short is None)
                if not total:
                    break
                granted, others = self._ledger.reserve(self._run_id, place, before + total, there)
                if not granted and others:  # some of them may be dead
                    self._ledger.recover()
                    granted, others = self._ledger.reserve(self._run_id, place, before + total, there)
                if granted:
                    self._told[place] = before + total
                    before = self._left(
                        place
                    )  # what our own have written meanwhile is no longer free, nor to be kept so
                    now = _asked(free)
                    # what others wrote, and gave back, after we had looked is neither in `there` nor in `others`
                    if now is None or before + total + others <= now:
                        hold = Hold(total)
                        self._holds.setdefault(place, []).append(hold)
                        return hold, fits
                    there = now
                    continue
                fits = _first_fit(needs, there - others - before)
            if self._told.get(place, 0) > before:  # nobody waits for room that we do not take
                self._ledger.reserved(self._run_id, {place: before})
                self._told[place] = before
            return Hold(), [0 if need and short is None else short for need, short in zip(needs, fits, strict=True)]

    def release(self, place: str, hold: Hold) -> None:
        """The files are done, one way or another. The ledger hears of it with the next statement."""
        with self._lock:
            if hold in (mine := self._holds.get(place, [])):
                mine.remove(hold)

    def tell(self, quiet_s: float = 0.0) -> None:
        """Give back in the ledger what is not needed any more; for a thread that may not wait.

        Not where something was reserved in the last seconds: small files come in shipments, and each tells for those
        before it.
        """
        if not self._told or time.monotonic() - self._asked < quiet_s or not self._lock.acquire(blocking=False):
            return
        try:
            left = {place: self._left(place) for place in self._told}
            less = {p: n for p, n in left.items() if self._told[p] - n >= STEP or (not n and self._told[p])}
            if less:
                self._ledger.reserved(self._run_id, less)
                self._told |= less
        except OnblockError as error:
            log.warning("what was reserved is not given back yet: %s", error)
        finally:
            self._lock.release()

    def _left(self, place: str) -> int:
        return sum(hold.left for hold in self._holds.get(place, ()))


def _asked(free: Callable[[], int | None]) -> int | None:
    try:
        return free()
    except (OnblockError, OSError) as error:
        log.debug("nobody can say how much is free: %s", error)
        return None


def _first_fit(needs: Sequence[int], room: int) -> list[int | None]:
    """Which files fit, in their order: None, or the room that was left for one that does not."""
    found: list[int | None] = []
    for need in needs:
        if need <= max(room, 0):
            room -= need
            found.append(None)
        else:
            found.append(max(room, 0))
    return found


def does_not_fit(path: str, place: str, need: int, room: int) -> DiskFull:
    """The failure of a file for which there is no room."""
    return DiskFull(
        f"needs {need:,} bytes free at {place}, where {room:,} are not in use or reserved by other transfers", path=path
    )

"""Keeping to a bandwidth: buckets that the threads of a run take their bytes from, and how runs and machines share.

The limit of a place is shared by the runs that are at work there (`flows/ledger/berths.py`): each takes its n-th part,
and counts again every few seconds. A run that cannot ask the ledger goes on with the n it knew last: nobody can have
joined meanwhile, since a run begins in the ledger. Before the first answer it takes a half. Where a run joins, the
limit may be exceeded for the seconds until the others have counted.

Programs that move many files by themselves (rclone, rsync) are told the limit, one of them at a time, and what they
moved is taken from the bucket afterwards. Which limit holds is decided in `bandwidth.py`; bytes are held back in
`stage.py` and `bulk.py`.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from blocks.errors import OnblockError
from blocks.storage.base import FileInfo, Reader
from flows.transfer.bandwidth import Limit, Timetable, changes_at, limit_at, told

if TYPE_CHECKING:
    from blocks.storage.base import Buffer

log = logging.getLogger("onblock.transfer")

LOOK_S = 0.25
"""Whoever waits looks so often whether the limit has changed, or somebody wants him to stop."""
BURST_S = 0.25
"""Bytes of so long may pass at once after a pause."""
PORTIONS = 8
"""Into so many pieces the bytes of a second are cut."""
COUNT_S = 3.0
"""A run counts so often who shares its limits."""
EDGE = timedelta(seconds=60)
"""What cannot be slowed down once it is on its way is not sent so shortly before a limit begins."""


class Bucket:
    """Bytes that may pass, so many a second, for all threads that ask. First come, first served.

    `limit()` is the rate at this moment, None for unlimited; `clock` gives seconds, `wait` spends some.
    """

    def __init__(
        self, limit: Callable[[], float | None], clock: Callable[[], float] = time.monotonic,
        wait: Callable[[float], object] = time.sleep,
    ):  # fmt: skip
        self._limit, self._clock, self._wait = limit, clock, wait
        self._lock = threading.Lock()
        self._at = clock()
        self._asked = self._allowed = 0.0  # bytes since the beginning
        self._turn = threading.Lock()

    def portion(self) -> int:
        """Bytes to ask for at a time, a multiple of 4096: small enough for an even flow."""
        now = self._limit()
        return 1 << 62 if now is None else max(4096, int(now / PORTIONS) // 4096 * 4096)

    def take(self, count: int, wanted: Callable[[], bool] = lambda: True) -> None:
        """Wait until `count` bytes may pass, or nobody wants them any more. What `wanted` raises ends the wait."""
        with self._lock:
            self._drain()
            self._asked += count
            mine = self._asked
        while (left := self._left(mine)) > 0 and wanted():
            self._wait(min(left, LOOK_S))

    def passed(self, count: int) -> None:
        """Bytes have passed that nobody asked for: others wait for them."""
        with self._lock:
            self._drain()
            self._asked += count

    @contextmanager
    def at_once(self, go_on: Callable[[], object]) -> Iterator[None]:
        """The turn of a program that moves many files and keeps to the limit by itself: one at a time. What `go_on`
        raises ends the wait for it."""
        while not self._turn.acquire(timeout=LOOK_S):
            go_on()
        try:
            yield
        finally:
            self._turn.release()

    def _left(self, mine: float) -> float:
        """Seconds, at the present rate, until all bytes before `mine` may have passed."""
        with self._lock:
            now = self._drain()
            short = mine - self._allowed
            return 0.0 if now is None or short < 1 else short / now  # less than a byte is an error of rounding

    def _drain(self) -> float | None:
        at, now = self._clock(), self._limit()
        if now is None:
            self._allowed = self._asked
        else:
            self._allowed = min(self._allowed + (at - self._at) * now, self._asked + now * BURST_S)
        self._at = at
        return now


class Throttle:
    """The limits of one run: a bucket for the source and one for each destination, and who shares them.

    `count(places)` asks the ledger how many runs are at each; `clock` gives seconds, `today` the time in the zone.
    """

    def __init__(
        self, timetable: Timetable, zone: ZoneInfo, source: str, destinations: Sequence[str], *,
        wait: Callable[[float], object] = time.sleep, clock: Callable[[], float] = time.monotonic,
        today: Callable[[ZoneInfo], datetime] = datetime.now,
    ):  # fmt: skip
        self.timetable, self.zone = timetable, zone
        self._clock, self._today = clock, today
        self._looked = self._counted = clock()
        self._lock = threading.Lock()
        self._now = limit_at(timetable, today(zone))
        self.down_place, self.up_places = f"down {source}", [f"up {d}" for d in destinations]
        self.places = [self.down_place, *self.up_places]
        self.sharing = dict.fromkeys(self.places, 2)
        self.down = Bucket(lambda: self._share(self.down_place, self.now.down), clock, wait)
        self.up = [Bucket(lambda p=p: self._share(p, self.now.up), clock, wait) for p in self.up_places]

    @property
    def now(self) -> Limit:
        """What holds now; looked up once a second."""
        at = self._clock()
        if at - self._looked >= 1.0:
            with self._lock:
                self._looked = at
                found = limit_at(self.timetable, self._today(self.zone))
                if found != self._now:
                    log.info("bandwidth from now on: %s", told(found))
                self._now = found
        return self._now

    def _share(self, place: str, whole: int | None) -> float | None:
        return None if whole is None else whole / self.sharing[place]

    def limits(self) -> tuple[int | None, int | None]:
        """Up and down now, for a program that moves many files at once to the only destination, or from the source."""
        now = self.now
        shares = self._share(self.up_places[0], now.up), self._share(self.down_place, now.down)
        return tuple(None if s is None else max(1, int(s)) for s in shares)  # type: ignore[return-value]

    def recount(self, count: Callable[[Sequence[str]], dict[str, int]], *, due: bool = False) -> None:
        """Count who shares the limits, if it is time or `due`. What cannot be counted stays as it was."""
        at = self._clock()
        if not due and at - self._counted < COUNT_S:
            return
        self._counted = at
        try:
            self.sharing |= count(self.places)
        except OnblockError as error:
            log.warning("nobody can be asked who shares the bandwidth: %s", error)

    def free(self, direction: str) -> bool:
        """Whether `up` or `down` is unlimited now, and will be for a while."""
        if getattr(self.now, direction) is not None:
            return False
        when = self._today(self.zone)
        edge = changes_at(self.timetable, when)
        return edge is None or edge.astimezone(UTC) - when.astimezone(UTC) > EDGE


class SlowReader(Reader):
    """A reader that takes its bytes from a bucket. `wanted` is asked by the thread that writes, so nothing is read ahead."""

    ahead = False

    def __init__(self, inner: Reader, bucket: Bucket, wanted: Callable[[], bool]):
        self._inner, self._bucket, self._wanted = inner, bucket, wanted

    def readinto(self, buffer: Buffer) -> int:
        """As the reader within, later."""
        view, got = memoryview(buffer), 0
        while got < len(view):
            part = view[got : got + self._bucket.portion()]
            n = self._inner.readinto(part)
            self._bucket.take(n, self._wanted)
            got += n
            if n < len(part):
                break
        return got

    def before(self, view: memoryview) -> None:
        """As the reader within: these bytes are here already."""
        self._inner.before(view)

    def info(self) -> FileInfo:
        """As the reader within."""
        return self._inner.info()

    def close(self) -> None:
        """Let go of the file."""
        self._inner.close()

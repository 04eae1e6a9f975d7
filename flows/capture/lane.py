"""A lane: all that happens to one stream or sensor between its device and its files, in threads of its own.

    reader --(what came)--> encoder --(packets)--> writer        a camera that is encoded
    reader --(packets or samples)----------------> writer        a copied camera, a sensor

The belts between them hold a bounded number of bytes; what falls off is accounted for, and said in the sidecar. A reader
that hangs in its driver is left behind, and another one opens the device anew: `watch` sees to that. No lane waits for
another one. What is a camera's own is in `video_lane.py`, what a sensor's in `sensor_lane.py`.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blocks.errors import Kind, OnblockError, as_onblock
from flows.capture.accounts import Accounts
from flows.capture.belt import Belt
from flows.capture.clock import Clock, Grid
from flows.capture.encoder import Packed
from flows.capture.segment import SegmentWriter, disk_error
from flows.capture.sidecar import DropRecord, Reason, SampleRecord

if TYPE_CHECKING:
    pass

log = logging.getLogger("onblock.capture")

BACKOFF_NS = (250_000_000, 1_000_000_000, 2_000_000_000, 5_000_000_000)
"""Waits before a device is opened again, while it gives nothing."""
LEFT_BEHIND = 3
"""So many readers may hang in their drivers at a time; then no other is started."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What a lane needs to know of its recording."""

    folder: Path
    clock: Clock
    start_ns: int
    grid: Grid
    ready_ns: int
    closed: Callable[[str, SegmentWriter], None]
    """Called by the writer for each segment that is complete."""
    failed: Callable[[OnblockError], None]
    """Called by the writer when the disk takes no more."""
    happened: Callable[[str, str, str], None]
    """(lane, state, text): for the log of the recording."""
    encoder_threads: int = 0
    """Of each encoder: a share of the processors, since threads that wait for one another cost more than they give."""


@dataclass
class Connection:
    """One opening of the device, and the thread that reads from it."""

    began_ns: int
    thread: threading.Thread | None = None
    got_ns: int | None = None
    close: Callable[[], None] = field(default=lambda: None)


class Lane:
    """What cameras and sensors have in common: a reader that is watched, and a writer."""

    kind = ""

    def __init__(self, name: str, setting: Setting, *, stalled_ns: int | None, room: int):
        self.name, self.setting = name, setting
        self.folder = setting.folder / name
        self.folder.mkdir()
        self.accounts = Accounts(self.folder)
        self.state, self.last_error, self.reconnects = "starting", "", 0
        self.error: OnblockError | None = None
        self.bytes_closed = 0
        self.late_told = False
        self._stalled_ns = stalled_ns
        self._lock = threading.Lock()
        self._sequence = 0
        self._connection: Connection | None = None
        self._left: list[threading.Thread] = []
        self._retry_ns: int | None = None
        self._failures = 0
        self._stopping = False
        self._recent: deque[int] = deque(maxlen=4096)
        self._out: Belt[Packed | SampleRecord] = Belt(room)
        self._writer = threading.Thread(target=self._write, name=f"onblock-write-{name}", daemon=True)
        self._segment: SegmentWriter | None = None
        self._segment_lock = threading.Lock()
        self._number = 0
        self._early: dict[Reason, DropRecord] = {}
        """What was dropped before there was a file to say it in: one run of each reason."""
        self._full = self._over = self._closed = False
        self._pen = threading.Lock()
        self._handed = self._done = 0
        """How many the reader has put on the belt, and the writer has put down of them."""

    # -- from the recorder's thread

    def start(self) -> None:
        """Begin."""
        self._writer.start()
        self._connect()

    def watch(self) -> None:
        """Look after the reader; to be called several times a second. Never waits."""
        now = self.setting.clock.monotonic_ns()
        with self._lock:
            connection = self._connection
            if self._stopping or self.state == "ended":
                return
            if connection is not None:
                since = connection.got_ns if connection.got_ns is not None else connection.began_ns
                patience = self._stalled_ns if connection.got_ns is not None else self.setting.ready_ns
                if patience is None or now - since < patience:
                    return
                what = f"{self.name}: gave nothing for {(now - since) / 1e9:.1f} s; it is opened again"
                self._connection = None
                if connection.thread is not None:
                    self._left.append(connection.thread)
                self._lost("stalled", what, now)
            if connection is None and self._retry_ns is not None and now < self._retry_ns:
                return
            self._left = [thread for thread in self._left if thread.is_alive()]
            hopeless = len(self._left) >= LEFT_BEHIND
        if connection is not None:
            connection.close()
            return
        if not hopeless:
            self.reconnects += 1
            self._connect()

    def stop(self) -> None:
        """The device is not read any more; what is on its way goes on to the files. Does not wait."""
        with self._lock:
            self._stopping = True
            connection = self._connection
        if connection is not None:
            connection.close()

    def finish(self, timeout: float) -> bool:
        """Wait until all is in the files; False if the disk did not take it in time, and the rest was dropped."""
        with self._lock:
            connection, self._connection = self._connection, None  # from here on nothing more is taken of it
        if connection is not None and connection.thread is not None:
            connection.thread.join(min(timeout, 0.5))  # it may hang; what it has given is all there is
        self._over = True
        self._close_belts()
        self._writer.join(timeout)
        in_time = not self._writer.is_alive()
        if not in_time:
            for item in self._out.clear():
                if not isinstance(item, DropRecord):
                    self.accounts.dropped(Reason.STOPPED)
        return in_time

    def sync(self) -> None:
        """Force what is written to the disk. Raises OSError."""
        with self._segment_lock:
            fds = self._segment.duplicates() if self._segment is not None else []
        try:
            for fd in fds:  # without the lock: a slow disk must not keep the writer, or a sensor, from its next segment
                os.fdatasync(fd)
        finally:
            for fd in fds:
                os.close(fd)

    @property
    def at_work(self) -> bool:
        """Whether its writer still has its files open."""
        return self._writer.is_alive()

    @property
    def ready(self) -> bool:
        """Whether the device has given anything yet."""
        return self._sequence > 0

    @property
    def bytes_written(self) -> int:
        """Bytes of all its files."""
        segment = self._segment
        return self.bytes_closed + (segment.size if segment is not None else 0)

    def rate(self) -> float:
        """Frames or samples per second, over the last two seconds."""
        now = self.setting.clock.monotonic_ns() - self.setting.start_ns
        recent = [at for at in list(self._recent) if now - at <= 2_000_000_000]
        return len(recent) / 2

    def health(self) -> dict[str, Any]:
        """How it is."""
        balance = self.accounts.balance()
        return {
            "kind": self.kind, "state": self.state, "fps": self.rate(), "captured": balance.captured,
            "written": balance.written, "dropped": balance.dropped, "in_flight": balance.in_flight,
            "reconnects": self.reconnects, "last_error": self.last_error,
        }  # fmt: skip

    # -- the reader

    def _connect(self) -> None:
        connection = Connection(self.setting.clock.monotonic_ns())
        connection.thread = threading.Thread(
            target=self._read, args=(connection,), name=f"onblock-read-{self.name}", daemon=True
        )
        with self._lock:
            if self._stopping:
                return
            self._connection = connection
        connection.thread.start()

    def _read(self, connection: Connection) -> None:
        """One opening of the device, to its end."""
        error: OnblockError | None = None
        try:
            self._take_from(connection)
        except OnblockError as failed:
            error = failed
        except Exception as failed:  # noqa: BLE001 - whatever a driver raises is told, and the device opened again
            error = as_onblock(failed, self.name)
        with self._lock:
            if self._connection is not connection:
                return  # left behind: somebody else reads by now
            self._connection = None
            if self._stopping:
                return
            if error is None and self._ends():
                self.state = "ended"
                self.setting.happened(self.name, "ended", "")
                return
            text = str(error) if error is not None else f"{self.name}: the input ended; it is opened again"
            self.error = error or self.error
            self._lost("failed", text, self.setting.clock.monotonic_ns())

    def _lost(self, state: str, text: str, now: int) -> None:
        """The device gives nothing any more: say so, and when to open it again."""
        wait = BACKOFF_NS[min(self._failures, len(BACKOFF_NS) - 1)]
        self._failures += 1
        self._retry_ns = now + wait
        if (self.state, self.last_error) != (state, text):
            self.setting.happened(self.name, state, text)
            log.warning("%s", text)
        self.state, self.last_error = state, text

    def _arrived(self, connection: Connection, at_ns: int) -> int | None:
        """Something came, so long after the start: its sequence number; None if this connection was given up."""
        with self._lock:
            if self._connection is not connection or self._stopping:
                return None
            connection.got_ns = self.setting.start_ns + at_ns
            sequence = self._sequence
            self._sequence += 1
            self.accounts.captured()
            if self.state != "running":
                self.state, self.error, self._failures = "running", None, 0
                self.setting.happened(self.name, "running", "")
            self._recent.append(at_ns)
            return sequence

    def _drop(self, sequence: int, at_ns: int, reason: Reason) -> None:
        if self._over:
            reason = Reason.STOPPED
        self.accounts.dropped(reason)
        self._out.note(DropRecord(sequence, 1, at_ns, at_ns, reason))

    def _take_from(self, connection: Connection) -> None:
        raise NotImplementedError

    def _ends(self) -> bool:
        raise NotImplementedError

    def _close_belts(self) -> None:
        self._out.close()

    # -- the writer

    def _write(self) -> None:
        while (item := self._out.take()) is not None:
            with self._pen:
                if isinstance(item, DropRecord):
                    self._note(item)
                else:
                    items = [item, *self._out.more(self._at_once - 1)] if self._at_once > 1 else [item]
                    self._put_down(items)
                    self._done += len(items)
        with self._pen:
            self._closed = True
            try:
                self._roll()
            except OSError as error:  # the segment is in no manifest then: the recovery looks what there is of it
                self._no_room(disk_error(error, self.folder), [])

    def _put_down(self, items: Sequence[Packed | SampleRecord]) -> None:
        """Into the files, or into the accounts as dropped. With the pen in hand. Never raises."""
        while items:
            try:
                if self._full:
                    self._refused(items, Reason.DISK_FULL)
                    return
                done = self._append(items)
                self.accounts.written(done)
                items = items[done:]
            except OSError as error:
                self._no_room(disk_error(error, self.folder), items)
                return
            except Exception as error:  # noqa: BLE001 - a writer that dies would lose the rest without a word
                self._no_room(as_onblock(error, self.name), items)
                return

    _at_once = 1
    """So many items are appended together, if they wait."""

    def _append(self, items: Sequence[Packed | SampleRecord]) -> int:
        """Put the first, or the first few, into their segment; how many that were."""
        raise NotImplementedError

    def _note(self, drop: DropRecord) -> None:
        """Into the sidecar; that of the first segment if there is none yet."""
        if self._segment is None:
            if (was := self._early.get(drop.reason)) is not None:
                drop = DropRecord(was.sequence, was.count + drop.count, was.first_ns, drop.last_ns, drop.reason)
            self._early[drop.reason] = drop
            return
        with suppress(OSError):  # the accounts have it
            self._segment.drop(drop)

    def _refused(self, items: Sequence[Packed | SampleRecord], reason: Reason) -> None:
        for item in items:
            self.accounts.dropped(reason)
            at = item.times.pts if isinstance(item, Packed) else item.arrived_ns
            self._note(DropRecord(item.sequence, 1, at, at, reason))

    def _no_room(self, found: OnblockError, items: Sequence[Packed | SampleRecord]) -> None:
        if not self._full:
            self._full = True
            self.last_error = str(found)
            log.error("%s: %s", self.name, found)
            self.setting.failed(found)
        self._refused(items, Reason.DISK_FULL if found.kind is Kind.DISK_FULL else Reason.WRITE_FAILED)

    def _begin(self, header: dict[str, Any], video: bytes | None, cell: int) -> SegmentWriter:
        """Close the segment, and begin the next one."""
        self._roll()
        segment = SegmentWriter(self.folder, self._number, header | {"stream": self.name, "cell": cell}, video)
        self._number += 1
        with self._segment_lock:
            self._segment = segment
        early, self._early = self._early, {}
        for drop in early.values():
            segment.drop(drop)
        return segment

    def _roll(self) -> None:
        """Close the segment, and hand it on to be sealed; one that cannot be closed is not."""
        with self._segment_lock:
            segment, self._segment = self._segment, None
            if segment is not None:
                self.bytes_closed += segment.size
        if segment is not None:
            segment.close()
            self.setting.closed(self.name, segment)

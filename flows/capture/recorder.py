"""A recording from its first second to its seal: `Recorder(spec, folder).run(stop)`. Needs no Prefect.

    RECORDINGS/
        .DEVICE.lock                one recording at a time
        20261122T173103Z-cam-01/
            recording.json          the manifest, from the first second on
            events.ndjson           wall clock, battery, disk, what happened to the streams
            LANE/000000.mkv .idx    segments and sidecars; LANE/accounts
            stop                    whoever makes this file ends the recording

Not here: what each stream does (`lane.py`), what is done with it afterwards (`merge.py`, `recover.py`).
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import queue
import threading
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from blocks.errors import OnblockError, as_onblock
from flows.capture import announce, guards
from flows.capture.at_work import STOP
from flows.capture.clock import Clock, Grid, SystemClock, boot_id
from flows.capture.lane import Lane, Setting
from flows.capture.locks import LOCK, locked
from flows.capture.manifest import Manifest, SegmentEntry, StreamEntry, sha256_of, unlisted
from flows.capture.segment import SegmentWriter, disk_error, sync_folder
from flows.capture.sensor_lane import SensorLane
from flows.capture.spec import CaptureSpec
from flows.capture.video_lane import VideoLane

log = logging.getLogger("onblock.capture")

TICK_S = 0.1
EVERY_NS = 1_000_000_000
"""How often clocks, disk and battery are looked at."""
FINISH_S = 10.0
"""So long the disk may take for what is on its way at the end, of each lane."""
SEALER_S = 60.0
"""So long it may take to hash, and have on the disk, what is closed."""
RESERVE = 256 << 10
"""Bytes kept back so that a full disk still takes the manifest."""
EVENTS, RESERVE_NAME = "events.ndjson", ".reserve"


class Recorder:
    """Records until `stop` is set, a limit is reached or all inputs have ended. Where the disk did not take all of it in
    time, the manifest that `run` gives back stays `recording`: `recover.finished` puts it in order.

    `folder` is where recordings lie (`blocks.home.home() / "recordings"`); this one gets a folder of its own below, named by
    its `id`. `health()` may be asked by any thread at any time, `run` once. Raises ConfigError, Conflict (somebody records
    on this device already), DiskFull, PermissionRefused, and where no stream ever gave anything, what the first one said.
    """

    def __init__(
        self, spec: CaptureSpec, folder: Path, *, clock: Clock | None = None, battery: guards.Battery | None = None
    ):
        self.spec, self.root, self.clock, self.battery = spec, folder, clock or SystemClock(), battery
        self.id = ""
        self.folder = folder
        self.manifest: Manifest | None = None
        self.lanes: dict[str, Lane] = {}
        self._state = "starting"
        self._start_ns = 0
        self._lock = threading.Lock()
        self._closed: queue.SimpleQueue[tuple[str, SegmentWriter] | None] = queue.SimpleQueue()
        self._disk_error: OnblockError | None = None
        self._ending = threading.Event()
        self._disk, self._battery = guards.DiskGuard(spec.limits), guards.BatteryGuard(spec.limits)
        self._power: guards.Reading | None = None
        self._disk_left_s: float | None = None
        self._free = 0
        self._events: IO[str] | None = None
        self._problems: list[str] = []

    # -- the story

    def run(self, stop: threading.Event) -> Manifest:
        """Record, and seal. The manifest is on the disk then; `merge.finish` makes one file of it."""
        with locked(self.root / f".{self.spec.device}.lock", f"somebody records on {self.spec.device} already"):
            self._prepare()
            why = "interrupted"
            try:
                for lane in self.lanes.values():
                    lane.start()
                why = self._until(stop)
            finally:  # also for what Prefect and the interrupt raise in the main thread
                manifest = self._seal(why)
        if manifest.state == "failed":
            raise self._first_error()
        return manifest

    def health(self) -> dict[str, Any]:
        """`{"id", "state", "seconds", "bytes", "free_bytes", "disk_left_s", "battery_percent", "problems", "streams"}`, and
        of each stream `{"kind", "state", "fps", "captured", "written", "dropped", "in_flight", "reconnects", "last_error"}`.
        """
        lanes = list(self.lanes.values())
        return {
            "id": self.id, "state": self._state, "device": self.spec.device,
            "seconds": (self.clock.monotonic_ns() - self._start_ns) / 1e9 if self._start_ns else 0.0,
            "bytes": sum(lane.bytes_written for lane in lanes), "free_bytes": self._free,
            "disk_left_s": self._disk_left_s,
            "battery_percent": self._power.percent if self._power is not None else None,
            "problems": list(self._problems), "streams": {lane.name: lane.health() for lane in lanes},
        }  # fmt: skip

    # -- its parts

    def _prepare(self) -> None:
        """Folder, manifest and lanes; nothing of it stays if the disk does not take it."""
        if self.spec.streams:
            import av  # noqa: F401  before the first second of the recording, not in it

        self._start_ns = self.clock.monotonic_ns()
        wall = self.clock.wall_ns()
        try:
            self.id = _make_folder(self.root, wall, self.spec.device)
            self.folder = self.root / self.id
            self._own = os.open(self.folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._own, fcntl.LOCK_EX)
            announce.owe(self.folder)  # whoever is killed from now on, it is told once it is complete
            fd = os.open(self.folder / RESERVE_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.posix_fallocate(fd, 0, RESERVE)
            finally:
                os.close(fd)
            self._events = (self.folder / EVENTS).open("a", buffering=1, encoding="utf-8")
            self.manifest = Manifest(
                id=self.id, device=self.spec.device, flight=self.spec.flight, boot_id=boot_id(),
                start_monotonic_ns=self._start_ns, start_wall_ns=wall, spec=self.spec.model_dump(mode="json"),
                streams={s.name: StreamEntry(kind="video") for s in self.spec.streams}
                | {s.name: StreamEntry(kind="sensor") for s in self.spec.sensors},
            )  # fmt: skip
            encoded = sum(s.codec != "copy" for s in self.spec.streams)
            setting = Setting(
                folder=self.folder, clock=self.clock, start_ns=self._start_ns,
                grid=Grid(round(self.spec.segment.total_seconds() * 1e9)),
                ready_ns=round(self.spec.ready_within.total_seconds() * 1e9),
                closed=lambda lane, segment: self._closed.put((lane, segment)),
                failed=self._disk_failed, happened=self._happened,
                encoder_threads=max(1, len(os.sched_getaffinity(0)) // max(1, encoded)),
            )  # fmt: skip
            self.lanes = {s.name: VideoLane(s, setting) for s in self.spec.streams}
            self.lanes |= {s.name: SensorLane(s, setting) for s in self.spec.sensors}
            self.manifest.write(self.folder)
            sync_folder(self.root)
        except OSError as error:
            raise disk_error(error, self.root) from error
        self._sealer = threading.Thread(target=self._seal_segments, name="onblock-seal", daemon=True)
        self._sealer.start()
        self._syncer = threading.Thread(target=self._sync, name="onblock-sync", daemon=True)
        self._syncer.start()
        self._state = "recording"

    def _until(self, stop: threading.Event) -> str:
        """Look after everything until it is over; why it is."""
        due = self._start_ns
        most = self.spec.duration
        late = self._start_ns + round(self.spec.ready_within.total_seconds() * 1e9)
        while True:
            now = self.clock.monotonic_ns()
            if stop.is_set():
                return "asked to stop"
            if self._disk_error is not None:
                return f"the disk failed: {self._disk_error}"
            if most is not None and now - self._start_ns >= most.total_seconds() * 1e9:
                return "the duration is over"
            if all(lane.state == "ended" for lane in self.lanes.values()):
                return "all inputs have ended"
            for lane in self.lanes.values():
                lane.watch()
                if now >= late and not lane.ready and not lane.late_told:
                    lane.late_told = True
                    within = self.spec.ready_within.total_seconds()
                    self._problem(f"{lane.name} gave nothing within {within:g} s" + _because(lane))
            if now >= due:
                due = now + EVERY_NS
                if (why := self._look(now)) is not None:
                    return why
            stop.wait(TICK_S)

    def _look(self, now: int) -> str | None:
        """Once a second: clocks, disk, battery, and whoever made the file `stop`. Why to stop now; None to go on."""
        at = now - self._start_ns
        if (self.folder / STOP).exists():
            return "asked to stop"
        self._log(at, "clock", monotonic_ns=now, wall_ns=self.clock.wall_ns())
        try:
            self._free = guards.free_bytes(self.folder)
        except OSError as error:
            return f"the disk failed: {disk_error(error, self.folder)}"
        written = sum(lane.bytes_written for lane in self.lanes.values())
        why = self._disk.look(at, written, self._free)
        self._disk_left_s = self._disk.left_s(self._free)
        self._log(at, "disk", free=self._free, written=written)
        return why or self._look_at_battery(at)

    def _look_at_battery(self, at: int) -> str | None:
        if self.battery is None:
            return None
        try:
            self._power = power = self.battery.read()
        except OnblockError as error:  # it may come back; a recording does not end because nobody knows
            if self._power is not None:
                self._log(at, "battery", error=str(error))
            self._power = None
            return None
        self._log(at, "battery", percent=power.percent, volts=power.volts, charging=power.charging)
        return self._battery.look(power.percent, charging=power.charging)

    def _seal(self, why: str) -> Manifest:
        """Everything into the files, the manifest last."""
        assert self.manifest is not None
        self._state = "sealing"
        self._ending.set()
        for lane in self.lanes.values():
            lane.stop()
        late = self._finish_lanes()
        self._closed.put(None)
        self._sealer.join(SEALER_S)
        ended = self.clock.monotonic_ns() - self._start_ns
        with suppress(OSError):
            (self.folder / RESERVE_NAME).unlink()
        with self._lock:
            for lane in self.lanes.values():
                self._entry(lane)
                if not lane.ready:
                    self._problem(f"{lane.name} gave nothing at all" + _because(lane))
                if lane not in late:
                    lane.accounts.close()
            something = any(lane.accounts.balance().written for lane in self.lanes.values())
            manifest = self.manifest
            missing = unlisted(self.folder, manifest)
            if late or self._sealer.is_alive() or missing:
                # stays "recording": the recovery finds out what is on the disk
                what = ", ".join(missing) or "what was written last"
                self._problem(f"could not be sealed: {what} is not proven to be on the disk; it is to be recovered")
            else:
                manifest.state = "sealed" if something else "failed"
            manifest.stopped_because, manifest.ended_ns = why, ended
            manifest.problems = list(self._problems)
            self._log(ended, "stopped", why=why)
            if self._events is not None:
                with suppress(OSError):
                    self._events.close()
            try:
                manifest.write(self.folder)
            except OSError as error:
                raise disk_error(error, self.folder) from error
            finally:
                self._let_go(late)
        self._state = manifest.state if manifest.state != "recording" else "unsealed"
        log.info("recording %s is %s: %s", self.id, self._state, why)
        return manifest

    def _finish_lanes(self) -> list[Lane]:
        """Wait for all lanes at once, so that each has its time; those that were late."""
        in_time: set[str] = set()

        def finish(lane: Lane) -> None:
            if lane.finish(FINISH_S):
                in_time.add(lane.name)

        waiting = [threading.Thread(target=finish, args=(lane,), daemon=True) for lane in self.lanes.values()]
        for thread in waiting:
            thread.start()
        for thread in waiting:
            thread.join()
        late = [lane for lane in self.lanes.values() if lane.name not in in_time]
        for lane in late:
            self._problem(f"{lane.name}: the disk did not take all of it within {FINISH_S:g} s")
        return late

    def _let_go(self, late: list[Lane]) -> None:
        """Nobody may recover the folder while a disk that hangs may still take what was given to it."""

        def when_over() -> None:
            while self._sealer.is_alive() or any(lane.at_work for lane in late):
                time.sleep(TICK_S)
            os.close(self._own)

        if self._sealer.is_alive() or late:
            threading.Thread(target=when_over, name="onblock-let-go", daemon=True).start()
        else:
            os.close(self._own)

    def _first_error(self) -> OnblockError:
        for lane in self.lanes.values():
            if lane.error is not None:
                return lane.error
        return self._disk_error or as_onblock(RuntimeError("nothing was recorded"), self.id)

    # -- in other threads

    def _seal_segments(self) -> None:
        """For each segment that is complete: on the disk, hashed, in the manifest."""
        while (found := self._closed.get()) is not None:
            name, segment = found
            try:
                entry = entry_of(self.folder, name, segment)
                with self._lock:
                    assert self.manifest is not None
                    self.manifest.streams[name].segments.append(entry)
                    for lane in self.lanes.values():
                        self._entry(lane)
                    self.manifest.write(self.folder)
            except OSError as error:
                self._problem(str(disk_error(error, self.folder)))

    def _sync(self) -> None:
        """Force what is written to the disk, now and then."""
        while not self._ending.wait(self.spec.sync_every.total_seconds() or 1):
            for lane in self.lanes.values():
                try:
                    lane.sync()
                except OSError as error:
                    self._disk_failed(disk_error(error, self.folder))

    def _disk_failed(self, error: OnblockError) -> None:
        with suppress(OSError):  # room for the manifest
            (self.folder / RESERVE_NAME).unlink()
        self._disk_error = self._disk_error or error

    def _entry(self, lane: Lane) -> None:
        """Bring the manifest's entry of a lane up to its accounts."""
        assert self.manifest is not None
        entry, balance = self.manifest.streams[lane.name], lane.accounts.balance()
        entry.state, entry.last_error, entry.reconnects = lane.state, lane.last_error, lane.reconnects
        entry.captured, entry.written, entry.dropped = balance.captured, balance.written, balance.dropped
        entry.in_flight = balance.in_flight

    def _happened(self, lane: str, state: str, text: str) -> None:
        self._log(self.clock.monotonic_ns() - self._start_ns, "stream", stream=lane, state=state, text=text)

    def _problem(self, text: str) -> None:
        if text not in self._problems:
            self._problems.append(text)
            log.error("%s", text)

    def _log(self, at_ns: int, kind: str, **what: Any) -> None:
        """A line into the log of the recording. Where the disk is full it is not worth a failure."""
        if self._events is not None:
            with suppress(OSError, ValueError):
                self._events.write(json.dumps({"at_ns": at_ns, "kind": kind, **what}) + "\n")


def entry_of(folder: Path, name: str, segment: SegmentWriter) -> SegmentEntry:
    """Have a closed segment on the disk, and hash it. Raises OSError."""
    paths = [
        path for path in (folder / name / f"{segment.stem}.mkv", folder / name / f"{segment.stem}.idx") if path.exists()
    ]
    for path in paths:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
    sync_folder(folder / name)
    return SegmentEntry(
        number=segment.number, video=f"{name}/{segment.stem}.mkv" if segment.video is not None else None,
        sidecar=f"{name}/{segment.stem}.idx", bytes=segment.size,
        video_bytes=segment.video.size if segment.video is not None else 0,
        sha256={str(p.relative_to(folder)): sha256_of(p) for p in paths}, count=segment.count,
        dropped=segment.dropped, first_ns=segment.first_ns, last_ns=segment.last_ns,
    )  # fmt: skip


def _because(lane: Lane) -> str:
    return f": {lane.error or lane.last_error}" if lane.error or lane.last_error else ""


def _make_folder(root: Path, wall_ns: int, device: str) -> str:
    """A new folder for a recording; its name. Two of one second get different names."""
    root.mkdir(parents=True, exist_ok=True)
    stamp = datetime.fromtimestamp(wall_ns // 1_000_000_000, UTC).strftime("%Y%m%dT%H%M%SZ")
    for n in range(1, 1000):
        name = f"{stamp}-{device}" + (f"-{n}" if n > 1 else "")
        with suppress(FileExistsError):
            (root / name).mkdir()
            return name
    raise FileExistsError(f"{root / stamp}")

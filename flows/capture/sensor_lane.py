"""The lane of a sensor: samples, put down by the reader itself where nothing waits. The rest of it is in `lane.py`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import takewhile
from typing import Any, cast

from blocks.errors import as_onblock
from flows.capture import sources
from flows.capture.encoder import Packed
from flows.capture.lane import Connection, Lane, Setting
from flows.capture.segment import disk_error
from flows.capture.sidecar import Reason, SampleRecord, encode_sample
from flows.capture.spec import SensorSpec

SAMPLE_ROOM = 64
"""Bytes that a sample costs besides its content while it waits."""


class SensorLane(Lane):
    """A sensor."""

    kind = "sensor"

    def __init__(self, spec: SensorSpec, setting: Setting, opened: Callable[[], sources.SensorSource] | None = None):
        super().__init__(spec.name, setting, stalled_ns=None, room=8 << 20)
        self.spec = spec
        self._open = opened or (lambda: sources.open_sensor(spec))
        self._header: dict[str, Any] = {}
        self._cell, self._cell_ends = -1, 0

    def watch(self) -> None:
        """Sensors may be silent: they are opened again only when they fail, or end."""
        with self._lock:
            reading = self._connection is not None
        if not reading:
            super().watch()

    def _ends(self) -> bool:
        return self.spec.count is not None

    def _take_from(self, connection: Connection) -> None:
        source = self._open()
        connection.close = source.close
        if self._stopping:
            source.close()
        self._header = source.header
        now, start_ns = self.setting.clock.monotonic_ns, self.setting.start_ns
        try:
            for sample in source.samples():
                at = now() - start_ns
                sequence = self._arrived(connection, at)
                if sequence is None:
                    return
                if self._put_down_here(sequence, at, sample):
                    continue
                record = SampleRecord(sequence, at, sample.device_ns, sample.payload)
                if self._out.put(record, len(sample.payload) + SAMPLE_ROOM, wait=self.spec.count is not None):
                    self._handed += 1
                else:
                    self._drop(sequence, at, Reason.DISK_SLOW)
        except OSError as error:
            raise sources.failure(error, self.spec) from error
        finally:
            source.close()

    def _append(self, items: Sequence[Packed | SampleRecord]) -> int:
        samples = cast("Sequence[SampleRecord]", items)
        cell = self.setting.grid.cell(samples[0].arrived_ns)
        segment = self._segment
        if segment is None or cell > self._cell:
            segment, self._cell = self._begin(self._header, None, cell), cell
            self._cell_ends = self.setting.grid.end(cell)
        together = samples
        if len(samples) > 1:
            together = list(takewhile(lambda s: self.setting.grid.cell(s.arrived_ns) <= self._cell, samples))
        segment.samples(together)
        return len(together)

    def _put_down_here(self, sequence: int, at_ns: int, sample: sources.Sample) -> bool:
        """In the reader's own thread, if nothing waits and nobody writes: to wake another one would cost more than the
        sample itself, and the sample would be in danger for longer."""
        if self._handed != self._done or not self._pen.acquire(blocking=False):
            return False
        try:
            if self._handed != self._done or self._closed:  # those before it come first
                return False
            segment = self._segment
            if segment is not None and at_ns < self._cell_ends and not self._full:  # as `_put_down`, with less about it
                try:
                    segment.sample(at_ns, encode_sample(sequence, at_ns, sample.device_ns, sample.payload))
                except Exception as error:  # noqa: BLE001 - it is accounted for, whatever it is
                    record = SampleRecord(sequence, at_ns, sample.device_ns, sample.payload)
                    full = isinstance(error, OSError)
                    self._no_room(disk_error(error, self.folder) if full else as_onblock(error, self.name), [record])
                else:
                    self.accounts.written()
            else:
                self._put_down([SampleRecord(sequence, at_ns, sample.device_ns, sample.payload)])
            return True
        finally:
            self._pen.release()

    _at_once = 256  # one system call for those that a slow disk or a busy machine held up

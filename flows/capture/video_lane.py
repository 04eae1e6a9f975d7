"""The lane of a camera: packets taken as they come, or pictures through an encoder. The rest of it is in `lane.py`."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from blocks.errors import as_onblock
from flows.capture import sources
from flows.capture.belt import Belt
from flows.capture.encoder import Packed, StreamEncoder, copied_header, payload_of
from flows.capture.lane import Connection, Lane, Setting
from flows.capture.sidecar import DropRecord, Reason, SampleRecord
from flows.capture.spec import StreamSpec

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

log = logging.getLogger("onblock.capture")


@dataclass(frozen=True, slots=True)
class _Frame:
    """A picture on its way to the encoder."""

    sequence: int
    times: sources.Times
    picture: VideoFrame


class VideoLane(Lane):
    """A camera."""

    kind = "video"

    def __init__(self, spec: StreamSpec, setting: Setting):
        room = spec.queue_mib << 20
        super().__init__(spec.name, setting, stalled_ns=round(spec.stalled_after.total_seconds() * 1e9), room=room)
        self.spec = spec
        self._copies, self._waits = spec.codec == "copy", spec.waits()
        self._frames: Belt[_Frame] = Belt(room)
        self._encoder = threading.Thread(target=self._encode, name=f"onblock-encode-{spec.name}", daemon=True)
        self._broken = True  # copied packets are of no use before the next that a player can begin at
        self._lame = False
        """A packet was dropped behind the encoder: those that need it are of no use."""
        self._header: tuple[bytes, dict[str, Any]] | None = None
        self._written_header: tuple[bytes, dict[str, Any]] | None = None
        self._cell = -1
        self._picture_size = ((0, 0), 0)
        """Width and height of the last picture, and its bytes."""
        self._last_dts: int | None = None
        """Over all connections: the times of a stream do not go back."""

    def start(self) -> None:
        """Begin."""
        if not self._copies:
            self._encoder.start()
        super().start()

    def _ends(self) -> bool:
        return self.spec.ends()

    def _close_belts(self) -> None:
        if not self._copies:
            self._frames.close()
            self._encoder.join(10)
            for item in self._frames.clear():  # an encoder that hangs
                if not isinstance(item, DropRecord):
                    self.accounts.dropped(Reason.STOPPED)
        super()._close_belts()

    def _take_from(self, connection: Connection) -> None:
        from av.error import FFmpegError

        container, stream = sources.open_input(self.spec)
        clock = sources.FrameClock(self.setting.start_ns, self.spec, self._last_dts)
        self._broken = True
        try:
            if self._copies:
                self._header = copied_header(stream, self.spec)
            else:
                stream.thread_type = "SLICE"  # threads over frames would hold some back
            packets = container.demux(stream)
            while True:
                try:
                    packet = next(packets, None)
                    if packet is None:
                        return
                    if self._copies:
                        going = not packet.size or self._copy(connection, clock, packet)
                    else:
                        going = self._pictures(connection, clock, packet)
                except (FFmpegError, OSError) as error:
                    raise sources.failure(error, self.spec) from error
                if not going:
                    return
        finally:
            with suppress(OSError):  # it is read no more, whatever it says
                container.close()

    def _times(self, clock: sources.FrameClock, packet: Any) -> sources.Times:
        base = packet.time_base

        def ns(ticks: int | None) -> int | None:
            return None if ticks is None or not base else ticks * base.numerator * 1_000_000_000 // base.denominator

        dts = getattr(packet, "dts", None) if self._copies else None
        return clock.times(self.setting.clock.monotonic_ns(), ns(packet.pts), ns(dts))

    def _copy(self, connection: Connection, clock: sources.FrameClock, packet: Any) -> bool:
        """Take a packet as it is; False if the connection was given up."""
        times = self._times(clock, packet)
        sequence = self._arrived(connection, times.arrived)
        if sequence is None:
            return False
        self._last_dts = times.dts
        assert self._header is not None
        if packet.is_corrupt:
            self._broken = True
            self._drop(sequence, times.arrived, Reason.BROKEN)
            return True
        if self._broken and not packet.is_keyframe:
            self._drop(sequence, times.arrived, Reason.NO_KEYFRAME)
            return True
        payload = payload_of(packet, self._header[1])
        packed = Packed(sequence, times, payload, packet.is_keyframe, self._header)
        if self._out.put(packed, len(payload), wait=self._waits):
            self._broken = False
        else:
            self._broken = True
            self._drop(sequence, times.arrived, Reason.DISK_SLOW)
        return True

    def _pictures(self, connection: Connection, clock: sources.FrameClock, packet: Any) -> bool:
        """Decode a packet, and send its pictures to the encoder; False if the connection was given up."""
        from av.error import FFmpegError

        try:
            pictures = packet.decode()
        except FFmpegError:
            at = self.setting.clock.monotonic_ns() - self.setting.start_ns
            sequence = self._arrived(connection, at)
            if sequence is None:
                return False
            self._drop(sequence, at, Reason.BROKEN)
            return True
        for picture in pictures:
            times = self._times(clock, picture)
            sequence = self._arrived(connection, times.arrived)
            if sequence is None:
                return False
            self._last_dts = times.dts
            shape, size = self._picture_size
            if shape != (picture.width, picture.height):
                shape, size = (picture.width, picture.height), sum(plane.buffer_size for plane in picture.planes)
                self._picture_size = shape, size
            if not self._frames.put(_Frame(sequence, times, picture), size, wait=self._waits):
                self._drop(sequence, times.arrived, Reason.ENCODER_SLOW)
        return True

    def _encode(self) -> None:
        """Everything on the belt through the encoder; another one where the picture changes or it fails."""
        encoder: StreamEncoder | None = None
        cell, fresh = -1, True
        while (frame := self._frames.take()) is not None:
            assert isinstance(frame, _Frame)  # drops are noted on the other belt
            if encoder is not None and not encoder.fits(frame.picture):
                fresh = not self._give(encoder.flush())
                encoder = None
            try:
                if encoder is None:
                    encoder, fresh = StreamEncoder(self.spec, frame.picture, self.setting.encoder_threads), True
                now = self.setting.grid.cell(frame.times.dts)
                packets = encoder.encode(frame.sequence, frame.times, frame.picture, key=fresh or now > cell)
                cell = max(cell, now)
            except Exception as failed:  # noqa: BLE001 - an encoder that dies would lose the rest without a word
                error = as_onblock(failed, self.name)
                if str(error) != self.last_error:
                    log.error("%s", error)
                    self.setting.happened(self.name, "failed", str(error))
                self.last_error, self.error = str(error), error
                lost = encoder.waiting() if encoder is not None else []
                for sequence, times in lost or [(frame.sequence, frame.times)]:
                    self._drop(sequence, times.pts, Reason.ENCODER_FAILED)
                encoder = None
                continue
            fresh = not self._give(packets)
        if encoder is not None:
            self._give(encoder.flush())
            for sequence, times in encoder.waiting():
                self._drop(sequence, times.pts, Reason.ENCODER_FAILED)

    def _give(self, packets: Iterator[Packed] | list[Packed]) -> bool:
        """To the writer; False if it had no room, and the next picture must stand alone."""
        whole = True
        for packed in packets:
            if self._lame and not packed.key:
                self._drop(packed.sequence, packed.times.pts, Reason.NO_KEYFRAME)
            elif self._out.put(packed, len(packed.payload), wait=self._waits):
                self._lame = False
            else:
                self._drop(packed.sequence, packed.times.pts, Reason.DISK_SLOW)
                self._lame, whole = True, False
        return whole

    def _append(self, items: Sequence[Packed | SampleRecord]) -> int:
        item = items[0]
        assert isinstance(item, Packed)
        cell = self.setting.grid.cell(item.times.dts)
        segment, times = self._segment, item.times
        if segment is None or item.header is not self._written_header or (item.key and cell > self._cell):
            segment = self._begin(item.header[1], item.header[0], cell)
            self._written_header, self._cell = item.header, cell
        segment.packet(
            item.payload, sequence=item.sequence, arrived_ns=times.arrived, device_ns=times.device, pts_ns=times.pts,
            dts_ns=times.dts, key=item.key,
        )  # fmt: skip
        return 1

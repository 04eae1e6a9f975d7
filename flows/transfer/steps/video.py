"""What the video steps share: opening what may not be a video, reading it to its end, writing a container.

All in this process by PyAV; there is no ffmpeg binary. Encoding is in `encoding.py`. `av` is imported when
a step runs, not when the job's form is read.

Inputs are hostile: only container formats that hold their own data are opened, by the file protocol alone (a playlist
could name `/etc/passwd` or a host), and by descriptor, so that no name reaches FFmpeg.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blocks import names
from blocks.errors import ConfigError, Corrupt, OnblockError, ToolMissing, UnknownError
from flows.transfer.steps.base import Ask, failure

if TYPE_CHECKING:
    from av import Packet, VideoFrame, VideoStream
    from av.container import InputContainer, OutputContainer
    from av.stream import Stream

SUFFIXES = frozenset({
    ".mp4", ".mov", ".m4v", ".mkv", ".webm", ".avi", ".ts", ".m2ts", ".mts", ".insv", ".360", ".lrv",
    ".3gp", ".mpg", ".mpeg", ".flv", ".wmv", ".mjpeg", ".mjpg", ".h264", ".h265", ".hevc",
})  # fmt: skip
READ = {
    "protocol_whitelist": "file",
    "format_whitelist": "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,h264,hevc,obu,av1,ivf,flv,asf,"
    "mjpeg,mxf,ogg,dv,gif",
}
MUXERS = {"mp4": "mp4", "mov": "mov", "mkv": "matroska", "ts": "mpegts"}
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS, errno.EACCES, errno.EPERM}
"""Errors of the operating system that say nothing about the video."""


# -- failures -------------------------------------------------------------------------------------------------------


@contextmanager
def reading() -> Iterator[None]:
    """What FFmpeg raises while it reads or decodes means that the input is bad, unless the disk or a decoder is."""
    from av.error import FFmpegError

    try:
        yield
    except FFmpegError as error:
        raise _failed(error, "cannot be read as a video", Corrupt) from error


@contextmanager
def writing() -> Iterator[None]:
    """What it raises while it encodes or writes means that the settings are, unless the disk or an encoder is."""
    from av.error import FFmpegError

    try:
        yield
    except FFmpegError as error:
        raise _failed(error, "cannot be written with these settings", ConfigError) from error


def _failed(error: Any, what: str, kind: type[OnblockError]) -> OnblockError:
    from av import error as avs

    said = f"{what}: {error.strerror or error}"
    if error.errno in DISK:
        return failure(OSError(error.errno, os.strerror(error.errno)), "the step failed")
    if error.errno == errno.ENOMEM:
        return UnknownError(
            "there is not enough memory for the video", remedy="tried again by itself; use fewer threads"
        )
    if isinstance(error, avs.EncoderNotFoundError | avs.MuxerNotFoundError | avs.FilterNotFoundError):
        return ToolMissing(
            f"{said}: this PyAV was built without it", remedy="install PyAV's own wheel, or choose another codec"
        )
    if isinstance(error, avs.DecoderNotFoundError | avs.DemuxerNotFoundError | avs.PatchWelcomeError):
        return ToolMissing(f"{said}: this FFmpeg cannot decode it", remedy="leave it out of the step with `only`")
    return kind(said)


# -- reading --------------------------------------------------------------------------------------------------------


class Clip:
    """A video that is open. Its failures are of the taxonomy."""

    def __init__(self, container: InputContainer, size: int):
        self.container, self.size = container, size
        streams = [s for s in container.streams.video if not _picture(s)]
        if not streams:
            raise Corrupt("holds no video track")
        self.videos: list[VideoStream] = streams
        self.video = streams[0]

    def tracks(self, *kinds: str) -> list[Stream]:
        """Other tracks of these kinds, in the order of the file."""
        return [s for s in self.container.streams if s.type in kinds]

    def packets(self, streams: Sequence[Stream], ask: Ask) -> Iterator[Packet[Any]]:
        """All packets of some tracks, then an empty one for each. Corrupt where the file breaks off."""
        self._whole()
        end = Fraction(0)
        with reading():
            for packet in self.container.demux(*streams):
                ask.check()
                if packet.size and packet.pts is not None:
                    end = max(end, (packet.pts + (packet.duration or 0)) * packet.time_base)
                if packet.pos is not None and packet.pos >= 0 and self.size:
                    ask.progress(0.99 * packet.pos / self.size)
                if not packet.size:
                    self._ended(end)
                yield packet

    def frames(self, packet: Packet[Any]) -> list[VideoFrame]:
        """The frames a packet brings; for the empty one at the end, what is left in the decoder."""
        with reading():
            return packet.decode()

    def threads(self, count: int, stream: VideoStream | None = None) -> None:
        """Decode with so many threads; 0 for as many as there are processors."""
        context = (stream or self.video).codec_context
        context.thread_type, context.thread_count = "AUTO", count  # type: ignore[assignment]

    def rate(self) -> Fraction:
        """Frames per second, as far as the file says."""
        return self.video.average_rate or self.video.guessed_rate or Fraction(30)

    def _whole(self) -> None:
        """Corrupt where the index names bytes that the file does not have."""
        for stream in self.container.streams:
            entries = stream.index_entries
            if len(entries) and (need := max(e.pos + e.size for e in entries)) > self.size:
                raise Corrupt(f"breaks off: its index goes to byte {need}, the file has {self.size}")

    def _ended(self, end: Fraction) -> None:
        """Corrupt where the last packet is much earlier than the file says it ends."""
        import av

        if not self.container.duration:
            return
        said = Fraction(self.container.duration + max(self.container.start_time or 0, 0), av.time_base)
        if said - end > max(1, said / 50):
            raise Corrupt(f"breaks off: {float(end):.1f} s of {float(said):.1f} s are there")


def _picture(stream: Stream) -> bool:
    """Whether a video track is a cover picture."""
    from av.stream import Disposition

    return bool(stream.disposition & (Disposition.attached_pic | Disposition.still_image))


@contextmanager
def opened(path: Path) -> Iterator[Clip]:
    """Open a video. Raises Corrupt for what is none."""
    import av

    size = path.stat().st_size
    if not size:
        raise Corrupt("is empty, not a video")
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with reading():
            container = av.open(f"/proc/self/fd/{fd}", "r", options=dict(READ), metadata_errors="replace")
        with container:
            yield Clip(container, size)
    finally:
        os.close(fd)


def first_frame(path: Path, index: int = 0) -> VideoFrame:
    """The first frame of the video track `index`; Corrupt where there is none."""
    with opened(path) as clip, reading():
        if index >= len(clip.videos):
            raise Corrupt(f"holds {len(clip.videos)} video track(s)")
        for frame in clip.container.decode(clip.videos[index]):
            return frame
    raise Corrupt("holds a video track without a frame")


# -- writing --------------------------------------------------------------------------------------------------------


class Writer:
    """A video file in the making: tracks first, then packets."""

    def __init__(self, container: OutputContainer, name: str):
        self.container, self.name = container, name
        self._copies: dict[int, Stream] = {}

    def copy(self, stream: Stream) -> None:
        """Add a track as it is. ConfigError where this container cannot hold it."""
        codec = stream.codec_context.name if stream.codec_context else "unknown"
        names_of = {codec, stream.codec_context.codec.canonical_name if stream.codec_context else codec}
        try:
            with writing():
                self._copies[stream.index] = out = self.container.add_stream_from_template(stream, opaque=True)
        except (ValueError, ConfigError) as error:
            raise ConfigError(
                f"{self.name} cannot hold its {stream.type} track ({'/'.join(sorted(names_of))})",
                remedy="use `container: mkv`, or a step `transcode` before",
            ) from error
        for key, value in stream.metadata.items():
            out.metadata[key] = value
        with suppress(AttributeError):
            out.disposition = stream.disposition

    def mux_copy(self, packet: Packet[Any]) -> None:
        """Write a packet of a track that was added with `copy`."""
        if packet.size:
            packet.stream = self._copies[packet.stream.index]
            with writing():
                self.container.mux_one(packet)

    def mux(self, packets: Sequence[Packet[Any]]) -> None:
        with writing():
            self.container.mux(packets)


@contextmanager
def written(to: Path, muxer: str, source: Clip, options: dict[str, str] | None = None) -> Iterator[Writer]:
    """Write a container with the metadata of `source`; it has its trailer when this is left without an exception."""
    import av

    with writing():
        container = av.open(str(to), "w", format=muxer, options=options or {})
    whole = False
    try:
        for key, value in source.container.metadata.items():
            if key not in ("major_brand", "minor_version", "compatible_brands", "encoder"):
                container.metadata[key] = value
        yield Writer(container, muxer)
        whole = True
        with writing():
            container.close()
    finally:
        if not whole:
            with suppress(OSError, ValueError, RuntimeError):  # what it raised first is what matters
                container.close()


def muxer_options(container: str) -> dict[str, str]:
    """mp4 and mov keep all metadata only if they are told to."""
    return {"movflags": "+use_metadata_tags"} if container in ("mp4", "mov") else {}


def video_name(source: str, ending: str) -> str:
    """The name of a video that is made of another."""
    stem, _, _ = source.rpartition(".")
    return names.check_path(f"{stem or source}.{ending}")

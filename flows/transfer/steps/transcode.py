"""The steps `transcode` (encoded anew) and `remux` (another container around the same data)."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import field_validator

from blocks.errors import ConfigError, Corrupt
from flows.transfer.steps import encoding, video
from flows.transfer.steps.base import Ask, Step

if TYPE_CHECKING:
    from av import VideoFrame

_SIZE = re.compile(r"(\d{2,5})?x(\d{2,5})?\Z")


class Transcode(encoding.Encoding):
    """Encode a video anew. Audio and subtitles are copied as they are; so are metadata, rotation, and the time of each
    frame. Data tracks, such as a GoPro's telemetry, are not carried over."""

    kind: Literal["transcode"] = "transcode"
    size: str | None = None
    """`1280x720`; or `1280x`, `x720`, which keep the shape. Without it the size stays; odd ones grow by one pixel."""

    @field_validator("size")
    @classmethod
    def _size(cls, value: str | None) -> str | None:
        if value is not None and (value == "x" or not _SIZE.match(value)):
            raise ValueError("write the size as 1280x720, 1280x or x720")
        return value

    def run(self, inputs: list[Path], work: Path, ask: Ask) -> list[Path]:
        source = inputs[0]
        to = work / video.video_name(source.name, self.container)
        self.find()
        like = video.first_frame(source)
        part = work / "video.part"
        options = video.muxer_options(self.container)
        with video.opened(source) as clip, video.written(part, video.MUXERS[self.container], clip, options) as out:
            clip.threads(self.threads)
            size, chain = self._plan(like)
            encoder = encoding.Encoder(self, out, like, clip, size, self._pixels(like))
            encoder.turned_like(like)
            rest = clip.tracks("audio", "subtitle")
            for stream in rest:
                out.copy(stream)
            filters = encoding.Filters.of([like], chain, self.threads, clip.rate()) if chain else None
            for packet in clip.packets([clip.video, *rest], ask):
                if packet.stream.index != clip.video.index:
                    out.mux_copy(packet)
                    continue
                frames: Iterable[VideoFrame] = clip.frames(packet)
                for frame in frames:
                    ask.check()
                    for made in filters.push(frame) if filters else (frame,):
                        encoder.take(made)
            if filters:
                for made in filters.push(None):
                    encoder.take(made)
            if not encoder.taken:
                raise Corrupt("holds a video track without a frame")
            encoder.finish()
        ask.check()
        return [part.rename(to)]

    def _pixels(self, like: VideoFrame) -> str:
        return self.pixels(like.format.name, max(c.bits for c in like.format.components))

    def _plan(self, like: VideoFrame) -> tuple[tuple[int, int], list[tuple[str, str]]]:
        """The size, and the filters on the way to it."""
        chain: list[tuple[str, str]] = []
        size = scaled(self.size, like.width, like.height)
        if size != (like.width, like.height):
            chain.append(("scale", f"{size[0]}:{size[1]}:flags=bicubic"))
        even = size[0] + size[0] % 2, size[1] + size[1] % 2
        if even != size:  # the last row or column once more: no black edge, and no pixel is lost
            deep = "10le" if self._pixels(like).endswith("10le") else ""
            chain.append(("format", f"yuv444p{deep}"))  # with halved colours, filters take even sizes only
            chain.append(("pad", f"{even[0]}:{even[1]}:0:0"))
            chain.append(("fillborders", f"right={size[0] % 2}:bottom={size[1] % 2}:mode=smear"))
            chain.append(("format", self._pixels(like)))
        if like.format.name != self._pixels(like):
            chain.insert(0, ("format", self._pixels(like)))
        return even, chain


def scaled(size: str | None, width: int, height: int) -> tuple[int, int]:
    """The size that `size` asks of a picture of these dimensions, even where it is computed."""
    if size is None:
        return width, height
    wide, high = (int(n) if n else None for n in size.split("x"))
    if wide is None and high is not None:
        wide = max(2, round(Fraction(width * high, height) / 2) * 2)
    elif high is None and wide is not None:
        high = max(2, round(Fraction(height * wide, width) / 2) * 2)
    return wide or width, high or height


class Remux(Step):
    """Put the same video, audio and subtitles into another container; nothing is encoded, nothing is lost but data
    tracks, such as a GoPro's telemetry."""

    SUFFIXES = video.SUFFIXES

    kind: Literal["remux"] = "remux"
    container: Literal["mp4", "mkv", "mov", "ts"] = "mp4"
    """The container."""

    def room(self, size: int) -> int:
        return size + size // 20 + (1 << 20)

    def run(self, inputs: list[Path], work: Path, ask: Ask) -> list[Path]:
        source = inputs[0]
        to = work / video.video_name(source.name, self.container)
        part = work / "video.part"
        options = video.muxer_options(self.container)
        with video.opened(source) as clip, video.written(part, video.MUXERS[self.container], clip, options) as out:
            copy_all(clip, out, ask)
        return [part.rename(to)]


def copy_all(clip: video.Clip, out: video.Writer, ask: Ask) -> None:
    """Copy all tracks. Corrupt where there is no frame."""
    streams = [*clip.videos, *clip.tracks("audio", "subtitle")]
    for stream in streams:
        out.copy(stream)
    seen = 0
    for packet in clip.packets(streams, ask):
        if packet.size and packet.dts is None:
            raise ConfigError(
                "its packets have no times: they cannot be copied into another container",
                remedy="use a step `transcode`",
            )
        seen += bool(packet.size) and packet.stream.index == clip.video.index
        out.mux_copy(packet)
    if not seen:
        raise Corrupt("holds a video track without a frame")

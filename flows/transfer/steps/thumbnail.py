"""The step `thumbnail`: a JPEG of one frame, beside the video."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from blocks import names
from blocks.errors import Corrupt, ToolMissing
from flows.transfer.steps import encoding, video
from flows.transfer.steps.base import Ask, Step

if TYPE_CHECKING:
    from av import VideoFrame

TURNS = {90: "cclock", -90: "clock", 270: "clock", -270: "cclock"}
"""Rotation as FFmpeg counts it (counter-clockwise), and the direction of its filter `transpose`."""


class Thumbnail(Step):
    """Add a picture of the video: `clip.mp4` stays and gets `clip.mp4.jpg` beside it."""

    SUFFIXES = video.SUFFIXES

    kind: Literal["thumbnail"] = "thumbnail"
    at: float = Field(default=0.1, ge=0, le=1)
    """Which frame: 0 the first, 0.5 from the middle."""
    width: int = Field(default=640, ge=16, le=7680)
    """Width in pixels, after turning; smaller videos are not enlarged."""
    quality: int = Field(default=85, ge=1, le=100)
    """Of the JPEG."""

    def room(self, size: int) -> int:
        return 32 << 20

    def run(self, inputs: list[Path], work: Path, ask: Ask) -> list[Path]:
        source = inputs[0]
        to = work / names.check_path(source.name + ".jpg")
        to.write_bytes(self._jpeg(self._frame(source, ask)))
        return [source, to]

    def _frame(self, source: Path, ask: Ask) -> VideoFrame:
        """The frame at `at`; where the file cannot be searched, it is read up to there."""
        import av

        first = video.first_frame(source)
        with video.opened(source) as clip:
            if not (length := clip.container.duration):
                return first
            start = Fraction(max(clip.container.start_time or 0, 0), av.time_base)
            wanted = start + Fraction(length, av.time_base) * Fraction(self.at)
            with video.reading():
                clip.container.seek(int(wanted / (clip.video.time_base or 1)), stream=clip.video)
            best = None
            for packet in clip.packets([clip.video], ask):
                for frame in clip.frames(packet):
                    best = frame
                    if frame.pts is not None and frame.pts * (frame.time_base or 1) >= wanted:
                        return frame
        return best or first

    def _jpeg(self, frame: VideoFrame) -> bytes:
        import av

        try:
            context: av.VideoCodecContext = av.CodecContext.create("mjpeg", "w")  # type: ignore[assignment]
        except ValueError as error:
            raise ToolMissing("this PyAV cannot write JPEG", remedy="install PyAV's own wheel from PyPI") from error
        chain = []
        if turn := TURNS.get(round(frame.rotation)):
            chain.append(("transpose", f"dir={turn}"))
        elif abs(round(frame.rotation)) == 180:
            chain += [("hflip", ""), ("vflip", "")]
        chain.append(("scale", f"w='min({self.width},iw)':h=-2:out_range=full:out_color_matrix=bt601"))
        chain.append(("format", "yuvj420p"))
        filters = encoding.Filters.of([frame], chain, 1, Fraction(30))
        for made in [*filters.push(frame), *filters.push(None)]:
            context.width, context.height, context.pix_fmt = made.width, made.height, "yuvj420p"
            context.time_base = Fraction(1, 30)
            context.color_range = 2
            scale = round(2 + (100 - self.quality) * 29 / 99)
            context.options = {"qmin": str(scale), "qmax": str(scale), "strict": "unofficial"}
            with video.writing():
                packets = [*context.encode(made), *context.encode(None)]
            return b"".join(bytes(packet) for packet in packets)
        raise Corrupt("gives no picture")

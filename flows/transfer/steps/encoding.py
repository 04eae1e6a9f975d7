"""How the video steps encode: the settings they share, an encoder that loses no frame, and filters on the way to it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic import Field, field_validator, model_validator

from blocks.errors import ToolMissing, UnknownError
from flows.transfer.form import Duration
from flows.transfer.steps import video
from flows.transfer.steps.base import Step

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.filter import Graph

ENCODERS = {"h264": "libx264", "hevc": "libx265", "av1": "libsvtav1"}
CRF = {"h264": (21, 51), "hevc": (24, 51), "av1": (32, 63)}
X26X = ("ultrafast", "superfast", "veryfast", "faster", "fast", "medium", "slow", "slower", "veryslow")


class Encoding(Step):
    """How video is encoded: what `transcode` and `stitch` have in common."""

    SUFFIXES = video.SUFFIXES

    codec: Literal["h264", "hevc", "av1"] = "h264"
    """H.264 plays everywhere; HEVC and AV1 are smaller and slower."""
    crf: int | None = Field(default=None, ge=0, le=63)
    """Quality: lower is better and larger. H.264 and HEVC 0 to 51 (21 and 24), AV1 0 to 63 (32)."""
    preset: str | None = None
    """Effort: for H.264 and HEVC `ultrafast` to `veryslow` (`medium`), for AV1 `13` (fast) to `0` (`8`)."""
    container: Literal["mp4", "mkv", "mov"] = "mp4"
    """The file around it."""
    keyframe_every: Duration | None = None
    """A picture that players can begin at, at least this often, such as 2s: what a step `hls` cuts at."""
    threads: int = Field(default=0, ge=0, le=64)
    """Processors to use; 0 for all there are."""

    @field_validator("preset", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return str(value) if isinstance(value, int) and not isinstance(value, bool) else value

    @model_validator(mode="after")
    def _fits(self) -> Encoding:
        if self.crf is not None and self.crf > CRF[self.codec][1]:
            raise ValueError(f"crf of {self.codec} goes to {CRF[self.codec][1]}")
        presets = [str(n) for n in range(14)] if self.codec == "av1" else X26X
        if self.preset is not None and self.preset not in presets:
            raise ValueError(f"{self.codec} has the presets {', '.join(presets)}")
        return self

    def options(self) -> dict[str, str]:
        """Private options of the encoder."""
        crf = CRF[self.codec][0] if self.crf is None else self.crf
        found = {"crf": str(crf), "preset": self.preset or ("8" if self.codec == "av1" else "medium")}
        threads = self.threads or len(os.sched_getaffinity(0))
        if self.codec == "hevc":
            found["x265-params"] = f"log-level=error:pools={threads}"
        elif self.codec == "av1":
            found["svtav1-params"] = f"lp={threads}"
        return found

    def pixels(self, name: str, depth: int) -> str:
        """The pixel format it encodes for a source of pixel format `name` with `depth` bits."""
        if self.codec == "h264" or depth <= 8:
            return "yuvj420p" if name.startswith("yuvj") and self.codec != "av1" else "yuv420p"
        return "yuv420p10le"

    def find(self) -> Any:
        """The encoder. Raises ToolMissing where PyAV has none."""
        import av

        os.environ.setdefault("SVT_LOG", "1")  # it writes to standard error otherwise
        try:
            return av.Codec(ENCODERS[self.codec], "w")
        except ValueError as error:
            raise ToolMissing(
                f"this PyAV has no encoder {ENCODERS[self.codec]} for {self.codec}", path="av",
                remedy="install PyAV's own wheel from PyPI, or choose another codec",
            ) from error  # fmt: skip


def stay_ordinary(policy: int, priority: os.sched_param) -> None:
    """Give all threads of this process the scheduling back that the caller had. SVT-AV1 makes its own, and whoever opens it,
    SCHED_FIFO with the highest priority where it may, as root: nothing else on the machine would run beside it, no capture
    either, and every process that is started from here later would be so, too."""
    for thread in map(int, os.listdir("/proc/self/task")):
        with suppress(ProcessLookupError):
            if os.sched_getscheduler(thread) != policy:
                os.sched_setscheduler(thread, policy, priority)


class Encoder:
    """An encoder of a file that is written. Every frame it takes comes out: it counts."""

    def __init__(
        self, how: Encoding, to: video.Writer, like: VideoFrame, clip: video.Clip, size: tuple[int, int], pixels: str
    ):
        how.find()
        self._scheduling = os.sched_getscheduler(0), os.sched_getparam(0)
        rate = min(max(clip.rate(), Fraction(1, 100)), Fraction(1000)).limit_denominator(1001000)
        self.writer, self.taken, self.given, self._last = to, 0, 0, None
        with video.writing():
            stream = to.container.add_stream(ENCODERS[how.codec], rate=rate, options=how.options())
        context: Any = stream.codec_context
        context.width, context.height, context.pix_fmt = *size, pixels
        self.base = Fraction(clip.video.time_base or 1 / rate)
        context.time_base = self.base
        context.framerate = rate
        # x264 works on several pictures at once, as the ffmpeg program has it do: PyAV's slices cost time and size
        context.thread_type, context.thread_count = "FRAME", how.threads
        context.sample_aspect_ratio = clip.video.sample_aspect_ratio or Fraction(0, 1)
        for key in ("color_range", "color_primaries", "color_trc", "colorspace"):
            setattr(context, key, getattr(like, key))
        if how.keyframe_every:
            context.gop_size = max(
                1, round(rate * Fraction(how.keyframe_every.total_seconds()).limit_denominator(1000))
            )
        if how.codec == "hevc" and how.container in ("mp4", "mov"):
            context.codec_tag = "hvc1"  # what Apple's players look for
        self.stream: Any = stream
        self._tick = max(1, round(1 / rate / self.base))
        for key, value in clip.video.metadata.items():
            if key not in ("encoder", "vendor_id", "handler_name"):
                stream.metadata[key] = value

    def turned_like(self, frame: VideoFrame) -> None:
        """Players turn the picture as they turned the source's."""
        for data in cast(Any, frame.side_data):
            if data.type.name == "DISPLAYMATRIX":
                self.stream.set_display_matrix(memoryview(bytes(data)).cast("i").tolist())

    def take(self, frame: VideoFrame) -> None:
        """Encode a frame at its own time; frames whose time does not go on come one tick after the one before."""
        frame.pict_type = 0  # type: ignore[assignment]  # else the source's I, P and B are forced on the encoder
        pts = frame.pts
        if pts is None:
            pts = 0 if self._last is None else self._last + self._tick
        elif frame.time_base != self.base:
            pts = round(pts * (frame.time_base or self.base) / self.base)
        if self._last is not None and pts <= self._last:
            pts = self._last + 1
        frame.pts, frame.time_base, self._last = pts, self.base, pts
        self.taken += 1
        with video.writing():
            try:
                packets = self.stream.encode(frame)
            finally:
                if self.taken == 1:  # it is open now
                    stay_ordinary(*self._scheduling)
            self._give(packets)

    def finish(self) -> None:
        """What is left in it. UnknownError where frames were lost."""
        with video.writing():
            self._give(self.stream.encode(None))
        if self.given != self.taken:
            raise UnknownError(f"{self.taken} frames went into the encoder, {self.given} came out")

    def _give(self, packets: list[Packet[Any]]) -> None:
        for packet in packets:
            if not packet.duration:
                packet.duration = max(1, round(Fraction(self._tick) * self.base / packet.time_base))
            self.given += 1
            self.writer.container.mux_one(packet)


@dataclass
class Filters:
    """A filter graph with one or two inputs."""

    graph: Graph

    @classmethod
    def of(
        cls, inputs: Sequence[VideoFrame], chain: Sequence[tuple[str, str]], threads: int, rate: Fraction
    ) -> Filters:
        """Inputs like these frames, then the filters (name, arguments); the first one takes all inputs."""
        from av.filter import Graph

        graph = Graph()
        graph.threads = threads
        with video.writing():
            nodes = [graph.add(name, args or None) for name, args in [*chain, ("buffersink", "")]]
            for pad, frame in enumerate(inputs):
                base = frame.time_base or 1 / rate
                buffer = graph.add(
                    "buffer",
                    f"video_size={frame.width}x{frame.height}:pix_fmt={frame.format.name}"
                    f":time_base={base.numerator}/{base.denominator}:frame_rate={rate.numerator}/{rate.denominator}"
                    f":colorspace={frame.colorspace}:range={frame.color_range}",
                )
                buffer.link_to(nodes[0], 0, pad)
            for one, next_one in pairwise(nodes):
                one.link_to(next_one)
            graph.configure()
        return cls(graph)

    def push(self, *frames: VideoFrame | None) -> Iterator[VideoFrame]:
        """One frame for each input (None: there are no more); what comes out."""
        from av.error import BlockingIOError, EOFError

        with video.writing():
            for at, frame in enumerate(frames):
                self.graph.vpush(frame, at=at)
            while True:
                try:
                    yield self.graph.vpull()
                except (BlockingIOError, EOFError):
                    return

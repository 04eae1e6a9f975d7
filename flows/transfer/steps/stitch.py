"""The step `stitch`: two fisheye lenses become one equirectangular picture, by FFmpeg's `v360` filter.

The lenses' calibration is not read: two half spheres of `fov` degrees are assumed, as `v360` does. Where they meet, the
picture is as good as the camera is square; the makers' own programs blend and align and do better there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, field_validator

from blocks import names
from blocks.errors import ConfigError, Corrupt, NotFound
from flows.transfer.steps import encoding, video
from flows.transfer.steps.base import Ask
from flows.transfer.steps.encoding import Encoding

if TYPE_CHECKING:
    from av import VideoFrame

PAIR = re.compile(r"(?P<clip>VID_\d{8}_\d{6})_(?P<lens>[01]0)_(?P<part>\d+)(?P<ending>\.insv)\Z", re.IGNORECASE)
"""Insta360's cameras that write a file for each lens: VID_20260717_142530_00_012.insv and VID_20260717_142530_10_012.insv."""
_SIZE = re.compile(r"(\d{2,5})x(\d{2,5})\Z")


class Stitch(Encoding):
    """Stitch dual fisheye video of a 360° camera to equirectangular. Both lenses may be side by side in one picture, two
    tracks of one file, or two files (Insta360's `VID_.._00_012.insv` and `VID_.._10_012.insv`)."""

    SUFFIXES = frozenset({".insv"})

    kind: Literal["stitch"] = "stitch"
    layout: Literal["auto", "side-by-side", "two-tracks", "two-files"] = "auto"
    """How the lenses lie in the input; `auto` looks."""
    fov: float = Field(default=190.0, ge=150, le=280)
    """Degrees that each lens sees."""
    swap: bool = False
    """The lens that looks ahead is the right one, or the second."""
    yaw: float = Field(default=0.0, ge=-180, le=180)
    """Turn the picture to the right, in degrees."""
    pitch: float = Field(default=0.0, ge=-180, le=180)
    """Turn it up."""
    roll: float = Field(default=0.0, ge=-180, le=180)
    """Turn it about the view."""
    size: str | None = None
    """Size of the result, such as `3840x1920`. Without it, twice as wide as high, with a lens's height."""

    @field_validator("size")
    @classmethod
    def _size(cls, value: str | None) -> str | None:
        if value is not None and (not (m := _SIZE.match(value)) or int(m[1]) % 2 or int(m[2]) % 2):
            raise ValueError("write the size as 3840x1920, with even numbers")
        return value

    def group(self, name: str) -> str | None:
        m = PAIR.match(name) if self.layout in ("auto", "two-files") else None
        return f"{m['clip']}_{m['part']}".upper() if m else None

    def room(self, size: int) -> int:
        return 3 * size

    def run(self, inputs: list[Path], work: Path, ask: Ask) -> list[Path]:
        self.find()
        inputs = sorted(inputs, key=lambda path: path.name)
        lenses = self._lenses(inputs)
        to = work / video.video_name(inputs[0].name, self.container)
        part = work / "video.part"
        likes = [video.first_frame(path, track) for path, track in lenses]
        if len({(f.width, f.height, f.format.name) for f in likes}) > 1:
            raise Corrupt("its two lenses have pictures of different size or format: they are no pair")
        with ExitStack() as stack:
            clips = [stack.enter_context(video.opened(path)) for path, _ in lenses]
            options = video.muxer_options(self.container)
            out = stack.enter_context(video.written(part, video.MUXERS[self.container], clips[0], options))
            width, height = self._result(likes)
            pixels = self.pixels(likes[0].format.name, max(c.bits for c in likes[0].format.components))
            encoder = encoding.Encoder(self, out, likes[0], clips[0], (width, height), pixels)
            rest = clips[0].tracks("audio")
            for stream in rest:
                out.copy(stream)
            filters = encoding.Filters.of(
                likes, self._chain(len(likes), width, height, pixels), self.threads, clips[0].rate()
            )
            second = _frames(clips[1], lenses[1][1], self.threads, ask) if len(clips) > 1 else None
            clips[0].threads(self.threads, clips[0].videos[lenses[0][1]])
            count = 0
            for packet in clips[0].packets([clips[0].videos[lenses[0][1]], *rest], ask):
                if packet.stream.type != "video":
                    out.mux_copy(packet)
                    continue
                for frame in clips[0].frames(packet):
                    ask.check()
                    frames = [frame]
                    if second is not None:
                        if (other := next(second, None)) is None:
                            break  # the lenses stop one frame apart, or more: see below
                        other.pts, other.time_base = frame.pts, frame.time_base
                        frames.append(other)
                    count += 1
                    for made in filters.push(*frames):
                        encoder.take(made)
            self._together(clips, lenses, count, second)
            for made in filters.push(*[None] * len(likes)):
                encoder.take(made)
            encoder.finish()
        ask.check()
        return [part.rename(to)]

    def _lenses(self, inputs: list[Path]) -> list[tuple[Path, int]]:
        """The file and video track of each lens; one alone holds both side by side."""
        if len(inputs) == 2:
            found = [(path, 0) for path in inputs]
        elif len(inputs) > 2:
            raise ConfigError(f"{len(inputs)} files are one clip by their names, there should be two")
        else:
            found = self._in_one(inputs[0])
        return found[::-1] if self.swap and len(found) == 2 else found

    def _in_one(self, path: Path) -> list[tuple[Path, int]]:
        with video.opened(path) as clip:
            tracks = len(clip.videos)
            width, height = clip.video.width, clip.video.height
        layout = self.layout
        if layout == "auto":
            layout = "two-tracks" if tracks > 1 else "side-by-side" if width == 2 * height else "two-files"
        if layout == "two-tracks":
            if tracks < 2:
                raise ConfigError("holds one video track, `layout: two-tracks` needs two", remedy="use `layout: auto`")
            return [(path, 0), (path, 1)]
        if layout == "side-by-side":
            return [(path, 0)]
        m = PAIR.match(path.name)
        if m is None:
            raise Corrupt(
                f"its picture of {width}x{height} does not look like two lenses",
                remedy="leave it out of the step with `only`, or set `layout`",
            )
        other = f"{m['clip']}_{'10' if m['lens'] == '00' else '00'}_{m['part']}{m['ending']}"
        raise NotFound(
            f"the file of the other lens, {names.display(other)}, is not there",
            remedy="bring both files of the clip, then `onblock transfers retry`",
        )

    def _result(self, likes: list[VideoFrame]) -> tuple[int, int]:
        if self.size:
            width, height = (int(n) for n in self.size.split("x"))
            return width, height
        height = likes[0].height + likes[0].height % 2
        return 2 * height, height

    def _chain(self, lenses: int, width: int, height: int, pixels: str) -> list[tuple[str, str]]:
        half = ":".join(
            f"{key}={value:g}" for key, value in (("yaw", self.yaw), ("pitch", self.pitch), ("roll", self.roll))
        )
        v360 = (
            f"input=dfisheye:output=e:ih_fov={self.fov:g}:iv_fov={self.fov:g}:w={width}:h={height}:interp=linear:{half}"
        )
        chain = [("v360", v360), ("format", pixels)]
        if lenses == 2:
            return [("hstack", "inputs=2"), *chain]
        if self.swap:  # half a turn: what was behind is ahead
            chain[0] = ("v360", v360.replace(f"yaw={self.yaw:g}", f"yaw={(self.yaw + 360) % 360 - 180:g}"))
        return chain

    def _together(
        self, clips: list[video.Clip], lenses: list[tuple[Path, int]], count: int, second: Iterator[VideoFrame] | None
    ) -> None:
        """Corrupt where one lens has more frames than the other: one, at the very end, is usual."""
        if not count:
            raise Corrupt("holds a video track without a frame")
        if second is None:
            return
        totals = [clip.videos[track].frames for clip, (_, track) in zip(clips, lenses, strict=True)]
        more = max(sum(1 for _ in second), max(totals) - count if all(totals) else 0)
        if more > 1:
            raise Corrupt(
                f"one lens has {count} frames, the other at least {more} more: they are no pair, or one breaks off"
            )


def _frames(clip: video.Clip, track: int, threads: int, ask: Ask) -> Iterator[VideoFrame]:
    """All frames of a track; the progress is told by who reads the other one."""
    stream = clip.videos[track]
    clip.threads(threads, stream)
    for packet in clip.packets([stream], ask.silent()):
        yield from clip.frames(packet)

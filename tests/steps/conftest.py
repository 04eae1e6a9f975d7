"""Clips that real encoders made, and a folder to work in."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, tzinfo
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import av.filter
import numpy as np
import pytest

from blocks.errors import Cancelled
from flows.transfer.steps import Ask, Step, kept_path, run_steps

MTIME_NS = 1_783_600_000_123_456_789


@dataclass
class Bench:
    """Runs steps; remembers what they told."""

    folder: Path
    told: list[float] = field(default_factory=list)
    checks: int = 0
    stop_after: int | None = None
    """Cancel at so many looks."""
    runs: int = 0

    def ask(self, zone: tzinfo = UTC, **given: Any) -> Ask:
        return Ask(
            self.folder, given.pop("mtime_ns", MTIME_NS), zone, told=self.told.append, asked=self._asked, **given
        )

    def _asked(self) -> None:
        self.checks += 1
        if self.stop_after is not None and self.checks > self.stop_after:
            raise Cancelled("somebody asked for it")

    def work(self) -> Path:
        self.runs += 1
        folder = self.folder / f"work{self.runs}"
        folder.mkdir()
        return folder

    def go(self, steps: Step | Sequence[Step], *unit: Path, **given: Any) -> dict[str, Path]:
        """The outputs by the path they keep."""
        work = self.work()
        found = run_steps([steps] if isinstance(steps, Step) else steps, list(unit), work, self.ask(**given))
        made = {kept_path(path, work): path for path in found}
        assert len(made) == len(found)
        left = {str(p.relative_to(work / "out")) for p in work.rglob("*") if p.is_file()}
        assert left == {k for k, p in made.items() if p.is_relative_to(work)}, "something is left in the work folder"
        return made

    def one(self, steps: Step | Sequence[Step], *unit: Path, **given: Any) -> Path:
        (path,) = self.go(steps, *unit, **given).values()
        return path

    def nothing_left(self) -> bool:
        """No file in the last work folder."""
        return not any((self.folder / f"work{self.runs}").rglob("*"))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    folder = tmp_path / "bench"
    folder.mkdir()
    return Bench(folder)


# -- clips ------------------------------------------------------------------------------------------------------------


def make(
    path: Path, seconds: float = 1.0, size: tuple[int, int] = (320, 180), rate: int = 30, audio: int = 1, codec: str = "libx264",
    pixels: str = "yuv420p", muxer: str | None = None, turn: int = 0, tracks: int = 1, graph: str | None = None, crf: int = 18,
    metadata: dict[str, str] | None = None, times: Callable[[int], int] | None = None, gop: int = 30,
) -> Path:  # fmt: skip
    """A clip of FFmpeg's test card with sines for sound. `times` gives the pts of frame n in 1/1000 s."""
    count = round(seconds * rate)
    with av.open(
        str(path), "w", format=muxer, options={"movflags": "+use_metadata_tags"} if turn or metadata else {}
    ) as out:
        out.metadata.update(metadata or {})
        videos, sources = [], []
        for track in range(tracks):
            stream: Any = out.add_stream(codec, rate=rate, options={"crf": str(crf), "preset": "ultrafast"})
            stream.width, stream.height, stream.pix_fmt = *size, pixels
            stream.codec_context.gop_size = gop
            stream.codec_context.time_base = Fraction(1, 1000) if times else Fraction(1, rate)
            if turn:
                stream.set_display_rotation(turn)
            videos.append(stream)
            sources.append(card(size, rate, pixels, graph if graph is not None else f"hue=h={90 * track}"))
        sounds: list[Any] = [out.add_stream("aac", rate=48000, layout="mono") for _ in range(audio)]
        for n in range(count):
            for stream, source in zip(videos, sources, strict=True):
                frame: Any = source.vpull()
                frame.pict_type = 0
                frame.pts, frame.time_base = (times(n), Fraction(1, 1000)) if times else (n, Fraction(1, rate))
                out.mux(stream.encode(frame))
        for number, stream in enumerate(sounds):
            for begin in range(0, round(seconds * 48000), 1024):
                wave = np.sin(np.arange(begin, begin + 1024) * (0.03 * (number + 1)))[None, :].astype(np.float32)
                sound: Any = av.AudioFrame.from_ndarray(wave, format="fltp", layout="mono")
                sound.sample_rate, sound.pts, sound.time_base = 48000, begin, Fraction(1, 48000)
                out.mux(stream.encode(sound))
        for stream in (*videos, *sounds):
            out.mux(stream.encode(None))
    os.utime(path, ns=(MTIME_NS, MTIME_NS))
    return path


def card(size: tuple[int, int], rate: int, pixels: str, after: str) -> Any:
    """FFmpeg's moving test card, through another filter."""
    graph = av.filter.Graph()
    nodes = [graph.add("testsrc2", f"size={size[0]}x{size[1]}:rate={rate}")]
    for one in filter(None, after.split(",")):
        name, _, args = one.partition("=")
        nodes.append(graph.add(name, args or None))
    nodes += [graph.add("format", pixels), graph.add("buffersink")]
    graph.link_nodes(*nodes).configure()
    return graph


@dataclass
class Seen:
    """What is in a video, by decoding all of it."""

    frames: int
    size: tuple[int, int]
    codec: str
    times: list[float]
    audio: list[int]
    """Packets of each sound track."""
    turn: int
    metadata: dict[str, str]
    pixels: str
    duration: float


def look(path: Path) -> Seen:
    with av.open(str(path)) as clip:
        video = clip.streams.video[0]
        times, turn, packets = [], 0, {s.index: 0 for s in clip.streams.audio}
        for packet in clip.demux(video, *clip.streams.audio):
            if packet.stream.type == "audio":
                packets[packet.stream.index] += bool(packet.size)  # stream_index is 0 in the empty one at the end
                continue
            for frame in packet.decode():
                times.append(float(frame.time or 0))
                turn = frame.rotation
        return Seen(
            len(times), (video.width, video.height), video.codec_context.codec.canonical_name, times, list(packets.values()), turn,
            dict(clip.metadata), str(video.pix_fmt), (clip.duration or 0) / 1e6,
        )  # fmt: skip


def luma(path: Path, size: tuple[int, int] | None = None) -> list[Any]:
    """The brightness of all frames, each an array of height x width."""
    found = []
    with av.open(str(path)) as clip:
        for frame in clip.decode(video=0):
            if size:
                frame = frame.reformat(*size, format="yuv420p", interpolation="BICUBIC")
            found.append(frame.to_ndarray(format="gray").astype(np.float64))
    return found


def psnr(a: Sequence[Any], b: Sequence[Any]) -> float:
    """The worst frame's, in dB."""
    assert len(a) == len(b) > 0
    return min(float(10 * np.log10(255**2 / max(((x - y) ** 2).mean(), 1e-9))) for x, y in zip(a, b, strict=True))


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with clip.mp4: one second, 30 frames, one sound track."""
    folder = tmp_path_factory.mktemp("clips")
    make(folder / "clip.mp4", metadata={"comment": "flight 7", "creation_time": "2026-07-17T14:25:30.000000Z"})
    return folder

"""A flight in miniature: the recordings that `onblock demo` finds on its card, made with PyAV on the spot.

Video, photos and telemetry are real files of their kinds, small and cheap to make. What becomes of them is in `demo.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

CLIPS = {
    "DCIM/100MEDIA/DJI_0001.MP4": (0.55, 3.0),
    "DCIM/100MEDIA/DJI_0002.MP4": (0.33, 4.0),
    "Prüfflug Höhe 120 m, Kamera vorn.mp4": (0.08, 3.0),
}
"""Path on the card: tint (0 to 1) and length in seconds of a clip."""
PHOTOS = 300
TELEMETRY = "logs/telemetry.csv"
WIDTH, HEIGHT, RATE = 640, 360, 25


def make_card(card: Path) -> None:
    """Write a flight's recordings below `card`: clips (H.264 in MP4), photos (JPEG) and telemetry (CSV)."""
    for name, (tint, seconds) in CLIPS.items():
        (card / name).parent.mkdir(parents=True, exist_ok=True)
        _clip(card / name, tint, seconds)
    photos = card / "DCIM/101PHOTO"
    photos.mkdir(parents=True)
    for number, jpeg in enumerate(_jpegs(PHOTOS), 1):
        (photos / f"IMG_{number:04}.JPG").write_bytes(jpeg)
    log = card / TELEMETRY
    log.parent.mkdir()
    log.write_text("".join(_telemetry(1800)), "utf-8")


class _Ground:
    """Fields from above, and a disc that circles over them: cheap pictures that move."""

    def __init__(self, width: int, height: int, tint: float):
        import numpy as np

        rng = np.random.default_rng(round(tint * 1000))
        fields = rng.integers(40, 200, (2 * height // 40, 2 * width // 40, 3)).repeat(40, 0).repeat(40, 1)
        grain = rng.integers(0, 40, fields.shape)
        weights = np.array([0.4 + 0.6 * tint, 0.9, 1.0 - 0.6 * tint])
        self._map = ((fields + grain) * weights).astype(np.uint8)
        radius = height // 8
        y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
        self._disc = x * x + y * y <= radius * radius
        self._width, self._height = width, height

    def picture(self, t: float) -> np.ndarray:
        """RGB, (height, width, 3) of uint8, at time t in s."""
        h, w = self._height, self._width
        top, left = int(h * (0.4 + 0.4 * math.sin(0.3 * t))), int(w * (0.4 + 0.4 * math.sin(0.5 * t)))
        image = self._map[top : top + h, left : left + w].copy()
        y, x = int(h * (0.4 + 0.2 * math.sin(2 * t))), int(w * (0.4 + 0.2 * math.cos(2 * t)))
        image[y : y + self._disc.shape[0], x : x + self._disc.shape[1]][self._disc] = (250, 240, 90)
        return image


def _clip(path: Path, tint: float, seconds: float) -> None:
    import av
    from av.video.frame import VideoFrame

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "18"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        ground = _Ground(WIDTH, HEIGHT, tint)
        for index in range(round(seconds * RATE)):
            frame = VideoFrame.from_ndarray(ground.picture(index / RATE), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _jpegs(count: int) -> Iterator[bytes]:
    """Photos: each packet of an MJPEG stream is a whole JPEG file."""
    from av.codec.context import CodecContext
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame

    encoder = CodecContext.create("mjpeg", "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = 320, 240, "yuvj420p"
    encoder.time_base, encoder.options = Fraction(1, RATE), {"qmin": "2", "qmax": "4"}
    ground = _Ground(320, 240, 0.5)
    for index in range(count):
        frame = VideoFrame.from_ndarray(ground.picture(index / 5), format="rgb24")
        frame = frame.reformat(format="yuvj420p")
        frame.pts = index
        for packet in encoder.encode(frame):
            yield bytes(packet)
    for packet in encoder.encode(None):
        yield bytes(packet)


def _telemetry(rows: int) -> Iterator[str]:
    yield "t_s,latitude,longitude,altitude_m,battery_v\n"
    for i in range(rows):
        angle = i / 150
        yield (
            f"{i / 10:.1f},{50.94 + 0.002 * math.sin(angle):.6f},{6.96 + 0.003 * math.cos(angle):.6f},"
            f"{120 + 5 * math.sin(angle / 3):.2f},{16.8 - i * 0.001:.3f}\n"
        )


def correct_altitudes(log: Path) -> None:
    """Edit the telemetry in place: other altitudes, byte for byte the same size."""
    table = str.maketrans("123456789", "234567891")
    head, *rows = log.read_text("utf-8").splitlines(keepends=True)
    cells = (row.split(",") for row in rows)
    log.write_text(head + "".join(",".join([*c[:3], c[3].translate(table), c[4]]) for c in cells), "utf-8")


def make_camera(folder: Path) -> list[str]:
    """Write the recordings of a 360° camera below `folder`: a clip of both its lenses, fisheye beside fisheye, and a plain
    one. Their paths."""
    import av
    from av.filter import Graph
    from av.video.format import VideoFormat
    from av.video.frame import VideoFrame

    both, plain = "DCIM/Camera01/LENSES_0001.insv", "DCIM/Camera01/VID_0002.mp4"
    (folder / both).parent.mkdir(parents=True)
    _clip(folder / plain, 0.7, 2.0)
    width, height = 960, 480
    with av.open(str(folder / both), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast", "crf": "18"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        ground = _Ground(width, height, 0.4)
        graph = Graph()
        source = graph.add_buffer(width=width, height=height, format=VideoFormat("rgb24"), time_base=Fraction(1, RATE))
        lenses = graph.add("v360", f"e:dfisheye:h_fov=190:v_fov=190:w={width}:h={height}")
        sink = graph.add("buffersink")
        source.link_to(lenses)
        lenses.link_to(sink)
        graph.configure()
        for index in range(2 * RATE):
            frame = VideoFrame.from_ndarray(ground.picture(index / RATE), format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            graph.push(frame)
            seen = graph.pull()
            assert isinstance(seen, VideoFrame)
            container.mux(stream.encode(seen.reformat(format="yuv420p")))
        container.mux(stream.encode())
    return [both, plain]

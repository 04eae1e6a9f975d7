"""Two cameras that see the same clock: in the merged file, the same moment is at the same time on both tracks."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from statistics import median
from typing import Any

import pytest

from flows.capture import merge
from tests.capture.conftest import HandCamera, Recording

Begin = Callable[..., Recording]
RATE, BITS = 15, 8
WIDTH, HEIGHT = 16 * BITS, 64


def clock_faces(count: int) -> list[bytes]:
    """JPEGs that show their number: a white column for each bit that is set."""
    import numpy as np
    from av.codec.context import CodecContext
    from av.video.codeccontext import VideoCodecContext
    from av.video.frame import VideoFrame

    encoder = CodecContext.create("mjpeg", "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = WIDTH, HEIGHT, "yuvj420p"
    encoder.time_base, encoder.options = Fraction(1, RATE), {"qmin": "2", "qmax": "2"}
    made: list[bytes] = []
    for number in range(count):
        bits = np.array([255 * (number >> bit & 1) for bit in range(BITS)], np.uint8)
        frame = VideoFrame.from_ndarray(np.tile(bits.repeat(WIDTH // BITS), (HEIGHT, 1)), format="gray")
        frame = frame.reformat(format="yuvj420p")
        frame.pts = number
        made += [bytes(p) for p in encoder.encode(frame)]
    return made + [bytes(p) for p in encoder.encode(None)]


def seen(file: Path, track: int) -> dict[int, float]:
    """By the number that a frame shows: its time in the file, in s."""
    import av

    found: dict[int, float] = {}
    with av.open(str(file)) as video:
        for frame in video.decode(video=track):
            gray = frame.reformat(format="gray").to_ndarray()
            width = WIDTH // BITS
            bits = [gray[HEIGHT // 2, bit * width + width // 2] > 127 for bit in range(BITS)]
            assert frame.time is not None
            found[sum(1 << bit for bit, on in enumerate(bits) if on)] = frame.time
    return found


@pytest.fixture
def pair() -> Iterator[tuple[HandCamera, HandCamera]]:
    faces = clock_faces(120)
    cameras = HandCamera(), HandCamera()
    for camera in cameras:
        camera.frames = faces
    yield cameras
    for camera in cameras:
        camera.close()


@pytest.mark.parametrize("codecs", [("copy", "copy"), ("copy", "h264"), ("h264", "h264")])
def test_two_cameras_fed_from_one_clock_are_less_than_a_frame_apart(
    begin: Begin, root: Path, pair: tuple[HandCamera, HandCamera], codecs: tuple[str, str]
) -> None:
    """Also where one comes a second later, and is encoded, and the other is not."""
    left, right = pair
    specs: list[dict[str, Any]] = [c.spec(n, codec=k) for c, n, k in zip(pair, ("left", "right"), codecs, strict=True)]
    recording = begin(*specs, segment="2 s")
    for camera in pair:
        camera.connected()
    step, start, number = 1 / RATE, time.monotonic(), 0
    over = threading.Event()
    while number < 120:
        over.wait(max(0.0, start + number * step - time.monotonic()))
        left.send()
        if number >= RATE:
            right.sent = number
            right.send()
        number += 1
    recording.until("all frames of both", lambda: recording.stream("left")["written"] >= 100
                    and recording.stream("right")["written"] >= 85)  # fmt: skip
    recording.end()
    manifest = merge.finish(recording.recorder.folder)
    assert manifest.final is not None
    file = recording.recorder.folder / manifest.final.file
    one, other = seen(file, 0), seen(file, 1)
    both = sorted(set(one) & set(other))
    assert len(both) >= 80 and min(other) >= RATE, (len(one), len(other))
    apart = [one[n] - other[n] for n in both]
    # a machine with a load may hand a single frame on late; the streams as such are not apart
    assert abs(median(apart)) < step, apart
    assert median(abs(a) for a in apart) < step, apart

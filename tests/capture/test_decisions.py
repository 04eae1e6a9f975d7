"""Decisions that need no camera: limits, times of frames, what an error means, the belt between two threads."""

from __future__ import annotations

import errno
import os
import random
import threading
from pathlib import Path

import pytest

from blocks.errors import ConfigError, Conflict, NetworkError, NotFound, OnblockError, PermissionRefused, UnknownError
from flows.capture import accounts
from flows.capture.belt import Belt
from flows.capture.clock import Grid
from flows.capture.guards import BatteryGuard, DiskGuard
from flows.capture.merge import _Order
from flows.capture.sidecar import NONE, DropRecord, PacketRecord, Reason
from flows.capture.sources import FrameClock, Lines, Times, failure, input_options
from flows.capture.spec import LimitsSpec, SensorSpec, StreamSpec

S = 1_000_000_000
MIB = 1 << 20


@pytest.mark.parametrize(
    ("rate_mib", "free_mib", "says"),
    [
        (10, 100_000, None),
        (10, 1300, None),  # 130 s
        (10, 1100, "full in 110 s"),
        (1000, 100_000, "full in 100 s"),
        (0, 65, None),
        (0, 63, "63 MiB left"),
    ],
)
def test_disk(rate_mib: int, free_mib: int, says: str | None) -> None:
    guard = DiskGuard(LimitsSpec())
    said = [guard.look(t * S, t * rate_mib * MIB, free_mib * MIB) for t in range(5)][-1]
    assert said is None if says is None else says in (said or "")


def test_the_disk_s_rate_is_that_of_the_last_minute() -> None:
    guard = DiskGuard(LimitsSpec())
    for t in range(600):
        guard.look(t * S, min(t, 300) * 10 * MIB, 1 << 40)
    assert guard.left_s(1 << 40) is None  # nothing was written in the last minute


def test_battery() -> None:
    guard = BatteryGuard(LimitsSpec(battery_percent=10))
    readings = [(50, False), (9, False), (9, False), (30, False), (5, True), (9, False), (8, False), (7, False)]
    said = [guard.look(percent, charging=charging) for percent, charging in readings]
    assert said == [*[None] * 7, "the battery has 7 % left"]


def test_grid() -> None:
    grid = Grid(60 * S)
    assert [grid.cell(t) for t in (-5, 0, 60 * S - 1, 60 * S, 3600 * S)] == [0, 0, 0, 1, 60]


MS = 1_000_000


@pytest.mark.parametrize(
    ("keys", "frames", "wanted"),
    [
        ({}, [(1000, None, None)], [Times(0, NONE, 0, 0)]),
        ({}, [(1000, 7000, None), (1050, 7033, None)], [Times(0, 7000, 0, 0), Times(50, 7033, 50, 50)]),
        ({}, [(1000, 40, 20), (1033, 20, 40)], [Times(0, 40, 20, 0), Times(33, 20, 33, 33)]),  # B frames
        ({"timestamps": "device"}, [(1000, 7000, None), (1500, 7033, None)], [Times(0, 7000, 0, 0), Times(500, 7033, 33, 33)]),
        # a device that counts anew, from zero or by a little
        ({"timestamps": "device"}, [(1000, 7000, None), (1500, 10, None), (1501, 43, None)],
         [Times(0, 7000, 0, 0), Times(500, 10, 500, 500), Times(501, 43, 533, 533)]),
        # V4L2 stamps with CLOCK_MONOTONIC; where it does not, arrival is what there is
        ({"format": "v4l2"}, [(1050, 1040, None)], [Times(50, 1040, 40, 40)]),
        ({"format": "v4l2"}, [(1050, 99_000, None)], [Times(50, 99_000, 50, 50)]),
        ({"format": "v4l2"}, [(1050, 990, None)], [Times(50, 990, 50, 50)]),
    ],
)  # fmt: skip
def test_times_of_frames(
    keys: dict[str, str], frames: list[tuple[int, int | None, int | None]], wanted: list[Times]
) -> None:
    clock = FrameClock(1000 * MS, StreamSpec.model_validate({"name": "a", "input": "x"} | keys))
    ns = [tuple(None if t is None else t * MS for t in frame) for frame in frames]
    scaled = [Times(*(t if t == NONE else t * MS for t in (w.arrived, w.device, w.pts, w.dts))) for w in wanted]
    assert [clock.times(*frame) for frame in ns] == scaled  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("code", "kind", "says"),
    [
        (errno.ENOENT, NotFound, "no such camera"),
        (errno.ENODEV, NotFound, "gone"),
        (errno.EBUSY, Conflict, "busy"),
        (errno.EACCES, PermissionRefused, "may not be opened"),
        (errno.EINVAL, ConfigError, "does not take these settings.*pixel_format"),
        (errno.ETIMEDOUT, NetworkError, "does not answer"),
        (errno.EIO, NetworkError, "does not answer"),
        (errno.EXDEV, UnknownError, "failed"),
    ],
)
def test_what_a_camera_s_error_means(code: int, kind: type[OnblockError], says: str) -> None:
    import os
    import re

    from av.error import err_check

    spec = StreamSpec(name="left", input="/dev/video0")
    for error in (OSError(code, os.strerror(code)), _raised(lambda: err_check(-code))):
        found = failure(error, spec)
        assert type(found) is kind
        assert found.__cause__ is error
        assert re.search(f"/dev/video0: left: .*{says}", str(found))


def _raised(does: object) -> Exception:
    try:
        does()  # type: ignore[operator]
    except Exception as error:  # noqa: BLE001
        return error
    raise AssertionError


def test_options_of_the_input() -> None:
    uvc = StreamSpec(name="a", input="/dev/video0", format="v4l2", size="1280x720", fps=30, pixel_format="mjpeg")
    assert input_options(uvc) == {"video_size": "1280x720", "framerate": "30", "input_format": "mjpeg"}
    assert input_options(StreamSpec(name="a", input="rtsp://cam/1")) == {"rtsp_transport": "tcp"}


def test_a_belt_loses_nothing_without_saying_so() -> None:
    """Two threads, a belt that is too small, and one that closes it somewhere: all that was put on it comes off it."""
    for seed in range(20):
        belt: Belt[int] = Belt(50)
        taken: list[int] = []
        refused: list[int] = []
        closing = random.Random(seed).randrange(2000)

        def put(belt: Belt[int] = belt, refused: list[int] = refused, closing: int = closing) -> None:
            for n in range(2000):
                if n == closing:
                    belt.close()
                if not belt.put(n, n % 20):
                    refused.append(n)
                    belt.note(DropRecord(n, 1, n, n, Reason.DISK_SLOW))

        def take(belt: Belt[int] = belt, taken: list[int] = taken) -> None:
            told = 0
            while (item := belt.take(1)) is not None or not belt.over:
                if isinstance(item, DropRecord):
                    told += item.count
                elif item is not None:
                    taken.append(item)
                taken += belt.more(3)

        putting, taking = threading.Thread(target=put), threading.Thread(target=take)
        putting.start()
        taking.start()
        putting.join()
        taking.join()
        taken += [n for n in belt.clear() if isinstance(n, int)]
        assert taken == sorted(taken)
        assert sorted(taken + refused) == list(range(2000))


def test_a_run_of_drops_takes_the_room_of_one() -> None:
    belt: Belt[int] = Belt(10)
    assert belt.put(1, 100)  # one of any size
    assert not belt.put(2, 1)
    for n in range(1000):
        belt.note(DropRecord(n, 1, n, n, Reason.DISK_SLOW))
    assert len(belt) == 2
    assert [belt.take(), belt.take()] == [1, DropRecord(0, 1000, 0, 999, Reason.DISK_SLOW)]


def test_accounts_outlive_their_process(tmp_path: Path) -> None:
    kept = accounts.Accounts(tmp_path)
    kept.captured(10)
    kept.written(6)
    kept.dropped(Reason.DISK_SLOW, 3)
    for found in (kept.balance(), accounts.read(tmp_path)):
        assert found is not None and found == accounts.Balance(10, 6, {"DISK_SLOW": 3})
        assert found.in_flight == 1
    kept.close()
    assert accounts.read(tmp_path) == kept.balance()
    (tmp_path / accounts.NAME).write_bytes(b"\0" * 88)
    assert accounts.read(tmp_path) is None


def test_times_go_on_over_a_new_connection() -> None:
    """A reader that was behind by its device's count: the next connection begins after it."""
    spec = StreamSpec.model_validate({"name": "a", "input": "x", "timestamps": "device"})
    first = FrameClock(0, spec)
    assert [first.times(n, n * 100, None).dts for n in (1, 2)] == [1, 101]
    assert first.times(3, 50, None).dts == 102  # it counts anew, and was ahead of the clock
    second = FrameClock(0, spec, 101)
    assert [second.times(50 + n, n * 10, None).dts for n in (0, 1)] == [102, 112]
    assert [FrameClock(0, spec, 101).times(500, 7, None).dts] == [500]


def test_a_pipe_is_closed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reader, recorder and watchdog close it at one time: the second would close what has got the number since."""
    (tmp_path / "gps").write_bytes(b"1\n")
    lines = Lines(SensorSpec.model_validate({"name": "gps", "kind": "lines", "path": str(tmp_path / "gps")}))
    real, closed = os.close, []

    def close(fd: int) -> None:
        if fd not in closed:
            closed.append(fd)
            lines.close()  # the other thread, at the worst moment
        else:
            closed.append(fd)
        real(fd)

    wake = lines._wake
    monkeypatch.setattr(os, "close", close)
    lines.close()
    monkeypatch.undo()
    assert closed == [wake]
    assert list(lines.samples()) == []


def test_packets_stay_on_their_track_where_a_time_of_decoding_can_be_moved() -> None:
    order = _Order()
    times = [(100, 100), (90, 130), (95, 99), (96, 200), (140, 140)]  # (dts, pts)
    packets = [PacketRecord(n, 0, 0, pts * MS, dts * MS, 0, 1, 0) for n, (dts, pts) in enumerate(times)]
    assert [order.place("a", p) for p in packets] == [
        ("a\0000", 100), ("a\0000", 100), ("a\0001", 95), ("a\0001", 96), ("a\0001", 140),
    ]  # fmt: skip

"""Recordings with real encoders: what is captured is written, or dropped for a reason that is told."""

from __future__ import annotations

import itertools
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import av
import pytest
from pydantic import ValidationError

from blocks.errors import ConfigError, Conflict, Corrupt, NotFound, OnblockError
from blocks.hardware.battery import BatteryReading
from flows.capture import merge
from flows.capture import recorder as recorder_module
from flows.capture.clock import SystemClock
from flows.capture.flow import request_stop
from flows.capture.manifest import Manifest, load, sha256_of
from flows.capture.recorder import EVENTS, Recorder
from flows.capture.recover import finished
from flows.capture.sidecar import DropRecord, Reason
from tests.capture.conftest import (
    HandCamera,
    Recording,
    balanced,
    imu,
    jpegs,
    lavfi,
    packets,
    record,
    records,
    samples,
    spec_of,
)

Begin = Callable[..., Recording]


def test_two_cameras_and_a_sensor(root: Path) -> None:
    _, manifest = record(root, lavfi("left", frames=75), lavfi("right", frames=50, rate=25), imu(count=400))
    folder = root / manifest.id
    balanced(manifest)
    assert (manifest.state, manifest.stopped_because) == ("sealed", "all inputs have ended")
    assert {n: e.written for n, e in manifest.streams.items()} == {"left": 75, "right": 50, "imu": 400}
    assert load(folder) == manifest
    for entry in manifest.streams.values():
        for segment in entry.segments:
            for path, digest in segment.sha256.items():
                assert sha256_of(folder / path) == digest
    for name, count in (("left", 75), ("right", 50)):
        decoded = 0
        for segment in manifest.streams[name].segments:
            with av.open(str(folder / str(segment.video))) as video:
                decoded += sum(1 for _ in video.decode(video=0))
        assert decoded == count


def test_segments_are_cut_on_one_grid_at_pictures_that_stand_alone(root: Path) -> None:
    """Streams of different rates and starts: every segment begins with a key picture, in a cell of its own."""
    _, manifest = record(root, lavfi("a", frames=100), lavfi("b", frames=70, rate=20), imu(count=5), segment="1 s")
    folder = root / manifest.id
    for name, frames, rate in (("a", 100, 30), ("b", 70, 20)):
        entry = manifest.streams[name]
        assert len(entry.segments) in (frames // rate + 1, frames // rate + 2)
        cells = []
        for segment in entry.segments:
            found = [r for r in records(folder, [segment]) if not isinstance(r, DropRecord)]
            assert found[0].key  # type: ignore[union-attr]
            assert {r.dts_ns // 1_000_000_000 for r in found} == {segment.first_ns // 1_000_000_000}  # type: ignore
            cells.append(segment.first_ns // 1_000_000_000)  # type: ignore[operator]
        assert cells == sorted(set(cells))


def test_times_of_the_device_are_kept(root: Path) -> None:
    _, manifest = record(root, lavfi("a", frames=40, rate=25))
    found = packets(root / manifest.id, manifest, "a")
    assert [r.sequence for r in found] == list(range(40))
    assert {b.pts_ns - a.pts_ns for a, b in itertools.pairwise(found)} == {40_000_000}
    assert [r.device_ns for r in found] == [n * 40_000_000 for n in range(40)]


def test_samples_have_a_time_each(begin: Begin, root: Path) -> None:
    recording = begin(imu(count=None, rate=200))
    recording.until("100 samples", lambda: recording.stream("imu")["written"] >= 100)
    manifest = recording.end()
    found = samples(root / manifest.id, manifest, "imu")
    times = [s.arrived_ns for s in found]
    assert times == sorted(set(times))
    assert [s.sequence for s in found] == list(range(len(found)))
    assert [s.device_ns for s in found] == [round(n / 200 * 1e9) for n in range(len(found))]
    assert all(9 < struct.unpack("<6d", s.payload)[2] < 10.5 for s in found)
    balanced(manifest)


def test_lines_of_a_pipe_are_samples(begin: Begin, root: Path, tmp_path: Path) -> None:
    pipe = tmp_path / "gps"
    os.mkfifo(pipe)
    recording = begin({"name": "gps", "kind": "lines", "path": str(pipe)}, imu(count=None))
    with pipe.open("wb", buffering=0) as line:
        line.write(b"$GPGGA,1\r\n$GPGGA,2\n$GP")
        recording.until("two lines", lambda: recording.stream("gps")["written"] == 2)
        line.write(b"GGA,\xff3\n")
        recording.until("three lines", lambda: recording.stream("gps")["written"] == 3)
    recording.until("its end", lambda: recording.stream("gps")["state"] == "failed")
    with pipe.open("wb", buffering=0) as line:  # it went away, and came back
        line.write(b"again\n")
        recording.until("the fourth line", lambda: recording.stream("gps")["written"] == 4)
        manifest = recording.end()
    assert [s.payload for s in samples(root / manifest.id, manifest, "gps")] == [
        b"$GPGGA,1", b"$GPGGA,2", b"$GPGGA,\xff3", b"again",
    ]  # fmt: skip
    assert manifest.streams["gps"].reconnects == 1


@pytest.fixture(scope="module")
def mjpeg(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[bytes]]:
    path, frames = tmp_path_factory.mktemp("mjpeg") / "camera.mjpeg", jpegs(70, (320, 240))
    path.write_bytes(b"".join(frames))
    return path, frames


def test_what_is_copied_is_the_camera_s_own(root: Path, mjpeg: tuple[Path, list[bytes]]) -> None:
    path, frames = mjpeg
    camera = {"name": "uvc", "input": str(path), "format": "mjpeg", "codec": "copy", "timestamps": "device"}
    _, manifest = record(root, camera)
    balanced(manifest)
    found = []
    for segment in manifest.streams["uvc"].segments:
        with av.open(str(root / manifest.id / str(segment.video))) as video:
            found += [bytes(p) for p in video.demux(video=0) if p.size]
    assert found == frames
    assert len(manifest.streams["uvc"].segments) >= 3


@pytest.mark.parametrize("container", ["mkv", "ts"])
def test_h264_is_copied_with_and_without_start_codes(root: Path, tmp_path: Path, container: str) -> None:
    """avcC from a container, start codes from the line: both can be decoded, and are the same pictures in the same order."""
    path = tmp_path / f"in.{container}"
    with (
        av.open(str(path), "w") as out,
        av.open("testsrc2=size=128x96:rate=30,trim=end_frame=60", format="lavfi") as src,
    ):
        stream = out.add_stream("libx264", rate=30, options={"g": "15", "bf": "2", "crf": "20"})
        stream.width, stream.height, stream.pix_fmt = 128, 96, "yuv420p"
        for frame in src.decode(video=0):
            frame.pict_type = 0  # type: ignore[assignment]
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with av.open(str(path)) as video:
        wanted = [f.to_ndarray().tobytes() for f in video.decode(video=0)]
    _, manifest = record(
        root, {"name": "a", "input": str(path), "codec": "copy", "timestamps": "device"}, segment="500 ms"
    )
    assert len(manifest.streams["a"].segments) > 1
    found = []
    for segment in manifest.streams["a"].segments:
        with av.open(str(root / manifest.id / str(segment.video))) as video:
            found += [f.to_ndarray().tobytes() for f in video.decode(video=0)]
    assert found == wanted
    balanced(manifest)


def test_what_the_encoder_does_not_manage_is_dropped_and_told(begin: Begin, root: Path) -> None:
    """A camera that gives more than an encoder can take: nothing is lost without a word, and memory has an end."""
    graph = "testsrc2=size=1280x720:rate=1000,realtime=speed=100"
    recording = begin({"name": "a", "input": graph, "format": "lavfi", "queue_mib": 3, "preset": "slower"})
    recording.until("drops", lambda: recording.stream("a").get("dropped"))
    recording.until("some frames", lambda: recording.stream("a")["written"] >= 2)
    manifest = recording.end()
    balanced(manifest)
    entry = manifest.streams["a"]
    assert set(entry.dropped) <= {"ENCODER_SLOW", "STOPPED"}
    told = [r for r in records(root / manifest.id, entry.segments) if isinstance(r, DropRecord)]
    assert sum(r.count for r in told) == sum(entry.dropped.values())
    written = {r.sequence for r in packets(root / manifest.id, manifest, "a")}
    lost = {n for r in told for n in range(r.sequence, r.sequence + r.count)}
    assert not written & lost or len(told) < sum(
        entry.dropped.values()
    )  # runs are joined, and may enclose what was written
    with av.open(str(root / manifest.id / str(entry.segments[0].video))) as video:
        assert sum(1 for _ in video.decode(video=0)) == entry.segments[0].count


# -- cameras that misbehave ---------------------------------------------------------------------------------------


def test_a_camera_that_hangs_up_is_opened_again(begin: Begin, root: Path, hand_camera: HandCamera) -> None:
    recording = begin(hand_camera.spec("far"), lavfi("near", frames=None, rate=10, stalled_after="60 s"))
    hand_camera.connected()
    hand_camera.send(5)
    recording.until("frames", lambda: recording.stream("far")["written"] >= 4)
    hand_camera.hang_up()
    hand_camera.connected(2)
    hand_camera.send(5)
    recording.until("more frames", lambda: recording.stream("far")["written"] >= 8)
    near = recording.stream("near")["written"]
    recording.until("the other one goes on", lambda: recording.stream("near")["written"] > near)
    manifest = recording.end()
    balanced(manifest)
    assert manifest.streams["far"].reconnects >= 1
    assert manifest.streams["near"].reconnects == 0
    assert len(manifest.streams["far"].segments) >= 2  # a gap stays a gap, and a new connection may be another picture
    told = [json.loads(line) for line in (root / manifest.id / EVENTS).read_text().splitlines()]
    states = [e["state"] for e in told if e["kind"] == "stream" and e["stream"] == "far"]
    assert states[:3] == ["running", "failed", "running"]


def test_a_camera_that_falls_silent_is_opened_again_and_costs_the_other_nothing(
    begin: Begin, root: Path, hand_camera: HandCamera
) -> None:
    near = lavfi("near", frames=None, rate=10, stalled_after="60 s")
    recording = begin(hand_camera.spec("far", stalled_after="300 ms"), near)
    hand_camera.connected()
    hand_camera.send(3)
    recording.until("frames", lambda: recording.stream("far")["written"] >= 2)
    hand_camera.connected(2)  # nobody hung up: the watchdog did
    hand_camera.send(3)
    recording.until("it runs again", lambda: recording.stream("far")["written"] >= 4)
    manifest = recording.end()
    balanced(manifest)
    found = packets(root / manifest.id, manifest, "near")
    assert [r.sequence for r in found] == list(range(len(found)))  # none is missing
    assert manifest.streams["near"].dropped == {}


def test_a_driver_that_hangs_is_left_behind(begin: Begin, root: Path, tmp_path: Path) -> None:
    """A read that nobody can interrupt (a pipe): the recording starts, goes on and ends without it."""
    pipe = tmp_path / "stuck"
    os.mkfifo(pipe)
    holder = os.open(pipe, os.O_RDWR)
    try:
        stuck = {"name": "stuck", "input": str(pipe), "format": "mjpeg", "codec": "copy", "stalled_after": "100 ms"}
        recording = begin(stuck, lavfi("near", frames=None, rate=10, stalled_after="60 s"), ready_within="200 ms")
        recording.until("frames", lambda: recording.stream("near")["written"] >= 5)
        recording.until("tried again", lambda: recording.stream("stuck").get("reconnects", 0) >= 1)
        manifest = recording.end()
    finally:
        os.write(holder, b"\xff\xd9" * 10)
        os.close(holder)
    balanced(manifest)
    assert manifest.state == "sealed"
    assert any(p.startswith("stuck gave nothing within 0.2 s") for p in manifest.problems)
    found = packets(root / manifest.id, manifest, "near")
    assert [r.sequence for r in found] == list(range(len(found)))  # none is missing


def test_what_is_broken_on_the_line_is_told(begin: Begin, hand_camera: HandCamera) -> None:
    recording = begin(hand_camera.spec("far", codec="h264"))
    hand_camera.connected()
    hand_camera.send(3)
    recording.until("frames", lambda: recording.stream("far")["written"] >= 2)
    hand_camera.send(2, garbage=True)
    hand_camera.send(4)
    recording.until("more frames", lambda: recording.stream("far")["written"] >= 5)
    manifest = recording.end()
    balanced(manifest)
    assert manifest.streams["far"].dropped.get("BROKEN") == 2


# -- bad input ----------------------------------------------------------------------------------------------------


def test_a_camera_that_is_not_there_is_told_and_the_other_goes_on(begin: Begin) -> None:
    missing = {"name": "gone", "input": "/dev/video97", "format": "v4l2"}
    recording = begin(missing, lavfi("near", frames=None, rate=10), ready_within="300 ms")
    recording.until("frames", lambda: recording.stream("near")["written"] >= 5)
    recording.until("the problem", lambda: recording.recorder.health()["problems"])
    manifest = recording.end()
    assert manifest.state == "sealed"
    assert any("gone: there is no such camera or file" in p for p in manifest.problems), manifest.problems


def test_where_nothing_is_recorded_it_fails_with_what_the_camera_said(begin: Begin) -> None:
    recording = begin({"name": "gone", "input": "/dev/video97", "format": "v4l2"})
    recording.until("an attempt", lambda: recording.stream("gone")["last_error"])
    with pytest.raises(NotFound, match=r"/dev/video97.*no such camera.*plugged in"):
        recording.end()


def test_wrong_settings_are_told(begin: Begin) -> None:
    recording = begin(lavfi("a", frames=None, encoder="h264_no_such"), lavfi("b", frames=None, rate=10))
    recording.until("the encoder's error", lambda: "no encoder h264_no_such" in recording.stream("a")["last_error"])
    recording.until("the other one goes on", lambda: recording.stream("b")["written"] >= 3)
    manifest = recording.end()
    balanced(manifest)
    assert set(manifest.streams["a"].dropped) <= {"ENCODER_FAILED", "STOPPED"}


def test_two_recordings_at_once_on_one_device(begin: Begin, root: Path) -> None:
    recording = begin(imu(count=None))
    recording.until("samples", lambda: recording.stream("imu")["written"])
    with pytest.raises(Conflict, match="somebody records on cam-test already"):
        Recorder(spec_of(imu()), root).run(threading.Event())
    assert recording.end().state == "sealed"
    Recorder(spec_of(imu(count=3)), root).run(threading.Event())


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OnblockError, match="cannot be written: Not a directory"):
        Recorder(spec_of(imu(count=3)), tmp_path / "file" / "recordings").run(threading.Event())


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"streams": [], "sensors": []}, "nothing to record"),
        ({"sensors": [imu("a"), imu("a")]}, "two streams or sensors have the name 'a'"),
        ({"streams": [lavfi("../up")]}, "may hold only letters"),
        ({"streams": [lavfi("quarantine")]}, "that name for itself"),
        ({"streams": [{"name": "a", "input": "rtsp://me:secret@cam/1"}]}, "put it in a `login_file`"),
        ({"streams": [lavfi("a", size_="1x1")]}, "Extra inputs"),
        ({"streams": [{"name": "a", "input": "x", "size": "big"}]}, "no WIDTHxHEIGHT"),
        ({"sensors": [{"name": "a", "kind": "lines"}]}, "needs a `path`"),
        ({"sensors": [imu()], "segment": "1 ms"}, "at least 100 ms"),
        ({"device": "a b", "sensors": [imu()]}, "device 'a b' may hold only"),
        ({"flight": "../F1", "sensors": [imu()]}, "flight '../F1' may hold only"),
    ],
)
def test_a_spec_that_makes_no_sense_is_refused(bad: dict[str, object], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        spec_of(imu()).model_validate({"device": "cam-test"} | bad)


def test_a_login_is_never_told(tmp_path: Path, begin: Begin) -> None:
    login = tmp_path / "login"
    login.write_text("me:s3cr3t/w@rd\n")
    login.chmod(0o644)
    camera = {"name": "far", "input": "rtsp://127.0.0.1:9/1", "login_file": str(login)}
    recording = begin(camera, imu(count=None))
    recording.until("refused", lambda: "chmod 600" in recording.stream("far")["last_error"])
    login.chmod(0o600)
    recording.until("opened", lambda: "refuses connections" in recording.stream("far")["last_error"])
    manifest = recording.end()
    assert "s3cr3t" not in manifest.model_dump_json()
    error = recording.recorder.lanes["far"].error
    assert error is not None
    told, cause = str(error), error.__cause__
    while cause is not None:
        told, cause = told + str(cause) + repr(cause), cause.__cause__ or cause.__context__
    assert "s3cr3t" not in told
    assert isinstance(error, OnblockError)
    assert not isinstance(error, ConfigError)


# -- how it ends --------------------------------------------------------------------------------------------------


def test_it_ends_by_its_duration(root: Path) -> None:
    _, manifest = record(root, imu(count=None), duration="300 ms")
    assert manifest.stopped_because == "the duration is over"
    balanced(manifest)


def test_it_ends_when_asked_from_another_process(begin: Begin, root: Path) -> None:
    recording = begin(imu(count=None))
    recording.until("samples", lambda: recording.stream("imu")["written"])
    assert request_stop(root, "another") == []
    assert request_stop(root, "cam-test") == [recording.recorder.id]
    assert recording.over().stopped_because == "asked to stop"
    assert request_stop(root) == []


class Interrupt(BaseException):
    """As Prefect's TerminationSignal is one."""


def test_an_interruption_seals(root: Path) -> None:
    class Interrupted(threading.Event):
        looks = 0

        def is_set(self) -> bool:
            self.looks += 1
            if self.looks > 3 and recorder.health()["streams"]["imu"]["written"]:
                raise Interrupt
            return False

    recorder = Recorder(spec_of(imu(count=None)), root)
    with pytest.raises(Interrupt):
        recorder.run(Interrupted())
    manifest = load(recorder.folder)
    assert (manifest.state, manifest.stopped_because) == ("sealed", "interrupted")
    balanced(manifest)


class Cell:
    """A battery that is not there at first, and then runs down."""

    def __init__(self) -> None:
        self.looks = 0

    def read(self) -> BatteryReading:
        self.looks += 1
        if self.looks == 1:
            raise NotFound("there is no battery")
        return BatteryReading(6.1, -0.5, -3.0, 4.0, False)


def test_a_battery_that_runs_down_ends_it_in_order(begin: Begin, root: Path) -> None:
    cell = Cell()
    manifest = begin(imu(count=None, rate=20), battery=cell).over()
    assert manifest.stopped_because == "the battery has 4 % left"
    assert cell.looks == 4
    told = [json.loads(line) for line in (root / manifest.id / EVENTS).read_text().splitlines()]
    assert [e["percent"] for e in told if e["kind"] == "battery"] == [4.0, 4.0, 4.0]
    balanced(manifest)


def test_a_recorder_needs_no_prefect() -> None:
    """60 MB and a second of imports, on a machine that has little of both."""
    code = "import sys, flows.capture.recorder, flows.capture.merge; sys.exit('prefect' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=False).returncode == 0


# -- clocks -------------------------------------------------------------------------------------------------------


class Stepping(SystemClock):
    """The machine's clocks, but that its date is set back 2 s and forward an hour, again and again."""

    def __init__(self) -> None:
        self.asked = 0

    def wall_ns(self) -> int:
        self.asked += 1
        return super().wall_ns() + (0, -2_000_000_000, 3_600_000_000_000)[self.asked % 3]


def test_steps_of_the_wall_clock_change_nothing(begin: Begin, root: Path) -> None:
    recording = begin(lavfi("a", frames=None, rate=20), imu(count=None), clock=Stepping(), segment="1 s")
    recording.until("three seconds", lambda: recording.recorder.health()["seconds"] > 3.2)
    manifest = recording.end()
    balanced(manifest)
    told = [json.loads(line) for line in (root / manifest.id / EVENTS).read_text().splitlines()]
    pairs = [(e["monotonic_ns"], e["wall_ns"]) for e in told if e["kind"] == "clock"]
    assert len(pairs) >= 3
    assert len({(wall - mono) // 1_000_000_000 for mono, wall in pairs}) >= 3  # it did step
    for name in ("a", "imu"):
        assert manifest.ended_ns is not None
        assert len(manifest.streams[name].segments) <= manifest.ended_ns // 1_000_000_000 + 1  # one a second
        times = [r.arrived_ns for r in records(root / manifest.id, manifest.streams[name].segments)]  # type: ignore
        assert times == sorted(times)
        assert times[0] >= 0 and times[-1] <= manifest.ended_ns  # type: ignore[operator]


def test_a_camera_that_counts_anew_is_recorded_and_merged(begin: Begin, root: Path, hand_camera: HandCamera) -> None:
    """Each connection counts from zero, and the frames of the first one come faster than its count says."""
    recording = begin(hand_camera.spec("far", timestamps="device"))
    for connection in (1, 2):
        hand_camera.connected(connection)
        hand_camera.send(40)
        recording.until("frames", lambda n=connection: recording.stream("far")["written"] >= 30 * n)
        if connection == 1:
            hand_camera.hang_up()
    manifest = recording.end()
    found = packets(root / manifest.id, manifest, "far")
    assert [r.dts_ns for r in found] == sorted({r.dts_ns for r in found})
    final = merge.finish(root / manifest.id).final
    assert final is not None and final.packets == {"far": len(found)}


# -- disks that are slow, or fail -----------------------------------------------------------------------------------


def test_a_segment_that_cannot_be_sealed_is_recovered(begin: Begin, root: Path) -> None:
    """It is never called sealed; nothing of it is lost."""
    recording = begin(imu(count=None, rate=50))
    recording.until("samples", lambda: recording.stream("imu")["written"] >= 5)
    lane = recording.recorder.folder / "imu"
    (lane / "000000.idx").rename(lane / "aside")
    (lane / "000000.idx").mkdir()  # cannot be hashed
    recording.until("the next segment", (lane / "000001.idx").exists)
    manifest = recording.end()
    assert manifest.state == load(lane.parent).state == "recording"
    assert any("could not be sealed: imu/000000" in p for p in manifest.problems), manifest.problems
    (lane / "000000.idx").rmdir()
    (lane / "aside").rename(lane / "000000.idx")
    with pytest.raises(Corrupt, match="is not sealed"):
        merge.finish(lane.parent)
    found = finished(lane.parent)
    assert (found.state, found.stopped_because) == ("recovered", "asked to stop")
    assert found.final is not None and found.final.packets["imu"] == manifest.streams["imu"].written
    assert manifest.problems[0] in found.problems


def test_a_writer_that_hangs_is_not_called_sealed(begin: Begin, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody touches the files before it is done with them; the other lane has its own time."""
    monkeypatch.setattr(recorder_module, "FINISH_S", 2.0)
    recording = begin(imu("stuck", count=None, rate=20), imu("near", count=None, rate=20))
    recording.until("samples", lambda: recording.stream("stuck")["written"] and recording.stream("near")["written"])
    folder, lane = recording.recorder.folder, recording.recorder.lanes["stuck"]
    with lane._pen:  # as if the disk kept its writer
        manifest = recording.end()
        assert manifest.state == "recording"
        assert any(p.startswith("stuck: the disk did not take") for p in manifest.problems)
        with pytest.raises(Conflict):
            finished(folder)
    recording.until("the disk's end", lambda: not lane.at_work)

    def free() -> Manifest | None:
        with suppress(Conflict):
            return finished(folder)
        return None

    found = recording.until("the lock", free)
    assert found.state == "recovered" and found.final is not None
    assert found.final.packets["stuck"] == found.streams["stuck"].written > 0
    assert found.streams["near"].in_flight == 0


def test_a_sync_keeps_nobody_from_the_next_segment(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    recording = begin(imu(count=None, rate=20))
    recording.until("samples", lambda: recording.stream("imu")["written"])
    lane, real, free = recording.recorder.lanes["imu"], os.fdatasync, []

    def fdatasync(fd: int) -> None:
        free.append(lane._segment_lock.acquire(timeout=20))
        if free[-1]:
            lane._segment_lock.release()
        real(fd)

    monkeypatch.setattr(os, "fdatasync", fdatasync)
    recording.until("a sync", lambda: lane.sync() or free)
    monkeypatch.undo()
    assert all(free)
    assert recording.end().state == "sealed"


def test_what_is_dropped_before_the_first_segment_takes_no_room(begin: Begin, root: Path) -> None:
    recording = begin({"name": "gone", "input": "/dev/video97", "format": "v4l2"}, imu(count=None))
    recording.until("samples", lambda: recording.stream("imu")["written"])
    lane = recording.recorder.lanes["gone"]
    for n in range(5000):
        lane._note(DropRecord(n, 1, n, n, (Reason.BROKEN, Reason.NO_KEYFRAME)[n % 2]))
    assert sorted((r.sequence, r.count, r.last_ns) for r in lane._early.values()) == [(0, 2500, 4998), (1, 2500, 4999)]
    recording.end()

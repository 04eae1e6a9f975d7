"""Recordings for tests: test cameras of FFmpeg, and cameras that the test holds in its hand."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from flows.capture.manifest import Manifest, SegmentEntry
from flows.capture.merge import read_sidecar
from flows.capture.recorder import Recorder
from flows.capture.sidecar import PacketRecord, Record, SampleRecord
from flows.capture.spec import CaptureSpec


def lavfi(name: str, *, frames: int | None = 60, size: str = "160x120", rate: int = 30, **keys: Any) -> dict[str, Any]:
    """A test camera: so many frames as fast as they are taken, at times as if it were a real one; or for ever, at its rate."""
    graph = f"testsrc2=size={size}:rate={rate}"
    graph += ",realtime" if frames is None else f",trim=end_frame={frames}"
    times = {} if frames is None else {"timestamps": "device"}
    return {"name": name, "input": graph, "format": "lavfi", "fps": None, **times, **keys}


def imu(name: str = "imu", count: int | None = 400, **keys: Any) -> dict[str, Any]:
    return {"name": name, "kind": "simulated-imu", "count": count, **keys}


def spec_of(*streams: dict[str, Any], **keys: Any) -> CaptureSpec:
    cameras = [s for s in streams if "input" in s]
    sensors = [s for s in streams if "input" not in s]
    given = {"device": "cam-test", "segment": "1 s", "limits": {"disk_mib": 0}, **keys}
    return CaptureSpec.model_validate(given | {"streams": cameras, "sensors": sensors})


class Recording:
    """A recorder at work in a thread."""

    def __init__(self, spec: CaptureSpec, root: Path, **keys: Any):
        self.recorder, self.stop = Recorder(spec, root, **keys), threading.Event()
        self.result: Manifest | None = None
        self.error: BaseException | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            self.result = self.recorder.run(self.stop)
        except BaseException as error:  # noqa: BLE001 - the test looks at it
            self.error = error

    def stream(self, name: str) -> dict[str, Any]:
        return self.recorder.health()["streams"].get(name) or {
            "captured": 0,
            "written": 0,
            "state": "",
            "last_error": "",
        }

    def until(self, what: str, look: Callable[[], Any], seconds: float = 60) -> Any:
        deadline = time.monotonic() + seconds
        while not (found := look()):
            assert self.error is None, self.error
            assert time.monotonic() < deadline, f"{what}: {self.recorder.health()}"
            time.sleep(0.01)
        return found

    def end(self) -> Manifest:
        self.stop.set()
        return self.over()

    def over(self) -> Manifest:
        self.thread.join(60)
        assert not self.thread.is_alive()
        if self.error is not None:
            raise self.error
        assert self.result is not None
        return self.result


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "recordings"


@pytest.fixture
def begin(root: Path) -> Iterator[Callable[..., Recording]]:
    """Starts recorders, and stops what a test left running."""
    started: list[Recording] = []

    def start(*streams: dict[str, Any], battery: Any = None, clock: Any = None, **keys: Any) -> Recording:
        started.append(Recording(spec_of(*streams, **keys), root, battery=battery, clock=clock))
        return started[-1]

    yield start
    for recording in started:
        recording.stop.set()
        recording.thread.join(60)


def record(root: Path, *streams: dict[str, Any], **keys: Any) -> tuple[Path, Manifest]:
    """Record to the end of the inputs."""
    recorder = Recorder(spec_of(*streams, **keys), root)
    return root, recorder.run(threading.Event())


def records(folder: Path, segments: list[SegmentEntry]) -> list[Record]:
    return [r for s in segments for r in read_sidecar(folder, s).records]


def packets(folder: Path, manifest: Manifest, name: str) -> list[PacketRecord]:
    return [r for r in records(folder, manifest.streams[name].segments) if isinstance(r, PacketRecord)]


def samples(folder: Path, manifest: Manifest, name: str) -> list[SampleRecord]:
    return [r for r in records(folder, manifest.streams[name].segments) if isinstance(r, SampleRecord)]


def balanced(manifest: Manifest) -> None:
    """What was captured was written or dropped for a reason, and nothing is in flight."""
    for name, entry in manifest.streams.items():
        assert entry.captured == entry.written + sum(entry.dropped.values()), (name, entry)
        assert entry.in_flight == 0
        assert entry.written == sum(s.count for s in entry.segments)


def jpegs(count: int, size: tuple[int, int] = (160, 120)) -> list[bytes]:
    """Frames as a UVC camera sends them."""
    import av
    from av.codec.context import CodecContext
    from av.video.codeccontext import VideoCodecContext

    encoder = CodecContext.create("mjpeg", "w")
    assert isinstance(encoder, VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt = *size, "yuvj420p"
    encoder.time_base, encoder.options = Fraction(1, 30), {"qmin": "2", "qmax": "8"}
    made: list[bytes] = []
    graph = f"testsrc2=size={size[0]}x{size[1]}:rate=30,trim=end_frame={count}"
    with av.open(graph, format="lavfi") as source:
        for frame in source.decode(video=0):
            frame = frame.reformat(format="yuvj420p")
            frame.pict_type = 0  # type: ignore[assignment]
            made += [bytes(p) for p in encoder.encode(frame)]
    return made + [bytes(p) for p in encoder.encode(None)]


class HandCamera:
    """A network camera (multipart MJPEG over TCP) that sends what, and when, the test says."""

    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.frames = jpegs(10)
        self.sent = 0
        self.connections = 0
        self._line: socket.socket | None = None
        self._ready = threading.Condition()
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                line, _ = self.listener.accept()
            except OSError:
                return
            with self._ready:
                self._line, self.connections = line, self.connections + 1
                self._ready.notify_all()

    def spec(self, name: str, **keys: Any) -> dict[str, Any]:
        address = f"tcp://127.0.0.1:{self.listener.getsockname()[1]}"
        options = {"probesize": "2000", "fpsprobesize": "0", "analyzeduration": "0"}
        return {"name": name, "input": address, "format": "mpjpeg", "options": options, "codec": "copy", **keys}

    def connected(self, times: int = 1) -> None:
        with self._ready:
            assert self._ready.wait_for(lambda: self.connections >= times, 60)

    def send(self, count: int = 1, *, garbage: bool = False) -> None:
        """Send frames on the newest connection."""
        assert self._line is not None
        for _ in range(count):
            jpeg = self.frames[self.sent % len(self.frames)]
            if garbage:
                jpeg = b"\xff\xd8" + b"nonsense" * 50
            head = f"--ffmpeg\r\nContent-type: image/jpeg\r\nContent-length: {len(jpeg)}\r\n\r\n".encode()
            self._line.sendall(head + jpeg + b"\r\n")
            self.sent += 1

    def hang_up(self) -> None:
        assert self._line is not None
        self._line.shutdown(socket.SHUT_RDWR)
        self._line.close()

    def close(self) -> None:
        self.listener.close()
        if self._line is not None:
            self._line.close()


@pytest.fixture
def hand_camera() -> Iterator[HandCamera]:
    camera = HandCamera()
    yield camera
    camera.close()

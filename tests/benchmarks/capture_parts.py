"""The programs that `capture.py` measures, each started as `python -m tests.benchmarks.capture_parts PART ...`."""

from __future__ import annotations

import json
import os
import random
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import BenchError
from tests.benchmarks.tools import REPOSITORY

SEGMENTS, SEGMENT_S, RATE = 30, 10, 30
CAMERA = "testsrc2=size=1280x720:rate=30,realtime"
LOOK_EVERY_S = 2.0
"""Between two looks at the memory of a recorder."""
PROGRAM = [sys.executable, "-m", "tests.benchmarks.capture_parts"]


def cameras(*names: str, **keys: Any) -> dict[str, Any]:
    """Two test cameras and a sensor."""
    streams = [{"name": n, "input": CAMERA, "format": "lavfi"} for n in names]
    return {"device": "bench", "streams": streams, "sensors": [{"name": "imu", "kind": "simulated-imu"}], **keys}


def record(seconds: float, root: Path) -> dict[str, Any]:
    """Two cameras and a sensor."""
    import av  # noqa: F401  not its import, but the recording, is measured

    from flows.capture.recorder import Recorder
    from flows.capture.spec import CaptureSpec

    recorder = Recorder(CaptureSpec.model_validate(cameras("left", "right", duration=seconds)), root)
    before = time.process_time()
    manifest = recorder.run(threading.Event())
    spent = time.process_time() - before
    frames = sum(e.written for e in manifest.streams.values() if e.kind == "video")
    return {
        "cpu_ms": spent / frames * 1e3, "rss": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "captured": sum(e.captured for e in manifest.streams.values()),
        "written": sum(e.written for e in manifest.streams.values()),
        "dropped": sum(n for e in manifest.streams.values() for n in e.dropped.values()),
    }  # fmt: skip


def memory(seconds: float, root: Path) -> dict[str, Any]:
    """Two cameras and a sensor, in short segments: the memory of the recorder, from look to look, in bytes."""
    from flows.capture.recorder import Recorder
    from flows.capture.spec import CaptureSpec

    given = cameras("left", "right", duration=seconds, segment="5 s", merge=False)
    recorder = Recorder(CaptureSpec.model_validate(given), root)
    found: list[int] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(LOOK_EVERY_S):
            found.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))

    looker = threading.Thread(target=look)
    looker.start()
    try:
        manifest = recorder.run(threading.Event())
    finally:
        over.set()
        looker.join()
    return {
        "rss": found, "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "segments": sum(len(e.segments) for e in manifest.streams.values()),
    }  # fmt: skip


def encode(seconds: float, _: Path) -> dict[str, Any]:
    """Two cameras into encoders of the same settings, and nothing kept."""
    from fractions import Fraction

    import av

    counts = [0, 0]

    def work(number: int) -> None:
        with av.open(CAMERA, format="lavfi") as source, av.open(os.devnull, "w", format="null") as out:
            options = {"preset": "ultrafast", "tune": "zerolatency", "forced-idr": "1", "crf": "23"}
            stream: Any = out.add_stream("libx264", rate=30, options=options)
            stream.width, stream.height, stream.pix_fmt, stream.codec_context.gop_size = 1280, 720, "yuv420p", 30
            stream.codec_context.time_base = Fraction(1, 1_000_000)
            source.streams.video[0].thread_type = "SLICE"
            for frame in source.decode(video=0):
                frame.pict_type = 0  # type: ignore[assignment]
                frame.pts, frame.time_base = counts[number] * 33_333, Fraction(1, 1_000_000)
                stream.encode(frame)
                counts[number] += 1
                if time.monotonic() > end:
                    return

    before, end = time.process_time(), time.monotonic() + seconds
    threads = [threading.Thread(target=work, args=(n,)) for n in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {"cpu_ms": (time.process_time() - before) / sum(counts) * 1e3, "frames": sum(counts)}


def serve(port_file: Path) -> None:
    """A camera: 1080p30 MJPEG in Matroska over TCP, until it is killed."""
    from flows.capture.matroska import cluster_head, header_container
    from tests.capture.conftest import jpegs

    frames = jpegs(30, (1920, 1080))
    container, sink = header_container()
    stream: Any = container.add_stream("mjpeg", rate=30)
    stream.width, stream.height, stream.pix_fmt = 1920, 1080, "yuvj420p"
    container.start_encoding()
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port_file.with_suffix(".part").write_text(str(listener.getsockname()[1]))
        port_file.with_suffix(".part").rename(port_file)
        line, _ = listener.accept()
        line.sendall(bytes(sink.data))
        begin, n = time.monotonic(), 0
        while True:
            time.sleep(max(0.0, begin + n / 30 - time.monotonic()))
            payload = frames[n % len(frames)]
            line.sendall(cluster_head(n * 1000 // 30, payload, key=True) + payload)
            n += 1


def copy(seconds: float, root: Path) -> dict[str, Any]:
    """Keep what that camera sends."""
    from flows.capture.recorder import Recorder
    from flows.capture.spec import CaptureSpec

    root.mkdir(parents=True)
    command = [*PROGRAM, "serve", str(root / "port")]
    with subprocess.Popen(command, cwd=REPOSITORY) as camera:
        try:
            while not (root / "port").exists():
                time.sleep(0.05)
            options = {"fpsprobesize": "0", "analyzeduration": "0", "probesize": "100000"}
            stream = {"name": "uvc", "input": f"tcp://127.0.0.1:{(root / 'port').read_text()}", "format": "matroska",
                      "codec": "copy", "options": options}  # fmt: skip
            recorder = Recorder(CaptureSpec.model_validate({"device": "bench", "streams": [stream]}), root)
            stop, marks = threading.Event(), []

            def mark() -> None:
                marks.append((time.process_time(), time.monotonic(), recorder.lanes["uvc"].accounts.balance().written))

            threading.Timer(3, mark).start()
            threading.Timer(3 + seconds, lambda: (mark(), stop.set())).start()
            manifest = recorder.run(stop)
        finally:
            camera.kill()
    (cpu, at, count), (cpu_then, at_then, count_then) = marks
    entry = manifest.streams["uvc"]
    return {
        "core": (cpu_then - cpu) / (at_then - at), "fps": (count_then - count) / (at_then - at),
        "kib": sum(s.bytes for s in entry.segments) / entry.written / 1024, "dropped": entry.dropped,
    }  # fmt: skip


def forever(root: Path, spec: dict[str, Any] | None = None) -> None:
    """Record until killed."""
    from flows.capture.recorder import Recorder
    from flows.capture.spec import CaptureSpec

    given = CaptureSpec.model_validate(spec or cameras("left", "right", segment="2 s"))
    Recorder(given, root).run(threading.Event())


def mishap(case: str, root: Path) -> dict[str, Any]:
    """What our recorder keeps where omgrab's writer has the same mishap."""
    from flows.capture import merge as merging
    from flows.capture.clock import SystemClock
    from flows.capture.manifest import load
    from flows.capture.recorder import Recorder
    from flows.capture.recover import recover_all
    from flows.capture.spec import CaptureSpec

    def camera(name: str, frames: int, speed: int) -> dict[str, Any]:
        graph = f"testsrc2=size=320x240:rate=30,trim=end_frame={frames},realtime=speed={speed}"
        return {"name": name, "input": graph, "format": "lavfi"}

    class Stepping(SystemClock):
        """The date goes back 2 s, and later forward an hour."""

        looks = 0

        def wall_ns(self) -> int:
            self.looks += 1
            return super().wall_ns() + (0 if self.looks < 2 else -2 if self.looks < 4 else 3600) * 1_000_000_000

    if case == "kill":
        spec = {"device": "bench", "segment": "10 s", "streams": [camera("a", 9000, 1), camera("b", 9000, 1)]}
        command = [*PROGRAM, "forever", str(root), json.dumps(spec)]
        with subprocess.Popen(command, cwd=REPOSITORY) as child:
            while not [*root.glob("*/*/000000.mkv")]:
                time.sleep(0.02)
            time.sleep(25)
            child.kill()
        recover_all(root)
        (folder,) = root.glob("*/")
        manifest = load(folder)
    else:
        spec = {
            "device": "bench",
            "segment": "10 s",
            "streams": [camera("a", 1000, 5), camera("b", 250 if case == "dead" else 1000, 5)],
        }
        clock = Stepping() if case == "steps" else None
        recorder = Recorder(CaptureSpec.model_validate(spec), root, clock=clock)
        recorder.run(threading.Event())
        manifest = merging.finish(recorder.folder)
    if manifest.final is None:
        raise BenchError(f"not merged: {manifest.problems}")
    return {"captured": [e.captured for e in manifest.streams.values()], "kept": list(manifest.final.packets.values())}


def kills(count: int, root: Path) -> dict[str, Any]:
    """SIGKILL at random phases; what was lost of what had been captured, and what of the file cannot be decoded."""
    import av

    from flows.capture.manifest import Manifest
    from flows.capture.recover import recover_all

    lost: dict[str, list[int]] = {"left": [], "right": [], "imu": []}
    dropped = unreadable = 0
    rng = random.Random(6)
    for number in range(count):
        place = root / str(number)
        with subprocess.Popen([*PROGRAM, "forever", str(place)], cwd=REPOSITORY) as child:
            try:
                while not all(len([*place.glob(f"*/{name}/*.idx")]) >= 2 for name in lost):
                    if child.poll() is not None:
                        raise BenchError("the recorder ended by itself")
                    time.sleep(0.02)
                time.sleep(rng.uniform(0, 2))
            finally:
                child.kill()
        (manifest,) = recover_all(place)
        if not isinstance(manifest, Manifest) or manifest.final is None:
            raise BenchError(f"not recovered: {manifest}")
        for name, entry in manifest.streams.items():
            lost[name].append(entry.in_flight)
            dropped += sum(entry.dropped.values())
        for n, name in enumerate(("left", "right")):
            with av.open(str(place / manifest.id / manifest.final.file)) as video:
                unreadable += manifest.streams[name].written - sum(1 for _ in video.decode(video=n))
    return {"lost": lost, "unreadable": unreadable, "dropped": dropped}


def merge(root: Path, ffmpeg: str, rounds: int) -> dict[str, Any]:
    """Our merge against ffmpeg's, of the same segments, taking turns."""
    from statistics import median

    from flows.capture import merge as merging
    from flows.capture.manifest import load

    folder = segments(root)
    manifest = load(folder)
    videos = [folder / str(s.video) for s in manifest.streams["a"].segments]
    listing = root / "list.txt"
    listing.write_text("".join(f"file '{p}'\n" for p in videos))
    size = sum(p.stat().st_size for p in videos)
    ours, theirs, whole, io = [], [], [], (0, 0)
    for _ in range(rounds):
        os.sync()
        began = time.monotonic()
        argv = [
            ffmpeg,
            "-v",
            "error",
            "-y",
            "-f",
            "concat",
            "-safe",
            "0",
            "-i",
            str(listing),
            "-c",
            "copy",
            str(root / "o.mkv"),
        ]
        subprocess.run(argv, check=True)
        theirs.append(time.monotonic() - began)
        (root / "o.mkv").unlink()
        os.sync()
        before, began = _io(), time.monotonic()
        sums = merging._write(folder, manifest, root / "ours.mkv", [], lambda: None)
        ours.append(time.monotonic() - began)
        io = tuple(b - a for a, b in zip(before, _io(), strict=True))
        began = time.monotonic()
        merging._read_back(root / "ours.mkv", sums, lambda: None)
        merging.sha256_of(root / "ours.mkv")
        whole.append(ours[-1] + time.monotonic() - began)
        (root / "ours.mkv").unlink()
    return {
        "bytes": size, "seconds": median(ours), "ffmpeg": median(theirs), "whole": median(whole),
        "times": median(t / o for t, o in zip(theirs, ours, strict=True)), "read": io[0] / size, "written": io[1] / size,
    }  # fmt: skip


def _io() -> tuple[int, int]:
    """Bytes that this process has read and written by system calls."""
    told = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(told["rchar"]), int(told["wchar"])


def segments(root: Path) -> Path:
    """A recording of 30 segments of 10 s: one clip, again and again."""
    from fractions import Fraction

    import av

    from flows.capture.encoder import StreamEncoder
    from flows.capture.manifest import Manifest, StreamEntry
    from flows.capture.recorder import entry_of
    from flows.capture.segment import SegmentWriter
    from flows.capture.sources import Times
    from flows.capture.spec import StreamSpec

    spec = StreamSpec(name="a", input="x", fps=RATE, bitrate=12_000_000)
    clip: list[Any] = []
    encoder = None
    graph = f"testsrc2=size=1280x720:rate={RATE},noise=alls=12:allf=t,trim=end_frame={RATE * SEGMENT_S}"
    with av.open(graph, format="lavfi") as source:
        for n, frame in enumerate(source.decode(video=0)):
            frame.time_base = Fraction(1, RATE)
            encoder = encoder or StreamEncoder(spec, frame)
            at = n * 1_000_000_000 // RATE
            clip += encoder.encode(n, Times(at, at, at, at), frame, key=n % RATE == 0)
    assert encoder is not None
    folder = root / "recording"
    (folder / "a").mkdir(parents=True)
    entry = StreamEntry(kind="video")
    for number in range(SEGMENTS):
        writer = SegmentWriter(folder / "a", number, encoder.header[1], encoder.header[0])
        for packed in clip:
            at = packed.times.pts + number * SEGMENT_S * 1_000_000_000
            writer.packet(packed.payload, sequence=number * len(clip) + packed.sequence, arrived_ns=at, device_ns=at,
                          pts_ns=at, dts_ns=at, key=packed.key)  # fmt: skip
        writer.close()
        entry.segments.append(entry_of(folder, "a", writer))
    Manifest(
        id="recording", device="bench", state="sealed", start_monotonic_ns=0, start_wall_ns=0, streams={"a": entry}
    ).write(folder)
    return folder


def main(argv: list[str]) -> None:
    part = argv[0]
    timed: dict[str, Callable[[float, Path], dict[str, Any]]] = {
        "record": record, "encode": encode, "copy": copy, "memory": memory,
    }  # fmt: skip
    if (does := timed.get(part)) is not None:
        print(json.dumps(does(float(argv[1]), Path(argv[2]))))
    elif part == "kills":
        print(json.dumps(kills(int(argv[1]), Path(argv[2]))))
    elif part == "merge":
        print(json.dumps(merge(Path(argv[1]), argv[2], int(argv[3]))))
    elif part == "forever":
        forever(Path(argv[1]), json.loads(argv[2]) if len(argv) > 2 else None)
    elif part == "mishap":
        print(json.dumps(mishap(argv[1], Path(argv[2]))))
    elif part == "serve":
        serve(Path(argv[1]))
    else:
        sys.exit(f"there is no part {part!r}; a trial: merge {tempfile.gettempdir()}/m ffmpeg 3")


if __name__ == "__main__":
    main(sys.argv[1:])

"""What a recording costs, and what a kill costs it: `python -m tests.benchmarks.run --only capture`.

    cpu      two 720p30 test cameras, x264 ultrafast, and a 200 Hz sensor, against the encoders alone
    memory   the same two cameras and sensor for two minutes, in short segments
    copy     one 1080p30 MJPEG camera, kept as it comes
    kills    SIGKILL at random moments
    merge    30 segments of 10 s, against `ffmpeg -f concat -c copy`
    omgrab   what is left after a kill at 25 s, a second camera that dies, and steps of the date, beside omgrab 0.1.2

What is measured is in `capture_parts.py`, the picture `capture.png` in `capture_picture.py`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from tests.benchmarks.capture_parts import SEGMENT_S, SEGMENTS
from tests.benchmarks.capture_picture import draw
from tests.benchmarks.measure import BenchError
from tests.benchmarks.tools import REPOSITORY, program

if TYPE_CHECKING:
    from tests.benchmarks.scenarios import Bench

SECONDS, COPY_SECONDS, MEMORY_SECONDS, KILLS = 60, 15, 120, 30
ENCODER_TIMES, COPY_CORE, RSS_LIMIT, MERGE_TIMES = 1.15, 0.05, 200e6, 2.0
OMGRAB_S = 90
"""Seconds that omgrab's writer may take: a third of that is its frames."""
FLAT = 8e6
"""Bytes by which a recorder may have grown from the second quarter of its time to the last."""

Found = dict[str, Any]
"""What the parts measured, for the picture."""


def capture(bench: Bench) -> None:
    """All parts."""
    found: Found = {}
    bench.pictures.append(partial(draw, found))
    for part in (_cpu, _memory, _copy, _kills, _merge, _omgrab):
        part(bench, found)


def _child(part: str, *argv: str, limit: float = 600) -> dict[str, Any]:
    """This file as a program of its own; what it printed."""
    command = [sys.executable, "-m", "tests.benchmarks.capture_parts", part, *argv]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=limit, check=False)
    if done.returncode:
        raise BenchError(f"capture {part} ended with {done.returncode}: {done.stderr[-1500:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _cpu(bench: Bench, told: Found) -> None:
    seconds = str(SECONDS if bench.rounds > 3 else 20)
    alone, ratios, own = [], [], []
    for number in range(3):  # neighbours in time, whichever comes first
        order = ("encode", "record") if number % 2 else ("record", "encode")
        found = {part: _child(part, seconds, str(bench.tools.fresh(part))) for part in order}
        alone.append(found["encode"]["cpu_ms"])
        own.append(found["record"]["cpu_ms"])
        ratios.append(own[-1] / alone[-1])
        recorded = found["record"]
        bench.tell(f"(capture) {recorded}, the encoders alone {alone[-1]:.2f} ms a frame")
        lost = recorded["captured"] - recorded["written"] - recorded["dropped"]
        bench.claim(f"(capture) frames and samples unaccounted for, {seconds} s", str(lost), "none", not lost)
    value = sorted(ratios)[1]
    bench.claim(
        "(capture) CPU per frame to the encoder alone", f"{value:.3f} x", f"at most {ENCODER_TIMES:g} x", value <= ENCODER_TIMES
    )  # fmt: skip
    bench.claim("(capture) frames dropped", f"{recorded['dropped']} of {recorded['captured']}", None, True)
    told["cpu"] = {"encoders alone": alone, "recorded": own}


def _memory(bench: Bench, told: Found) -> None:
    seconds = MEMORY_SECONDS
    found = _child("memory", str(seconds), str(bench.tools.fresh("memory")))
    rss, quarter = found["rss"], len(found["rss"]) // 4
    grown = median(rss[-quarter:]) - median(rss[quarter : 2 * quarter])
    bench.tell(f"(capture) {found}")
    bench.claim(
        "(capture) peak RSS, two 720p streams", f"{found['peak'] / 1e6:.0f} MB", f"under {RSS_LIMIT / 1e6:.0f} MB",
        found["peak"] < RSS_LIMIT,
    )  # fmt: skip
    bench.claim(
        f"(capture) RSS, from the second quarter of {seconds} s ({found['segments']} segments) to the last",
        f"{grown / 1e6:+.1f} MB", f"at most {FLAT / 1e6:+.0f} MB", grown <= FLAT,
    )  # fmt: skip
    told["memory"] = rss


def _copy(bench: Bench, told: Found) -> None:
    found = _child("copy", str(COPY_SECONDS), str(bench.tools.fresh("copy")))
    bench.tell(f"(capture) {found}")
    core = told["copy"] = found["core"]
    bench.claim(
        f"(capture) 1080p30 MJPEG copied, {found['kib']:.0f} KiB a frame: of one core", f"{core:.1%}",
        f"under {COPY_CORE:.0%}", core < COPY_CORE,
    )  # fmt: skip


def _kills(bench: Bench, told: Found) -> None:
    found = _child("kills", str(KILLS if bench.rounds > 3 else 10), str(bench.tools.fresh("kills")), limit=1800)
    bench.tell(f"(capture) {found}")
    told["kills"] = found["lost"]
    for name, lost in found["lost"].items():
        what = "samples" if name == "imu" else "frames"
        bench.claim(
            f"(capture) {what} of {name} lost by SIGKILL, most of {len(lost)}",
            str(max(lost)),
            "at most 1",
            max(lost) <= 1,
        )
    bench.claim(
        "(capture) packets that cannot be read after it", str(found["unreadable"]), "none", not found["unreadable"]
    )


def _merge(bench: Bench, told: Found) -> None:
    found = _child("merge", str(bench.tools.fresh("merge")), program("ffmpeg"), str(bench.rounds), limit=1800)
    bench.tell(f"(capture) {found}")
    value = found["times"]
    size = found["bytes"] / 1e6
    told["merge"] = {k: size / found[k] for k in ("seconds", "ffmpeg", "whole")}
    bench.claim(
        f"(capture) merge of {SEGMENTS} x {SEGMENT_S} s ({size:.0f} MB): speed to ffmpeg -f concat -c copy",
        f"{value:.2f} x ({size / found['seconds']:.0f} MB/s, ffmpeg {size / found['ffmpeg']:.0f})",
        f"at least {MERGE_TIMES:g} x", value >= MERGE_TIMES,
    )  # fmt: skip
    bench.claim("(capture) merge, then read back and hashed", f"{size / found['whole']:.0f} MB/s", None, True)
    read, written = found["read"], found["written"]
    bench.claim("(capture) merge: bytes read and written, per byte", f"{read:.2f} and {written:.2f}", "1 and 1 (5 % more at most)",
                max(read, written) <= 1.05)  # fmt: skip


def _omgrab(bench: Bench, told: Found) -> None:
    """The same three mishaps to omgrab's writer, in an environment of its own, and to our recorder."""
    place = bench.tools.fresh("omgrab")
    python = place / "venv/bin/python"
    for argv in (
        [sys.executable, "-m", "venv", str(place / "venv")],
        [str(python), "-m", "pip", "install", "-q", "omgrab==0.1.2"],
    ):
        subprocess.run(argv, check=True, capture_output=True, timeout=600)
    for case, frames in (("kill", (750, 750)), ("dead", (1000, 250)), ("steps", (1000, 1000))):
        to = place / case
        argv = [str(python), str(Path(__file__).with_name("omgrab_writer.py")), case, str(to)]
        try:
            subprocess.run(argv, capture_output=True, timeout=OMGRAB_S, check=False)
        except subprocess.TimeoutExpired:  # it is killed then; what it wrote counts
            bench.tell(f"(capture) {case}: omgrab had not ended after {OMGRAB_S} s")
        theirs = _decodable(to)
        ours = _child("mishap", case, str(bench.tools.fresh(case)))
        text = f"{ours['kept']} of {ours['captured']}; omgrab {theirs} of {list(frames)}"
        told.setdefault("mishaps", {})[case] = (
            sum(ours["kept"]) / sum(ours["captured"]), sum(theirs) / sum(frames)
        )  # fmt: skip
        lost = sum(ours["captured"]) - sum(ours["kept"])
        bench.claim(f"(capture) frames kept of two cameras: {case}", text, "all but one of each", lost <= 2)


def _decodable(folder: Path) -> list[int]:
    """Frames of each camera that FFmpeg still reads from what omgrab left, parts that were not joined included."""
    import av
    from av.error import FFmpegError

    found = [0, 0]
    for path in sorted(folder.glob("*.mkv*")):
        only = {"a": 0, "b": 1}.get(path.name.split(".")[1])
        for number in range(2) if only is None else (0,):
            try:
                with av.open(str(path)) as video:
                    for _ in video.decode(video=number):
                        found[number if only is None else only] += 1
            except (FFmpegError, IndexError):
                continue
    return found


SCENARIOS: dict[str, Callable[[Bench], None]] = {"capture": capture}

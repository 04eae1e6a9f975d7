"""What steps cost: transcode against Debian's ffmpeg, zstd against the zstd program, gzip against Python's module.

`python -m tests.benchmarks.steps STEP INPUT FOLDER`, with the step as JSON, runs one step and prints its seconds: that is
the program measured here. The start of Python is not the step's, and is told apart (job, command).
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.benchmarks.measure import BenchError, Sample, Series, ratio, run
from tests.benchmarks.scenarios import MIB, Bench
from tests.benchmarks.tools import REPOSITORY, Tools, program

CLIP_SECONDS = 10
CODECS = {
    "h264": ("libx264", "23", "veryfast"),
    "hevc": ("libx265", "28", "ultrafast"),
    "av1": ("libsvtav1", "35", "11"),
}
"""Encoder, crf and preset."""
ZSTD_SIZE, GZIP_SIZE = 512 * MIB, 128 * MIB
FASTER = {"transcode": 0.95, "zstd": 0.9, "gzip": 10.0}
"""How many times as fast as the other program a step is to be."""


def steps(bench: Bench) -> None:
    """Transcode, zstd and gzip."""
    tools = bench.tools
    ffmpeg, zstd = program("ffmpeg"), program("zstd")
    clip = tools.fresh("clip").with_suffix(".mp4")
    card = f"testsrc2=size=1280x720:rate=30:duration={CLIP_SECONDS},noise=alls=6:allf=t"
    encode = ["-c:v", "libx264", "-preset", "veryfast", "-crf", "18", "-pix_fmt", "yuv420p", "-c:a", "aac", str(clip)]
    sound = ["-f", "lavfi", "-i", f"sine=duration={CLIP_SECONDS}"]
    tools.run("clip", [ffmpeg, "-v", "error", "-f", "lavfi", "-i", card, *sound, *encode])
    for codec, (encoder, crf, preset) in CODECS.items():
        options = ["-c:v", encoder, "-crf", crf, "-preset", preset, "-c:a", "copy"]

        def rival(to: Path, options: list[str] = options) -> list[str]:
            return [ffmpeg, "-v", "error", "-nostdin", "-i", str(clip), *options, str(to / "out.mp4")]

        step = {"kind": "transcode", "codec": codec, "crf": int(crf), "preset": preset}
        promised = FASTER["transcode"] if codec == "h264" else None
        _against(bench, f"(steps) transcode, {codec} {preset}, 720p", clip, step, "ffmpeg", rival, promised)
    text = rows(tools.fresh("rows").with_suffix(".csv"), ZSTD_SIZE)
    _against(
        bench, "(steps) compress, zstd, 512 MiB", text, {"kind": "compress"}, "zstd -T0",
        lambda to: [zstd, "-q", "-T0", "-3", str(text), "-o", str(to / "out.zst")], FASTER["zstd"],
    )  # fmt: skip
    short = rows(tools.fresh("rows").with_suffix(".csv"), GZIP_SIZE)
    code = (
        "import gzip, shutil, sys; shutil.copyfileobj(open(sys.argv[1], 'rb'), gzip.open(sys.argv[2], 'wb'), 1 << 20)"
    )
    _against(
        bench, "(steps) compress, gzip, 128 MiB", short, {"kind": "compress", "format": "gzip"}, "Python's gzip",
        lambda to: [sys.executable, "-c", code, str(short), str(to / "out.gz")], FASTER["gzip"],
    )  # fmt: skip


def _against(
    bench: Bench, scenario: str, source: Path, step: dict[str, Any], other: str, rival: Callable[[Path], list[str]],
    promised: float | None,
) -> None:  # fmt: skip
    size = source.stat().st_size
    ours, theirs = (Series(scenario, tool, 1, size) for tool in ("onblock", other))
    bench.series += [ours, theirs]
    for _ in range(bench.rounds):
        bench.note(ours, run_step(bench.tools, step, source))
        to = bench.tools.fresh("other")
        to.mkdir()
        bench.note(theirs, bench.tools.run("other", rival(to)))
        if not any(p.stat().st_size for p in to.iterdir()):
            raise BenchError(f"{other} wrote nothing")
        shutil.rmtree(to)  # one large file
    value = ratio([s.wall for s in theirs.samples], [s.job for s in ours.samples])
    wanted = f"at least {promised:g} x" if promised else None
    bench.claim(f"{scenario}: speed to {other}", f"{value:.2f} x", wanted, promised is None or value >= promised)
    spent = ratio([s.cpu for s in theirs.samples], [s.cpu for s in ours.samples])
    bench.claim(f"{scenario}: CPU of {other} to onblock's whole command", f"{spent:.2f} x", None, True)


def run_step(tools: Tools, step: dict[str, Any], source: Path) -> Sample:
    """One step, by this file as a program."""
    to, log = tools.fresh("step"), tools.log("step")
    argv = [sys.executable, "-m", "tests.benchmarks.steps", json.dumps(step), str(source), str(to)]
    sample = run(argv, cwd=REPOSITORY, env=tools.env, log=log)
    shutil.rmtree(to)
    return replace(sample, job=float(json.loads(log.with_suffix(".out").read_text("utf-8"))["seconds"]))


def rows(path: Path, size: int) -> Path:
    """Lines of numbers, as instruments write them. A block of them repeats, farther away than compressors look."""
    rng = random.Random(7)
    lines = bytearray(b"time,x,y,z\n")
    while len(lines) < 16 * MIB:
        lines += b"%d.%03d,%.4f,%.4f,%d\n" % (
            len(lines), rng.randrange(1000), rng.gauss(0, 1), rng.gauss(9.81, 0.1), rng.randrange(4096)
        )  # fmt: skip
    with path.open("wb") as file:
        for _ in range(size // len(lines) + 1):
            file.write(lines)
        file.truncate(size)
    return path


def main(argv: list[str]) -> None:
    from pydantic import TypeAdapter

    from flows.transfer.steps import AnyStep, Ask, run_steps

    step = TypeAdapter(AnyStep).validate_json(argv[0])
    source, work = Path(argv[1]), Path(argv[2])
    work.mkdir()
    ask = Ask(work, source.stat().st_mtime_ns)
    began = time.monotonic()
    made = run_steps([step], [source], work, ask)
    print(json.dumps({"seconds": time.monotonic() - began, "bytes": sum(p.stat().st_size for p in made)}))


SCENARIOS: dict[str, Callable[[Bench], None]] = {"steps": steps}

if __name__ == "__main__":
    main(sys.argv[1:])

"""Two phases of 20 clips, overlapped: how much longer the whole takes than its longest phase alone.

Once the longest is the processing: the same clips through the same step, as many at a time as the job works on, by
`python -m tests.benchmarks.phases FOLDER TO`, without fetching or delivering anything. Once it is the fetching: the same
job from a camera that gives so many bytes a second, without the steps.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from tests.benchmarks.material import Material
from tests.benchmarks.measure import Sample, Series, ratio, run
from tests.benchmarks.scenarios import Bench, prefect_server
from tests.benchmarks.tools import REPOSITORY, Tools, local

CLIPS, SECONDS = 20, 3
STEP = {"kind": "transcode", "codec": "h264", "crf": 23, "preset": "veryfast"}
LIMIT = 1.15
EASY = {**STEP, "preset": "ultrafast"}
"""The step where fetching is to take longer."""
SLOW = 40.0
"""Seconds that the slow camera takes to give everything."""


def phases(bench: Bench) -> None:
    """20 clips: processing is the longest, then fetching."""
    tools = bench.tools
    what = clips(tools.work / "clips")
    for name, slow in (("processing", False), ("fetching", True)):
        scenario = f"(phases) {CLIPS} clips, {name} takes longest"
        ours, alone = (Series(scenario, tool, what.files, what.bytes) for tool in ("onblock", f"{name} alone"))
        bench.series += [ours, alone]
        limit = {"bandwidth": {"down": f"{8 * what.bytes / SLOW / 1e6:.3f} Mbit/s"}} if slow else {}
        for _ in range(bench.rounds):
            bench.note(ours, _job(tools, what, steps=[EASY if slow else STEP], **limit))
            bench.note(alone, _job(tools, what, **limit) if slow else _processing(tools, what))
        value = ratio([s.job for s in ours.samples], [s.job for s in alone.samples])
        bench.at_most(f"{scenario}: time to {name} alone", value, LIMIT, "x")


def _job(tools: Tools, what: Material, **keys: Any) -> Sample:
    to, home = tools.fresh("onblock"), tools.fresh("home")
    sample, _ = tools.job(what, local(what.folder), local(to), home, **keys)
    shutil.rmtree(to)
    return sample


def _processing(tools: Tools, what: Material) -> Sample:
    to, log = tools.fresh("alone"), tools.log("alone")
    argv = [sys.executable, "-m", "tests.benchmarks.phases", str(what.folder), str(to)]
    sample = run(argv, cwd=REPOSITORY, env=tools.env, log=log)
    shutil.rmtree(to)
    return replace(sample, job=float(json.loads(log.with_suffix(".out").read_text("utf-8"))["seconds"]))


def clips(folder: Path) -> Material:
    """Clips of a noisy test card, 720p."""
    import av
    from av.video.frame import PictureType

    folder.mkdir()
    first = folder / "clip00.mp4"
    card = f"testsrc2=size=1280x720:rate=30:duration={SECONDS},noise=alls=6:allf=t"
    with av.open(card, format="lavfi") as pictures, av.open(str(first), "w") as out:
        stream: Any = out.add_stream("libx264", rate=30, options={"preset": "ultrafast", "crf": "18"})
        stream.width, stream.height, stream.pix_fmt = 1280, 720, "yuv420p"
        for frame in pictures.decode(video=0):
            frame.pict_type = PictureType.NONE
            out.mux(stream.encode(frame))
        out.mux(stream.encode())
    for n in range(1, CLIPS):
        shutil.copyfile(first, folder / f"clip{n:02}.mp4")
    return Material(folder, CLIPS, first.stat().st_size)


def main(argv: list[str]) -> None:
    """The step over all clips, as a job would, and nothing else."""
    from pydantic import TypeAdapter

    from flows.transfer.job import Shipping
    from flows.transfer.steps import AnyStep, Ask, run_steps

    step = TypeAdapter(AnyStep).validate_python(STEP)
    to = Path(argv[1])

    def one(clip: Path) -> None:
        work = to / clip.stem
        work.mkdir(parents=True)
        run_steps([step], [clip], work, Ask(work, clip.stat().st_mtime_ns))

    began = time.monotonic()
    with ThreadPoolExecutor(Shipping().processing_at_once) as threads:
        list(threads.map(one, sorted(Path(argv[0]).iterdir())))
    print(json.dumps({"seconds": time.monotonic() - began}))


def progress(bench: Bench) -> None:
    """What it costs to tell how far the processing is, on a running Prefect server."""
    tools = bench.tools
    what = clips(tools.work / "clips")
    shares: list[float] = []
    with prefect_server(tools) as api:
        for turn in range(bench.rounds):
            to, log = tools.fresh("onblock"), tools.log("told")
            job = tools.written(local(what.folder), local(to), steps=[STEP])
            argv = [sys.executable, "-m", "tests.benchmarks.share", str(job), "--told"]
            env = tools.env | {"ONBLOCK_HOME": str(tools.fresh("home")), "PREFECT_API_URL": api}
            boot = [sys.executable, "-m", "deployments.bootstrap", str(job)]
            run(boot, cwd=REPOSITORY, env=env, log=tools.log("bootstrap"))
            run(argv, cwd=REPOSITORY, env=env, log=log)
            said = json.loads(log.with_suffix(".out").read_text("utf-8").splitlines()[-1])
            shares.append((said["told"] + said["events"] * said["event"]) / said["cpu"])
            bench.tell(
                f"(progress)  round {turn + 1}  {shares[-1]:.2%}: {said['told']:.2f} s and {said['events']} events of"
                f" {1000 * said['event']:.1f} ms, of {said['cpu']:.0f} s"
            )
            shutil.rmtree(to)
    bench.at_most(f"(progress) telling of {CLIPS} clips being processed, of all CPU", 100 * median(shares), 1, "%")


SCENARIOS: dict[str, Callable[[Bench], None]] = {"phases": phases, "progress": progress}

if __name__ == "__main__":
    main(sys.argv[1:])

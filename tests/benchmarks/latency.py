"""How long after a webhook the first byte of a recording is read from a camera, with `onblock up` running.

The camera is the simulator, in this process: it knows when the first byte of a file went out. What `onblock up` costs in
memory meanwhile is told, too.
"""

from __future__ import annotations

import json
import os
import random
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable

from deployments.simulators.osc import OscSimulator
from tests.benchmarks.measure import BenchError, Sample, Series, end
from tests.benchmarks.scenarios import MIB, Bench, wall
from tests.benchmarks.tools import REPOSITORY

LATENCY_LIMIT = 3.0
"""Seconds from the webhook to the first byte."""
CLIP = 4 * MIB
ROUNDS = 5


def latency(bench: Bench) -> None:
    """`onblock up`, a job that processes what a camera has, and a webhook for each of five flights."""
    tools = bench.tools
    card, archive = tools.fresh("camera"), tools.fresh("archive")
    card.mkdir()
    ports = [_free() for _ in range(2)]
    env = {
        **tools.env, "ONBLOCK_HOME": str(tools.fresh("home")), "PREFECT_API_URL": f"http://127.0.0.1:{ports[0]}/api"
    }  # fmt: skip
    env.pop("PREFECT_HOME", None)
    times = Series("(latency) webhook to the first byte from the camera", "onblock up", 1, CLIP)
    bench.series.append(times)
    with OscSimulator(card) as camera:
        job = tools.fresh("latency").with_suffix(".yaml")
        job.write_text(json.dumps({
            "name": "latency", "source": {"type": "osc-camera", "device": "bench-cam", "url": camera.url},
            "destination": {"type": "local-storage", "root": str(archive), "create_root": True},
            "steps": [{"kind": "compress"}], "path": "{flight}/{path}",
        }))  # fmt: skip
        onblock = [sys.executable, "-P", "-m", "deployments.cli"]
        with tools.log("up").with_suffix(".out").open("wb") as log:
            up = subprocess.Popen(
                [*onblock, "up", str(job), "--port", str(ports[0]), "--console-port", str(ports[1])],
                env=env, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        try:
            _until("onblock up", lambda: _there(f"http://127.0.0.1:{ports[1]}/health"), up, 180)
            made = subprocess.run(
                [*onblock, "hook", "sender", "bench"],
                env=env,
                cwd=REPOSITORY,
                capture_output=True,
                text=True,
                check=True,
            )
            _until("a worker that polls", lambda: _memory(up.pid).get("forks", 0) > 80e6, up, 60)
            time.sleep(2)
            for number in range(ROUNDS + 1):  # the first warms up
                clip = card / f"VID_{number}.insv"
                clip.write_bytes(random.Random(number).randbytes(CLIP))
                os.utime(clip, (time.time() - 3600,) * 2)
                first: list[float] = []
                camera.faults.at[camera.sent.total() + 1] = lambda at=first: at.append(time.monotonic())
                began = _post(ports[1], made.stdout.strip(), number)
                _until("the first byte", lambda at=first: bool(at), up, 60)
                memory = _memory(up.pid)
                if number:
                    bench.note(times, Sample(first[0] - began, 0, int(sum(memory.values())), first[0] - began))
                _until("the file", lambda n=number: any((archive / f"F{n}").glob("*.zst")), up, 60)
                time.sleep(1.5)  # the end of the run is written down meanwhile
        finally:
            end(up, 60)
    bench.at_most("(latency) webhook to the first byte from the camera", times.mid(wall), LATENCY_LIMIT, "s")
    for what, size in memory.items():
        bench.claim(f"(latency) memory of {what} while a run is at work (RSS)", f"{size / 1e6:.0f} MB", None, True)


def _post(port: int, secret: str, number: int) -> float:
    """Send the webhook of a flight; the moment before."""
    from deployments.console.webhooks import sign

    body, stamp = json.dumps({"flight": f"F{number}", "device": "bench-cam"}).encode(), str(int(time.time()))
    head = {
        "X-Onblock-Sender": "bench", "X-Onblock-Timestamp": stamp, "X-Onblock-Signature": sign(secret, stamp, body)
    }  # fmt: skip
    request = urllib.request.Request(f"http://127.0.0.1:{port}/hooks/flight-end", body, head)
    began = time.monotonic()
    with urllib.request.urlopen(request, timeout=30) as answer:
        if answer.status != 202:
            raise BenchError(f"the webhook was answered with {answer.status}")
    return began


def _memory(pid: int) -> dict[str, float]:
    """Bytes of what `onblock up` runs beside the server: the worker, its server of forks, the console, runs."""
    import psutil

    found: dict[str, float] = {}
    for child in psutil.Process(pid).children(recursive=True):
        try:
            argv, size = " ".join(child.cmdline()), child.memory_info().rss
            if "forkserver" in argv:
                what = "forks" if child.parent().name() and "deployments.worker" in " ".join(child.parent().cmdline()) else "runs"  # type: ignore[union-attr]  # fmt: skip
            else:
                what = next((w for w in ("worker", "console") if f"deployments.{w}" in argv), "")
        except (psutil.NoSuchProcess, psutil.ZombieProcess, AttributeError):
            continue
        if what:
            found[what] = found.get(what, 0) + size
    return found


def _there(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _until(what: str, look: Callable[[], bool], up: subprocess.Popen[bytes], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not look():
        if up.poll() is not None or time.monotonic() > deadline:
            raise BenchError(f"{what}: not within {seconds:.0f} s, or `onblock up` ended")
        time.sleep(0.02)


def _free() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


SCENARIOS: dict[str, Callable[[Bench], None]] = {"latency": latency}

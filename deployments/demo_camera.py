"""The second half of `onblock demo`: a camera, a webhook that says its flight has ended, and what becomes of its clips.

The camera is a simulator that speaks what 360° cameras speak, over HTTP. Worker and console are the ones of `onblock up`.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.filesize import decimal
from rich.text import Text

from deployments import up
from deployments.demo_stage import DemoFailed
from deployments.flight import make_camera
from deployments.server import POOL
from deployments.simulators.osc import OscSimulator

FLIGHT, DEVICE, JOB, SENDER = "flight-0043", "cam-360", "demo-camera", "ground-station"
WITHIN = 120.0
"""Seconds that anything may take."""


def fly(
    console: Console, step: Callable[[int, str], None], first: int, root: Path, url: str, env: dict[str, str]
) -> Path:
    """Tell the story below `root`, on the Prefect server at `url`; steps are numbered from `first`. The archive.

    Raises DemoFailed.
    """

    def say(text: str) -> None:
        console.print(Text(f"   {text}"))

    card, archive = root / "camera", root / "archive"
    step(first, "Another flight, and a camera without a card reader: it is asked over HTTP")
    with console.status("encoding video"):
        names = make_camera(card)
    with OscSimulator(card) as camera, _children() as children:
        say(f"a simulated 360° camera at {camera.url}; on it {', '.join(names)}")
        job = _write_job(root, archive, camera.url)
        for line in job.read_text("utf-8").splitlines():
            console.print(Text(f"     {line}", "dim"))

        step(first + 1, "Worker and console start, as `onblock up` starts them; the job becomes a deployment")
        port = _free_port()
        env = {**env, "ONBLOCK_CONSOLE_URL": f"http://127.0.0.1:{port}"}
        with console.status("registering"):
            _command(["deployments.bootstrap", str(job)], env, root)
            secret = _command(["deployments.cli", "hook", "sender", SENDER], env, root).strip()
            log = root / "prefect-home"
            children.append(up.start("the worker", ["deployments.worker", POOL], env, log / "worker.log", root))
            serve = ["deployments.console", "--host", "127.0.0.1", "--port", str(port)]
            children.append(up.start("the console", serve, env, log / "console.log", root))
            _until("the console", lambda: _get(f"http://127.0.0.1:{port}/health"), children)
            # a camera that appears after its flight has ended is a reason to run the job, too
            seen = f"device {DEVICE} is there"
            _until("a console that sees the camera", lambda: seen in (log / "console.log").read_text("utf-8"), children)
        say(f"webhooks are taken at {env['ONBLOCK_CONSOLE_URL']}/hooks/flight-end, signed by their sender")

        step(first + 2, "The flight ends: a signed webhook, by HTTP. You would type:")
        env |= {"ONBLOCK_HOOK_SENDER": SENDER, "ONBLOCK_HOOK_SECRET": secret}
        hook = ["hook", "flight-end", "--flight", FLIGHT, "--device", DEVICE]
        console.print(Text(f"   $ {shlex.join(['onblock', *hook])}", "yellow"))
        began = time.monotonic()
        answer = json.loads(_command(["deployments.cli", *hook], env, root))
        say(f"the answer: {json.dumps(answer)}")
        with console.status("fetched, stitched, transcoded, delivered"):
            runs = _until("a run that has ended", lambda: _ended(url, 1), children)
        _expect_run(console, runs, "4 delivered", env, root)  # two recordings, and where each comes from
        say(f"{time.monotonic() - began:.1f} s from the webhook to the last verified file; the camera sent "
            f"{decimal(camera.sent.total())}")  # fmt: skip
        made = sorted(p for p in (archive / FLIGHT).rglob("*") if p.suffix == ".mp4")
        _expect_video(say, archive, made)
        say("Where a file comes from stands beside it:")
        told = json.loads(Path(f"{made[0]}.onblock.json").read_text("utf-8"))
        console.print(Text(f"     {told['sources'][0]['path']} of {told['device']}, {told['flight']}: "
                           f"{' -> '.join(s['kind'] for s in told['steps'])}", "dim"))  # fmt: skip

        step(first + 3, "The same webhook again, and then the job: nothing is sent twice")
        sent = camera.sent.total()
        again = json.loads(_command(["deployments.cli", *hook], env, root))
        if again != answer:
            raise DemoFailed(f"the same webhook got another answer: {again}")
        say("the same answer, and no second run: it is the same message")
        _command(["prefect", "deployment", "run", f"transfer/{JOB}", "-p", f"flight={FLIGHT}"], env, root)
        with console.status("the job runs again"):
            runs = _until("a second run", lambda: _ended(url, 2), children)
        _expect_run(console, runs, "0 delivered, 2 duplicates", env, root)
        if len(runs) != 2:
            raise DemoFailed(f"there are {len(runs)} runs of {JOB}, expected 2")
        if (more := camera.sent.total() - sent) > 0:
            raise DemoFailed(f"the camera sent {more} bytes again")
        say("both recordings are known: the camera sent nothing")
    return archive / FLIGHT


def _write_job(root: Path, archive: Path, camera: str) -> Path:
    job: dict[str, Any] = {
        "name": JOB,
        "source": {"type": "osc-camera", "device": DEVICE, "url": camera},
        "destination": {"type": "local-storage", "root": str(archive), "create_root": True},
        "path": "{flight}/{device}/{name}",
        "settle": {"quiet": "200 ms"},
        "steps": [
            {"kind": "stitch", "size": "960x480", "preset": "ultrafast"},
            {"kind": "transcode", "codec": "h264", "size": "640x", "crf": 26, "preset": "ultrafast"},
        ],
        "lineage": True,
    }
    path = root / "camera.yaml"
    path.write_text(yaml.safe_dump(job, sort_keys=False, allow_unicode=True), "utf-8")
    return path


@contextlib.contextmanager
def _children() -> Iterator[list[up.Child]]:
    children: list[up.Child] = []
    try:
        yield children
    finally:
        up.end(children)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _command(module: list[str], env: dict[str, str], cwd: Path) -> str:
    """Run a module of this Python; what it printed."""
    argv = [sys.executable, "-P", "-m", *module]
    try:
        done = subprocess.run(
            argv,
            env=env,
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=WITHIN,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise DemoFailed(f"`{shlex.join(module)}` had not ended after {WITHIN:g} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise DemoFailed("\n".join([f"`{shlex.join(module)}` ended with exit code {done.returncode}:", *said[-15:]]))
    return done.stdout


def _until(what: str, look: Callable[[], Any], children: list[up.Child]) -> Any:
    deadline = time.monotonic() + WITHIN
    while not (found := look()):
        for child in children:
            if child.process.poll() is not None:
                raise DemoFailed("\n".join(up.trouble(child, 0.0)))
        if time.monotonic() > deadline:
            raise DemoFailed(f"{what} had not come after {WITHIN:g} s")
        time.sleep(0.2)
    return found


def _get(address: str) -> bool:
    try:
        with up.DIRECT.open(address, timeout=5) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


def _ended(url: str, count: int) -> list[dict[str, Any]] | None:
    """The runs of the job, by start, once so many of them have ended."""
    where = {"deployments": {"name": {"any_": [JOB]}}, "sort": "START_TIME_ASC"}
    request = urllib.request.Request(
        f"{url}/api/flow_runs/filter", json.dumps(where).encode(), {"Content-Type": "application/json"}
    )
    try:
        with up.DIRECT.open(request, timeout=30) as answer:
            runs = json.load(answer)
    except OSError:
        return None  # busy: its database is locked now and then
    final = [r for r in runs if r["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")]
    return final if len(final) >= count else None


def _expect_run(console: Console, runs: list[dict[str, Any]], message: str, env: dict[str, str], root: Path) -> None:
    """The last of these runs ended as it should have; else what there is, for whoever wants to know why."""
    run = runs[-1]
    state = run["state"]
    if state["type"] != "COMPLETED" or not (state["message"] or "").startswith(message):
        there = [f"{r['start_time']} {r['name']}: {r['state']['name']}, {r['state']['message']}" for r in runs]
        files = _command(["deployments.cli", "transfers", "list", "--json"], env, root)
        first = f"flow run {run['name']!r} is {state['name']}: {state['message']}; expected: {message}"
        raise DemoFailed("\n".join([first, *there, files]))
    console.print(Text(f"     flow run  {run['name']}: {state['name']}, {state['message']}", "green"))


def _expect_video(say: Callable[[str], None], archive: Path, made: list[Path]) -> None:
    """The clips can be played, have the size they should have, and are what the manifest says."""
    import av

    if len(made) != 2:
        raise DemoFailed(f"two clips should have arrived, there are {[p.name for p in made]}")
    for clip in made:
        with av.open(str(clip)) as video:
            stream = video.streams.video[0]
            frames = sum(1 for _ in video.decode(stream))
            if stream.width != 640 or not frames:
                raise DemoFailed(f"{clip.name} is {stream.width} pixels wide and has {frames} frames")
            say(f"{clip.relative_to(archive)}: {stream.width}x{stream.height}, {frames} frames, "
                f"{decimal(clip.stat().st_size)}")  # fmt: skip
    manifest = archive / FLIGHT / DEVICE / "checksums.sha256"
    done = subprocess.run(
        ["sha256sum", "--check", "--strict", "--quiet", manifest.name], cwd=manifest.parent, capture_output=True,
        env={**os.environ, "LC_ALL": "C"}, check=False,
    )  # fmt: skip
    if done.returncode:
        raise DemoFailed(f"sha256sum -c of {manifest} ended with {done.returncode}: {done.stderr.decode()[:300]}")
    say(f"{manifest.relative_to(archive)}: sha256sum agrees")

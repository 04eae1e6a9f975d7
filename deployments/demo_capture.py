"""How `onblock demo` begins: two test cameras and an inertial sensor are recorded, by the command that a device uses.

The recording lies on the card of the flight afterwards. What was recorded is looked at again, by reading the merged file.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.text import Text

from deployments.demo_stage import FLIGHT, DemoFailed

DEVICE, SECONDS, HZ, FPS = "cam-01", 10, 200, 30
FOLDER = "recordings"
"""On the card."""
WITHIN = 120.0
"""Seconds that recording, merging or showing may take."""


def record(console: Console, root: Path, card: Path, env: dict[str, str]) -> str:
    """Record onto the card, and show how it went; the file of the recording, below the card. Raises DemoFailed."""
    spec = root / "capture.yaml"
    spec.write_text(yaml.safe_dump(_spec(), sort_keys=False), "utf-8")
    for line in spec.read_text("utf-8").splitlines():
        console.print(Text(f"     {line}", "dim"))
    words = ["start", str(spec), "--seconds", str(SECONDS), "--in", str(card / FOLDER)]
    with console.status("recording"):
        told = json.loads(_recording(console, words, ["--json"], env, root))
    for line in _judged(told):
        console.print(Text(f"   {line}"))
    folder = Path(told["folder"])
    _expect_file(folder / told["final"]["file"], told)
    shown = _recording(console, ["show", told["id"], "--in", str(card / FOLDER)], [], env, root)
    for line in shown.splitlines():
        console.print(Text(f"     {line}", "green" if "|" in line else "dim"))
    if not (folder / "timeline.png").is_file():
        raise DemoFailed(f"there is no picture of the recording in {folder}")
    return (folder / told["final"]["file"]).relative_to(card).as_posix()


def _spec() -> dict[str, Any]:
    cameras = {"left": "testsrc2", "right": "smptehdbars"}
    return {
        "device": DEVICE,
        "flight": FLIGHT,
        "streams": [
            {"name": name, "input": f"{picture}=size=640x360:rate={FPS},realtime", "format": "lavfi"}
            for name, picture in cameras.items()
        ],
        "sensors": [{"name": "imu", "kind": "simulated-imu", "rate": HZ}],
    }


def _recording(console: Console, words: list[str], more: list[str], env: dict[str, str], cwd: Path) -> str:
    """`onblock recording ...`, shown and carried out; what it printed."""
    console.print(Text(f"   $ {shlex.join(['onblock', 'recording', *words])}", "yellow"))
    argv = [sys.executable, "-P", "-m", "deployments.cli", "recording", *words, *more]
    try:
        done = subprocess.run(
            argv, env=env, cwd=cwd, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8",
            errors="replace", timeout=WITHIN, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise DemoFailed(f"`onblock recording {words[0]}` had not ended after {WITHIN:g} s") from None
    if done.returncode:
        said = (done.stderr.strip() or done.stdout.strip()).splitlines()
        raise DemoFailed(
            "\n".join([f"`onblock recording {words[0]}` ended with exit code {done.returncode}:", *said[-15:]])
        )
    return done.stdout


def _judged(told: dict[str, Any]) -> list[str]:
    """The accounts of the recording, a line each: everything that was captured is written, or dropped for a reason."""
    if told["state"] != "sealed" or told["final"] is None:
        raise DemoFailed(f"the recording is {told['state']}, and not merged: {told['problems']}")
    lines = []
    for name, entry in told["streams"].items():
        dropped = sum(entry["dropped"].values())
        if not entry["written"] or entry["captured"] != entry["written"] + dropped:
            raise DemoFailed(f"{name}: {entry['captured']} captured, {entry['written']} written, {dropped} dropped")
        if told["final"]["packets"].get(name) != entry["written"]:
            raise DemoFailed(
                f"{name}: the merged file holds {told['final']['packets'].get(name)} of {entry['written']}"
            )
        what = "samples" if entry["kind"] == "sensor" else "frames"
        why = "".join(f", {n} {reason}" for reason, n in entry["dropped"].items())
        lines.append(f"{name:<6} {entry['captured']} {what} captured, {entry['written']} kept, {dropped} dropped{why}")
    return lines


def _expect_file(file: Path, told: dict[str, Any]) -> None:
    """The merged file can be played: both cameras and the sensor are tracks of it, and every frame can be decoded."""
    import av

    with av.open(str(file)) as video:
        if (len(video.streams.video), len(video.streams.subtitles)) != (2, 1):
            raise DemoFailed(
                f"{file.name} has {len(video.streams.video)} cameras and {len(video.streams.subtitles)} sensors"
            )
    for number, name in enumerate(n for n, e in told["streams"].items() if e["kind"] == "video"):
        with av.open(str(file)) as video:
            frames = sum(1 for _ in video.decode(video=number))
        if frames != told["streams"][name]["written"]:
            raise DemoFailed(f"{name}: {frames} frames can be decoded, {told['streams'][name]['written']} were written")

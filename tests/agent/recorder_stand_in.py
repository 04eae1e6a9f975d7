"""Speaks as `deployments.agent.record` does, and records nothing. What it does is told by the spec, which is its first
line: {"fails": ..., "dies": ..., "deaf": ..., "ends": ...}. It writes down in its folder what it was told."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from pathlib import Path


def say(**told: object) -> None:
    with contextlib.suppress(OSError):  # nobody listens any more
        os.write(1, json.dumps(told).encode() + b"\n")


def main() -> None:
    folder, spec = Path(sys.argv[1]), json.loads(sys.stdin.readline())
    (folder / "pid").write_text(str(os.getpid()))
    if spec.get("fails"):
        say(state="failed", kind="NOT_FOUND", what="there is no such camera", path="/dev/video7", todo="plug it in")
        sys.exit(1)
    if spec.get("silent"):
        sys.stdin.read()
    os.write(1, b"a library says something\n")
    say(state="recording", id="R1")
    say(health={"id": "R1", "seconds": 1.0})
    if spec.get("dies"):
        os.kill(os.getpid(), 9)
    if not spec.get("ends"):
        heard = sys.stdin.readline()
        while spec.get("deaf"):
            time.sleep(3600)
        (folder / "heard").write_text(repr(heard))
    say(state="sealed", id="R1", because="asked")
    while not (folder / "merge").exists() and spec.get("merges"):
        time.sleep(0.02)
    say(state="complete", id="R1")


if __name__ == "__main__":
    main()

"""Starts `onblock` many times in no time: one process imports it once, then forks a real process for each run.

Run as a program it reads lines of JSON on its standard input and answers each with one line: `start` forks a child
that becomes `onblock ARGS`, `wait` waits for one. A child can be signalled by its pid like any process.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any, NamedTuple, Self

REPOSITORY = Path(__file__).parents[2]


class Ended(NamedTuple):
    """How a run ended: `code` is the exit code, or minus the signal."""

    code: int
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        """What `--json` printed."""
        assert self.out, self
        return json.loads(self.out)


class Child:
    """One `onblock` process."""

    def __init__(self, forker: Forker, pid: int, out: Path, err: Path):
        self.forker, self.pid, self._out, self._err = forker, pid, out, err
        self._code: int | None = None

    def send(self, number: int) -> None:
        """A signal, unless it has ended and was waited for."""
        if self._code is None:
            os.kill(self.pid, number)  # not reaped before `wait`: the pid is still its own

    def running(self) -> bool:
        if self._code is not None:
            return False
        state = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return state != "Z"

    def wait(self, seconds: float = 60) -> Ended:
        deadline = time.monotonic() + seconds
        while self.running():
            if time.monotonic() > deadline:
                self.send(signal.SIGKILL)
                ended = self.wait()
                raise AssertionError(f"still running after {seconds:.0f} s: {ended}")
            time.sleep(0.002)
        if self._code is None:
            self._code = self.forker.ask({"wait": self.pid})["code"]
        return Ended(self._code, self._out.read_text(), self._err.read_text("utf-8", "replace"))


class Forker:
    """The process that forks; a context manager."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._count = 0
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.faults.forker"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=REPOSITORY,
            text=True,
        )  # fmt: skip
        assert self.ask({})["ready"]
        return self

    def __exit__(self, *exc: object) -> None:
        for child in self._children:
            if child.running():
                child.send(signal.SIGKILL)
            child.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(30)

    def ask(self, question: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        return json.loads(self._process.stdout.readline())

    def start(self, *args: str | Path, **env: str | Path) -> Child:
        """`onblock ARGS` with a changed environment."""
        self._count += 1
        out, err = self._folder / f"{self._count}.out", self._folder / f"{self._count}.err"
        out.touch()  # it may be killed before it gets there
        err.touch()
        pid = self.ask({
            "start": [str(a) for a in args], "env": {k: str(v) for k, v in env.items()}, "out": str(out), "err": str(err),
        })["pid"]  # fmt: skip
        child = Child(self, pid, out, err)
        self._children.append(child)
        return child


def _become_onblock(question: dict[str, Any]) -> None:
    from deployments import cli

    os.environ.update(question["env"])
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(question[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    sys.argv = ["onblock", *question["start"]]
    cli.main()


def main() -> None:
    """The process that forks."""
    for name in ("deployments.cli", "flows.transfer.story", "flows.transfer.job", "sqlalchemy.dialects.sqlite"):
        importlib.import_module(name)
    assert threading.active_count() == 1, "a fork takes one thread along, and the locks of all"
    gc.freeze()
    for line in sys.stdin:
        question = json.loads(line)
        answer: dict[str, Any] = {"ready": True}
        if "start" in question:
            sys.stdout.flush()
            if not (pid := os.fork()):
                break
            answer = {"pid": pid}
        elif "wait" in question:
            answer = {"code": os.waitstatus_to_exitcode(os.waitpid(question["wait"], 0)[1])}
        print(json.dumps(answer), flush=True)
    else:
        return
    _become_onblock(question)  # outside the loop over our standard input


if __name__ == "__main__":
    main()

"""Starting a server, waiting until it is ready, and stopping exactly what was started. Standard library only."""

from __future__ import annotations

import contextlib
import os
import pwd
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

LOOPBACK = "127.0.0.1"


def free_port() -> int:
    """A free loopback port below the kernel's ephemeral range, so that no client socket takes it meanwhile."""
    while True:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind((LOOPBACK, random.randint(20000, 32000)))
            return probe.getsockname()[1]


def program(name: str, *globs: str) -> str | None:
    """A program from PATH, beside this interpreter (pip puts some there), or in one of the folders `globs`."""
    folders = [Path(sys.executable).parent, *map(Path, os.get_exec_path()), Path("/usr/sbin"), Path("/sbin")]
    for pattern in globs:
        folders += sorted(Path("/").glob(pattern.lstrip("/")), reverse=True)
    return next((str(f / name) for f in folders if os.access(f / name, os.X_OK)), None)


def _proc(pid: int) -> tuple[int, int] | None:
    """(parent, start tick) of a live process; None if it is gone or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] == "Z" else (int(fields[1]), int(fields[19]))


def family(pid: int) -> list[tuple[int, int]]:
    """(pid, start tick) of a process and of all that descend from it."""
    children: dict[int, list[int]] = {}
    ticks: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (proc := _proc(int(entry))):
            children.setdefault(proc[0], []).append(int(entry))
            ticks[int(entry)] = proc[1]
    found, todo = [], [pid]
    while todo:
        one = todo.pop()
        if one in ticks:
            found.append((one, ticks[one]))
        todo += children.get(one, [])
    return found


class Server:
    """One server in one state folder; a context manager. `info` is what a client needs to know."""

    stop_signal = signal.SIGTERM
    stop_timeout = 10.0  # seconds, then SIGKILL

    def __init__(self, folder: Path, **options: str):
        self.folder = folder.resolve()
        self.options = options
        self.info: dict[str, Any] = {}
        self.process: subprocess.Popen[Any] | None = None

    def launch(self) -> dict[str, Any]:
        """Spawn it, wait until it is ready, return `info`. For subclasses."""
        raise NotImplementedError

    def start(self) -> Self:
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.info = self.launch()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """Signal, then kill, the very processes that were started, told apart by pid and start time."""
        if self.process is None:
            return
        started = family(self.process.pid)

        def alive() -> list[int]:
            return [pid for pid, tick in started if (proc := _proc(pid)) and proc[1] == tick]

        for number, seconds in ((self.stop_signal, self.stop_timeout), (signal.SIGKILL, 5.0)):
            for pid in alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            end = time.monotonic() + seconds
            while time.monotonic() < end and (self.process.poll() is None or alive()):
                time.sleep(0.02)
        self.process = None

    def run(self, *argv: str, user: str | None = None, env: dict[str, str] | None = None) -> str:
        """A command of the set-up; its output is in the error if it fails."""
        done = subprocess.run(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=self.folder,
            text=True, errors="replace", env={**os.environ, **(env or {})}, **run_as(user),
        )  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{argv[0]} exited {done.returncode}: {done.stdout[-2000:]}")
        return done.stdout

    def spawn(self, *argv: str, user: str | None = None, env: dict[str, str] | None = None) -> None:
        """The server itself, in a session of its own, its output in `server.log`. It ends when we do, however that is."""
        if setpriv := program("setpriv"):
            argv = (setpriv, "--pdeathsig", signal.Signals(self.stop_signal).name.removeprefix("SIG"), "--", *argv)
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, start_new_session=True,
                env={**os.environ, **(env or {})}, **run_as(user),
            )  # fmt: skip

    def wait(self, ready: Callable[[], object], seconds: float = 60) -> None:
        """Ask `ready` until it answers something true; OSError and RuntimeError mean not yet."""
        end, last = time.monotonic() + seconds, None
        while time.monotonic() < end:
            if self.process is not None and self.process.poll() is not None:
                raise RuntimeError(f"{type(self).__name__} exited {self.process.returncode}\n{self.log()}")
            try:
                if ready():
                    return
            except (OSError, RuntimeError) as error:
                last = error
            time.sleep(0.05)
        raise TimeoutError(f"{type(self).__name__} not ready after {seconds} s ({last})\n{self.log()}")

    def log(self) -> str:
        """The end of what the server said."""
        path = self.folder / "server.log"
        return path.read_text("utf-8", "replace")[-3000:] if path.exists() else ""

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.stop()


def run_as(user: str | None) -> dict[str, Any]:
    """Arguments for subprocess to become `user`, where we are root; none otherwise."""
    if user is None or os.geteuid():
        return {}
    entry = pwd.getpwnam(user)
    return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}


def give(folder: Path, user: str | None) -> None:
    """Make a folder, owned by the user a server will run as (where we are root)."""
    folder.mkdir(parents=True, exist_ok=True)
    if user is not None and os.geteuid() == 0:
        entry = pwd.getpwnam(user)
        os.chown(folder, entry.pw_uid, entry.pw_gid)

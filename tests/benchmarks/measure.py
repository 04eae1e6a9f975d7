"""One command, measured: seconds, CPU, peak memory. And the containers for what was measured.

What is measured with what is not here.

Peak memory is `ru_maxrss` of wait4. Linux counts the memory of the process that forked into it, up to the exec, so no
figure can be below the size of this program: it must stay small, and matplotlib is imported when all is measured.
"""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median


class BenchError(Exception):
    """A measurement that counts nothing: a program failed, or did not do its work. One line says what."""


@dataclass(frozen=True)
class Sample:
    """One run. Seconds; `rss` in bytes; `job` is onblock's own count of seconds, for other programs the wall time; `idle`
    the processor seconds that nobody on the machine used meanwhile."""

    wall: float
    cpu: float
    rss: int
    job: float
    idle: float = 0.0

    def __add__(self, other: Sample) -> Sample:
        """One after the other."""
        return Sample(
            self.wall + other.wall, self.cpu + other.cpu, max(self.rss, other.rss), self.job + other.job,
            self.idle + other.idle,
        )  # fmt: skip


@dataclass
class Series:
    """The runs of one program in one scenario."""

    scenario: str
    tool: str
    files: int
    bytes: int
    samples: list[Sample] = field(default_factory=list)

    def mid(self, what: Callable[[Sample], float]) -> float:
        return median(map(what, self.samples))


@dataclass(frozen=True)
class Claim:
    """A figure that the project promises, and whether it was reached. `wanted` None: told, not promised."""

    text: str
    value: str
    wanted: str | None
    reached: bool


def ratio(a: Sequence[float], b: Sequence[float]) -> float:
    """The median of the ratios of runs that were neighbours in time."""
    return median(x / y for x, y in zip(a, b, strict=True))


def extra(a: Sequence[float], b: Sequence[float]) -> float:
    """The median of the differences of runs that were neighbours in time."""
    return median(x - y for x, y in zip(a, b, strict=True))


def run(argv: Sequence[str], *, cwd: Path, env: Mapping[str, str], log: Path, limit: float = 1800) -> Sample:
    """Run to the end; stdout goes to `log`.out and stderr to `log`.err. BenchError unless it exits with 0."""
    out, err = log.with_suffix(".out"), log.with_suffix(".err")
    with out.open("wb") as stdout, err.open("wb") as stderr:
        idle, started = _idle(), time.monotonic()
        child = subprocess.Popen(
            argv, cwd=cwd, env=dict(env), stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr, start_new_session=True
        )
        try:
            usage = _wait(child, started + limit)
            wall, idle = time.monotonic() - started, _idle() - idle
        finally:
            end(child)
    if child.returncode:
        said = err.read_text("utf-8", "replace").strip() or out.read_text("utf-8", "replace").strip()
        raise BenchError(f"{' '.join(argv[:6])} ... ended with {child.returncode}: {said[-1500:]}")
    return Sample(wall, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024, wall, idle)


def _idle() -> float:
    """Processor seconds of the machine that nobody used, since it started: idle, and waiting for a disk."""
    words = Path("/proc/stat").read_text().split("\n", 1)[0].split()
    return (int(words[4]) + int(words[5])) / os.sysconf("SC_CLK_TCK")


def _wait(child: subprocess.Popen[bytes], until: float) -> resource.struct_rusage:
    """Reap the child, with its resource usage."""

    def ring(*_: object) -> None:
        raise BenchError(f"{child.args!r} had not ended in time")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, max(until - time.monotonic(), 0.1))
    try:
        _, status, usage = os.wait4(child.pid, 0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    child.returncode = os.waitstatus_to_exitcode(status)
    return usage


def end(child: subprocess.Popen[bytes], patience: float = 10) -> None:
    """Stop a child of ours and the processes it started (it leads its own group), if it still runs."""
    if child.returncode is not None:
        return
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(child.pid, number)
            child.wait(patience)
        except ProcessLookupError:
            child.wait(patience)
        except subprocess.TimeoutExpired:
            continue
        return

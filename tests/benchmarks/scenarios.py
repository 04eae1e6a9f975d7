"""What is measured: the scenarios a, b, c, server and memory, each with the figures the project promises.

Every round writes to new folders, and nothing but the copies of (b) is deleted before the end: on ext4, making files
just after many were deleted is several times slower for half a minute, which would be charged to whoever comes next.
The programs take turns (A B C A B C ...), and a ratio is the median of the ratios of each round.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from deployments.up import environment
from tests.benchmarks.material import Material, large, small
from tests.benchmarks.measure import BenchError, Claim, Sample, Series, end, extra, ratio, run
from tests.benchmarks.tools import REPOSITORY, Tools, must_hold, program

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
SMALL_FILES, SMALL_SIZE, SMALL_FOLDERS = 20_000, 4 * KIB, 200
LARGE_SIZE = 2 * GIB
KNOWN_FILES = 100_000
FAR_FILES = 5_000
BIG_FILES = 200_000
RSS_LIMIT = 250e6
COMMAND_LIMIT = 2.5
"""Seconds that the command may add to its job: the start of Python and its imports."""
SERVER_LIMIT = 2.0
"""Seconds that a Prefect server may add to (a)."""


def job(sample: Sample) -> float:
    return sample.job


def wall(sample: Sample) -> float:
    return sample.wall


def cpu(sample: Sample) -> float:
    return sample.cpu


def rss(sample: Sample) -> float:
    return sample.rss


@dataclass
class Bench:
    """One session: where it works, how many rounds, what came out."""

    tools: Tools
    rounds: int
    tell: Callable[[str], None]
    series: list[Series] = field(default_factory=list)
    claims: list[Claim] = field(default_factory=list)
    pictures: list[Callable[[Path], None]] = field(default_factory=list)
    """Beside those that are made of the series: each writes one into a folder."""
    storm_s: float = 30.0
    """How long `claims` looks for deadlocks."""
    devices: int = 60
    within_s: float = 120.0
    """Of `fleet`: so many flights end within so many seconds."""
    _small: Material | None = None
    _delivered: dict[str, tuple[Path, Path]] = field(default_factory=dict)

    def material(self) -> Material:
        """The many small files of (a), made once."""
        if self._small is None:
            self.tell(f"making {SMALL_FILES} files of {SMALL_SIZE} bytes")
            self._small = small(self.tools.work / "small", SMALL_FILES, SMALL_SIZE, SMALL_FOLDERS)
        self._small.warm()
        return self._small

    def start(self, scenario: str, what: Material, *tools: str) -> dict[str, Series]:
        made = {tool: Series(scenario, tool, what.files, what.bytes) for tool in tools}
        self.series += made.values()
        return made

    def note(self, series: Series, sample: Sample) -> None:
        series.samples.append(sample)
        self.tell(
            f"{series.scenario}  round {len(series.samples)}  {series.tool:<16} job {sample.job:7.2f} s"
            f"  command {sample.wall:7.2f} s  CPU {sample.cpu:6.2f} s  RSS {sample.rss / 1e6:5.0f} MB"
        )

    def claim(self, text: str, value: str, wanted: str | None, reached: bool) -> None:
        self.claims.append(Claim(text, value, wanted, reached))

    def at_most(self, text: str, value: float, limit: float, unit: str) -> None:
        self.claim(text, f"{value:.2f} {unit}", f"at most {limit:g} {unit}", value <= limit)

    def memory(self, letter: str, *series: Series) -> None:
        peak = max(s.rss for one in series for s in one.samples)
        self.claim(f"({letter}) peak RSS", f"{peak / 1e6:.0f} MB", f"under {RSS_LIMIT / 1e6:.0f} MB", peak < RSS_LIMIT)

    def command(self, letter: str, series: Series) -> None:
        added = series.mid(lambda s: s.wall - s.job)
        self.at_most(f"({letter}) seconds the command adds to the job", added, COMMAND_LIMIT, "s")


def times(a: Series, b: Series, what: Callable[[Sample], float] = wall) -> float:
    """How many times as long onblock's job (a) takes as another program (b), by the rounds they share."""
    return ratio([s.job for s in a.samples], [what(s) for s in b.samples])


# -- (a) many small files ----------------------------------------------------------------------------------------


def a(bench: Bench) -> None:
    """20,000 files of 4 KiB in 200 folders."""
    what = bench.material()
    name = f"(a) {SMALL_FILES:,} files of 4 KiB"
    ran = bench.start(name, what, "onblock", "rclone", "rsync", "cp + sha256sum")
    tools = bench.tools
    for _ in range(bench.rounds):
        to, home = tools.fresh("onblock"), tools.fresh("home")
        bench.note(ran["onblock"], tools.onblock(what, to, home)[0])
        must_hold(to, what, "onblock")
        bench._delivered["onblock"] = (to, home)
        for tool, move in (("rclone", tools.rclone), ("rsync", tools.rsync)):
            to = tools.fresh(tool)
            bench.note(ran[tool], move(what, to))
            must_hold(to, what, tool)
            bench._delivered[tool] = (to, to)
        to = tools.fresh("cp")
        bench.note(ran["cp + sha256sum"], tools.cp(what, to) + tools.sha256sum(to))
        must_hold(to, what, "cp")
    ours = ran["onblock"]
    faster = {tool: 1 / times(ours, ran[tool]) for tool in list(ran)[1:]}
    bench.claim(
        "(a) files/s of onblock's job to rclone's", f"{faster['rclone']:.2f} x", "at least 1 x", faster["rclone"] >= 1
    )
    bench.claim("(a) files/s to rsync's (moonshot: 1 x)", f"{faster['rsync']:.2f} x", None, True)
    bench.claim("(a) files/s to cp + sha256sum's", f"{faster['cp + sha256sum']:.2f} x", None, True)
    bench.command("a", ours)
    bench.memory("a", ours)


# -- (b) one large file ------------------------------------------------------------------------------------------


def b(bench: Bench) -> None:
    """One file of 2 GiB."""
    bench.tell(f"making one file of {LARGE_SIZE} bytes")
    what = large(bench.tools.work / "large", LARGE_SIZE)
    what.warm()
    ran = bench.start("(b) one file of 2 GiB", what, "onblock", "rclone", "rsync", "cp", "sha256sum")
    tools = bench.tools
    for _ in range(bench.rounds):
        copies = []
        to, home = tools.fresh("onblock"), tools.fresh("home")
        copies.append(to)
        bench.note(ran["onblock"], tools.onblock(what, to, home)[0])
        must_hold(to, what, "onblock")
        for tool, move in (("rclone", tools.rclone), ("rsync", tools.rsync), ("cp", tools.cp)):
            to = tools.fresh(tool)
            copies.append(to)
            bench.note(ran[tool], move(what, to))
            must_hold(to, what, tool)
        bench.note(ran["sha256sum"], tools.sha256sum(to))
        for folder in copies:
            shutil.rmtree(folder)  # few inodes: see the top
    ours = ran["onblock"]
    slower = [max(c.wall, h.wall) for c, h in zip(ran["cp"].samples, ran["sha256sum"].samples, strict=True)]
    value = ratio([s.job for s in ours.samples], slower)
    bench.at_most("(b) onblock's job to the slower of cp and sha256sum", value, 1.10, "x")
    for tool in ("rclone", "rsync"):
        bench.claim(f"(b) onblock's job to {tool}", f"{times(ours, ran[tool]):.2f} x", None, True)
    bench.command("b", ours)
    bench.memory("b", ours)


# -- (c) nothing to do --------------------------------------------------------------------------------------------


def c(bench: Bench) -> None:
    """No-op reruns: of (a), and of 100,000 known files; and what a run over an empty folder costs."""
    tools = bench.tools
    what = bench.material()
    _deliver_once(bench, what, bench._delivered, ("onblock", "rclone", "rsync"))
    ran = bench.start(f"(c) no-op rerun of (a), {SMALL_FILES:,} files", what, "onblock", "rclone", "rsync")
    _rerun(bench, what, bench._delivered, ran)
    value = times(ran["onblock"], ran["rclone"])
    bench.at_most("(c) onblock's job to rclone's, no-op rerun of (a)", value, 1.5, "x")
    bench.command("c", ran["onblock"])

    bench.tell(f"making {KNOWN_FILES} files, and delivering them once")
    known = small(tools.work / "known", KNOWN_FILES, 16, 1000)
    empty = Material(tools.fresh("empty"), 0, 0)
    empty.folder.mkdir()
    at: dict[str, tuple[Path, Path]] = {}
    _deliver_once(bench, known, at, ("onblock", "rclone"))
    more = bench.start(f"(c) no-op rerun of {KNOWN_FILES:,} files", known, "onblock", "rclone")
    nothing = bench.start(more["onblock"].scenario, empty, "onblock, 0 files")["onblock, 0 files"]
    idle = tools.fresh("onblock"), tools.fresh("home")
    tools.onblock(empty, *idle)
    for _ in range(bench.rounds):
        _rerun(bench, known, at, more, rounds=1)
        bench.note(nothing, tools.onblock(empty, *idle, known=True)[0])
    ours = more["onblock"]
    spent = extra([s.cpu for s in ours.samples], [s.cpu for s in nothing.samples])
    bench.claim(
        f"(c) CPU of the job over {KNOWN_FILES:,} known files (command minus a run over an empty folder)",
        f"{spent:.2f} s", "under 3 s", spent < 3,
    )  # fmt: skip
    bench.claim("(c) CPU of that whole command", f"{ours.mid(cpu):.2f} s", None, True)
    value = times(ours, more["rclone"])
    bench.at_most(f"(c) onblock's job to rclone's, no-op rerun of {KNOWN_FILES:,} files", value, 1.5, "x")
    bench.memory("c", ran["onblock"], ours)


def _deliver_once(bench: Bench, what: Material, at: dict[str, tuple[Path, Path]], names: tuple[str, ...]) -> None:
    """Deliver where it is not delivered yet, unmeasured."""
    tools = bench.tools
    for name in names:
        if name in at:
            continue
        to, home = tools.fresh(name), tools.fresh("home")
        if name == "onblock":
            tools.onblock(what, to, home)
        else:
            (tools.rclone if name == "rclone" else tools.rsync)(what, to)
        must_hold(to, what, name)
        at[name] = to, home


def _rerun(
    bench: Bench, what: Material, at: dict[str, tuple[Path, Path]], ran: dict[str, Series], rounds: int | None = None
) -> None:
    tools = bench.tools
    for _ in range(rounds or bench.rounds):
        for tool, series in ran.items():
            to, home = at[tool]
            if tool == "onblock":
                bench.note(series, tools.onblock(what, to, home, known=True)[0])
            else:
                bench.note(series, (tools.rclone if tool == "rclone" else tools.rsync)(what, to))
    for tool in ran:
        must_hold(at[tool][0], what, tool)


# -- with a Prefect server ----------------------------------------------------------------------------------------


def server(bench: Bench) -> None:
    """(a) by a flow run on a running Prefect server, against the same job without one."""
    tools = bench.tools
    what = bench.material()
    ran = bench.start("(server) (a) with a Prefect server", what, "with server", "without")
    with prefect_server(tools) as api:
        bench.tell("server: bootstrap, and one small run to warm it up")
        log = tools.log("bootstrap")
        env = tools.env | {"PREFECT_API_URL": api, "ONBLOCK_HOME": str(tools.fresh("home"))}
        run([sys.executable, "-m", "deployments.bootstrap"], cwd=REPOSITORY, env=env, log=log)
        one = small(tools.fresh("one"), 10, KIB, 1)
        tools.onblock(one, tools.fresh("onblock"), tools.fresh("home"), api=api)
        for _ in range(bench.rounds):
            for name, url in (("with server", api), ("without", None)):
                to, home = tools.fresh("onblock"), tools.fresh("home")
                bench.note(ran[name], tools.onblock(what, to, home, api=url)[0])
                must_hold(to, what, "onblock")
    for text, key in (("job", job), ("whole command", wall)):
        added = extra([key(s) for s in ran["with server"].samples], [key(s) for s in ran["without"].samples])
        bench.at_most(f"(server) seconds that Prefect adds to (a), {text}", added, SERVER_LIMIT, "s")
    bench.memory("server", ran["with server"])


@contextmanager
def prefect_server(tools: Tools) -> Iterator[str]:
    """A Prefect server of its own, in the work folder; its API's address. It is ended at the end."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    api = f"http://127.0.0.1:{port}/api"
    env = environment(tools.env, "127.0.0.1", port, f"http://127.0.0.1:{port}")  # as `onblock up` starts it
    log = tools.log("server")
    with log.with_suffix(".out").open("wb") as out:
        child = subprocess.Popen(
            [program("prefect"), "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
    try:
        until = time.monotonic() + 120
        while not _answers(f"{api}/health"):
            if child.poll() is not None or time.monotonic() > until:
                said = log.with_suffix(".out").read_text("utf-8", "replace")
                raise BenchError(f"the Prefect server did not come up: {said[-1500:]}")
            time.sleep(0.5)
        yield api
    finally:
        end(child)


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=2) as answer:
            return answer.status == 200
    except (urllib.error.URLError, OSError):
        return False


# -- what the ledger costs --------------------------------------------------------------------------------------------


def ledger(bench: Bench) -> None:
    """(a) once more, in which what the ledger does is timed."""
    tools, what = bench.tools, bench.material()
    leases: list[float] = []
    files: list[float] = []
    for turn in range(bench.rounds):
        to = tools.fresh("onblock")
        share = tools.share(what, to, tools.fresh("home"))
        must_hold(to, what, "onblock")
        files.append(share.pop("files"))
        leases.append(sum(share.values()))
        bench.tell(
            f"(ledger)  round {turn + 1}  {leases[-1]:.2%} of the job's processor time, and {files[-1]:.2%} to enter and finish files"
        )
    value = 100 * median(leases)
    bench.at_most("(ledger) claims, heartbeats and progress of (a), of the processor time of its job", value, 5, "%")
    bench.claim("(ledger) looking for files, entering and finishing them", f"{100 * median(files):.2f} %", None, True)


# -- memory ---------------------------------------------------------------------------------------------------------


def memory(bench: Bench) -> None:
    """Peak memory at 20,000 files and at ten times as many; one run each."""
    tools = bench.tools
    peaks = []
    for files in (BIG_FILES // 10, BIG_FILES):
        bench.tell(f"making {files} files of 64 bytes")
        what = small(tools.fresh("many"), files, 64, files // 100)
        first, rerun = f"onblock, {files:,}", f"onblock, {files:,} again"
        ran = bench.start("(memory) files of 64 bytes, delivered and known", what, first, rerun)
        ours, again = ran[first], ran[rerun]
        to, home = tools.fresh("onblock"), tools.fresh("home")
        bench.note(ours, tools.onblock(what, to, home)[0])
        must_hold(to, what, "onblock")
        bench.note(again, tools.onblock(what, to, home, known=True)[0])
        peaks.append(max(ours.mid(rss), again.mid(rss)))
    bench.memory("memory", *(s for s in bench.series if s.scenario.startswith("(memory)")))
    bench.at_most("(memory) peak RSS at 10 x the files to that at 1 x", peaks[1] / peaks[0], 1.15, "x")


SCENARIOS: dict[str, Callable[[Bench], None]] = {
    "a": a, "b": b, "c": c, "ledger": ledger, "server": server, "memory": memory
}  # fmt: skip


def space(names: list[str], rounds: int) -> tuple[int, int]:
    """Bytes and inodes that these scenarios need at the same time."""
    block, margin = 4 * KIB, 1.15
    per = {
        "a": SMALL_FILES * (1 + 4 * rounds),
        "c": SMALL_FILES * 4 + KNOWN_FILES * 3,
        "server": SMALL_FILES * (1 + 2 * rounds),
        "ledger": SMALL_FILES * (1 + rounds),
        "million": 1_000_000,
        "memory": (BIG_FILES + BIG_FILES // 10) * 2,
        "sftp": FAR_FILES * (1 + 4 * rounds),
        "s3": FAR_FILES * (1 + 3 * rounds),
    }
    files = sum(per.get(name, 0) for name in names)
    ledgers = files * KIB  # a row per file, and its log
    copies = LARGE_SIZE * 5 if "b" in names else 0  # the source, and onblock, rclone, rsync and cp
    copies = max(
        copies, 25 * GIB if "ten" in names else 0, 20 * GIB if "s3" in names else 0
    )  # it keeps what is deleted
    copies = max(copies, 4 * GIB if "capture" in names else 0, 2 * GIB if "console" in names else 0)
    return int((files * block + ledgers + copies) * margin) + 200 * MIB, int(files * margin) + 1000


def must_fit(folder: Path, names: list[str], rounds: int) -> None:
    """BenchError where the file system of `folder` is too small."""
    need, inodes = space(names, rounds)
    st = os.statvfs(folder)
    free = st.f_bavail * st.f_frsize
    if free < need:
        raise BenchError(f"{folder} has {free / GIB:.1f} GiB free, the benchmark needs {need / GIB:.1f}; use --work")
    if st.f_files and st.f_favail < inodes:
        raise BenchError(f"{folder} has {st.f_favail} inodes free, the benchmark needs {inodes}; use --work")

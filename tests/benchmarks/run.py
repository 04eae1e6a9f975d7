"""`make bench`, or `python -m tests.benchmarks.run`: measure, write a table and plots, print the table.

    a       20,000 files of 4 KiB in 200 folders: onblock, rclone, rsync, cp and sha256sum
    b       one file of 2 GiB: the same
    c       no-op rerun of (a), and of 100,000 known files
    ledger  (a), how much of it goes into claims, heartbeats and progress
    server  (a) with a running Prefect server, and without
    memory  peak memory at 20,000 and at 200,000 files
    phases  20 clips fetched, processed and delivered: against the longest phase alone
    sftp, s3, webhdfs    1 GiB and 5,000 small files to a server and back: the tools of that server
    steps   transcode, zstd and gzip: ffmpeg (`python -m tests.servers.install bench` brings it), zstd, Python's gzip
    capture two cameras and a sensor: CPU, memory, SIGKILL, a camera that is copied, merging (see `capture.py`)
    console pages and API over a ledger of 1,000,000 rows; 50 pages that are open while 4 transfers run
    claims  rows a second that 8 processes claim of one ledger on PostgreSQL, and deadlocks (`--storm S`: 30 s)
    million 1,000,000 files of 1 KiB are planned: memory and processor time
    fleet   devices whose flights end (`--devices N`, 60; `--within S`, 120 s): webhooks, runs, server, ledger
    latency seconds from a webhook to the first byte from a camera, with `onblock up` running
    crew    5,000 small files to S3, by one worker and by four
    idle    processor time and memory of `onblock up` and `onblock agent` that have nothing to do
    ten     peak memory for one file of 10 GiB, by every storage

Here are the arguments, the work folder and its end. Exit code 0: measured (whether the bounds were reached is in the
table); 1: a program failed or did not do its work; 2: bad arguments or too little space; 130: interrupted.

Two runs within a minute on ext4 disturb each other: the first one deletes its files at its end (see `scenarios.py`).
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import FrameType

from tests.benchmarks import report
from tests.benchmarks.capture import SCENARIOS as CAPTURE
from tests.benchmarks.claims import SCENARIOS as CLAIMS
from tests.benchmarks.console import SCENARIOS as CONSOLE
from tests.benchmarks.crew import SCENARIOS as CREW
from tests.benchmarks.fleet import SCENARIOS as FLEET
from tests.benchmarks.idle import SCENARIOS as IDLE
from tests.benchmarks.latency import SCENARIOS as LATENCY
from tests.benchmarks.material import small
from tests.benchmarks.measure import BenchError
from tests.benchmarks.million import SCENARIOS as MILLION
from tests.benchmarks.phases import SCENARIOS as PHASES
from tests.benchmarks.scenarios import SCENARIOS as LOCAL
from tests.benchmarks.scenarios import Bench, must_fit
from tests.benchmarks.steps import SCENARIOS as STEPS
from tests.benchmarks.storages import SCENARIOS as FAR
from tests.benchmarks.tools import Tools, program

SCENARIOS = {
    **LOCAL,
    **PHASES,
    **STEPS,
    **CAPTURE,
    **CONSOLE,
    **LATENCY,
    **CREW,
    **IDLE,
    **CLAIMS,
    **MILLION,
    **FLEET,
    **FAR,
}
ALONE = {"ledger", "memory", "million", "claims", "fleet", "crew", "idle", "console", "latency"}
"""Scenarios that compare onblock with no other program."""
ROUNDS, QUICK_ROUNDS = 5, 3


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    first = (__doc__ or "").splitlines()[0]
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.run", description=first)
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_ROUNDS} rounds, not {ROUNDS}")
    parser.add_argument("--only", metavar="a,b,c", help=f"some of: {', '.join(SCENARIOS)}")
    parser.add_argument("--out", type=Path, default=Path("bench-out"), help="folder of the results (bench-out)")
    parser.add_argument(
        "--work", type=Path, default=Path(tempfile.gettempdir()), help="where to work: a disk with room"
    )
    parser.add_argument(
        "--storm", type=float, default=30, metavar="S", help="seconds that `claims` looks for deadlocks (30)"
    )
    parser.add_argument("--devices", type=int, default=60, metavar="N", help="flights that end in `fleet` (60)")
    parser.add_argument("--within", type=float, default=120, metavar="S", help="seconds in which they do (120)")
    given = parser.parse_args(argv)
    given.names = list(SCENARIOS)
    if given.only:
        given.names = [n.strip() for n in given.only.split(",")]
        if unknown := [n for n in given.names if n not in SCENARIOS]:
            parser.error(f"there is no scenario {unknown[0]!r}; there are {', '.join(SCENARIOS)}")
    return given


def main(argv: list[str] | None = None) -> int:
    given = arguments(argv)
    rounds = QUICK_ROUNDS if given.quick else ROUNDS
    try:
        given.work.mkdir(parents=True, exist_ok=True)
        must_fit(given.work, given.names, rounds)
        for name in (
            ()
            if set(given.names) <= ALONE
            else ("rclone", "rsync", "cp", "sha256sum", "prefect", "sftp", "s5cmd", "curl")
        ):
            program(name)
    except (BenchError, OSError) as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    started = time.monotonic()

    def tell(text: str) -> None:
        print(f"[{time.monotonic() - started:6.0f} s] {text}", file=sys.stderr, flush=True)

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    work = Path(tempfile.mkdtemp(prefix="onblock-bench-", dir=given.work)).resolve()
    bench = Bench(Tools(work), rounds, tell, storm_s=given.storm, devices=given.devices, within_s=given.within)
    try:
        code = _measured(bench, given.names)
        _tell_results(bench, given.out, whole=not code)
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        tell(f"removing {work} (some minutes after c or memory; this is not interrupted)")
        _remove(work)
    return code


def _measured(bench: Bench, names: list[str]) -> int:
    """Measure; the exit code."""
    try:
        _measure(bench, names)
    except BenchError as error:
        bench.tell(f"FAILED: {error}")
        return 1
    except KeyboardInterrupt:
        bench.tell("interrupted")
        return 130
    return 0


def _tell_results(bench: Bench, out: Path, *, whole: bool) -> None:
    series = [s for s in bench.series if s.samples]
    if series or bench.claims:
        print(report.write(out, series, bench.claims, bench.rounds, bench.pictures), flush=True)
        bench.tell(f"written: {', '.join(str(p) for p in sorted(out.iterdir()))}")
    if not whole:
        print("The table is not whole: see above.", flush=True)


def _remove(work: Path) -> None:
    """Delete the work folder: hundreds of thousands of files, which rm does with less fuss than Python."""
    subprocess.run([program("rm"), "-rf", "--", str(work)], start_new_session=True, check=False)
    if work.exists():
        print(f"bench: {work} could not be removed", file=sys.stderr)


def _measure(bench: Bench, names: list[str]) -> None:
    one = small(bench.tools.fresh("one"), 10, 1024, 1)
    bench.tell("warming up")
    bench.tools.onblock(one, bench.tools.fresh("onblock"), bench.tools.fresh("home"))
    for name in names:
        SCENARIOS[name](bench)


if __name__ == "__main__":
    sys.exit(main())

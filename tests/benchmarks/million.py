"""A million files of 1 KiB are planned: listed, judged, entered into the ledger, packed into shipments; nothing is moved.
And once more, when all are known and wait.

    python -m tests.benchmarks.million JOB.yaml
    {"files": n, "shipments": n, "seconds": s}

The files are real ones of a folder, of 1 KiB without blocks: their contents are not looked at. The ledger is SQLite, and
PostgreSQL, whose own processor time is told beside.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.benchmarks.measure import BenchError, Sample, run
from tests.benchmarks.scenarios import KIB, Bench
from tests.benchmarks.tools import REPOSITORY, local

FILES, FOLDERS = 1_000_000, 1_000
CPU_LIMIT, RSS_MOST = 60.0, 400e6


def million(bench: Bench) -> None:
    """Each once: it is a question of how much, and not of how long."""
    from tests.servers.postgres import Postgres, installed

    tools = bench.tools
    folder = tools.fresh("million")
    bench.tell(f"million: making {FILES:,} files of {KIB} bytes")
    _make(folder)
    job = tools.written(local(folder), local(tools.fresh("archive")))
    _planned(bench, job, "SQLite", {"ONBLOCK_HOME": str(tools.fresh("home"))}, lambda: 0.0)
    if not installed():
        raise BenchError("PostgreSQL is not installed: python -m tests.servers.install")
    state = tools.fresh("postgres")
    state.parent.chmod(0o755)
    with Postgres(state, durable="yes") as server:
        from tests.benchmarks.claims import _server_cpu

        env = {"ONBLOCK_HOME": str(tools.fresh("home")), "ONBLOCK_LEDGER_URL": server.info["url"]}
        _planned(bench, job, "PostgreSQL", env, lambda: _server_cpu(server))


def _planned(bench: Bench, job: Path, ledger: str, env: dict[str, str], theirs: Callable[[], float]) -> None:
    for turn in ("new", "known"):
        log, before = bench.tools.log("million"), theirs()
        argv = [sys.executable, "-P", "-m", "tests.benchmarks.million", str(job)]
        ours: Sample = run(argv, cwd=REPOSITORY, env=bench.tools.env | {"PYTHONPATH": str(REPOSITORY)} | env, log=log)
        said = json.loads(log.with_suffix(".out").read_text())
        if said["files"] != FILES:
            raise BenchError(f"{said['files']:,} of {FILES:,} files were planned")
        where = f"(million) {FILES:,} files of 1 KiB, {turn}, planned on {ledger}"
        bench.claim(f"{where}: processor time of the process", f"{ours.cpu:.1f} s", f"under {CPU_LIMIT:.0f} s", ours.cpu < CPU_LIMIT)  # fmt: skip
        bench.claim(f"{where}: peak RSS", f"{ours.rss / 1e6:.0f} MB", f"under {RSS_MOST / 1e6:.0f} MB", ours.rss < RSS_MOST)  # fmt: skip
        beside = f", PostgreSQL {theirs() - before:.1f} s" if ledger == "PostgreSQL" else ""
        bench.claim(f"{where}: seconds by the clock{beside}; shipments", f"{ours.wall:.0f} s; {said['shipments']:,}", None, True)  # fmt: skip
        bench.tell(f"{where}: CPU {ours.cpu:.1f} s, {ours.rss / 1e6:.0f} MB, {ours.wall:.0f} s{beside}")


def _make(folder: Path) -> None:
    """Files of 1 KiB, an hour old."""
    old = (time.time_ns() - 3600 * 10**9,) * 2
    for number in range(FOLDERS):
        where = folder / "DCIM" / f"{number:04}"
        where.mkdir(parents=True)
        for n in range(FILES // FOLDERS):
            fd = os.open(where / f"IMG_{number:04}{n:04}.JPG", os.O_WRONLY | os.O_CREAT)
            os.ftruncate(fd, KIB)
            os.utime(fd, ns=old)
            os.close(fd)


def main() -> None:
    """Plan a job, for real: what is new is entered."""
    from flows.ledger import Ledger
    from flows.transfer.job import load_job
    from flows.transfer.run import TransferRun
    from flows.transfer.story import shipments

    began, files, number = time.monotonic(), 0, 0
    with Ledger.open() as ledger, TransferRun(load_job(sys.argv[1]), ledger) as planned:
        for shipment in shipments(planned):
            number += 1
            files += len(shipment.items)
    print(json.dumps({"files": files, "shipments": number, "seconds": time.monotonic() - began}))


SCENARIOS: dict[str, Callable[[Bench], None]] = {"million": million}


if __name__ == "__main__":
    main()

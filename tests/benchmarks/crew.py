"""One job on several workers: many small files to S3, by one run and by one with three hands, with the server next door,
20 and 100 ms away. The hands are forks that are hired as Prefect's would be, but begin at once: what Prefect takes to start a run
is measured in `engines.py`.

`python -m tests.benchmarks.crew JOB.yaml WORKERS` runs a job so.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import sys
from pathlib import Path
from statistics import median
from typing import Any

from flows.ledger import Ledger
from flows.transfer.crew import Crew, lend_a_hand
from flows.transfer.job import load_job
from flows.transfer.run import TransferRun
from flows.transfer.story import carry_out, here
from tests.benchmarks.material import small
from tests.benchmarks.measure import Sample, Series, run
from tests.benchmarks.scenarios import Bench
from tests.benchmarks.storages import FarS3
from tests.benchmarks.tools import REPOSITORY, local
from tests.servers.faultproxy import FaultProxy
from tests.servers.s3 import SeaweedFS

FILES, FOLDERS, SIZE = 5000, 50, 4096
WORKERS = 4
AWAY_S = {"next door": 0.0, "20 ms away": 0.01, "100 ms away": 0.05}
"""Added to what goes there, and to what comes back."""
WANTED = 2.5
"""Times as fast, where one waits for the server and not for a processor."""


def crew(bench: Bench) -> None:
    """5,000 files of 4 KiB, by one and by four."""
    tools = bench.tools
    what = small(tools.work / "small", FILES, SIZE, FOLDERS)
    with (
        SeaweedFS(tools.fresh("s3")) as server,
        FaultProxy(int(server.info["endpoint"].rpartition(":")[2])) as proxy,
    ):
        far = FarS3(tools, server)
        for where, latency in AWAY_S.items():
            proxy.latency = latency
            found: dict[int, Series] = {}
            for workers in (1, WORKERS):
                name = "onblock, 1 worker" if workers == 1 else f"onblock, {workers} workers"
                found[workers] = Series(f"(crew) {FILES} x 4 KiB to S3, {where}", name, what.files, what.bytes)
            bench.series += found.values()
            for _ in range(bench.rounds):
                for workers, series in found.items():
                    bench.note(series, _run(bench, what.folder, far, proxy, workers))
            one, many = ([s.job for s in found[w].samples] for w in (1, WORKERS))
            value = median(a / b for a, b in zip(one, many, strict=True))
            free = median(s.idle / (s.wall * (os.cpu_count() or 1)) for s in found[WORKERS].samples)
            wanted = f"at least {WANTED} x" if latency == max(AWAY_S.values()) else None
            told = f"{value:.2f} x as fast as one; of the processors {free:.0%} were left"
            bench.claim(f"(crew) {WORKERS} workers, {where}", told, wanted, value >= WANTED)


def _run(bench: Bench, folder: Path, far: FarS3, proxy: FaultProxy, workers: int) -> Sample:
    tools = bench.tools
    home, place = tools.fresh("home"), far.place()
    job = tools.fresh("crew").with_suffix(".yaml")
    job.write_text(json.dumps({
        "name": "crew", "source": local(folder), "settle": {"quiet": "0s"},
        "destination": {**far.block(place), "endpoint": f"http://127.0.0.1:{proxy.port}"},
        "shipping": {"max_files": 128, "workers": workers},
    }))  # fmt: skip
    log = tools.log("crew")
    sample = run([sys.executable, "-m", "tests.benchmarks.crew", str(job), str(workers)],
                 cwd=REPOSITORY, env={**tools.env, "ONBLOCK_HOME": str(home)}, log=log)  # fmt: skip
    shutil.rmtree(home)
    far.clear(place)
    told = json.loads(log.with_suffix(".out").read_text("utf-8"))
    return Sample(sample.wall, sample.cpu, sample.rss, told["seconds"], sample.idle)


SCENARIOS = {"crew": crew}


def _hand(path: str, leader: str) -> None:
    job = load_job(path)
    with Ledger.open() as ledger, TransferRun(job, ledger, leader=leader) as one:
        lend_a_hand(one, here(one))


def main() -> int:
    """Lead a job with forks for hands; its summary as JSON."""
    job = load_job(sys.argv[1])
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["flows.transfer.crew", "flows.transfer.story", "blocks.storage.s3_session"])
    warm = forks.Process(target=os.getpid)
    warm.start()
    warm.join()
    hands: list[Any] = []
    with Ledger.open() as ledger:
        with TransferRun(job, ledger) as leader:

            def hire(_: int) -> None:
                hands.append(forks.Process(target=_hand, args=(sys.argv[1], leader.id)))
                hands[-1].start()

            summary = carry_out(leader, Crew(leader, here(leader), hire))
        for hand in hands:
            hand.join()
    print(json.dumps(summary))
    return 0 if summary["delivered"] == summary["scanned"] else 1


if __name__ == "__main__":
    sys.exit(main())

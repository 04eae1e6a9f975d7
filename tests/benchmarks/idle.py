"""What `onblock up` and `onblock agent` cost while nothing is to be done: processor time in 60 s, and memory. The agent
twice: with a worker that is there, and with one that rests, as it does after ten minutes.

Memory is the proportional set size (PSS): what processes share counts once. RSS of all processes is told beside it.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil

from tests.benchmarks.latency import _free, _memory, _there, _until
from tests.benchmarks.measure import end
from tests.benchmarks.scenarios import Bench
from tests.benchmarks.tools import REPOSITORY

WATCHED_S, SETTLED_S = 60.0, 20.0
UP_LIMIT, AGENT_LIMIT, AGENT_MEMORY = 5.0, 3.0, 150e6
"""Percent of one processor; bytes."""


def idle(bench: Bench) -> None:
    """`onblock up`, and then an agent beside it whose worker serves its server."""
    tools, ports = bench.tools, [_free() for _ in range(2)]
    url = f"http://127.0.0.1:{ports[0]}"
    env = {**tools.env, "ONBLOCK_HOME": str(tools.fresh("home")), "PREFECT_API_URL": f"{url}/api"}
    env.pop("PREFECT_HOME", None)
    onblock = [sys.executable, "-P", "-m", "deployments.cli"]

    def start(name: str, *arguments: str, home: dict[str, str]) -> subprocess.Popen[bytes]:
        with tools.log(name).with_suffix(".out").open("wb") as log:
            return subprocess.Popen(
                [*onblock, *arguments], env=env | home, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip

    up = start("up", "up", "--port", str(ports[0]), "--console-port", str(ports[1]), home={})
    try:
        _until("onblock up", lambda: _there(f"http://127.0.0.1:{ports[1]}/health"), up, 180)
        _until("a worker that polls", lambda: _memory(up.pid).get("forks", 0) > 80e6, up, 120)
        _watch(bench, "onblock up", up, UP_LIMIT)
        for state, rests in (("running", "null"), ("resting", "1s")):
            what, home = f"onblock agent, its worker {state}", tools.fresh(f"device-{state}")
            home.mkdir()
            (home / "agent.yaml").write_text(f"worker: {{rests_after: {rests}}}\n")
            agent = start(f"agent-{state}", "agent", "--device", f"bench-{state}", home={"ONBLOCK_HOME": str(home)})
            try:
                _until(what, partial(_worker_is, state, home), agent, 180)
                memory = _watch(bench, what, agent, AGENT_LIMIT)
                if state == "resting":
                    told, wanted = f"{memory / 1e6:.0f} MB", f"under {AGENT_MEMORY / 1e6:.0f} MB"
                    bench.claim(f"(idle) memory of {what} (PSS)", told, wanted, memory < AGENT_MEMORY)
            finally:
                end(agent, 60)
    finally:
        end(up, 60)


def _watch(bench: Bench, what: str, process: subprocess.Popen[bytes], limit: float) -> float:
    """Its processor time, by process; bytes (PSS) at the end."""
    time.sleep(SETTLED_S)
    before, began = _used(process.pid), time.monotonic()
    time.sleep(WATCHED_S)
    after, seconds = _used(process.pid), time.monotonic() - began
    shares = {pid: (used - before.get(pid, (name, 0.0))[1]) / seconds * 100 for pid, (name, used) in after.items()}
    for pid, share in sorted(shares.items(), key=lambda one: -one[1]):
        bench.tell(f"(idle) {what}: {share:5.2f} %  {after[pid][0]}")
    bench.at_most(f"(idle) processor time of {what}, all its processes", sum(shares.values()), limit, "% of a core")
    sizes = [one.memory_full_info() for one in _all(process.pid)]
    memory = float(sum(size.pss for size in sizes))
    told = f"{memory / 1e6:.0f} MB (RSS {sum(size.rss for size in sizes) / 1e6:.0f} MB)"
    bench.claim(f"(idle) memory of {what}, {len(sizes)} processes (PSS)", told, None, True)
    return memory


def _worker_is(state: str, home: Path) -> bool:
    with suppress(OSError, ValueError, KeyError):
        return json.loads((home / "agent/status.json").read_text())["worker"]["state"] == state
    return False


def _all(pid: int) -> list[psutil.Process]:
    return [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]


def _used(pid: int) -> dict[int, tuple[str, float]]:
    """Processor seconds of each process, and what it is."""
    found: dict[int, tuple[str, float]] = {}
    for one in _all(pid):
        times = one.cpu_times()
        found[one.pid] = (" ".join(one.cmdline())[-60:], times.user + times.system)
    return found


SCENARIOS: dict[str, Callable[[Bench], None]] = {"idle": idle}

"""Run a JOB.yaml with the command, in this process, and say how much of it went into the ledger.

    python -m tests.benchmarks.share JOB.yaml
    {"job": seconds, "cpu": s, "delivered": files, "share": {"claims": s, "heartbeats": s, "progress": s, "files": s}}

Processor seconds of all threads are added up: while one waits for the database, others move files, and where all
processors are busy a second of one of them costs the rate what its share of `cpu` is. `cpu` is that of the job, with its
copier and without the start of the program. `claims`,
`heartbeats` (and wishes, which are asked for with them) and `progress` (what is noted of large files, and room that is
reserved) are what leases cost; `files` is what every ledger has to do: to enter the run, to look for each file, to enter it,
and to write down that it was delivered.

    python -m tests.benchmarks.share JOB.yaml --told
    {"cpu": seconds, "told": s, "events": n, "event": s}

The same for what is told of progress, by steps and to the Prefect server of PREFECT_API_URL: of all processor seconds of
the process, those that telling takes where the work is done, and those that it takes to send one event.
"""

from __future__ import annotations

import io
import json
import resource
import sys
import threading
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from typing import Any

from deployments import cli
from flows.ledger import Ledger

COUNTED = {
    "claims": ("claim",),
    "heartbeats": ("heartbeat", "wishes", "held"),
    "progress": ("note", "reserve", "reserved", "moor", "unmoor", "crowd"),
    "files": (
        "begin_run",
        "recover_runs",
        "end_run",
        "compare",
        "enter",
        "finish",
        "requeue",
        "mark_seen",
        "judged",
        "gone",
    ),
}
spent = dict.fromkeys(COUNTED, 0.0)  # seconds
lock = threading.Lock()


TOLD = "told"


def counted(what: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, its seconds added up."""

    def call(*args: Any, **kwargs: Any) -> Any:
        began = time.thread_time()
        try:
            return method(*args, **kwargs)
        finally:
            with lock:
                spent[what] += time.thread_time() - began

    return call


def main() -> int:
    """The program."""
    told = "--told" in sys.argv
    wrapped: list[tuple[type, str, str]] = [(Ledger, n, what) for what, names in COUNTED.items() for n in names]
    if told:
        from flows.transfer.report import PrefectWatcher
        from flows.transfer.steps import Ask

        spent[TOLD] = 0.0
        wrapped = [(Ask, "progress", TOLD), (PrefectWatcher, "tick", TOLD)]
    for where, name, what in wrapped:
        setattr(where, name, counted(what, getattr(where, name)))
    events = _count_events() if told else []
    began = _used() if told else 0.0
    if not told:
        from flows.transfer import story

        begin = story.run_here

        def run_here(*args: Any, **kwargs: Any) -> Any:
            nonlocal began
            began = _used()
            return begin(*args, **kwargs)

        story.run_here = run_here
    said = io.StringIO()
    sys.argv = ["onblock", "run", sys.argv[1], "--json"]
    try:
        with redirect_stdout(said):
            cli.main()
    except SystemExit as end:
        if end.code:
            raise
    summary = json.loads(said.getvalue())
    if told:
        cpu, one = time.process_time(), _one_event()
        print(json.dumps({"cpu": cpu, "told": spent[TOLD], "events": len(events), "event": one}))
    else:
        cpu = _used() - began
        print(json.dumps({"job": summary["seconds"], "cpu": cpu, "delivered": summary["delivered"], "share": spent}))
    return 0


def _used() -> float:
    """Processor seconds of this process and of those that it has waited for."""
    own, others = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own.ru_utime + own.ru_stime + others.ru_utime + others.ru_stime


def _count_events() -> list[str]:
    """The events of progress that are sent from now on."""
    from flows.transfer import report

    names: list[str] = []
    emit = report.emit_event

    def noted(event: str, **what: Any) -> Any:
        if event.endswith(".progress"):
            names.append(event)
        return emit(event, **what)

    report.emit_event = noted
    return names


def _one_event() -> float:
    """Processor seconds of one event, from its making to its arrival at the server."""
    from prefect.events import emit_event
    from prefect.events.worker import EventsWorker

    emit_event("onblock.bench", resource={"prefect.resource.id": "onblock.bench"})
    EventsWorker.instance().wait_until_empty()
    began = time.process_time()
    for _ in range(300):
        emit_event("onblock.bench", resource={"prefect.resource.id": "onblock.bench"})
    EventsWorker.instance().wait_until_empty()
    return (time.process_time() - began) / 300


if __name__ == "__main__":
    sys.exit(main())

"""Run a JOB.yaml in this process and say how much of it went into claims, heartbeats, wishes and progress.

    python -m tests.benchmarks.share JOB.yaml      prints {"job": seconds, "share": seconds of a processor}

Processor seconds of all threads are added up: while one waits for the database, others move files.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flows.ledger import Ledger
from flows.transfer.job import load_job
from flows.transfer.story import run_here

COUNTED = ("claim", "heartbeat", "note", "wishes", "held", "reserve", "reserved", "moor", "unmoor", "crowd")
spent = 0.0
lock = threading.Lock()


def counted(method: Callable[..., Any]) -> Callable[..., Any]:
    """The method, its seconds added up."""

    def call(*args: Any, **kwargs: Any) -> Any:
        global spent
        began = time.thread_time()
        try:
            return method(*args, **kwargs)
        finally:
            with lock:
                spent += time.thread_time() - began

    return call


def main() -> int:
    """The program."""
    for name in COUNTED:
        setattr(Ledger, name, counted(getattr(Ledger, name)))
    summary = run_here(load_job(Path(sys.argv[1])))
    print(json.dumps({"job": summary["seconds"], "share": spent, "delivered": summary["delivered"]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())

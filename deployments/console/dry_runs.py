"""Dry runs of jobs, beside the console: `onblock plan` in a process of its own, with an end. Whatever it has started ends
with it, and all of it with the console.
"""

from __future__ import annotations

import json
import selectors
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from blocks.errors import Cancelled, ConfigError, UnknownError
from blocks.storage.program import Program

PATIENCE_S = 120.0
"""So long a dry run may take."""
MOST = 2
"""So many at a time."""
GRACE_S = 3.0
"""So long it may put down what it holds, before it is killed."""


class DryRuns:
    """They. Shared by threads."""

    def __init__(self, patience_s: float = PATIENCE_S):
        self._patience_s = patience_s
        self._turns = threading.BoundedSemaphore(MOST)
        self._closing = threading.Event()

    def close(self) -> None:
        """End those under way, and begin no more."""
        self._closing.set()

    def plan(self, job: dict[str, Any], flight: str | None, limit: int) -> dict[str, Any]:
        """What a run of a job, as a JOB.yaml has it, would do; as `onblock plan JOB.yaml --json` tells it. Raises
        OnblockError."""
        if not self._turns.acquire(blocking=False):
            raise ConfigError(f"{MOST} plans are being made already", remedy="wait for them")
        try:
            with tempfile.TemporaryDirectory(prefix="onblock-plan-") as folder:
                file = Path(folder, "job.yaml")
                file.write_text(json.dumps(job, ensure_ascii=False), "utf-8")  # JSON is YAML, but for escapes
                asked = ["plan", str(file), "--json", "--limit", str(limit), *(["--flight", flight] if flight else [])]
                printed = self._carried_out([sys.executable, "-P", "-m", "deployments.cli", *asked])
            return json.loads(printed)
        except ValueError as error:
            raise UnknownError("what `onblock plan` says is not understood", remedy="use it yourself") from error
        finally:
            self._turns.release()

    def _carried_out(self, command: list[str]) -> bytes:
        """What it prints."""
        until, printed = time.monotonic() + self._patience_s, bytearray()
        with Program(command, stdout=True) as program, selectors.DefaultSelector() as selector:
            selector.register(program.stdout, selectors.EVENT_READ)
            data: bytes | None = b"-"
            while data or program.poll() is None:
                if self._closing.is_set():
                    program.end(GRACE_S)
                    raise Cancelled("the console ends")
                if time.monotonic() > until:
                    program.end(GRACE_S)
                    raise UnknownError(
                        f"it could not be found out within {self._patience_s:.0f} s", remedy="use `onblock plan`"
                    )
                if not data:
                    program.wait(0.1)
                elif selector.select(0.2):
                    data = program.stdout.read(1 << 16)
                    printed += data or b""
            if program.poll():
                said = program.said().splitlines()[-1:] or [f"exit code {program.poll()}"]
                raise ConfigError(f"it cannot be planned: {said[0]}")
        return bytes(printed)

"""Recording on this device, as the panel sees it: start, stop, state, health. It runs in a process of its own.

What records is `python -m deployments.agent.record`. It dies alone: a driver of a camera that crashes takes neither the
panel nor the status with it. And it never outlives us unnoticed: its standard input is our end of a pipe, and when that
closes it seals what it has and ends. What it has to say comes as lines of JSON on its standard output:

    {"state": "recording", "id": ...}     the recording has begun
    {"health": {...}}                     once a second
    {"state": "sealed", ...}              it is over, and safe; another may begin while this one is merged
    {"state": "complete", ...}            it is merged and was read back
    {"state": "failed", "kind": ..., "what": ..., "path": ..., "todo": ...}
"""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from blocks.errors import BY_KIND, Conflict, Kind, NetworkError, OnblockError, UnknownError

log = logging.getLogger("onblock.agent")

RECORD = (sys.executable, "-P", "-m", "deployments.agent.record")
BEGINS_WITHIN_S = 60.0
"""Imports on a small machine, the 7.5 s that a camera may take, and as much again."""
SEALED_WITHIN_S = 30.0

Heard = Callable[[dict[str, Any]], None]


class Recording(Protocol):
    """What the panel needs of whatever records."""

    @property
    def state(self) -> str:
        """`idle`, `starting`, `recording` or `stopping`."""
        ...

    def start(self) -> None:
        """Begin one; returns when it has begun. Raises an OnblockError where it does not."""
        ...

    def stop(self) -> None:
        """End it; returns when it is sealed. Merging goes on without us. Nothing to do where there is none."""
        ...

    def health(self) -> dict[str, Any]:
        """How it is; any thread, any time."""
        ...


class _Taken:
    """One process that records, and later merges."""

    def __init__(self, argv: Sequence[str], spec: str, folder: Path, log_file: Path, heard: Callable[[_Taken, dict[str, Any]], None]):  # fmt: skip
        self.health: dict[str, Any] = {}
        self.begun, self.over = threading.Event(), threading.Event()
        self.ran = False
        self.failure: OnblockError | None = None
        self._heard = heard
        with log_file.open("ab") as out:
            self.process = subprocess.Popen(
                [*argv, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=out, start_new_session=True
            )
        self._say(spec.replace("\n", " "))
        self.listener = threading.Thread(target=self._listen, name="onblock-recording", daemon=True)
        self.listener.start()

    def ask_to_end(self) -> None:
        """Ask it to seal and end."""
        self._say("stop")

    def _say(self, line: str) -> None:
        pipe = self.process.stdin
        assert pipe is not None
        try:
            pipe.write(line.encode() + b"\n")
            pipe.flush()
        except OSError as error:  # it is gone; what it left behind is told by the listener
            log.debug("the recording takes no more words: %s", error)

    def kill(self) -> None:
        """End it at once, with all it started. What is written can be recovered."""
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def _listen(self) -> None:
        out: IO[bytes] | None = self.process.stdout
        assert out is not None
        for line in out:
            try:
                told = json.loads(line)
            except ValueError:
                log.warning("recording: %s", line[:300])
                continue
            if isinstance(told, dict):
                self._take(told)
        code = self.process.wait()
        if not self.over.is_set():
            how = f"died of signal {-code}" if code < 0 else f"ended with exit code {code}"
            self._take(
                failed(UnknownError(f"what records {how}", remedy="`onblock recover` puts in order what it left"))
            )
        self._close()

    def _take(self, told: dict[str, Any]) -> None:
        if "health" in told:
            self.health = told["health"]
            return
        state = told.get("state")
        if state == "failed":
            self.failure = as_error(told)
        self.ran = self.ran or state == "recording"
        self._heard(self, told)
        if state in ("sealed", "failed"):
            self.over.set()
        if state in ("recording", "sealed", "failed"):
            self.begun.set()

    def _close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except OSError as error:
                    log.debug("the recording is gone: %s", error)


class RecordingProcess:
    """Recordings by `spec` (a `CaptureSpec` as JSON) below `folder`. `heard` is told each state that one of them reaches,
    from a thread of its own, with `asked` saying whether we had asked it to end. `start` and `stop` of one thread."""

    def __init__(
        self, spec: str, folder: Path, log_file: Path, heard: Heard = lambda told: None, argv: Sequence[str] = RECORD,
        *, begins_within_s: float = BEGINS_WITHIN_S, sealed_within_s: float = SEALED_WITHIN_S,
    ):  # fmt: skip
        self._spec, self._folder, self._log, self._tell, self._argv = spec, folder, log_file, heard, argv
        self._begins, self._sealed = begins_within_s, sealed_within_s
        self._lock = threading.Lock()
        self._now: _Taken | None = None
        self._asked: set[_Taken] = set()
        self._merging: list[_Taken] = []

    @property
    def state(self) -> str:
        """See `Recording`."""
        with self._lock:
            if self._now is None:
                return "idle"
            if self._now in self._asked:
                return "stopping"
            return "recording" if self._now.begun.is_set() else "starting"

    def health(self) -> dict[str, Any]:
        """See `Recording`."""
        with self._lock:
            taken, merging = self._now, sum(1 for m in self._merging if m.process.poll() is None)
        return {**(taken.health if taken else {}), "state": self.state, "merging": merging}

    def start(self) -> None:
        """See `Recording`."""
        with self._lock:
            if self._now is not None:
                raise Conflict("a recording runs already", remedy="end it first")
            self._merging = [m for m in self._merging if m.process.poll() is None]
            self._folder.mkdir(parents=True, exist_ok=True)
            taken = self._now = _Taken(self._argv, self._spec, self._folder, self._log, self._heard)
        if not taken.begun.wait(self._begins):
            taken.kill()
            taken.over.wait(self._sealed)
            raise NetworkError(f"the recording did not begin within {self._begins:g} s", remedy="look at its log")
        if taken.failure is not None and not taken.ran:
            raise taken.failure

    def stop(self) -> None:
        """See `Recording`. One that does not seal in time is killed; what it wrote can be recovered."""
        with self._lock:
            taken = self._now
            if taken is None:
                return
            self._asked.add(taken)
        taken.ask_to_end()
        if not taken.over.wait(self._sealed):
            taken.kill()
            taken.over.wait(self._sealed)
            raise NetworkError(
                f"the recording was not sealed within {self._sealed:g} s and was killed",
                remedy="the next start, or `onblock recover`, puts it in order",
            )
        if taken.failure is not None:
            raise taken.failure

    def close(self, merging_s: float = 20.0) -> None:
        """End the recording, and what is being merged, if that takes no longer."""
        try:
            self.stop()
        finally:
            with self._lock:
                left, self._merging = self._merging, []
            for taken in left:
                try:
                    taken.process.wait(merging_s)
                except subprocess.TimeoutExpired:  # done anew after the next start
                    taken.kill()
                    taken.process.wait()
                taken.listener.join(5)

    def _heard(self, taken: _Taken, told: dict[str, Any]) -> None:
        with self._lock:
            asked = taken in self._asked
            begun = taken.ran
            if told.get("state") in ("sealed", "failed"):
                self._asked.discard(taken)
                if self._now is taken:
                    self._now = None
                    self._merging.append(taken)
        self._tell({**told, "asked": asked, "begun": begun})


def failed(error: OnblockError) -> dict[str, Any]:
    """A failure as it goes over the pipe."""
    return {"state": "failed", "kind": error.kind.value, "what": error.what, "path": error.path, "todo": error.todo}


def as_error(told: dict[str, Any]) -> OnblockError:
    """And back."""
    kind = told.get("kind")
    cls = BY_KIND[Kind(kind)] if kind in Kind.__members__ else UnknownError
    return cls(str(told.get("what")), path=str(told.get("path") or ""), remedy=told.get("todo"))

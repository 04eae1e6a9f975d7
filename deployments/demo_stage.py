"""What `onblock demo` is played on: a folder of its own, and a Prefect server that is there as long as it is told."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from deployments import up
from deployments.server import limits

FLIGHT = "flight-0042"
DEVICE = "card"
SERVER_WITHIN = 120.0
"""Seconds the Prefect server may take to answer."""
ANSWER_WITHIN = 90.0
"""Seconds the Prefect server may be too busy to answer, and may take to write down how tasks ended: it learns that from
events, a little later."""


class DemoFailed(Exception):
    """Something was not as it must be; the message is the one line that says what."""


@dataclass(frozen=True)
class Places:
    """Where one demo lives: all below one new folder."""

    root: Path

    @property
    def card(self) -> Path:
        """What the flight leaves."""
        return self.root / "card"

    @property
    def archive(self) -> Path:
        """Where it is brought."""
        return self.root / "archive"

    @property
    def delivered(self) -> Path:
        """What of this flight lies there."""
        return self.archive / FLIGHT

    @property
    def manifest(self) -> Path:
        """Its list of checksums."""
        return self.delivered / "checksums.sha256"

    @property
    def job(self) -> Path:
        """What goes where."""
        return self.root / "job.yaml"

    @property
    def home(self) -> Path:
        """ONBLOCK_HOME of what is started."""
        return self.root / "onblock-home"

    @property
    def prefect(self) -> Path:
        """PREFECT_HOME."""
        return self.root / "prefect-home"


def fresh_folder(home: Path | None) -> Places:
    """A new folder named by the time, so that the demo works twice."""
    base = (home or Path(os.environ.get("ONBLOCK_HOME") or "~/.onblock").expanduser()).absolute() / "demo"
    stamp = f"{datetime.now():%Y%m%d-%H%M%S}"
    for suffix in ["", *(f"-{n}" for n in range(2, 100))]:
        try:
            (base / (stamp + suffix)).mkdir(parents=True)
        except FileExistsError:
            continue
        return Places(base / (stamp + suffix))
    raise DemoFailed(f"{base} has a hundred demos of this very second")


@dataclass(frozen=True)
class Prefect:
    """The Prefect server of one demo. Asked over plain HTTP: settings of the user's Prefect stay out of it."""

    url: str
    env: dict[str, str]
    """The environment of what is to use this server, and of the server."""
    process: up.Child
    started: float
    """By `time.monotonic`."""

    def wait(self) -> None:
        """Wait until it answers. Raises DemoFailed if it does not within SERVER_WITHIN of its start."""
        left = max(1.0, self.started + SERVER_WITHIN - time.monotonic())
        if not up.wait_healthy(f"{self.url}/api/health", self.process, up.Stop(), left):
            raise DemoFailed("\n".join(up.trouble(self.process, time.monotonic() - self.started)))

    def make_limits(self) -> dict[str, int]:
        """Make the limits that the flow demands; they, by tag."""
        made = limits([f"device:{DEVICE}"])
        for tag, slots in made.items():
            self._ask("/concurrency_limits/", {"tag": tag, "concurrency_limit": slots})
        return made

    def last_run(self, tasks: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The latest flow run and its task runs, which must be so many and come to an end. Raises DemoFailed."""
        flows = self._ask("/flow_runs/filter", {"sort": "START_TIME_DESC", "limit": 1})
        if not flows:
            raise DemoFailed("Prefect knows of no flow run")
        mine = {"flow_runs": {"id": {"any_": [flows[0]["id"]]}}, "sort": "EXPECTED_START_TIME_ASC"}
        deadline = time.monotonic() + ANSWER_WITHIN
        while True:
            runs = self._ask("/task_runs/filter", mine)
            ended = [r for r in runs if r["state"] and r["state"]["type"] in ("COMPLETED", "FAILED", "CRASHED")]
            if len(runs) == len(ended) == tasks:
                return flows[0], runs
            if time.monotonic() > deadline:
                raise DemoFailed(f"Prefect knows of {len(runs)} tasks, {len(ended)} of them ended; {tasks} expected")
            time.sleep(0.2)

    def _ask(self, path: str, body: dict[str, Any]) -> Any:
        data, head = json.dumps(body).encode(), {"Content-Type": "application/json"}
        deadline = time.monotonic() + ANSWER_WITHIN
        while True:
            try:
                with up.DIRECT.open(urllib.request.Request(f"{self.url}/api{path}", data, head), timeout=30) as answer:
                    return json.load(answer)
            except (OSError, ValueError) as error:
                # 503: its database is locked, as it often is for a moment after the start
                if getattr(error, "code", None) != 503 or time.monotonic() > deadline:
                    raise DemoFailed(f"the Prefect server gave no answer to {path}: {error}") from error
                time.sleep(0.2)


@contextmanager
def prefect_server(at: Places) -> Iterator[Prefect]:
    """Start a Prefect server for this demo alone, not waiting until it answers. It ends with the block, whatever ends
    that: SIGTERM and SIGHUP leave it as an exception, as Ctrl-C does; while the server is being ended they are ignored."""
    heeded = [s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN]
    before = {s: signal.signal(s, leave) for s in heeded}
    children: list[up.Child] = []
    try:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        url = f"http://127.0.0.1:{port}"
        env = _environment(at, port, url)
        at.prefect.mkdir()
        children.append(up.start_server("127.0.0.1", port, env, at.prefect / "server.log", at.root))
        yield Prefect(url, env, children[0], time.monotonic())
    finally:
        for number in heeded:
            signal.signal(number, signal.SIG_IGN)
        up.end(children)
        for number, handler in before.items():
            signal.signal(number, handler)


left: list[int] = []
"""The signals that asked us to leave."""


def leave(number: int, frame: object) -> None:
    """The handler of such a signal: out of whatever is under way."""
    left.append(number)
    raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)


def _environment(at: Places, port: int, url: str) -> dict[str, str]:
    """What `onblock up` gives its children, without what the user set for Prefect, for a proxy or for the ledger."""
    given = {
        key: value
        for key, value in os.environ.items()
        if key != "ONBLOCK_LEDGER_URL" and not key.upper().startswith("PREFECT_") and not key.lower().endswith("_proxy")
    }
    own = {
        "ONBLOCK_HOME": str(at.home),
        "PREFECT_HOME": str(at.prefect),
        "PREFECT_PROFILES_PATH": str(at.prefect / "profiles.toml"),
        "PREFECT_LOGGING_LEVEL": "WARNING",
        "PREFECT_API_BLOCKS_REGISTER_ON_START": "false",  # 3 s for Prefect's own blocks, and the demo uses none
        "PYTHONUTF8": "1",
    }
    return up.environment(given | own, "127.0.0.1", port, url)

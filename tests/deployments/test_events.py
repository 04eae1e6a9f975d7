"""Events of transfers on a real server: all of them, with their rows, and not too many."""

from __future__ import annotations

import contextvars
import itertools
import random
import threading
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient

from blocks.storage import LocalStorage
from flows.ledger import Ledger, State
from flows.ledger.wishes import Wish
from flows.transfer.flow import transfer
from flows.transfer.job import TransferJob
from flows.transfer.report import DELIVERED
from tests.deployments.conftest import PATIENCE_S, until


def events(api: str, job: str) -> list[dict[str, Any]]:
    """Those of a job, in the order they occurred."""
    where = {"filter": {
        "event": {"prefix": ["onblock.transfer."]}, "resource": {"id": [f"onblock.job.{job}"]},
        "occurred": {"since": "2020-01-01T00:00:00Z", "until": "2100-01-01T00:00:00Z"}, "order": "ASC",
    }, "limit": 50}  # fmt: skip
    return httpx.post(f"{api}/events/filter", json=where, timeout=30).raise_for_status().json()["events"]


def told(api: str, job: str, last: str) -> list[dict[str, Any]]:
    """Once the last of them is there."""

    def look() -> list[dict[str, Any]]:
        found = events(api, job)
        return found if any(e["event"] == f"onblock.transfer.{last}" for e in found) else []

    return until(f"{last} of {job}", look, 30)


def job_of(tmp_path: Path, name: str, client: SyncPrefectClient, **keys: Any) -> TransferJob:
    (tmp_path / "card").mkdir()
    (tmp_path / "archive").mkdir()
    for tag, limit in (("onblock", 4), ("cpu", 2)):
        client.create_concurrency_limit(tag=tag, concurrency_limit=limit)
    return TransferJob(
        name=name, source=LocalStorage(root=str(tmp_path / "card")),
        destination=LocalStorage(root=str(tmp_path / "archive")), **{"settle": {"quiet": "0s"}, **keys},
    )  # fmt: skip


def test_all_phases_tell_how_far_they_are(api: str, client: SyncPrefectClient, tmp_path: Path) -> None:
    job = job_of(tmp_path, "told", client, bandwidth={"up": "12 MiB"}, steps=[{"kind": "compress", "format": "gzip"}])
    (tmp_path / "card" / "clip.mp4").write_bytes(random.Random(1).randbytes(40 << 20))
    assert transfer(job, flight="F1", return_state=True).is_completed()
    found = told(api, "told", "deliver.completed")
    names = [e["event"].removeprefix("onblock.transfer.") for e in found]
    for phase in ("fetch", "process", "deliver"):
        assert names.index(f"{phase}.started") < names.index(f"{phase}.completed")
    assert names[0] == "queued" and "deliver.progress" in names
    brought = [e["event"] for e in found if e["resource"].get(DELIVERED) == "yes"]
    assert brought == ["onblock.transfer.deliver.completed"]
    for event in found:
        payload = event["payload"]
        assert (payload["job"], payload["flight"]) == ("told", "F1")
        if payload.get("rows"):
            assert {"id", "path", "size", "mtime_ns"} <= set(payload["rows"][0])
    for phase in ("fetch", "process", "deliver"):
        at = [datetime.fromisoformat(e["occurred"]) for e in found if e["event"].endswith(f"{phase}.progress")]
        assert all((b - a).total_seconds() >= 0.99 for a, b in itertools.pairwise(at))


def test_a_file_that_is_cancelled_or_paused_is_told(api: str, client: SyncPrefectClient, tmp_path: Path) -> None:
    job = job_of(tmp_path, "aside", client, bandwidth={"up": "1 MiB"}, shipping={"large": "1 MiB", "at_once": 2})
    for name in ("a", "b"):
        (tmp_path / "card" / name).write_bytes(random.Random(name).randbytes(64 << 20))  # a minute, if left alone
    done: list[Any] = []
    ours = contextvars.copy_context()  # with the address of the server, else Prefect starts one of its own
    thread = threading.Thread(target=ours.run, args=(lambda: done.append(transfer(job, return_state=True)),))
    thread.start()
    with Ledger.open() as ledger:
        choose: Callable[[], Any] = lambda: ledger.choose(job="aside", states=[State.DELIVERING])  # noqa: E731
        first, second = until("two files on their way", lambda: len(c := choose()) == 2 and c)  # type: ignore
        ledger.grant(Wish.CANCEL, [first], who="me")
        ledger.grant(Wish.PAUSE, [second], who="me")
        thread.join(PATIENCE_S)
        for what, row in (("cancelled", first), ("paused", second)):
            (event,) = [e for e in told(api, "aside", what) if e["event"].endswith(what)]
            assert event["payload"]["rows"] == [{"id": row.id}]

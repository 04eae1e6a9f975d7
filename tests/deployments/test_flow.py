"""The flow `transfer` on a real server: tasks, tags, retries, caching, artifacts and events."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from prefect.client.orchestration import SyncPrefectClient

from blocks.errors import Kind, NetworkError
from blocks.storage import LocalStorage
from blocks.storage.local import LocalSession, LocalUpload
from flows.ledger import Ledger, State
from flows.transfer.flow import transfer
from flows.transfer.job import TransferJob
from tests.deployments.conftest import until


class Card:
    """A card with a large file and some small ones, and a job for it."""

    def __init__(self, folder: Path, name: str):
        self.name, self.card, self.archive = name, folder / "card", folder / "archive"
        for path in (self.card, self.archive):
            path.mkdir()
        for n in range(5):
            self.put(f"small{n}", os.urandom(50 + n))
        self.put("large.mp4", os.urandom(33 << 20))

    def put(self, path: str, content: bytes) -> None:
        (self.card / path).write_bytes(content)
        os.utime(self.card / path, (1_700_000_000, 1_700_000_000))

    def run(self, **keys: Any) -> Any:
        job: dict[str, Any] = {
            "name": self.name, "source": LocalStorage(root=str(self.card)), "device": "cam-flow",
            "destinations": [LocalStorage(root=str(self.archive))],
        }  # fmt: skip
        return transfer(TransferJob(**(job | keys)), return_state=True)

    def delivered(self) -> bool:
        return all((self.archive / p.name).read_bytes() == p.read_bytes() for p in self.card.iterdir())


@pytest.fixture
def card(api: str, client: SyncPrefectClient, tmp_path: Path, request: pytest.FixtureRequest) -> Card:
    for tag, limit in (("onblock", 4), ("device:cam-flow", 2)):
        client.create_concurrency_limit(tag=tag, concurrency_limit=limit)
    return Card(tmp_path, request.node.name.replace("_", "-")[:80])


def query(api: str, path: str, body: dict[str, Any]) -> Any:
    return httpx.post(f"{api}{path}", json=body, timeout=30).raise_for_status().json()


def task_runs(api: str, state: Any, count: int) -> list[dict[str, Any]]:
    """The task runs of a flow run, once the server has recorded that many ends."""
    where = {"flow_runs": {"id": {"any_": [str(state.state_details.flow_run_id)]}}}

    def ended() -> list[dict[str, Any]]:
        runs = query(api, "/task_runs/filter", where)
        finished = [r for r in runs if r["state_type"] in ("COMPLETED", "FAILED")]
        return finished if len(finished) >= count else []

    return until(f"{count} task runs that ended", ended, 60)


def test_shipments_are_tasks_with_the_tags_of_their_limits(api: str, client: SyncPrefectClient, card: Card) -> None:
    state = card.run()
    assert state.is_completed(), state.message
    assert state.result()["delivered"] == 6
    assert card.delivered()
    runs = task_runs(api, state, 2)
    assert sorted(r["name"] for r in runs)[1] == "large.mp4"
    assert {frozenset(r["tags"]) for r in runs} == {frozenset({"onblock", "device:cam-flow"})}
    again = card.run()
    assert (again.name, again.message) == ("Completed", "0 delivered, 6 duplicates")

    archive = LocalStorage(root=str(card.archive / "again"), create_root=True)
    archive.save("nas-direct", overwrite=True, _sync=True)  # pyright: ignore[reportCallIssue]
    refused = card.run(destinations=[archive])
    assert "no concurrency limit for the tag 'destination:nas-direct'" in (refused.message or "")
    client.create_concurrency_limit(tag="destination:nas-direct", concurrency_limit=4)
    state = card.run(destinations=[archive])
    assert state.is_completed(), state.message
    (tags,) = {frozenset(r["tags"]) for r in task_runs(api, state, 2)}
    assert tags == {"onblock", "device:cam-flow", "destination:nas-direct"}


def test_two_phases_are_tasks_with_limits_of_their_own(api: str, client: SyncPrefectClient, card: Card) -> None:
    """The device is free while its files are processed, and the processor while they are delivered."""
    archive = LocalStorage(root=str(card.archive))
    archive.save("nas-flow", overwrite=True, _sync=True)  # pyright: ignore[reportCallIssue]
    steps = [{"kind": "compress", "format": "gzip"}]
    client.create_concurrency_limit(tag="cpu", concurrency_limit=2)
    refused = card.run(steps=steps, destinations=[archive])
    assert "no concurrency limit for the tag 'destination:nas-flow'" in (refused.message or "")
    client.create_concurrency_limit(tag="destination:nas-flow", concurrency_limit=2)
    state = card.run(steps=steps, destinations=[archive])
    assert state.is_completed(), state.message
    assert (state.result()["scanned"], state.result()["delivered"]) == (6, 6)
    assert sorted(p.name for p in card.archive.iterdir() if p.suffix == ".gz") == sorted(
        f"{p.name}.gz" for p in card.card.iterdir()
    )
    runs = task_runs(api, state, 6)
    tags = {r["name"]: set(r["tags"]) for r in runs}
    assert tags["fetch large.mp4"] == {"onblock", "device:cam-flow"}
    assert tags["process large.mp4"] == {"cpu"}
    assert {"onblock", "destination:nas-flow"} in tags.values()
    assert len(runs) == 6  # a large one and the small ones together, three phases each
    again = card.run(steps=steps, destinations=[archive])
    assert (again.name, again.message) == ("Completed", "0 delivered, 6 duplicates")


def test_artifacts_show_progress_and_summary(api: str, card: Card) -> None:
    card.run()
    key = card.name
    (progress,) = query(api, "/artifacts/latest/filter", {"artifacts": {"key": {"any_": [f"transfer-{key}"]}}})
    assert (progress["type"], float(progress["data"])) == ("progress", 100.0)
    (table,) = query(api, "/artifacts/latest/filter", {"artifacts": {"key": {"any_": [f"summary-{key}"]}}})
    assert '{"what": "delivered", "value": "6"}' in table["data"]


def test_events_tell_of_each_shipment_once(api: str, card: Card) -> None:
    card.run()

    def events() -> list[dict[str, Any]]:
        where = {
            "filter": {
                "event": {"prefix": ["onblock.transfer."]}, "resource": {"id": [f"onblock.job.{card.name}"]},
                "occurred": {"since": "2020-01-01T00:00:00Z", "until": "2100-01-01T00:00:00Z"},
            },
            "limit": 50,
        }  # fmt: skip
        found = query(api, "/events/filter", where)["events"]
        return found if len(found) >= 4 else []

    found = until("four events", events, 30)
    assert sorted(e["event"] for e in found) == [
        f"onblock.transfer.{what}" for what in ("completed", "completed", "queued", "started")
    ]
    (large,) = [e for e in found if e["event"].endswith("completed") and e["payload"]["files"] == 1]
    assert (large["payload"]["what"], large["payload"]["size"], large["payload"]["delivered"]) == (
        "large.mp4",
        33 << 20,
        1,
    )
    assert large["payload"]["device"] == "cam-flow"


def test_what_does_not_pass_by_waiting_is_not_tried_again(api: str, card: Card) -> None:
    (card.archive / "small1").mkdir()
    state = card.run(on_conflict="fail")
    assert (state.is_failed(), state.message) == (True, "5 delivered, 1 failed")

    def failed_once() -> dict[str, Any] | None:  # the server hears of a run's states one by one
        small = next(r for r in task_runs(api, state, 2) if r["name"] != "large.mp4")
        return small if (small["state_type"], small["run_count"]) == ("FAILED", 1) else None

    small = until("the small files, tried once", failed_once)
    assert "1 failed and 0 deferred (CONFLICT)" in small["state"]["message"]


class Flaky(LocalStorage):
    """A real folder behind a line that breaks: the first uploads of each recording fail."""

    _block_type_slug = "flaky-storage"
    failures: int = 1

    def open(self) -> LocalSession:
        return FlakySession(self.root, self.failures)


_broken: dict[str, int] = {}


class FlakySession(LocalSession):
    def __init__(self, root: str, failures: int):
        super().__init__(root)
        self.failures = failures

    def upload(self, path: str, size: int, **options: Any) -> LocalUpload:
        full = f"{self.root}/{path}"
        _broken[full] = _broken.get(full, 0) + 1
        if _broken[full] <= self.failures and path != "checksums.sha256":
            raise NetworkError("the line broke", path=path)
        return super().upload(path, size, **options)


def test_what_passes_by_waiting_is_tried_again_in_the_task(api: str, card: Card) -> None:
    for path in card.card.iterdir():
        if path.name != "small1":
            path.unlink()
    state = card.run(destinations=[Flaky(root=str(card.archive))])
    assert (state.is_completed(), state.message) == (True, "1 delivered")
    (run,) = task_runs(api, state, 1)
    assert run["run_count"] == 2
    assert card.delivered()


def test_what_does_not_come_back_is_deferred(api: str, card: Card, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in card.card.iterdir():
        if path.name != "small1":
            path.unlink()
    state = card.run(destinations=[Flaky(root=str(card.archive), failures=99)])
    assert (state.is_failed(), state.message) == (True, "0 delivered, 1 deferred")
    with Ledger.open() as ledger:
        (row,) = ledger.files()
    assert (row["state"], row["kind"], row["tries"]) == (State.QUEUED, Kind.NETWORK, 4)
    assert row["next_attempt_at"] > row["updated_at"]
    assert card.run(destinations=[Flaky(root=str(card.archive), failures=99)]).message == "0 delivered, 1 deferred"


def test_a_repeated_shipment_is_cached_and_the_ledger_has_the_last_word(api: str, card: Card) -> None:
    assert card.run().is_completed()
    (card.archive / "small1").unlink()
    with Ledger.open() as ledger, ledger.engine.begin() as connection:  # a ledger restored from a backup
        connection.execute(sa.text("UPDATE files SET state = 'QUEUED', attempt = 0, sha256 = NULL"))
    state = card.run()
    names = [r["state_name"] for r in task_runs(api, state, 4)]
    assert sorted(names) == ["Cached", "Cached", "Completed", "Completed"]
    assert (state.is_completed(), state.message) == (True, "1 delivered, 5 adopted")
    assert card.delivered()


def test_a_limit_that_is_missing_is_told(card: Card) -> None:
    state = card.run(device="cam-nobody-knows")
    assert state.is_failed()
    assert "no concurrency limit for the tag 'device:cam-nobody-knows'" in state.message
    assert not list(card.archive.iterdir())


def test_onblock_run_is_a_flow_run_where_there_is_a_server(
    api: str, card: Card, client: SyncPrefectClient, write_job: Callable[..., Path]
) -> None:
    import subprocess
    import sys

    job = write_job(card.name, source={"type": "local-storage", "root": str(card.card)}, device="cam-flow")
    done = subprocess.run(
        [sys.executable, "-m", "deployments.cli", "run", str(job), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert '"delivered": 6' in done.stdout
    assert "Beginning flow run" in done.stderr

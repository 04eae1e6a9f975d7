"""What Prefect writes down of each shipment: a worker removes what is old, and nothing else."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.client.orchestration import SyncPrefectClient

from deployments.bootstrap import bootstrap
from deployments.records import KEPT, PREFIX, sweep
from deployments.server import POOL
from tests.deployments.conftest import until
from tests.deployments.test_durable import ended, started


def written(folder: Path, name: str, days: float) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (file := folder / name).write_text("{}")
    os.utime(file, (time.time() - days * 86_400,) * 2)
    return file


def test_what_is_removed(tmp_path: Path) -> None:
    folder, limit = tmp_path / "storage", time.time() - KEPT.total_seconds()
    assert sweep(folder, limit) == 0, "there is none before the first shipment"
    written(folder, f"{PREFIX}old", 7.1)
    kept = {written(folder, f"{PREFIX}young", 6.9), written(folder, "of somebody else's", 400)}
    assert sweep(folder, limit) == 1
    assert set(folder.iterdir()) == kept


@pytest.mark.timeout(600)
def test_a_worker_removes_them(
    client: SyncPrefectClient, write_job: Callable[..., Path], worker: Callable[..., Path], tmp_path: Path,
    server: tuple[str, Path],
) -> None:  # fmt: skip
    """Those of real shipments are named so; old ones are gone when a worker has begun."""
    folder = server[1] / "storage"
    old, other = written(folder, f"{PREFIX}old", 8), written(folder, "of somebody else's", 8)
    (tmp_path / "card").mkdir()
    (tmp_path / "card" / "1.jpg").write_bytes(b"1")
    bootstrap([write_job("records", settle={"quiet": "0s"})])
    before = set(folder.iterdir())
    log = worker(POOL)
    until("an old record that is gone", lambda: not old.exists(), told=log.read_text)
    assert ended(client, started(client, "records")).state.name == "Completed"  # type: ignore[union-attr]
    (made,) = set(folder.iterdir()) - before
    assert made.name.startswith(PREFIX) and other.exists()

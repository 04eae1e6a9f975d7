"""Simulated cameras with files on them, and jobs that bring these home."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from blocks.devices import Device, HttpCamera, OscCamera
from blocks.storage import LocalStorage
from deployments.simulators.camera import Camera
from deployments.simulators.osc import OscSimulator
from flows.transfer import senders
from flows.transfer.job import TransferJob
from flows.transfer.story import run_here
from tests.contract.data import payload
from tests.servers.gopro import GoProSimulator

MIB = 1 << 20
HOUR_AGO = 1_700_000_000


def put(folder: Path, path: str, data: bytes, mtime: float = HOUR_AGO) -> bytes:
    """A file, long settled."""
    full = folder / path
    full.parent.mkdir(parents=True, exist_ok=True)
    full.write_bytes(data)
    os.utime(full, (mtime, mtime))
    return data


class Flight:
    """A device, its card, an archive, and the job between them."""

    def __init__(self, device: Device, card: Path, archive: Path):
        self.device, self.card, self.archive = device, card, archive
        archive.mkdir(exist_ok=True)

    def put(self, path: str, size: int, seed: int = 0, mtime: float = HOUR_AGO) -> bytes:
        return put(self.card, path, payload(size, seed), mtime)

    def job(self, **keys: Any) -> TransferJob:
        """With a device that has not been used yet."""
        given = {"destination": LocalStorage(root=str(self.archive)), **keys}
        return TransferJob(name="flight", source=self.device.model_copy(deep=True), **given)  # type: ignore[arg-type]

    def run(self, **keys: Any) -> dict[str, Any]:
        return run_here(self.job(**keys))

    def arrived(self) -> dict[str, bytes]:
        return {
            str(p.relative_to(self.archive)): p.read_bytes()
            for p in self.archive.rglob("*")
            if p.is_file() and p.name != "checksums.sha256" and not p.name.startswith(".onblock")
        }


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is tried again is tried at once."""
    monkeypatch.setattr(senders, "TASK_RETRY_DELAYS_S", (0.0, 0.0, 0.0))
    monkeypatch.setattr("flows.transfer.retry.delay_s", lambda tries: 0.0)


@pytest.fixture
def osc(tmp_path: Path) -> Iterator[OscSimulator]:
    (tmp_path / "card").mkdir()
    with OscSimulator(tmp_path / "card") as camera:
        yield camera


@pytest.fixture
def gopro(tmp_path: Path) -> Iterator[GoProSimulator]:
    (tmp_path / "card").mkdir()
    with GoProSimulator(tmp_path / "card") as camera:
        yield camera


@pytest.fixture(params=["osc", "gopro"])
def camera(request: pytest.FixtureRequest) -> Camera:
    """Both in turn."""
    return request.getfixturevalue(request.param)


def device_of(camera: Camera, **keys: Any) -> Device:
    """The block for a simulated camera."""
    kind = OscCamera if isinstance(camera, OscSimulator) else HttpCamera
    return kind(**{"device": "camera", "url": camera.url, "timeout_s": 5, **keys})


@pytest.fixture
def flight(camera: Camera, tmp_path: Path) -> Flight:
    return Flight(device_of(camera), tmp_path / "card", tmp_path / "archive")

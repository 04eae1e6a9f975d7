"""The devices under test: simulated cameras that serve a folder, and a file system that is really mounted."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blocks.devices import HttpCamera, MountedCard, OscCamera
from deployments.simulators.osc import OscSimulator
from tests.contract.places import READ_ONLY, FolderPlace, Place, place
from tests.servers.gopro import GoProSimulator

READ_ONLY |= {"mounted-card", "osc-camera", "http-camera"}


@contextmanager
def mounted(point: Path, size: str = "300m") -> Iterator[Path]:
    """A tmpfs at `point`: a card as far as the kernel is concerned."""
    if os.geteuid():
        pytest.skip("only root may mount")
    point.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "card", str(point)], check=True)
    try:
        yield point
    finally:
        subprocess.run(["umount", "-l", str(point)], stderr=subprocess.DEVNULL)  # a test may have taken it out


@place("mounted-card")
def mounted_card(request: pytest.FixtureRequest) -> Iterator[Place]:
    with mounted(request.getfixturevalue("tmp_path") / "card") as point:
        folder = point / "DCIM"
        folder.mkdir()
        yield FolderPlace(MountedCard(device="card", mount=str(point)), folder)


@place("osc-camera")
def osc_camera(request: pytest.FixtureRequest) -> Iterator[Place]:
    folder = request.getfixturevalue("tmp_path") / "root"
    folder.mkdir()
    with OscSimulator(folder) as camera:
        yield FolderPlace(OscCamera(device="camera", url=camera.url), folder)


@place("http-camera")
def http_camera(request: pytest.FixtureRequest) -> Iterator[Place]:
    folder = request.getfixturevalue("tmp_path") / "root"
    folder.mkdir()
    with GoProSimulator(folder) as camera:
        yield FolderPlace(HttpCamera(device="camera", url=camera.url), folder)

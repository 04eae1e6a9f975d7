"""A card, an archive, and a job between them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from blocks.storage import LocalStorage
from flows.transfer.job import TransferJob
from flows.transfer.story import run_here


class Bench:
    """A card and an archive in a folder of their own, and what can be done with them."""

    def __init__(self, folder: Path):
        self.folder, self.card, self.archive = folder, folder / "card", folder / "archive"
        self.card.mkdir()
        self.archive.mkdir()

    def put(self, path: str | bytes, content: bytes = b"data", mtime: float = 1_700_000_000.0) -> Path:
        """A file on the card, long settled."""
        full = Path(os.fsdecode(os.path.join(os.fsencode(self.card), os.fsencode(path))))
        full.parent.mkdir(parents=True, exist_ok=True)
        full.write_bytes(content)
        os.utime(full, (mtime, mtime))
        return full

    def job(self, **keys: Any) -> TransferJob:
        """The job from card to archive."""
        defaults: dict[str, Any] = {
            "name": "job", "source": LocalStorage(root=str(self.card)),
            "destinations": [LocalStorage(root=str(self.archive))],
        }  # fmt: skip
        return TransferJob(**(defaults | keys))

    def run(self, **keys: Any) -> dict[str, Any]:
        """Run it in this process; `flight` and `device` go to the run."""
        given = {k: keys.pop(k) for k in ("flight", "device") if k in keys}
        return run_here(self.job(**keys), **given)

    def yaml(self, **keys: Any) -> Path:
        """The job as a JOB.yaml."""
        data: dict[str, Any] = {
            "name": "job", "source": {"type": "local-storage", "root": str(self.card)},
            "destination": {"type": "local-storage", "root": str(self.archive)},
        }  # fmt: skip
        path = self.folder / "JOB.yaml"
        path.write_text(yaml.safe_dump(data | keys))
        return path

    def files(self, folder: Path | None = None) -> dict[str, bytes]:
        """All files of the archive but the manifest, by path."""
        root = folder or self.archive
        return {
            str(p.relative_to(root)): p.read_bytes()
            for p in sorted(root.rglob("*")) if p.is_file() and p.name != "checksums.sha256"
        }  # fmt: skip

    def check_manifest(self, folder: Path | None = None) -> None:
        """The manifest names every file beside it, and `sha256sum -c` agrees."""
        folder = folder or self.archive
        done = subprocess.run(["sha256sum", "-c", "--strict", "checksums.sha256"], cwd=folder, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(b": OK") == len(self.files(folder))


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def onblock() -> Cli:
    """The command line, as a process."""

    def call(*args: object, prefix: list[str] | None = None, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*(prefix or []), sys.executable, "-m", "deployments.cli", *map(str, args)], capture_output=True, text=True,
            env={**os.environ, **env}, timeout=120, check=False,
        )  # fmt: skip

    return call


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def summary_of(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The one JSON object of `--json`."""
    return json.loads(done.stdout)

"""Workspaces of FileFlow, written as FileFlow 0.5 writes them."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

SCHEMA = """
CREATE TABLE transfers (
    id INTEGER PRIMARY KEY AUTOINCREMENT, job_id TEXT NOT NULL, source_type TEXT NOT NULL, source_path TEXT NOT NULL,
    destination_type TEXT NOT NULL, destination_path TEXT NOT NULL, file_name TEXT NOT NULL, file_size INTEGER NOT NULL,
    checksum TEXT, execution_time TIMESTAMP DEFAULT CURRENT_TIMESTAMP, transfer_status TEXT NOT NULL,
    verification_status TEXT, failure_reason TEXT
);
CREATE INDEX idx_transfers_fingerprint ON transfers(job_id, file_name, file_size, checksum);
"""
"""As FileFlow 0.5.2 makes it."""


def a_job(**keys: Any) -> dict[str, Any]:
    """A job of FileFlow; keywords are other keys."""
    return {
        "job_id": "daily", "schedule": "0 */6 * * *", "source": {"type": "local", "path": "/data/incoming"},
        "destination": {"type": "local", "path": "/archive"}, **keys,
    }  # fmt: skip


class Workspace:
    """A folder as `fileflow init` makes it."""

    def __init__(self, folder: Path):
        self.folder, self.jobs, self.db = folder, folder / "configs" / "jobs.yaml", folder / "data" / "tracking.db"
        self.jobs.parent.mkdir(parents=True)
        self.db.parent.mkdir()

    def write(self, *jobs: dict[str, Any]) -> Path:
        """Its jobs.yaml."""
        self.jobs.write_text(yaml.safe_dump({"jobs": list(jobs)}, allow_unicode=True), "utf-8")
        return self.jobs

    def record(self, *rows: dict[str, Any]) -> Path:
        """Its tracking.db, with these transfers."""
        default = {
            "job_id": "daily", "source_type": "local", "source_path": "/x", "destination_type": "local",
            "destination_path": "/archive/x", "file_size": 1, "execution_time": "2026-01-01 00:00:00",
            "transfer_status": "success", "verification_status": "success",
        }  # fmt: skip
        with sqlite3.connect(self.db) as db:
            if not db.execute("PRAGMA table_info(transfers)").fetchall():
                db.executescript(SCHEMA)
            for row in rows:
                given = default | row
                marks = ", ".join("?" * len(given))
                db.execute(f"INSERT INTO transfers ({', '.join(given)}) VALUES ({marks})", list(given.values()))
        db.close()
        return self.db


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path / "workspace")


Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def onblock(onblock_home: Path) -> Cli:
    """`onblock` as a person runs it; keywords are variables of its environment."""

    def run(*args: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "deployments.cli", *map(str, args)], capture_output=True, text=True,
            env=os.environ | variables, stdin=subprocess.DEVNULL, timeout=180,
        )  # fmt: skip

    return run


def report(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """What `--json` printed, and nothing else."""
    return json.loads(done.stdout)

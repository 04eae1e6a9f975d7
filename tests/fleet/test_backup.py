"""A ledger on SQLite that is brought back from a backup is older than the archive: what lies there is taken as delivered."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

from flows.ledger import Ledger
from tests.transfer.conftest import Bench, bench

__all__ = ["bench"]


def test_a_ledger_from_yesterday(bench: Bench, tmp_path: Path) -> None:
    ledger, backup = Path(os.environ["ONBLOCK_HOME"], "ledger.db"), tmp_path / "backup.db"
    for n in range(4):
        bench.put(f"{n}.bin", os.urandom(100))
    bench.run()
    with sqlite3.connect(ledger) as source, sqlite3.connect(backup) as target:
        source.backup(target)  # what `sqlite3 ledger.db ".backup backup.db"` does
    for n in range(4, 8):
        bench.put(f"{n}.bin", os.urandom(100))
    assert bench.run()["delivered"] == 4
    before = {p.name: p.stat().st_ino for p in bench.archive.glob("*.bin")}

    for file in ledger.parent.glob("ledger.db*"):
        file.unlink()
    backup.rename(ledger)

    again = bench.run()
    assert (again["delivered"], again["adopted"], again["duplicates"], again["failed"]) == (0, 4, 4, 0)
    assert {p.name: p.stat().st_ino for p in bench.archive.glob("*.bin")} == before
    bench.check_manifest()
    with Ledger.open() as restored:
        assert [row["state"] for row in restored.files()] == ["VERIFIED"] * 8

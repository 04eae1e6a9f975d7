"""A card that was delivered some time ago, and what a cleanup makes of it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from flows.ledger import Ledger
from flows.ledger.models import File
from flows.transfer.story import run_here
from flows.upkeep.clean import clean
from tests.transfer.conftest import Bench, Cli, onblock

__all__ = ["Cli", "Yard", "onblock"]

HOUR = 3_600_000


class Yard(Bench):
    """A card, an archive, and a job that cleans up after itself."""

    def __init__(self, folder: Path):
        super().__init__(folder)
        self.keys: dict[str, Any] = {"cleanup": {"action": "delete"}}

    def job(self, **keys: Any) -> Any:
        return super().job(**(self.keys | keys))

    def deliver(self, **keys: Any) -> dict[str, Any]:
        """Run the job."""
        return run_here(self.job(**keys))

    def later(self, hours: float = 24) -> None:
        """So much time passes, as far as the ledger is concerned."""
        ms = int(hours * HOUR)
        with Ledger.open() as ledger, ledger.engine.begin() as c:
            c.execute(update(File).values(done_at=File.done_at - ms, proven_at=File.proven_at - ms))

    def clean(self, **keys: Any) -> dict[str, Any]:
        """Run a cleanup."""
        dry = keys.pop("dry", False)
        return clean(self.job(**keys), dry=dry)

    def proven(self, **keys: Any) -> None:
        """Deliver, and let everything pass that a cleanup waits for: the next one deletes."""
        self.deliver(**keys)
        for _ in range(2):
            self.later()
            summary = self.clean(**keys | {"cleanup": {**self.job(**keys).cleanup.model_dump(), "min_age": "9999 d"}})
            assert summary["cleaned"] == 0

    def rows(self, *columns: str) -> list[Any]:
        """Columns of all rows, by path and destination."""
        with Ledger.open() as ledger:
            found = sorted(ledger.files(), key=lambda r: (r["path"], r["route_id"]))
        return [tuple(r[c] for c in columns) if len(columns) > 1 else r[columns[0]] for r in found]

    def states(self) -> list[str]:
        return self.rows("state")

    def on_card(self) -> set[str]:
        """Every file of the card, hidden ones too."""
        return {str(p.relative_to(self.card)) for p in self.card.rglob("*") if not p.is_dir()}


@pytest.fixture
def yard(tmp_path: Path) -> Yard:
    return Yard(tmp_path)


Act = Callable[[], object]

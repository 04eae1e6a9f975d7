"""What each person has put aside: files that are over, and single ones, are not on his lists any more until something
happens to them. A mark in a file of the console, and nothing else: no row of the ledger and no file is touched by it.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from blocks.errors import ConfigError
from blocks.storage.local import os_failure
from flows.ledger.listing import Aside, Listing
from flows.ledger.states import ACTIVE, State
from flows.ledger.store import now_ms

log = logging.getLogger("onblock.console")

MOST = 5000
"""Files that one person may dismiss one by one: the oldest come back."""


class Marks:
    """They, in one file. Shared by threads."""

    def __init__(self, file: Path, listing: Listing):
        self._file, self._listing = file, listing
        self._lock = threading.Lock()
        self._all = _read(file)

    def of(self, who: str) -> Aside:
        """What this person has put aside."""
        return self._all.get(who, Aside())

    def clear(self, who: str, at_ms: int) -> None:
        """What was over at that moment, which he has seen. Raises OnblockError."""
        with self._lock:
            self._write(who, self.of(who)._replace(over_at=min(at_ms, now_ms())))

    def dismiss(self, who: str, ids: Sequence[int]) -> int:
        """These files; how many. Raises ConfigError for one that a run works on, OnblockError."""
        with self._lock:
            old = self.of(who)
            rows = {r["id"]: r for r in self._listing.rows([*old.ids, *ids])}
            for number in ids:
                if number not in rows:
                    raise ConfigError(f"there is no transfer {number}", remedy="")
                if State(rows[number]["state"]) in ACTIVE:
                    raise ConfigError(
                        f"transfer {number} is being delivered: it cannot be dismissed", remedy="cancel it"
                    )
            still = [i for i in old.ids if i in rows and i not in ids and rows[i]["updated_at"] <= old.ids_at]
            kept = (*still, *dict.fromkeys(ids))[-MOST:]
            self._write(who, old._replace(ids=kept, ids_at=max([now_ms(), *(rows[i]["updated_at"] for i in ids)])))
        return len(set(ids))

    def restore(self, who: str) -> None:
        """All of it is on his lists again. Raises OnblockError."""
        with self._lock:
            self._write(who, Aside())

    def _write(self, who: str, aside: Aside) -> None:
        new = {**self._all, who: aside}
        part = self._file.with_name(f".{self._file.name}.part")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with part.open("w") as out:
                json.dump({name: one._asdict() for name, one in new.items() if one != Aside()}, out)
                out.flush()
                os.fsync(out.fileno())
            part.rename(self._file)
        except OSError as error:
            raise os_failure(error, "cannot write down what is put aside", str(self._file)) from error
        self._all = new


def _read(file: Path) -> dict[str, Aside]:
    """What the file says; nothing where there is none, or it cannot be read: then all is on the lists."""
    try:
        told: Any = json.loads(file.read_bytes())
        return {
            str(who): Aside(int(one["over_at"]), tuple(map(int, one["ids"])), int(one["ids_at"]))
            for who, one in told.items()
        }
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        log.warning("%s cannot be read (%s): nothing is put aside", file, error)
        return {}

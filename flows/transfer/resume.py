"""Going on in the middle of a large file: the journal that a row keeps, and where to go on.

A pure room: values in, values out. The bytes are moved in `move.py`; what a storage keeps of an upload is its own matter.

The SHA-256 of record covers the whole file, so whoever goes on in the middle must hash the beginning again: from the
source where that is near, else from what the destination holds, held against a checkpoint taken as it was sent.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

CHECKPOINT = 16 << 20
"""Bytes between checkpoints, and the size from which a file is worth resuming."""
STEP = 1 << 20
"""Where a file goes on is a multiple of so many bytes, as disks and the parts of an upload want it."""
JOURNAL_S = 1.0
"""A run writes down how far it is no more often than this."""


@dataclass
class Journal:
    """What the next attempt needs: under which attempt's key the bytes lie, what the storage said (`token`), and
    checkpoints (offset in bytes, SHA-256 of all before it), ascending."""

    attempt: int
    token: str = ""
    checkpoints: list[tuple[int, str]] = field(default_factory=list)

    def text(self) -> str:
        """As it stands in the ledger."""
        return json.dumps({"attempt": self.attempt, "token": self.token, "checkpoints": self.checkpoints})

    @classmethod
    def parse(cls, text: str | None) -> Self | None:
        """What `text()` wrote; None for nothing, or for what cannot be read: then the file is sent from its beginning."""
        if not text:
            return None
        try:
            found = json.loads(text)
            return cls(int(found["attempt"]), str(found["token"]), [(int(o), str(h)) for o, h in found["checkpoints"]])
        except (ValueError, TypeError, KeyError):
            return None


def last_checkpoint(checkpoints: Sequence[tuple[int, str]], offset: int, step: int = 1) -> tuple[int, str]:
    """The last checkpoint at or before `offset` that is a multiple of `step`; (0, "") if there is none."""
    return max(((o, h) for o, h in checkpoints if o <= offset and o % step == 0), default=(0, ""))

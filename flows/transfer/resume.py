"""Going on in the middle of a large file: the journal that a row keeps, and where to go on.

A pure room: values in, values out. The bytes are moved in `move.py`; what a storage keeps of an upload is its own matter.

The SHA-256 of record covers the whole file, so whoever goes on in the middle must hash the beginning again: from the
source where that is near, else from what the destination holds, held against a checkpoint taken as it was sent.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

CHECKPOINT = 16 << 20
"""Bytes between checkpoints, and the size from which a file is worth resuming."""
STEP = 1 << 20
"""Where a file goes on is a multiple of so many bytes, as disks and the parts of an upload want it."""
JOURNAL_S = 1.0
"""A run writes down how far it is no more often than this."""


class Committed(NamedTuple):
    """A file that has its final name, and has not been proven there: the name, the SHA-256 of what was read, and which
    version it was when it was seen there, if it was."""

    path: str
    sha256: str
    version: tuple[int, int, str] | None = None


@dataclass
class Journal:
    """What the next attempt needs: under which attempt's key the bytes lie, what the storage said (`token`), and
    checkpoints (offset in bytes, SHA-256 of all before it), ascending. Or, once it is `committed`, what is to be proven."""

    attempt: int
    token: str = ""
    checkpoints: list[tuple[int, str]] = field(default_factory=list)
    committed: Committed | None = None

    def text(self) -> str:
        """As it stands in the ledger."""
        said = {"attempt": self.attempt, "token": self.token, "checkpoints": self.checkpoints}
        return json.dumps(said if self.committed is None else {**said, "committed": self.committed})

    @classmethod
    def parse(cls, text: str | None) -> Self | None:
        """What `text()` wrote; None for nothing, or for what cannot be read: then the file is sent from its beginning."""
        if not text:
            return None
        try:
            found = json.loads(text)
            committed = None
            if "committed" in found:
                path, sha256, seen = found["committed"]
                version = None if seen is None else (int(seen[0]), int(seen[1]), str(seen[2]))
                committed = Committed(str(path), str(sha256), version)
            checkpoints = [(int(o), str(h)) for o, h in found["checkpoints"]]
            return cls(int(found["attempt"]), str(found["token"]), checkpoints, committed)
        except (ValueError, TypeError, KeyError, IndexError):
            return None


def last_checkpoint(checkpoints: Sequence[tuple[int, str]], offset: int, step: int = 1) -> tuple[int, str]:
    """The last checkpoint at or before `offset` that is a multiple of `step`; (0, "") if there is none."""
    return max(((o, h) for o, h in checkpoints if o <= offset and o % step == 0), default=(0, ""))

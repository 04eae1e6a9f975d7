"""What listings of cameras have in common: no folders of their own, names that cannot be used, numbers as text."""

from __future__ import annotations

import os
from collections.abc import Callable
from urllib.parse import quote

from blocks.errors import OnblockError
from blocks.storage.base import FileInfo


class Folders:
    """The folders of a listing that has none: `passes(path)` asks `enter` once for each that a path lies in."""

    def __init__(self, below: str, enter: Callable[[str], bool]):
        self._below, self._enter = f"{below}/" if below else "", enter
        self._known: dict[str, bool] = {"": True, below: True}

    def passes(self, path: str) -> bool:
        """Whether a file is asked for."""
        return path.startswith(self._below) and self._enters(path.rpartition("/")[0])

    def _enters(self, folder: str) -> bool:
        todo = []
        while folder not in self._known:
            todo.append(folder)
            folder = folder.rpartition("/")[0]
        known = self._known[folder]
        for one in reversed(todo):
            known = self._known[one] = known and self._enter(one)
        return known


def unusable(said: str, why: OnblockError) -> FileInfo:
    """Something in a listing that cannot be taken, under a name that can be written down."""
    label = quote(os.fsencode(said.encode("utf-8", "surrogatepass")), safe=" ")[:200] or "nameless"
    return FileInfo(f"{label}" if label.strip(".") else "%2E" * len(label), 0, 0, "", why)


def whole_number(value: object) -> int | None:
    """A size or time of a listing, given as a number or as digits; None for anything else."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str) and value.isascii() and value.isdigit() and len(value) <= 18:
        return int(value)
    return value if isinstance(value, int) and 0 <= value < 1 << 60 else None

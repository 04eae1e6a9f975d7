"""A folder and a session of local storage there; other storages have fixtures of their own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from blocks.storage import LocalStorage
from blocks.storage.local import LocalSession


@pytest.fixture
def root(tmp_path: Path) -> Path:
    folder = tmp_path / "root"
    folder.mkdir()
    return folder


@pytest.fixture
def session(root: Path) -> Iterator[LocalSession]:
    with LocalStorage(root=str(root)).open() as one:
        yield one

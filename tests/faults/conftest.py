"""What all of these tests need: a process that forks `onblock` fast."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.faults.forker import Forker


@pytest.fixture(scope="module")
def forker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forker]:
    with Forker(tmp_path_factory.mktemp("forker")) as forker:
        yield forker

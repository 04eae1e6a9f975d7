"""Fixtures of the contract suite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blocks.storage.base import Session
from tests.contract import hdfs_place as _hdfs_place  # noqa: F401  registers its places
from tests.contract import s3_place as _s3_place  # noqa: F401
from tests.contract.places import PLACES, SAMPLES, Place


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Each storage in turn, empty."""
    with contextmanager(PLACES[request.param])(request) as one:
        yield one


@pytest.fixture
def session(place: Place) -> Iterator[Session]:
    with place.storage.open() as one:
        yield one


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of `SAMPLES`, one of each test's parameters: the one in the middle."""
    groups: dict[tuple[str, str], list[pytest.Item]] = {}
    for item in items:
        name = getattr(item, "callspec", None) and item.callspec.params.get("place")  # type: ignore[attr-defined]
        if name in SAMPLES and item.path.parent == Path(__file__).parent:
            groups.setdefault((name, getattr(item, "originalname", "")), []).append(item)
    left_out = [
        item for (name, test), group in groups.items() for number, item in enumerate(group)
        if test not in SAMPLES[name] or number != len(group) // 2
    ]  # fmt: skip
    items[:] = [item for item in items if item not in set(left_out)]
    config.hook.pytest_deselected(items=left_out)

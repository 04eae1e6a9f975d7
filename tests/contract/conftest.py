"""Fixtures of the contract suite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from blocks.storage.base import Session
from tests.contract import device_places as _device_places  # noqa: F401  registers its places
from tests.contract import hdfs_place as _hdfs_place  # noqa: F401
from tests.contract import s3_place as _s3_place  # noqa: F401
from tests.contract.data import KIB, MIB, aligned_chunks
from tests.contract.places import PLACES, READ_ONLY, SAMPLES, Place


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Each storage in turn, empty."""
    with contextmanager(PLACES[request.param])(request) as one:
        yield one


@pytest.fixture
def session(place: Place) -> Iterator[Session]:
    with place.storage.open() as one:
        yield one


READING = {"test_hostile_names_side_by_side", "test_an_illegal_name_is_refused_by_every_method"}
"""What else is asked of a place that is only read, beside test_reading.py."""


LOCAL_ONLY: dict[str, set[object]] = {
    "size": {1, 4095, 4096, 256 * KIB - 1, 256 * KIB, 8 * MIB - 1, 8 * MIB},
    "cut": {aligned_chunks}, "step": {511, 4095, 4097}, "announced": {100}, "done": {1, 4095, 9 * MIB}, "to": {1, 8 * MIB},
    "offset": {1, 4095, 4096}, "length": {7, 4096}, "count": {2, 8, 9},
}  # fmt: skip
"""Parameters that differ where a storage has pages of a disk to think of, and are the same to any other."""


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of `READ_ONLY`, what only reads. Of `SAMPLES`, one of each test's parameters: the one in the middle. Of what is no
    local folder, not what is only for those."""
    groups: dict[tuple[str, str], list[pytest.Item]] = {}
    for item in items:
        name = getattr(item, "callspec", None) and item.callspec.params.get("place")  # type: ignore[attr-defined]
        if name in SAMPLES and item.path.parent == Path(__file__).parent:
            groups.setdefault((name, getattr(item, "originalname", "")), []).append(item)
    left_out = [
        item for item in items
        if (callspec := getattr(item, "callspec", None)) and callspec.params.get("place") in READ_ONLY
        and item.path.stem != "test_reading" and getattr(item, "originalname", "") not in READING
    ]  # fmt: skip
    left_out += [
        item for item in items
        if item.path.parent == Path(__file__).parent and (callspec := getattr(item, "callspec", None))
        and not str(callspec.params.get("place", "local")).startswith("local") and callspec.params["place"] not in SAMPLES
        and any(value in LOCAL_ONLY[name] for name, value in callspec.params.items() if name in LOCAL_ONLY)
        and "position" not in callspec.params
    ]  # fmt: skip
    left_out += [
        item for (name, test), group in groups.items() for number, item in enumerate(group)
        if test not in SAMPLES[name] or number != len(group) // 2
    ]  # fmt: skip
    gone = set(left_out)
    items[:] = [item for item in items if item not in gone]
    config.hook.pytest_deselected(items=left_out)

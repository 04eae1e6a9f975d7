"""Fixtures of the contract suite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from blocks.storage.base import Session
from tests.contract import hdfs_place as _hdfs_place  # noqa: F401  registers its places
from tests.contract import s3_place as _s3_place  # noqa: F401
from tests.contract import s3_place as _s3_place  # noqa: F401
from tests.contract.places import PLACES, Place


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    """Each storage in turn, empty."""
    with contextmanager(PLACES[request.param])(request) as one:
        yield one


@pytest.fixture
def session(place: Place) -> Iterator[Session]:
    with place.storage.open() as one:
        yield one

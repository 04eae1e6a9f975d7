"""Fixtures of the contract suite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from blocks.storage.base import Session
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

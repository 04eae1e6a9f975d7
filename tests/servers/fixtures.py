"""Fixtures with a server behind them: a pytest plugin, loaded by `tests/conftest.py`. Servers live for the session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.servers.faultproxy import FaultProxy


@pytest.fixture
def fault_proxy() -> Iterator[Callable[[int], FaultProxy]]:
    """`fault_proxy(port)` is a FaultProxy before a server on that port, up until the test ends."""
    with ExitStack() as stack:
        yield lambda port: stack.enter_context(FaultProxy(port))

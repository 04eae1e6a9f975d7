"""Fixtures with HDFS behind them: a pytest plugin, loaded by `tests/conftest.py`. Clusters live for the session."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.servers import hdfs, kdc
from tests.servers.hdfs import Hdfs
from tests.servers.kdc import Kdc


def _cluster(realm: Kdc | None = None) -> Iterator[Hdfs]:
    if not hdfs.installed():
        pytest.skip("Hadoop is not installed: python -m tests.servers.install")
    with TemporaryDirectory(prefix="onblock-hdfs-") as folder, Hdfs(Path(folder, "cluster"), realm) as server:
        yield server


@pytest.fixture(scope="session")
def hdfs_cluster() -> Iterator[Hdfs]:
    """One HDFS that believes whatever user name it is told."""
    yield from _cluster()


@pytest.fixture
def mortal_hdfs() -> Iterator[Hdfs]:
    """One of the test's own, to be killed and started again."""
    yield from _cluster()


@pytest.fixture(scope="session")
def realm() -> Iterator[Kdc]:
    """One Kerberos realm."""
    if not kdc.installed():
        pytest.skip("the KDC is not installed: python -m tests.servers.install")
    with ExitStack() as stack:
        folder = stack.enter_context(TemporaryDirectory(prefix="onblock-kdc-"))
        yield stack.enter_context(Kdc(Path(folder, "kdc")))


@pytest.fixture(scope="session")
def kerberos_hdfs(realm: Kdc) -> Iterator[Hdfs]:
    """One HDFS that wants a ticket."""
    yield from _cluster(realm)

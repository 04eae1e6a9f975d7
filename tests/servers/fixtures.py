"""Fixtures with a server behind them: a pytest plugin, loaded by `tests/conftest.py`. Servers live for the session."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.servers import sshd as openssh
from tests.servers.faultproxy import FaultProxy
from tests.servers.s3 import OldMinIO, SeaweedFS
from tests.servers.sshd import Sshd


@pytest.fixture
def fault_proxy() -> Iterator[Callable[[int], FaultProxy]]:
    """`fault_proxy(port)` is a FaultProxy before a server on that port, up until the test ends."""
    with ExitStack() as stack:
        yield lambda port: stack.enter_context(FaultProxy(port))


def _sshd(**options: str) -> Iterator[Sshd]:
    if not openssh.installed():
        pytest.skip("sshd is not installed: python -m tests.servers.install")
    with TemporaryDirectory(prefix="onblock-sshd-") as folder:
        Path(folder).chmod(0o755)  # its accounts must reach it
        with Sshd(Path(folder, "server"), **options) as server:
            yield server


@pytest.fixture(scope="session")
def sshd() -> Iterator[Sshd]:
    """One OpenSSH server with all its accounts."""
    yield from _sshd()


@pytest.fixture(scope="session")
def sshd_without_sftp() -> Iterator[Sshd]:
    """One that has a shell and `scp`, and no SFTP."""
    yield from _sshd(sftp="no")


@pytest.fixture(scope="session")
def sshd_small() -> Iterator[Sshd]:
    """One with a file system of 2 MiB at `info["small"]`."""
    yield from _sshd(small="2m")


@pytest.fixture
def mortal_sshd() -> Iterator[Sshd]:
    """One of the test's own, to be killed and started again."""
    yield from _sshd()


@pytest.fixture(scope="session")
def seaweedfs() -> Iterator[SeaweedFS]:
    """One SeaweedFS: S3 with checksums and conditional writes."""
    with TemporaryDirectory(prefix="onblock-s3-") as folder, SeaweedFS(Path(folder, "server")) as server:
        yield server


@pytest.fixture(scope="session")
def old_minio() -> Iterator[OldMinIO]:
    """One MinIO of 2021: S3 without either."""
    with TemporaryDirectory(prefix="onblock-minio-") as folder, OldMinIO(Path(folder, "server")) as server:
        yield server
